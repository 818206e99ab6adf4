//! Who gets a notification, how often, and what is refused.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Database, list, note, send, sent, shown, titles, told, with};
use crate::gateway::Gateway;
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::eventually;

/// Requests with one key at one time.
const AT_ONCE: usize = 8;

pub fn one_user_gets_it_and_nobody_else(database: &Database) {
    let gateway = database.setup().start();
    let mut phone = Socket::connect(&gateway, "ada");
    let mut desk = Socket::connect(&gateway, "ada");
    let mut bob = Socket::connect(&gateway, "bob");
    let more = json!({
        "priority": "high", "category": "workflow_failed", "metadata": {"run": 7, "steps": [1.50, null]},
        "action": {"label": "Open", "url": "/runs/7"},
    });
    let answer = send(&gateway, with(note("ada", "failed"), more));
    assert_eq!(
        (&answer["delivered"], &answer["duplicate"]),
        (&json!(1), &json!(false)),
        "{answer}"
    );
    let id = answer["notification_id"].as_str().unwrap();
    for socket in [&mut phone, &mut desk] {
        let item = shown(socket, id);
        assert_eq!((&item["title"], &item["message"]), (&json!("failed"), &json!("text")));
        assert_eq!((&item["user_id"], &item["priority"]), (&json!("ada"), &json!("high")));
        assert_eq!(item["category"], "workflow_failed");
        assert_eq!(item["metadata"], json!({"run": 7, "steps": [1.50, null]}));
        assert_eq!(item["action"], json!({"label": "Open", "url": "/runs/7"}));
        assert_eq!(
            (&item["seq"], &item["unread"], &item["unseen"]),
            (&json!(1), &json!(1), &json!(1))
        );
    }
    assert!(bob.settled("notification").is_empty());
    let page = list(&gateway, "ada", json!({}));
    assert_eq!((titles(&page), &page["unread"]), (vec!["failed"], &json!(1)), "{page}");
    assert_eq!(page["items"][0]["metadata"], json!({"run": 7, "steps": [1.50, null]}));
    assert_eq!(list(&gateway, "bob", json!({}))["items"], json!([]));
    database.check_counters();
}

/// As much as is allowed, of what takes the most room on the wire.
pub fn the_largest_one_reaches_the_devices(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    let text = "\u{1}".repeat(16 * 1024 - 1);
    let metadata = json!({"x": "y".repeat(32 * 1024 - 8)});
    let body = with(note("ada", "t"), json!({"message": text, "metadata": metadata}));
    let id = sent(&gateway, body);
    database.await_published();
    let failed = database.query("SELECT error FROM archmesh_outbox");
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(shown(&mut ada, &id)["message"], text);
    assert_eq!(list(&gateway, "ada", json!({}))["items"][0]["message"], text);
}

pub fn many_users_get_it(database: &Database) {
    let gateway = database.setup().start();
    let users: Vec<String> = (0..20).map(|n| format!("u{n}")).collect();
    let mut sockets: Vec<Socket> =
        users.iter().map(|user| Socket::connect(&gateway, user)).collect();
    let named = [&users[..], &users[..3]].concat();
    let body = json!({"users": named, "title": "t", "message": "m", "category": "system_alert"});
    let answer = send(&gateway, body);
    assert_eq!(answer["delivered"], 20, "each user once: {answer}");
    for (socket, user) in sockets.iter_mut().zip(&users) {
        let item = shown(socket, answer["notification_id"].as_str().unwrap());
        assert_eq!((&item["user_id"], &item["unread"]), (&json!(user), &json!(1)));
    }
    assert_eq!(database.number("SELECT count(*) FROM archmesh_notifications"), 1);
    assert_eq!(database.number("SELECT count(*) FROM archmesh_inbox"), 20);
    database.check_counters();
    database.await_published();
}

pub fn a_batch_answers_one_by_one(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    let bad = with(note("ada", "no"), json!({"category": "No Category"}));
    let body =
        json!({"notifications": [note("ada", "a"), bad, note("bob", "b"), note("ada", "c")]});
    let responses = gateway.result("v1/notifications/batch", &body)["responses"].clone();
    assert_eq!(responses.as_array().unwrap().len(), 4, "{responses}");
    let error = responses[1]["error"].to_string();
    assert!(error.contains("107") && error.contains("category"), "{error}");
    for (index, title) in [(0, "a"), (3, "c")] {
        let id = responses[index]["result"]["notification_id"].as_str().expect("it was taken");
        assert_eq!(shown(&mut ada, id)["title"], title);
    }
    assert_eq!(titles(&list(&gateway, "bob", json!({}))), ["b"]);
    assert_eq!(list(&gateway, "ada", json!({}))["unread"], 2);
    let empty = gateway.api("v1/notifications/batch", &json!({"notifications": []}));
    assert_eq!(empty["error"]["code"], 107, "{empty}");
    database.check_counters();
}

