//! What waits for a client that does not read: priorities, `keep_latest`, the budget of a shard; and pings.

use gateway_core::message::{ChannelOp, Publish};
use gateway_core::settings::{Access, Namespace, Namespaces, Priority, Settings, SlowPolicy};
use gateway_core::ws::frame::{self, Opcode};
use serde_json::{Value, json};

use crate::node::{Client, Node, settings};

fn with_namespaces(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = settings();
    let open = |name: &str| Namespace {
        subscribe: Access::SignedIn,
        publish: Access::SignedIn,
        ..Namespace::closed(name)
    };
    settings.namespaces = Namespaces::new(vec![
        open("feed"),
        Namespace { priority: Priority::Critical, ..open("alert") },
        Namespace { slow: SlowPolicy::KeepLatest, ..open("board") },
    ]);
    change(&mut settings);
    settings
}

fn publish(node: &mut Node, channel: &str, text: &str, priority: Option<Priority>) {
    let data = json!(text).to_string().into();
    let publish = Publish { data, priority, ..Publish::default() };
    node.api(channel, ChannelOp::Publish(publish)).unwrap();
}

/// `data` of publications, `type` of anything else.
fn order(messages: &[Value]) -> Vec<&str> {
    messages
        .iter()
        .map(|m| {
            let kind = m["type"].as_str().unwrap();
            if kind == "message" { m["data"].as_str().unwrap() } else { kind }
        })
        .collect()
}

fn stalled(node: &mut Node, channels: &[&str]) -> Client {
    let client = node.connect(0, "a");
    for channel in channels {
        node.subscribe(client, channel);
    }
    node.clients[client].stalled = true;
    client
}

#[test]
fn urgent_publications_pass_those_of_other_channels() {
    let mut node = Node::with(2, with_namespaces(|_| {}));
    let a = stalled(&mut node, &["feed:1", "feed:2", "alert:1"]);
    publish(&mut node, "feed:1", "one", None);
    publish(&mut node, "feed:2", "two", Some(Priority::Low));
    publish(&mut node, "feed:2", "urgent", Some(Priority::High));
    publish(&mut node, "alert:1", "fire", None);
    publish(&mut node, "alert:1", "calm", Some(Priority::Low));
    node.resume(a);
    let messages = node.take_all(a);
    // `urgent` may not pass `two`, which is of its own channel.
    assert_eq!(order(&messages), ["fire", "one", "two", "urgent", "calm"]);
}

#[test]
fn nothing_passes_a_reply_or_a_message_that_is_partly_sent() {
    let mut node = Node::with(1, with_namespaces(|_| {}));
    let a = stalled(&mut node, &["feed:1", "alert:1"]);
    publish(&mut node, "feed:1", "one", None);
    let id = node.clients[a].id.unwrap();
    assert_eq!(node.drain_outbox(id, a, 5), 5);
    publish(&mut node, "feed:1", "two", None);
    publish(&mut node, "alert:1", "fire", None);
    node.send(a, &json!({"type": "ping", "id": "1"}));
    publish(&mut node, "alert:1", "fire again", None);
    node.resume(a);
    let messages = node.take_all(a);
    assert_eq!(order(&messages), ["one", "fire", "two", "pong", "fire again"]);
}

#[test]
fn a_client_may_name_the_priority() {
    let mut node = Node::with(1, with_namespaces(|_| {}));
    let a = stalled(&mut node, &["feed:1", "feed:2"]);
    let p = node.connect(0, "p");
    for (channel, priority) in [("feed:1", "medium"), ("feed:2", "critical")] {
        let data = json!({"channel": channel, "data": priority, "priority": priority});
        assert_eq!(node.call(p, "publish", data)["type"], "published");
    }
    let wrong = json!({"channel": "feed:1", "data": 1, "priority": "urgent"});
    assert_eq!(node.call(p, "publish", wrong)["data"]["error_code"], "INVALID_MESSAGE_FORMAT");
    node.resume(a);
    assert_eq!(order(&node.take_all(a)), ["critical", "medium"]);
}

