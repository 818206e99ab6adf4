//! Bounds of commands, frames, subscriptions, histories and keys; access by the names in a channel.

use std::time::Duration;

use gateway_core::message::ChannelOp;
use gateway_core::message::ChannelOutcome;
use gateway_core::metrics::HistoryEviction;
use gateway_core::settings::{Access, Namespace, Namespaces};
use gateway_core::ws::frame::{self, Opcode};
use serde_json::json;

use crate::node::{Client, Node, settings};

#[test]
fn an_unsubscribe_overtakes_a_subscription_that_is_under_way() {
    let mut node = Node::new(2);
    let channel = node.channel_on("chat", 1);
    let (a, b) = (node.connect(0, "a"), node.connect(1, "b"));
    let data = json!({"channel": channel});
    node.send(a, &json!({"type": "subscribe", "id": "1", "data": data}));
    node.send(a, &json!({"type": "unsubscribe", "id": "2", "data": data}));
    node.settle();
    let answers = node.take_all(a);
    assert_eq!(answers.len(), 2);
    assert_eq!(
        (&answers[0]["type"], &answers[0]["reply_to"]),
        (&json!("unsubscribed"), &json!("2"))
    );
    assert_eq!(answers[1]["reply_to"], "1");
    assert_eq!(answers[1]["data"]["error_code"], "UNAVAILABLE");
    node.publish(b, &channel, json!(1));
    assert!(node.take_all(a).is_empty());
    let outcome = node.api(&channel, ChannelOp::PresenceStats).unwrap();
    assert!(matches!(outcome, ChannelOutcome::PresenceStats { clients: 0, .. }), "{outcome:?}");
    assert_eq!(node.count(|m| m.subscriptions), 4, "two server-side ones each");
    node.subscribe(a, &channel);
    node.publish(b, &channel, json!(2));
    assert_eq!(node.take(a, "message")["data"], 2);
}

#[test]
fn subscriptions_of_a_connection_are_counted() {
    let mut settings = settings();
    settings.limits.subscriptions_max = 4;
    let mut node = Node::with(2, settings);
    // `user:a` and `system` count.
    let a = node.connect(0, "a");
    node.subscribe(a, "live:1");
    node.subscribe(a, "live:2");
    let third = node.call(a, "subscribe", json!({"channel": "live:3"}));
    assert_eq!(third["data"]["error_code"], "LIMIT_EXCEEDED");
    node.call(a, "unsubscribe", json!({"channel": "live:1"}));
    node.subscribe(a, "live:3");
}

#[test]
fn commands_that_wait_for_an_answer_are_counted() {
    let mut settings = settings();
    settings.limits.requests_in_flight_max = 3;
    let mut node = Node::with(2, settings);
    let channel = node.channel_on("chat", 1);
    let a = node.connect(0, "a");
    for n in 0..5 {
        let data = json!({"channel": channel, "data": n});
        node.send(a, &json!({"type": "publish", "id": n.to_string(), "data": data}));
    }
    node.settle();
    let answers = node.take_all(a);
    let refused: Vec<_> = answers.iter().filter(|m| m["type"] == "error").collect();
    assert_eq!(answers.len(), 5);
    assert_eq!(refused.len(), 2);
    for error in refused {
        assert_eq!(error["data"]["error_code"], "LIMIT_EXCEEDED");
        assert!(["3", "4"].contains(&error["reply_to"].as_str().unwrap()));
    }
    node.publish(a, &channel, json!("there is room again"));
}

#[test]
fn deep_json_is_refused() {
    let mut node = Node::new(1);
    let a = node.connect(0, "a");
    // The envelope and its data are two of the 32 levels.
    for (levels, expected) in [(30, "published"), (31, "error")] {
        let nested = (0..levels).fold(json!(1), |inner, _| json!([inner]));
        node.send(a, &json!({"type": "publish", "data": {"channel": "chat:1", "data": nested}}));
        node.settle();
        let answer = node.take(a, expected);
        if expected == "error" {
            assert_eq!(answer["data"]["error_code"], "INVALID_MESSAGE_FORMAT");
            assert!(answer["data"]["error_message"].as_str().unwrap().contains("32 levels"));
        }
    }
}

fn masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_masked(&mut bytes, opcode, payload, [1, 2, 3, 4]);
    bytes
}

#[test]
fn violations_of_the_websocket_protocol_close_with_its_own_codes() {
    let mut settings = settings();
    settings.limits.message_bytes_max = 4096;
    let mut node = Node::with(1, settings);
    let mut unmasked = Vec::new();
    frame::encode(&mut unmasked, Opcode::Text, false, b"{\"type\":\"ping\"}");
    let fitting = json!({"type": "ping", "pad": "x".repeat(4000)}).to_string();
    let text = |payload: &[u8]| masked(Opcode::Text, payload);
    for (bytes, code) in [
        (text(fitting.as_bytes()), None),
        (text(&vec![b' '; 4097]), Some(1009)),
        (masked(Opcode::Binary, b"{}"), Some(1003)),
        (unmasked, Some(1002)),
        (text(b"{\"type\":\"\xff\"}"), Some(1007)),
    ] {
        let client: Client = node.connect(0, "a");
        node.send_raw(client, &bytes);
        node.settle();
        assert_eq!(node.clients[client].close_code, code);
        let told = node.take_all(client);
        assert_eq!(told.len(), usize::from(code.is_none()), "no `disconnect` message: {told:?}");
    }
}

