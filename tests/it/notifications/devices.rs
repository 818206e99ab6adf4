//! What one device of a user does, the other devices and the backend learn, with the right numbers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Database, list, note, sent, shown, told, with};
use crate::gateway::Gateway;
use crate::socket::Socket;
use crate::support::{eventually, unix_now};

/// Operations of the random test.
const OPERATIONS: usize = 300;
/// Its users, each with two devices.
const USERS: usize = 4;

fn counters(of: &Value) -> (i64, i64, i64) {
    let number = |name: &str| of[name].as_i64().unwrap_or_else(|| panic!("{name}: {of}"));
    (number("unread"), number("unseen"), number("revision"))
}

pub fn marks_by_id_reach_the_other_device(database: &Database) {
    let gateway = database.setup().start();
    let mut phone = Socket::connect(&gateway, "ada");
    let mut desk = Socket::connect(&gateway, "ada");
    let ids: Vec<String> = (0..4).map(|n| sent(&gateway, note("ada", &format!("{n}")))).collect();
    for id in &ids {
        shown(&mut phone, id);
        shown(&mut desk, id);
    }
    let expected = [
        ("notification_ack", "acked", (4, 4)),
        ("notification_seen", "seen", (4, 3)),
        ("notification_read", "read", (3, 2)),
        ("notification_archive", "archived", (2, 1)),
    ];
    for ((kind, state, left), id) in expected.into_iter().zip(&ids) {
        let reply = phone.call(kind, json!({"ids": [id]}));
        assert_eq!(reply["type"], "notification_update", "{reply}");
        let update = told(&mut desk, state);
        assert_eq!(update["ids"], json!([id]), "{update}");
        assert_eq!(counters(&reply["data"]), counters(&update));
        assert_eq!((counters(&update).0, counters(&update).1), left, "{state}");
        let stands = list(&gateway, "ada", json!({"limit": 0}));
        assert_eq!(counters(&stands), counters(&update));
    }
    let page = list(&gateway, "ada", json!({}));
    let items = page["items"].as_array().unwrap();
    assert_eq!(items.len(), 3, "the archived one is put away: {page}");
    let has = |item: &Value| ["acked_at", "seen_at", "read_at"].map(|name| item[name].is_u64());
    let found: Vec<_> = items.iter().rev().map(has).collect();
    assert_eq!(found, [[true, false, false], [true, true, false], [true, true, true]]);
    let archived = list(&gateway, "ada", json!({"archived": true}));
    assert_eq!(archived["items"][0]["notification_id"], ids[3]);
    // The backend's marks reach the devices as well.
    let mark = json!({"user": "ada", "state": "read", "ids": [ids[0], ids[2]]});
    let answer = gateway.result("v1/notifications/mark", &mark);
    assert_eq!((&answer["changed"], &answer["unread"]), (&json!(1), &json!(1)), "{answer}");
    desk.wait_for("the backend's mark", |message| {
        message["data"]["state"] == "read" && message["data"]["revision"] == answer["revision"]
    });
    database.check_counters();
}

pub fn marks_of_all_stop_where_they_should(database: &Database) {
    let gateway = database.setup().start();
    let mut phone = Socket::connect(&gateway, "ada");
    let mut desk = Socket::connect(&gateway, "ada");
    let ids: Vec<String> = (0..5).map(|n| sent(&gateway, note("ada", &format!("{n}")))).collect();
    let second = shown(&mut phone, &ids[1])["seq"].clone();
    let reply = phone.call("notification_read", json!({"all": true, "up_to": second}));
    assert_eq!((&reply["data"]["unread"], &reply["data"]["up_to"]), (&json!(3), &second));
    let update = told(&mut desk, "read");
    assert_eq!((&update["all"], &update["up_to"]), (&json!(true), &second), "{update}");
    let unread = list(&gateway, "ada", json!({"unread": true}));
    assert_eq!(super::titles(&unread), ["4", "3", "2"]);

    let reply = desk.call("notification_seen", json!({"all": true}));
    assert_eq!((&reply["data"]["unseen"], &reply["data"]["unread"]), (&json!(0), &json!(3)));
    assert_eq!(told(&mut phone, "seen")["up_to"], 5);
    let answer = gateway.result(
        "v1/notifications/mark",
        &json!({"user": "ada", "state": "archived", "all": true, "up_to": 3}),
    );
    assert_eq!((&answer["changed"], &answer["unread"]), (&json!(3), &json!(2)), "{answer}");
    assert_eq!(told(&mut phone, "archived")["up_to"], 3);
    assert_eq!(super::titles(&list(&gateway, "ada", json!({}))), ["4", "3"]);
    database.check_counters();
}

