//! What is in the log, and how it is read.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{CHAT, Database, Recorded, hook_toml, recording, types};
use crate::chaos::hold;
use crate::delivery::receiver::{Receiver, Reply};
use crate::gateway::Gateway;
use crate::postgres::Postgres;
use crate::socket::{Opening, Socket};
use crate::support::{WAIT, eventually, token};

pub fn sessions_come_and_go(database: &Database) {
    let setup = || {
        recording(database, "connected,disconnected,authentication_failed")
            .set("events.sessions", true)
    };
    let mut gateway = setup().start();
    let mut opening = Opening::with_token(&token("ada"));
    opening.headers.push(("User-Agent".to_owned(), "a browser".to_owned()));
    let mut ada = Socket::open(&gateway, &opening).unwrap();
    ada.await_welcome();
    let session = ada.session().to_owned();
    assert!(Socket::open(&gateway, &Opening::with_token("x.y.z")).is_err());
    ada.close();
    let events = gateway.await_events("", 3);
    assert_eq!(types(&events), ["connected", "authentication_failed", "disconnected"]);
    let connected = &events[0];
    assert_eq!(
        (&connected["user_id"], &connected["session"], &connected["address"]),
        (&json!("ada"), &json!(session), &json!("127.0.0.1"))
    );
    assert_eq!(
        (&connected["data"], &connected["node"]),
        (&json!({"user_agent": "a browser"}), &json!("test-node"))
    );
    assert_eq!(events[1]["data"], json!({"reason": "malformed"}));
    assert_eq!((&events[1]["user_id"], &events[1]["session"]), (&Value::Null, &Value::Null));
    let ended = &events[2]["data"];
    assert_eq!((&ended["reason"], &ended["code"]), (&json!("closed_by_client"), &json!(1000)));

    let open = Socket::connect(&gateway, "ada");
    let sessions = eventually("both sessions are kept", || {
        let found = gateway.found("/api/v1/users/ada/sessions");
        (found["sessions"].as_array().unwrap().len() == 2).then_some(found)
    });
    let (new, old) = (&sessions["sessions"][0], &sessions["sessions"][1]);
    assert_eq!((&new["session"], &new["disconnected_at"]), (&json!(open.session()), &Value::Null));
    assert_eq!(
        (&old["user_agent"], &old["reason"]),
        (&json!("a browser"), &json!("closed_by_client"))
    );
    assert!(old["disconnected_at"].as_i64() >= old["connected_at"].as_i64());
    assert_eq!(sessions["last_seen"], Value::Null, "one is open");

    // Told to move when the node stops, and remembered by the next one.
    gateway.signal("TERM");
    assert!(gateway.await_exit(WAIT).success());
    let gateway = setup().start();
    let events = gateway.events("type=disconnected");
    assert_eq!(events.last().unwrap()["data"]["reason"], "shutdown", "{events:?}");
    let ask = || gateway.result("user_status", &json!({"users": ["ada", "nobody"]}));
    let status = ask();
    assert_eq!(ask(), status);
    let hits = gateway.metric("archmesh_cache_hits_total", &[("region", "last_seen")]);
    assert_eq!(hits, 2.0, "the second answer is a kept one");
    let seen = status["statuses"][0]["last_seen"].as_i64().unwrap();
    assert_eq!(seen, events.last().unwrap()["at"].as_i64().unwrap() / 1000);
    assert!(status["statuses"][1]["last_seen"].is_null(), "{status}");
}

