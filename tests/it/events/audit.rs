//! Who changed what.

use serde_json::{Value, json};

use super::{Database, Recorded, recording};
use crate::socket::Socket;

pub fn changes_are_recorded_with_who_made_them(database: &Database) {
    let gateway = recording(database, "admin_action,revoked").start();
    let _ada = Socket::connect(&gateway, "ada");
    // Neither reading nor publishing is an action.
    gateway.publish("chat:room", json!(1));
    gateway.result("info", &json!({}));
    gateway.result("v1/notifications/preferences", &json!({"user": "ada"}));
    let note = json!({"user": "ada", "title": "t", "message": "m", "category": "user_action"});
    gateway.result("v1/notifications", &note);

    gateway.result("disconnect", &json!({"user": "ada"}));
    gateway.result("revoke", &json!({"user": "ada"}));
    gateway.result("history_remove", &json!({"channel": "chat:room"}));
    let patch = json!({"user": "ada", "patch": {"channels": {"email": false}}});
    gateway.result("v1/notifications/preferences", &patch);
    assert!(!gateway.api("unsubscribe", &json!({"channel": "chat:room"}))["error"].is_null());
    let batch = json!({"commands": [
        {"publish": {"channel": "chat:room", "data": 1}}, {"disconnect": {"user": "bob"}}, {"subscribe": {"channel": "x"}},
    ]});
    gateway.result("batch", &batch);
    gateway.rewrite("[log]\nsample_per_second = 0\n");
    gateway.signal("HUP");

    let actions = gateway.await_events("type=admin_action", 8);
    let told: Vec<Value> = actions
        .iter()
        .map(|event| {
            let data = &event["data"];
            json!([data["action"], data["key"], data["target"], data["ok"], event["user_id"]])
        })
        .collect();
    assert_eq!(
        json!(told),
        json!([
            ["disconnect", "tests", {"user": "ada"}, true, "ada"],
            ["revoke", "tests", {"user": "ada"}, true, "ada"],
            ["history_remove", "tests", {"channel": "chat:room"}, true, null],
            ["preferences", "tests", {"user": "ada"}, true, "ada"],
            ["unsubscribe", "tests", {"channel": "chat:room"}, false, null],
            ["disconnect", "tests", {"user": "bob"}, true, "bob"],
            ["subscribe", "tests", {"channel": "x"}, false, null],
            ["reload", null, null, true, null],
        ])
    );
    assert!(actions[..7].iter().all(|event| event["address"] == "127.0.0.1"));
    let revoked = gateway.await_events("type=revoked", 1);
    assert_eq!(
        (&revoked[0]["user_id"], &revoked[0]["data"]["key"]),
        (&json!("ada"), &json!("tests"))
    );
}