#[test]
fn an_oversized_message_is_refused_before_it_has_arrived() {
    let mut node = Node::new(1);
    let a = node.connect(0, "a");
    node.send_raw(a, &[0x81, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4]);
    node.settle();
    assert_eq!(node.clients[a].close_code, Some(1009), "1 GiB was announced");
}

#[test]
fn a_channel_may_name_its_members() {
    let mut settings = settings();
    let dialog = Namespace {
        subscribe: Access::Members,
        publish: Access::Members,
        ..Namespace::closed("dialog")
    };
    settings.namespaces = Namespaces::new(vec![dialog]);
    settings.auth.anonymous = true;
    let mut node = Node::with(2, settings);
    let clients = ["ann", "bob", "eve"].map(|user| node.connect(0, user));
    let anonymous = node.upgrade(1, "/ws?token=", "");
    node.settle();
    node.take(anonymous, "welcome");
    let data = json!({"channel": "dialog:7#ann,bob", "data": "hi"});
    for client in [clients[0], clients[1]] {
        node.subscribe(client, "dialog:7#ann,bob");
    }
    for client in [clients[2], anonymous] {
        for kind in ["subscribe", "publish"] {
            let reply = node.call(client, kind, data.clone());
            assert_eq!(reply["data"]["error_code"], "PERMISSION_DENIED", "{kind}");
        }
    }
    assert_eq!(node.call(clients[0], "publish", data)["type"], "published");
    assert_eq!(node.take(clients[1], "message")["data"], "hi");
    for name in ["dialog:7", "dialog:7#", "dialog:ann", "dialog:7#anna,bo"] {
        let reply = node.call(clients[0], "subscribe", json!({"channel": name}));
        assert_eq!(reply["data"]["error_code"], "PERMISSION_DENIED", "{name}");
    }
}

#[test]
fn histories_of_a_shard_share_a_budget_of_bytes() {
    let mut settings = settings();
    settings.limits.history_bytes_max = 20_000;
    let mut node = Node::with(1, settings);
    let a = node.connect(0, "a");
    let old = node.publish(a, "chat:old", json!("seen"));
    node.publish(a, "chat:old", json!("missed"));
    let pad = "x".repeat(500);
    for n in 0..100 {
        node.publish(a, &format!("chat:{}", n % 4), json!({"n": n, "pad": pad}));
        let bytes = node.count(|m| m.history_bytes);
        assert!(bytes <= 20_000, "{bytes}");
    }
    let kept = node.count(|m| m.history_publications);
    assert!(kept > 10, "{kept}");
    let evicted = node.count(|m| m.history_evicted.0[HistoryEviction::Budget as usize]);
    assert_eq!(kept + evicted, 102);
    assert_eq!(node.count(|m| m.history_bytes_max), 20_000);
    for (channel, newest) in [("chat:3", 99), ("chat:0", 96)] {
        node.subscribe(a, channel);
        let query = json!({"channel": channel, "reverse": true, "limit": 1});
        let page = node.call(a, "history", query);
        assert_eq!(page["data"]["messages"][0]["data"]["n"], newest);
    }
    let recover = json!({"channel": "chat:old", "recover": old["data"]});
    let reply = node.call(a, "subscribe", recover);
    assert_eq!(reply["data"]["recovered"], false, "the oldest went first");
}

#[test]
fn idempotency_keys_are_forgotten_by_time_and_number() {
    let mut settings = settings();
    settings.limits.idempotency_keys_max = 3;
    let mut node = Node::with(1, settings);
    let a = node.connect(0, "a");
    let publish = |node: &mut Node, key: &str| {
        let data = json!({"channel": "live:1", "data": 1, "idempotency_key": key});
        node.call(a, "publish", data)["data"]["offset"].as_u64().unwrap()
    };
    assert_eq!(publish(&mut node, "a"), 1);
    node.subscribe(a, "live:1");
    node.advance(Duration::from_secs(299));
    assert_eq!(publish(&mut node, "a"), 1, "within idempotency_ttl");
    node.advance(Duration::from_secs(2));
    assert_eq!(publish(&mut node, "a"), 2, "after it");
    for (key, offset) in [("b", 3), ("c", 4), ("d", 5)] {
        assert_eq!(publish(&mut node, key), offset);
    }
    assert_eq!(publish(&mut node, "d"), 5);
    assert_eq!(publish(&mut node, "b"), 3);
    assert_eq!(publish(&mut node, "a"), 6, "the oldest key gave way");
    let empty = json!({"channel": "live:1", "data": 1, "idempotency_key": ""});
    assert_eq!(node.call(a, "publish", empty)["data"]["error_code"], "INVALID_MESSAGE_FORMAT");
}