pub fn everybody_online_gets_it(database: &Database) {
    let gateway = database.setup().start();
    let mut sockets: Vec<Socket> =
        ["ada", "ada", "bob"].iter().map(|user| Socket::connect(&gateway, user)).collect();
    Socket::connect(&gateway, "gone").close();
    eventually("the one who left is offline", || (gateway.connections().len() == 3).then_some(()));
    let body =
        json!({"audience": "online", "title": "t", "message": "m", "category": "system_alert"});
    let answer = send(&gateway, body);
    assert_eq!(answer["delivered"], 2, "{answer}");
    for socket in &mut sockets {
        shown(socket, answer["notification_id"].as_str().unwrap());
    }
    assert_eq!(list(&gateway, "gone", json!({}))["unread"], 0);
    database.check_counters();
}

pub fn a_repeated_key_sends_once(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    let keyed = |title| with(note("ada", title), json!({"idempotency_key": "k"}));
    let first = send(&gateway, keyed("first"));
    let again = send(&gateway, keyed("again"));
    assert_eq!(again["notification_id"], first["notification_id"]);
    assert_eq!((&first["duplicate"], &again["duplicate"]), (&json!(false), &json!(true)));
    let batch = json!({"notifications": [keyed("third"), note("ada", "other"), keyed("fourth")]});
    let responses = gateway.result("v1/notifications/batch", &batch)["responses"].clone();
    for index in [0, 2] {
        assert_eq!(responses[index]["result"]["notification_id"], first["notification_id"]);
        assert_eq!(responses[index]["result"]["duplicate"], true);
    }
    let other = responses[1]["result"]["notification_id"].as_str().unwrap();
    shown(&mut ada, other);
    assert_eq!(titles(&list(&gateway, "ada", json!({}))), ["other", "first"]);
    assert_eq!(gateway.metric("archmesh_notifications_total", &[]), 2.0);
    database.check_counters();
}

