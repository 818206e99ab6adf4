//! Preferences: what users want, how it is changed, and that it is kept to.

use std::time::Duration;

use serde_json::json;

use super::{Database, list, note, prefer, send, titles, with};
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::{eventually, within};

/// From a change to its effect on the other nodes; what they keep would live for much longer.
const SEEN_EVERYWHERE_MAX: Duration = Duration::from_secs(3);

pub fn what_is_not_wanted_is_not_sent(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    prefer(&gateway, "ada", json!({"categories": {"marketing": {"in_app": false}}}));
    prefer(&gateway, "bob", json!({"channels": {"in_app": false}}));
    let to_all = |category: &str, priority: &str| {
        json!({"users": ["ada", "bob", "eve"], "title": category, "message": "m",
            "category": category, "priority": priority})
    };
    let answer = send(&gateway, to_all("marketing", "critical"));
    let outcome = [&answer["delivered"], &answer["held"], &answer["opted_out"]];
    assert_eq!(outcome, [&json!(1), &json!(0), &json!(2)], "an opt-out holds always: {answer}");
    assert_eq!(send(&gateway, to_all("system", "low"))["delivered"], 2);
    assert_eq!(titles(&list(&gateway, "ada", json!({}))), ["system"]);
    assert_eq!(list(&gateway, "bob", json!({}))["items"], json!([]));
    assert_eq!(titles(&list(&gateway, "eve", json!({}))), ["system", "marketing"]);
    assert_eq!(ada.take("notification")["data"]["title"], "system");
    database.await_published();
    assert!(ada.settled("notification").iter().all(|item| item["data"]["title"] == "system"));
    // Who changes their mind gets the next one.
    prefer(&gateway, "ada", json!({"categories": {"marketing": null}}));
    assert_eq!(send(&gateway, to_all("marketing", "low"))["delivered"], 2);
    database.check_counters();
}

pub fn preferences_are_read_and_changed_both_ways(database: &Database) {
    let defaults = r#"{"channels":{"email":true}}"#;
    let toml = format!("[notifications]\ndefault_preferences = '{defaults}'\n");
    let gateway = database.setup().toml(&toml).start();
    let mut ada = Socket::connect(&gateway, "ada");
    let reply = ada.call("preferences", json!({}));
    assert_eq!(reply["type"], "preferences", "{reply}");
    assert_eq!(reply["data"]["preferences"], json!({}));
    assert_eq!(reply["data"]["defaults"], json!({"channels": {"email": true}}));
    let patch = json!({"channels": {"email": false, "sms": true}, "locale": "de-DE"});
    let reply = ada.call("preferences", json!({"patch": patch}));
    assert_eq!(reply["data"]["preferences"], patch, "{reply}");
    let quiet = json!({"from": "22:00", "to": "07:00", "time_zone": "Europe/Berlin"});
    let answer = prefer(&gateway, "ada", json!({"channels": {"sms": null}, "quiet_hours": quiet}));
    let expected = json!({"channels": {"email": false}, "locale": "de-DE", "quiet_hours": quiet});
    assert_eq!(answer["preferences"], expected);
    assert_eq!(answer["defaults"], json!({"channels": {"email": true}}));
    assert_eq!(ada.call("preferences", json!({}))["data"]["preferences"], expected);
    let bob = gateway.result("v1/notifications/preferences", &json!({"user": "bob"}));
    assert_eq!(bob["preferences"], json!({}));
    drop(gateway);
    let gateway = database.setup().start();
    let kept = gateway.result("v1/notifications/preferences", &json!({"user": "ada"}));
    assert_eq!((&kept["preferences"], &kept["defaults"]), (&expected, &json!({})));
}

pub fn wrong_preferences_are_refused_with_the_field(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    prefer(&gateway, "ada", json!({"locale": "en"}));
    let cases = [
        (json!({"chanels": {}}), "chanels"),
        (json!({"channels": {"fax": true}}), "channels.fax"),
        (json!({"channels": {"email": "no"}}), "channels.email"),
        (json!({"categories": {"A b": {}}}), "categories.A b"),
        (json!({"quiet_hours": {"from": "22:00"}}), "quiet_hours"),
        (json!({"quiet_hours": {"from": "8 pm", "to": "07:00"}}), "quiet_hours.from"),
        (json!({"quiet_hours": {"time_zone": "Berlin"}}), "quiet_hours.time_zone"),
        (json!({"digest": {"in_app": {"every": "window", "minutes": 0}}}), "digest.in_app.minutes"),
        (json!({"locale": "german_"}), "locale"),
        (json!([]), "preferences"),
        (json!("x"), "preferences"),
    ];
    for (patch, field) in cases {
        let body = json!({"user": "ada", "patch": patch});
        let answer = gateway.api("v1/notifications/preferences", &body);
        assert_eq!(answer["error"]["code"], 107, "{patch}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(field), "{patch}: {message}");
        let error = ada.call("preferences", json!({"patch": patch}));
        assert_eq!(error["data"]["error_code"], "INVALID_MESSAGE_FORMAT", "{patch}: {error}");
        let message = error["data"]["error_message"].as_str().unwrap_or_default();
        assert!(message.starts_with(field), "{patch}: {error}");
    }
    let kept = gateway.result("v1/notifications/preferences", &json!({"user": "ada"}));
    assert_eq!(kept["preferences"], json!({"locale": "en"}));
    let nobody = gateway.api("v1/notifications/preferences", &json!({"user": "a b"}));
    assert_eq!(nobody["error"]["code"], 107);
    // The database is as well as before.
    let body = with(note("ada", "t"), json!({}));
    assert_eq!(send(&gateway, body)["delivered"], 1);
    assert_eq!(gateway.get("/health").json()["status"], "healthy");
}

#[test]
fn what_is_changed_on_one_node_holds_on_all() {
    let (database, redis) = (Database::postgres(), Redis::start(&[]));
    let nodes = [(); 2].map(|()| database.setup().set("redis.url", redis.url()).start());
    for node in &nodes {
        node.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
        eventually("the nodes know each other", || {
            let health = node.operators().get("/health/detailed").unwrap().json();
            (health["components"]["cluster"]["nodes"] == 2).then_some(())
        });
    }
    let sent = |node: usize| send(&nodes[node], note("ada", "t"))["delivered"] == 1;
    for round in 0..10 {
        let (here, there, wanted) = (round % 2, (round + 1) % 2, round % 3 == 0);
        prefer(&nodes[here], "ada", json!({"channels": {"in_app": wanted}}));
        assert_eq!(sent(here), wanted, "at once where it was changed, round {round}");
        within(SEEN_EVERYWHERE_MAX, "the other node knows it", || {
            (sent(there) == wanted).then_some(())
        });
    }
    database.check_counters();
}

/// Whoever was cut off may have missed a change: it reads everything anew.
#[test]
fn a_node_that_was_cut_off_forgets_what_it_keeps() {
    let (database, redis) = (Database::postgres(), Redis::start(&[]));
    let setup = database.setup().set("redis.url", redis.url());
    let gateway = setup.set("cache.store_shared", false).set("cache.store_ttl", "1h").start();
    gateway.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
    let delivered = || send(&gateway, note("ada", "t"))["delivered"] == 1;
    prefer(&gateway, "ada", json!({"channels": {"in_app": false}}));
    assert!(!delivered());
    // Nobody tells the gateway of it.
    database.query("UPDATE archmesh_preferences SET document = '{}'");
    assert!(!delivered(), "it is kept");
    assert_eq!(redis.ask("CLIENT KILL TYPE pubsub"), ":1");
    eventually("the change is found", || delivered().then_some(()));
}
