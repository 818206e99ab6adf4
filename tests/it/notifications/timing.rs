//! What time does: items expire and grow old, others wait for their hour.
//!
//! Hours and minutes do not pass here: what is due is moved in the database, after a look at when it was to be due.

use chrono::{DateTime, Duration, Timelike as _, Utc};
use chrono_tz::Asia::Kathmandu;
use serde_json::{Value, json};

use super::{Database, list, note, now_ms, prefer, send, sent, shown, titles, told, with};
use crate::gateway::Gateway;
use crate::socket::Socket;
use crate::support::eventually;

const DUE: &str = "SELECT due_at FROM archmesh_deliveries WHERE status = 'pending' ORDER BY id";
/// Everything that waits has waited long enough.
const MAKE_DUE: &str = "UPDATE archmesh_deliveries SET due_at = 1 WHERE status = 'pending'";
const DAY_MS: u64 = 86_400_000;

fn stands(gateway: &Gateway, user: &str) -> (Value, Value) {
    let page = list(gateway, user, json!({"limit": 0}));
    (page["unread"].clone(), page["unseen"].clone())
}

pub fn an_expired_item_is_hidden_at_once_and_removed_later(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    let stays = sent(&gateway, note("ada", "stays"));
    let expires_at = now_ms() + 1_500;
    let goes = sent(&gateway, with(note("ada", "goes"), json!({"expires_at": expires_at})));
    assert_eq!(shown(&mut ada, &goes)["expires_at"], expires_at);
    assert_eq!(titles(&list(&gateway, "ada", json!({}))), ["goes", "stays"]);
    let at = eventually("the item is hidden", || {
        let page = list(&gateway, "ada", json!({}));
        (titles(&page) == ["stays"]).then(now_ms)
    });
    assert!((expires_at..expires_at + 1_000).contains(&at), "hidden {at}, not {expires_at}");
    assert_eq!(titles(&ada.call("notifications", json!({}))["data"]), ["stays"]);
    // Whoever comes now is not told of it either.
    let mut late = Socket::connect(&gateway, "ada");
    shown(&mut late, &stays);
    late.wait_for("the numbers of the inbox", |message| message["type"] == "notification_update");
    assert!(late.drain("notification").is_empty());
    let removed = told(&mut ada, "removed");
    assert_eq!((&removed["ids"], &removed["unread"]), (&json!([goes]), &json!(1)), "{removed}");
    assert_eq!(stands(&gateway, "ada"), (json!(1), json!(1)));
    assert_eq!(database.number("SELECT count(*) FROM archmesh_inbox"), 1);
    database.check_counters();
}