fn send_at_once(database: &Database, gateways: &[&Gateway]) {
    let keyed = with(note("ada", "once"), json!({"idempotency_key": "k"}));
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let requests: Vec<_> = (0..AT_ONCE)
            .map(|n| {
                let (gateway, body) = (gateways[n % gateways.len()], keyed.clone());
                scope.spawn(move || send(gateway, body))
            })
            .collect();
        requests.into_iter().map(|request| request.join().unwrap()).collect()
    });
    let ids: BTreeSet<&str> =
        answers.iter().map(|answer| answer["notification_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1, "{answers:?}");
    let first = answers.iter().filter(|answer| answer["duplicate"] == false).count();
    assert_eq!(first, 1, "{answers:?}");
    for gateway in gateways {
        let page = list(gateway, "ada", json!({}));
        assert_eq!((titles(&page), &page["unread"]), (vec!["once"], &json!(1)), "{page}");
    }
    assert_eq!(database.number("SELECT count(*) FROM archmesh_notifications"), 1);
    database.check_counters();
}

pub fn a_repeated_key_sends_once_also_at_the_same_time(database: &Database) {
    send_at_once(database, &[&database.setup().start()]);
}

#[test]
fn a_repeated_key_sends_once_also_to_two_gateways() {
    let database = Database::postgres();
    let redis = Redis::start(&[]);
    let node = || database.setup().set("redis.url", redis.url()).start();
    let (one, two) = (node(), node());
    let mut sockets = [Socket::connect(&one, "ada"), Socket::connect(&two, "ada")];
    send_at_once(&database, &[&one, &two]);
    for socket in &mut sockets {
        assert_eq!(socket.take("notification")["data"]["title"], "once");
    }
    database.await_published();
}

/// Each has a file of its own, so rows of both outboxes have the same numbers.
#[test]
fn two_gateways_with_files_of_their_own_do_not_swallow_each_others() {
    let redis = Redis::start(&[]);
    let files = [Database::sqlite(), Database::sqlite()];
    let nodes = files.each_ref().map(|file| file.setup().set("redis.url", redis.url()).start());
    let mut socket = Socket::connect(&nodes[0], "ada");
    for node in &nodes {
        let id = sent(node, note("ada", "t"));
        shown(&mut socket, &id);
    }
}

pub fn a_collapse_key_keeps_the_newest(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    let about = |title| with(note("ada", title), json!({"collapse_key": "run:7"}));
    let first = sent(&gateway, about("10 %"));
    let second = sent(&gateway, about("20 %"));
    sent(&gateway, with(note("bob", "bob's"), json!({"collapse_key": "run:7"})));
    shown(&mut ada, &first);
    let removed = told(&mut ada, "removed");
    assert_eq!(removed["ids"], json!([first]), "{removed}");
    assert_eq!(shown(&mut ada, &second)["unread"], 1);
    assert_eq!(titles(&list(&gateway, "ada", json!({}))), ["20 %"]);
    assert_eq!(titles(&list(&gateway, "bob", json!({}))), ["bob's"]);
    // What was read stays.
    gateway
        .result("v1/notifications/mark", &json!({"user": "ada", "state": "read", "ids": [second]}));
    sent(&gateway, about("30 %"));
    let page = list(&gateway, "ada", json!({}));
    assert_eq!((titles(&page), &page["unread"]), (vec!["30 %", "20 %"], &json!(1)), "{page}");
    let batch = json!({"notifications": [about("40 %"), about("50 %"), about("60 %")]});
    gateway.result("v1/notifications/batch", &batch);
    let page = list(&gateway, "ada", json!({}));
    assert_eq!(page["unread"], 1, "{page}");
    assert_eq!(titles(&page).len(), 2, "{page}");
    database.check_counters();
}

pub fn bad_requests_are_told_and_named(database: &Database) {
    let gateway = database.setup().set("notifications.recipients_max", 3).start();
    let cases = [
        (json!({"title": ""}), "title"),
        (json!({"title": null}), "title"),
        (json!({"message": "x".repeat(20_000)}), "message"),
        (json!({"title": "a\u{0}b"}), "U+0000"),
        (json!({"category": "A b"}), "category"),
        (json!({"priority": "urgent"}), "priority"),
        (json!({"user": "a b"}), "user"),
        (json!({"user": ""}), "user"),
        (json!({"user": null}), "user"),
        (json!({"users": ["a", "b", "c"]}), "recipients_max"),
        (json!({"audience": "online"}), "audience"),
        (json!({"audience": "all"}), "all"),
        (json!({"metadata": [1]}), "metadata"),
        (json!({"metadata": {"x": "y".repeat(40_000)}}), "metadata"),
        (json!({"metadata": {"x": "a\u{0}b"}}), "metadata"),
        (json!({"action": {"label": "l", "url": "javascript:alert(1)"}}), "action.url"),
        (json!({"action": {"label": "l", "url": "//evil.example"}}), "action.url"),
        (json!({"action": {"label": "", "url": "/x"}}), "action.label"),
        (json!({"expires_at": 1}), "expires_at"),
        (json!({"deliver_at": super::now_ms() + 400 * 86_400_000}), "schedule_max"),
        (json!({"idempotency_key": ""}), "idempotency_key"),
        (json!({"collapse_key": "x".repeat(300)}), "collapse_key"),
        (json!({"tittle": "x"}), "tittle"),
    ];
    for (more, expected) in cases {
        let answer = gateway.api("v1/notifications", &with(note("ada", "t"), more.clone()));
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(answer["error"]["code"], 107, "{more}: {answer}");
        assert!(message.contains(expected), "{more}: {answer}");
    }
    let marks = [
        json!({"state": "read"}),
        json!({"state": "read", "ids": []}),
        json!({"state": "read", "ids": ["a"], "all": true}),
        json!({"state": "burnt", "all": true}),
        json!({"state": "read", "ids": [""]}),
        json!({"state": "read", "all": true, "up_to": -1}),
    ];
    for mark in marks {
        let body = with(json!({"user": "ada"}), mark);
        let answer = gateway.api("v1/notifications/mark", &body);
        assert_eq!(answer["error"]["code"], 107, "{body}: {answer}");
    }
    for page in [json!({"category": "A b"}), json!({"category": "a\u{0}b"}), json!({"limit": -1})] {
        let answer = gateway.api("v1/notifications/list", &with(json!({"user": "ada"}), page));
        assert_eq!(answer["error"]["code"], 107, "{answer}");
    }
    let mut ada = Socket::connect(&gateway, "ada");
    for (kind, data) in [
        ("notification_read", json!({})),
        ("notification_read", json!({"ids": ["a\u{0}b"]})),
        ("notifications", json!({"category": "a\u{0}b"})),
        ("notification_seen", json!({"ids": ["a"], "all": true})),
        ("notification_ack", json!({"ids": "a"})),
        ("notification_archive", json!({"ids": []})),
        ("notifications", json!({"limit": "many"})),
        ("preferences", json!({"patch": [1]})),
    ] {
        let error = ada.call(kind, data.clone());
        assert_eq!(error["data"]["error_code"], "INVALID_MESSAGE_FORMAT", "{kind} {data}: {error}");
    }
    assert_eq!(database.number("SELECT count(*) FROM archmesh_notifications"), 0);
    assert_eq!(database.number("SELECT count(*) FROM archmesh_outbox"), 0);
}