pub fn pages_hold_everything_once(database: &Database) {
    let gateway = recording(database, "message").toml(CHAT).start();
    let mut ada = Socket::connect(&gateway, "ada");
    let mut bob = Socket::connect(&gateway, "bob");
    for n in 0..30 {
        let writer = if n % 3 == 0 { &mut bob } else { &mut ada };
        writer.publish(if n % 2 == 0 { "chat:even" } else { "chat:odd" }, json!({"n": n}));
    }
    ada.publish("feed:a", json!("not told"));
    gateway.publish("chat:even", json!("the application's own"));
    let all = gateway.await_events("", 30);
    let first = &all[0];
    assert_eq!((&first["channel"], &first["user_id"]), (&json!("chat:even"), &json!("bob")));
    assert_eq!(first["session"], bob.session());
    assert_eq!(
        (&first["data"]["data"], &first["data"]["type"]),
        (&json!({"n": 0}), &json!("message"))
    );
    assert_eq!(first["data"]["offset"], 1);
    assert_eq!(gateway.events("user=ada").len(), 20);
    assert_eq!(gateway.events("channel=chat%3Aodd&user=bob").len(), 5);
    assert_eq!(gateway.events(&format!("session={}", bob.session())).len(), 10);
    assert!(gateway.events("type=connected").is_empty());
    let at = all[10]["at"].as_i64().unwrap();
    let (before, from) =
        (gateway.events(&format!("to={at}")), gateway.events(&format!("from={at}")));
    assert_eq!(before.len() + from.len(), 30);
    assert!(from.iter().any(|event| event["id"] == all[10]["id"]));
    for (query, mark) in [("limit=7", "before"), ("limit=7&after=0", "after")] {
        let (mut ids, mut page) = (Vec::new(), gateway.found(&format!("/api/v1/events?{query}")));
        loop {
            let events = page["events"].as_array().unwrap();
            ids.extend(events.iter().map(|event| event["id"].as_i64().unwrap()));
            let Some(next) = page["next"].as_i64() else { break };
            page = gateway.found(&format!("/api/v1/events?limit=7&{mark}={next}"));
        }
        assert_eq!(ids.len(), 30, "{query}");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 30, "{query}");
        assert!(ids.is_sorted() == (mark == "after"), "{query}: {ids:?}");
    }
}

pub fn strangers_read_nothing(database: &Database) {
    let gateway = recording(database, "connected").start();
    for path in [
        "/api/v1/events",
        "/api/v1/users/ada/sessions",
        "/api/v1/webhooks",
        "/api/v1/webhooks/app/dead",
    ] {
        assert_eq!(gateway.get(path).status, 401, "{path}");
        let wrong = ["X-API-Key: wrong".to_owned()];
        assert_eq!(gateway.http().request("GET", path, &wrong, &[]).unwrap().status, 401, "{path}");
    }
    let refused = |path: &str| gateway.read(path)["error"]["message"].as_str().unwrap().to_owned();
    assert!(refused("/api/v1/events?type=x").contains("channel_occupied"));
    assert!(refused("/api/v1/events?x=y").contains('x'));
    assert!(refused("/api/v1/users/ada/sessions").contains("events.sessions"));
    assert!(refused("/api/v1/webhooks/app/dead").contains("webhook"));
    drop(gateway);
    let gateway = database.setup().start();
    assert!(
        gateway.read("/api/v1/events")["error"]["message"]
            .as_str()
            .unwrap()
            .contains("events.record")
    );
    let health = gateway.operators().get("/health/detailed").unwrap().json();
    assert_eq!(health["components"]["events"]["status"], "not_configured");
}

/// The next run ends what the killed one could not.
pub fn a_restarted_node_ends_what_it_left(database: &Database) {
    let setup = || {
        recording(database, "connected,disconnected,channel_occupied,channel_vacated")
            .set("events.channels", "chat:")
            .set("events.sessions", true)
    };
    let mut gateway = setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    ada.subscribe("feed:room");
    gateway.await_events("", 2);
    gateway.signal("KILL");
    gateway.await_exit(WAIT);
    let gateway = setup().start();
    let events = gateway.await_events("", 4);
    assert_eq!(
        types(&events),
        ["connected", "channel_occupied", "disconnected", "channel_vacated"]
    );
    assert_eq!(events[2]["data"]["reason"], "node_lost");
    assert_eq!(events[3]["channel"], "chat:room");
    let sessions = gateway.found("/api/v1/users/ada/sessions");
    assert_eq!(sessions["sessions"][0]["reason"], "node_lost");
    assert_eq!(gateway.metric("archmesh_events_nodes_ended_total", &[]), 1.0);
    assert_eq!(gateway.metric("archmesh_events_recorded_total", &[("kind", "disconnected")]), 1.0);
}