#[test]
fn without_a_key_keep_latest_keeps_the_newest_of_the_channel() {
    let settings = with_namespaces(|settings| settings.limits.outbox_bytes_max = 4096);
    let mut node = Node::with(1, settings);
    let a = stalled(&mut node, &["board:1", "board:2"]);
    publish(&mut node, "board:2", "other", None);
    for n in 0..100 {
        publish(&mut node, "board:1", &format!("{n}"), None);
    }
    node.resume(a);
    let messages = node.take_all(a);
    let told = order(&messages);
    assert!(told.contains(&"other"), "another channel has another key: {told:?}");
    assert_eq!(told.last(), Some(&"99"));
    let lost: u64 = messages.iter().filter_map(|m| m["data"]["count"].as_u64()).sum();
    let got = told.iter().filter(|text| **text != "lost" && **text != "other").count();
    assert_eq!(lost + got as u64, 100);
    assert!(lost > 50 && !node.clients[a].closed);
}

#[test]
fn what_is_queued_of_a_channel_that_was_left_is_not_mixed_with_another() {
    let settings = with_namespaces(|settings| settings.limits.outbox_bytes_max = 8192);
    let mut node = Node::with(1, settings);
    let a = stalled(&mut node, &["board:1"]);
    for n in 0..50 {
        publish(&mut node, "board:1", &format!("old {n}"), None);
    }
    node.send(a, &json!({"type": "unsubscribe", "id": "1", "channel": "board:1"}));
    node.send(a, &json!({"type": "subscribe", "id": "2", "channel": "board:2"}));
    for n in 0..100 {
        publish(&mut node, "board:2", &format!("new {n}"), None);
    }
    node.resume(a);
    let messages = node.take_all(a);
    let left = messages.iter().position(|m| m["type"] == "unsubscribed").unwrap();
    let mut known = [0, 0];
    for (index, message) in messages.iter().enumerate() {
        let after = usize::from(index > left);
        let (from, to) = match message["type"].as_str().unwrap() {
            "lost" => (&message["data"]["from_offset"], &message["data"]["to_offset"]),
            "message" => (&message["offset"], &message["offset"]),
            _ => continue,
        };
        assert_eq!(message["channel"], ["board:1", "board:2"][after], "{message}");
        assert_eq!(from.as_u64(), Some(known[after] + 1), "{message}");
        known[after] = to.as_u64().unwrap();
    }
    assert_eq!(known, [50, 100]);
}

#[test]
fn the_budget_of_a_shard_costs_those_who_do_not_read() {
    let settings = with_namespaces(|settings| {
        settings.limits.outbox_bytes_max = 1 << 20;
        settings.limits.shard_outbox_bytes_max = 60_000;
    });
    let mut node = Node::with(1, settings);
    let slow = [(); 3].map(|()| stalled(&mut node, &["feed:1"]));
    let healthy = node.connect(0, "h");
    node.subscribe(healthy, "feed:1");
    let text = "x".repeat(1000);
    for _ in 0..200 {
        publish(&mut node, "feed:1", &text, None);
        let bytes = node.count(|m| m.outbox_bytes);
        assert!(bytes < 2 * 60_000, "{bytes}");
    }
    assert_eq!(node.take_all(healthy).len(), 200, "who keeps up loses nothing");
    assert_eq!(node.clients[healthy].close_code, None);
    for client in slow {
        node.resume(client);
        assert_eq!(node.clients[client].close_code, Some(4002));
    }
    assert_eq!(node.count(|m| m.outbox_bytes), 0);
}

#[test]
fn pings_are_answered_on_both_levels() {
    let mut node = Node::new(1);
    let a = node.connect(0, "a");
    let pong = node.call(a, "ping", json!({}));
    assert_eq!((&pong["type"], &pong["data"]), (&json!("pong"), &json!({})));
    node.send(a, &json!({"type": "ping"}));
    node.settle();
    assert_eq!(node.take(a, "pong").get("reply_to"), None, "the command had no id");
    node.send(a, &json!({"type": "pong", "id": "1"}));
    let mut ping = Vec::new();
    frame::encode_masked(&mut ping, Opcode::Ping, b"hello", [1, 2, 3, 4]);
    node.send_raw(a, &ping);
    node.settle();
    assert!(node.take_all(a).is_empty());
    assert_eq!(node.clients[a].pongs, [b"hello".to_vec()]);
    let before_auth = node.upgrade(0, "/ws", "");
    node.settle();
    assert_eq!(node.call(before_auth, "ping", json!({}))["type"], "pong");
}