pub fn old_items_leave(database: &Database) {
    let gateway = database.setup().set("notifications.retention", "1d").start();
    for title in ["read", "unread", "archived", "new"] {
        sent(&gateway, note("ada", title));
    }
    let ids: Vec<String> = list(&gateway, "ada", json!({}))["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["notification_id"].as_str().unwrap().to_owned())
        .collect();
    let mark = |state: &str, id: &str| {
        gateway
            .result("v1/notifications/mark", &json!({"user": "ada", "state": state, "ids": [id]}));
    };
    mark("archived", &ids[1]);
    mark("read", &ids[3]);
    database.await_published();
    drop(gateway);
    let old = now_ms() - DAY_MS - 1_000;
    database.query(&format!("UPDATE archmesh_inbox SET created_at = {old} WHERE seq <= 3"));
    database.query(&format!(
        "UPDATE archmesh_notifications SET created_at = {old} WHERE id IN ('{}', '{}', '{}')",
        ids[1], ids[2], ids[3]
    ));
    // A gateway looks at its start.
    let gateway = database.setup().set("notifications.retention", "1d").start();
    eventually("old items are gone", || {
        (database.number("SELECT count(*) FROM archmesh_inbox") == 1).then_some(())
    });
    assert_eq!(titles(&list(&gateway, "ada", json!({}))), ["new"]);
    assert_eq!(stands(&gateway, "ada"), (json!(1), json!(1)));
    assert_eq!(list(&gateway, "ada", json!({"archived": true}))["items"], json!([]));
    database.check_counters();
    eventually("notifications that nobody has are gone", || {
        (database.number("SELECT count(*) FROM archmesh_notifications") == 1).then_some(())
    });
}

pub fn a_scheduled_one_waits(database: &Database) {
    let gateway = database.setup().set("database.poll_interval", "50ms").start();
    let mut ada = Socket::connect(&gateway, "ada");
    let deliver_at = now_ms() + 1_000;
    let body = with(note("ada", "later"), json!({"deliver_at": deliver_at}));
    let answer = send(&gateway, body);
    assert_eq!((&answer["held"], &answer["delivered"]), (&json!(1), &json!(0)), "{answer}");
    assert_eq!(stands(&gateway, "ada"), (json!(0), json!(0)));
    let now = sent(&gateway, note("ada", "now"));
    shown(&mut ada, &now);
    let item = shown(&mut ada, answer["notification_id"].as_str().unwrap());
    let at = now_ms();
    assert!((deliver_at..deliver_at + 1_000).contains(&at), "shown {at}, not {deliver_at}");
    assert_eq!((&item["title"], &item["seq"]), (&json!("later"), &json!(2)));
    assert_eq!(titles(&list(&gateway, "ada", json!({}))), ["later", "now"]);
    // One whose time has come already is shown at once.
    let past = with(note("ada", "past"), json!({"deliver_at": now_ms() - 5}));
    assert_eq!(send(&gateway, past)["delivered"], 1);
    // One that waits is there after a restart.
    let far = with(note("ada", "far"), json!({"deliver_at": now_ms() + DAY_MS}));
    let far = sent(&gateway, far);
    drop(gateway);
    database.query(MAKE_DUE);
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    shown(&mut ada, &far);
    database.check_counters();
}

/// Quiet hours from an hour ago to an hour from now, to the minute, in a zone that is not a whole hour from UTC; and when
/// they end.
fn quiet_now() -> (Value, i64) {
    let now = DateTime::from_timestamp_millis(now_ms().cast_signed()).unwrap();
    let clock = |at: DateTime<Utc>| {
        let local = at.with_timezone(&Kathmandu);
        format!("{:02}:{:02}", local.hour(), local.minute())
    };
    let (from, to) = (now - Duration::hours(1), now + Duration::hours(1));
    let end = to.with_second(0).and_then(|to| to.with_nanosecond(0)).unwrap().timestamp_millis();
    let zone = Kathmandu.name();
    (json!({"quiet_hours": {"from": clock(from), "to": clock(to), "time_zone": zone}}), end)
}

pub fn quiet_hours_hold_and_release(database: &Database) {
    let gateway = database.setup().set("database.poll_interval", "50ms").start();
    let mut ada = Socket::connect(&gateway, "ada");
    let (patch, end) = quiet_now();
    prefer(&gateway, "ada", patch);
    let body = json!({"users": ["ada", "bob"], "title": "t", "message": "m", "category": "system"});
    let held = send(&gateway, body);
    assert_eq!((&held["held"], &held["delivered"]), (&json!(1), &json!(1)), "{held}");
    assert_eq!(database.number(DUE), end);
    let urgent = with(note("ada", "urgent"), json!({"priority": "critical"}));
    let urgent = sent(&gateway, urgent);
    shown(&mut ada, &urgent);
    assert_eq!(titles(&list(&gateway, "ada", json!({}))), ["urgent"]);
    assert_eq!(titles(&list(&gateway, "bob", json!({}))), ["t"]);
    assert!(ada.settled("notification").is_empty());
    // A repeated request does not hold it twice.
    let keyed = with(note("ada", "keyed"), json!({"idempotency_key": "k"}));
    for duplicate in [false, true] {
        assert_eq!(send(&gateway, keyed.clone())["duplicate"], duplicate);
    }
    database.query(MAKE_DUE);
    let item = shown(&mut ada, held["notification_id"].as_str().unwrap());
    assert_eq!(item["title"], "t");
    eventually("nothing waits", || database.query(DUE).is_empty().then_some(()));
    let page = list(&gateway, "ada", json!({}));
    assert_eq!((titles(&page).len(), &page["unread"]), (3, &json!(3)), "{page}");
    prefer(&gateway, "ada", json!({"quiet_hours": {"enabled": false}}));
    assert_eq!(send(&gateway, note("ada", "day"))["delivered"], 1);
    database.check_counters();
}

pub fn what_expired_while_it_waited_is_not_shown(database: &Database) {
    let gateway = database.setup().set("database.poll_interval", "50ms").start();
    let mut ada = Socket::connect(&gateway, "ada");
    let short =
        |user: &str, title: &str| with(note(user, title), json!({"expires_at": now_ms() + 500}));
    prefer(&gateway, "ada", quiet_now().0);
    let digest = json!({"in_app": {"every": "window", "minutes": 30}});
    prefer(&gateway, "bob", json!({"digest": digest}));
    assert_eq!(send(&gateway, short("ada", "held"))["held"], 1);
    assert_eq!(send(&gateway, short("bob", "one"))["held"], 1);
    assert_eq!(send(&gateway, note("bob", "two"))["held"], 1);
    let begun = now_ms();
    eventually("they have expired", || (now_ms() > begun + 500).then_some(()));
    database.query(MAKE_DUE);
    eventually("nothing waits", || database.query(DUE).is_empty().then_some(()));
    database.await_published();
    assert!(ada.settled("notification").is_empty());
    assert_eq!(stands(&gateway, "ada"), (json!(0), json!(0)));
    assert_eq!(titles(&list(&gateway, "bob", json!({}))), ["two"], "no digest of one");
    database.check_counters();
}

pub fn a_digest_is_one_notification(database: &Database) {
    let gateway = database.setup().set("database.poll_interval", "50ms").start();
    let mut ada = Socket::connect(&gateway, "ada");
    let window = json!({"every": "window", "minutes": 30, "categories": ["user_action"]});
    prefer(&gateway, "ada", json!({"digest": {"in_app": window}}));
    let before = now_ms();
    for title in ["one", "two", "three"] {
        assert_eq!(send(&gateway, note("ada", title))["held"], 1);
    }
    let other = with(note("ada", "other"), json!({"category": "system"}));
    let other = sent(&gateway, other);
    shown(&mut ada, &other);
    let mut due: Vec<u64> = database.query(DUE).iter().map(|row| row[0].parse().unwrap()).collect();
    due.dedup();
    let [due] = due[..] else { panic!("all go out with the first: {due:?}") };
    assert!((before + 1_800_000..now_ms() + 1_800_000).contains(&due), "{due}");
    database.query(MAKE_DUE);
    let digest = ada.wait_for("the digest", |message| message["data"]["metadata"]["count"] == 3);
    assert_eq!(digest["data"]["title"], "three (+2)");
    assert_eq!(digest["data"]["message"], "three\ntwo\none");
    assert_eq!(digest["data"]["category"], "user_action");
    let page = list(&gateway, "ada", json!({}));
    assert_eq!((titles(&page), &page["unread"]), (vec!["three (+2)", "other"], &json!(2)));
    // A single one is shown as it is, and a new window begins.
    let single = sent(&gateway, note("ada", "single"));
    database.query(MAKE_DUE);
    assert_eq!(shown(&mut ada, &single)["title"], "single");
    assert!(database.query(DUE).is_empty());
    database.check_counters();
}