pub fn unknown_ids_change_nothing(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    let bobs = sent(&gateway, note("bob", "bob's"));
    let own = sent(&gateway, note("ada", "own"));
    shown(&mut ada, &own);
    let before = list(&gateway, "ada", json!({"limit": 0}));
    for kind in
        ["notification_ack", "notification_seen", "notification_read", "notification_archive"]
    {
        let reply = ada.call(kind, json!({"ids": [bobs, "no such id", "'; DROP TABLE x; --"]}));
        assert_eq!(counters(&reply["data"]), counters(&before), "{reply}");
    }
    let nobody = json!({"user": "nobody", "state": "read", "all": true});
    let answer = gateway.result("v1/notifications/mark", &nobody);
    assert_eq!((&answer["changed"], &answer["revision"]), (&json!(0), &json!(0)), "{answer}");
    database.await_published();
    assert!(
        ada.settled("notification_update").iter().all(|message| message["data"]["state"].is_null())
    );
    assert_eq!(list(&gateway, "bob", json!({}))["unread"], 1);
    database.check_counters();
}

/// A stream of numbers from a seed: xorshift.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The seed of the environment, or another one each time; it is told when the test fails.
    pub fn new() -> Self {
        let given = std::env::var("NOTIFICATIONS_SEED").ok().and_then(|text| text.parse().ok());
        let seed: u64 = given.unwrap_or_else(unix_now);
        eprintln!("NOTIFICATIONS_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `sides`.
    pub fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % sides as u64).unwrap()
    }

    /// One of several.
    pub fn choose<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.throw(of.len())]
    }
}

/// One step of the random test; answers whose inbox was marked, and how it stood then.
fn step(
    gateway: &Gateway,
    sockets: &mut [Socket],
    dice: &mut Dice,
    ids: &mut Vec<String>,
) -> Option<(usize, Value)> {
    let user = dice.throw(USERS);
    if ids.is_empty() || dice.throw(3) == 0 {
        let users: Vec<String> =
            (0..=dice.throw(3)).map(|more| format!("u{}", (user + more) % USERS)).collect();
        let mut body = json!({"users": users, "title": "t", "message": "m", "category": "system"});
        if dice.throw(3) == 0 {
            body["collapse_key"] = json!(format!("c{}", dice.throw(3)));
        }
        ids.push(sent(gateway, body));
        return None;
    }
    let states = [
        ("seen", "notification_seen"),
        ("read", "notification_read"),
        ("acked", "notification_ack"),
        ("archived", "notification_archive"),
    ];
    let (state, kind) = *dice.choose(&states);
    let which = match dice.throw(6) {
        0 => json!({"all": true}),
        1 => json!({"all": true, "up_to": dice.throw(20)}),
        2 => json!({"ids": ["unknown", dice.choose(ids)]}),
        _ => json!({"ids": [dice.choose(ids), dice.choose(ids)]}),
    };
    let stands = if dice.throw(2) == 0 {
        let body = with(json!({"user": format!("u{user}"), "state": state}), which);
        gateway.result("v1/notifications/mark", &body)
    } else {
        let reply = sockets[user * 2 + dice.throw(2)].call(kind, which);
        assert_eq!(reply["type"], "notification_update", "{reply}");
        reply["data"].clone()
    };
    Some((user, stands))
}

pub fn counters_are_those_of_the_rows_after_anything(database: &Database) {
    let gateway = database.setup().start();
    let mut dice = Dice::new();
    let mut sockets: Vec<Socket> =
        (0..USERS * 2).map(|n| Socket::connect(&gateway, &format!("u{}", n / 2))).collect();
    let mut ids = Vec::new();
    for _ in 0..OPERATIONS {
        if let Some((user, stands)) = step(&gateway, &mut sockets, &mut dice, &mut ids) {
            let page = list(&gateway, &format!("u{user}"), json!({"limit": 0}));
            assert_eq!(counters(&stands), counters(&page));
        }
    }
    database.check_counters();
    database.await_published();
    // What every device was told last is how the inbox stands.
    for (index, socket) in sockets.iter_mut().enumerate() {
        let user = format!("u{}", index / 2);
        let page = list(&gateway, &user, json!({"limit": 0}));
        let mut told = BTreeMap::new();
        eventually(&format!("{user} was told {page}"), || {
            for message in socket.settled("notification") {
                told.insert(message["data"]["revision"].as_i64(), message);
            }
            for message in socket.drain("notification_update") {
                told.insert(message["data"]["revision"].as_i64(), message);
            }
            let (_, newest) = told.last_key_value()?;
            (counters(&newest["data"]) == counters(&page)).then_some(())
        });
    }
}