fn an_outage_loses_nothing(gateway: &Gateway, outage: impl FnOnce()) {
    let mut ada = Socket::connect(gateway, "ada");
    ada.publish("chat:room", json!(0));
    gateway.await_events("type=message", 1);
    let publisher = std::thread::scope(|scope| {
        let publisher = scope.spawn(move || {
            for n in 1..100 {
                ada.publish("chat:room", json!(n));
                hold(Duration::from_millis(20));
            }
            ada
        });
        outage();
        publisher.join().unwrap()
    });
    let events = gateway.await_events("type=message", 100);
    let numbers: Vec<i64> = events.iter().map(|e| e["data"]["data"].as_i64().unwrap()).collect();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    assert_eq!(gateway.metric("archmesh_events_dropped_total", &[]), 0.0);
    drop(publisher);
    eventually("the node is well again", || {
        (gateway.get("/health").json()["status"] == "healthy").then_some(())
    });
}

#[test]
fn a_standstill_of_postgresql_loses_nothing() {
    let server = Postgres::start();
    let database = Database::Postgres(server.database());
    let gateway = recording(&database, "message")
        .toml(CHAT)
        .set("database.query_timeout", "500ms")
        .set("database.breaker_open", "200ms")
        .start();
    an_outage_loses_nothing(&gateway, || {
        server.signal("STOP");
        hold(Duration::from_secs(3));
        server.signal("CONT");
    });
}

#[test]
fn a_kept_file_loses_nothing() {
    let database = Database::sqlite();
    let gateway = recording(&database, "message")
        .toml(CHAT)
        .set("database.query_timeout", "500ms")
        .set("database.breaker_open", "200ms")
        .start();
    an_outage_loses_nothing(&gateway, || database.keep_file(Duration::from_secs(3)));
}

#[test]
fn what_finds_no_room_is_dropped_counted_and_told() {
    let database = Database::sqlite();
    let gateway = recording(&database, "message,connected")
        .toml(CHAT)
        .set("events.waiting_max", 16)
        .set("database.query_timeout", "500ms")
        .start();
    let mut ada = Socket::connect(&gateway, "ada");
    std::thread::scope(|scope| {
        scope.spawn(|| database.keep_file(Duration::from_secs(2)));
        eventually("messages are dropped", || {
            ada.publish("chat:room", json!(1));
            (gateway.metric("archmesh_events_dropped_total", &[("kind", "message")]) > 0.0)
                .then_some(())
        });
        // There is still room for what matters more.
        drop(Socket::connect(&gateway, "bob"));
    });
    gateway.await_events("type=connected&user=bob", 1);
    eventually("it is told", || gateway.log.events("events_dropped").pop());
    assert_eq!(gateway.log.count("events_dropped"), 1);
    assert_eq!(gateway.metric("archmesh_events_dropped_total", &[("kind", "connected")]), 0.0);
}

#[test]
fn the_documented_rights_are_enough() {
    let database = Database::postgres();
    // Left behind for the other one to end.
    let mut dead = recording(&database, "connected").start();
    drop(Socket::connect(&dead, "ada"));
    dead.await_events("", 1);
    dead.signal("KILL");
    dead.await_exit(WAIT);
    let role = database.documented_role();
    let hook = Receiver::with(|_| Reply::Status(500));
    let kinds = "\"message\", \"channel_occupied\", \"channel_vacated\"";
    let gateway = recording(&database, "connected,disconnected")
        .toml(&format!("{CHAT}{}", hook_toml(&hook.url("/"), kinds, "attempts_max = 1")))
        .set("database.migrate", false)
        .set("database.url", role.url())
        .set("events.channels", "chat:")
        .set("events.sessions", true)
        .set("events.retention", "4s")
        .start();
    gateway.await_metric("archmesh_events_nodes_ended_total", &[], |nodes| nodes == 1.0);
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    ada.publish("chat:room", json!(1));
    gateway.await_events("type=message", 1);
    eventually("everything is given up", || {
        let state = gateway.found("/api/v1/webhooks")["webhooks"][0].clone();
        (state["last_id"] == state["newest_id"] && state["dead"].as_i64() > Some(0)).then_some(())
    });
    hook.answer(|_| Reply::Status(200));
    gateway.result("v1/webhooks/app/dead/retry", &json!({"all": true}));
    ada.close();
    gateway.await_metric("archmesh_webhook_events_sent_total", &[], |sent| sent >= 3.0);
    eventually("old events and sessions leave", || {
        let left = "SELECT (SELECT count(*) FROM archmesh_events) + (SELECT count(*) FROM archmesh_sessions)";
        (database.number(left) == 0).then_some(())
    });
    assert!(gateway.log.events("event_not_recorded").is_empty());
}
