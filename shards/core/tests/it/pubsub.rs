//! Publish and subscribe across shards: order, permissions, options.

use gateway_core::message::{ChannelOp, ChannelOutcome, Publish, ShardOp, ShardOutcome};
use serde_json::json;

use crate::node::Node;

#[test]
fn a_publication_reaches_subscribers_on_every_shard() {
    for home in 0..3 {
        let mut node = Node::new(3);
        let channel = node.channel_on("chat", home);
        let clients: Vec<_> =
            (0..3).map(|shard| node.connect(shard, &format!("u{shard}"))).collect();
        for &client in &clients {
            node.subscribe(client, &channel);
        }
        for &client in &clients {
            node.take_all(client);
        }
        let reply =
            node.publish(clients[0], &channel, json!({"text": "hi", "n": [1, {"x": null}]}));
        assert_eq!(reply["data"]["offset"], 1);
        for &client in &clients {
            let message = node.take(client, "message");
            assert_eq!(message["channel"], channel.as_str());
            assert_eq!(message["offset"], 1);
            assert_eq!(message["epoch"], reply["data"]["epoch"]);
            assert_eq!(message["data"], json!({"text": "hi", "n": [1, {"x": null}]}));
            assert_eq!(message["sender"]["user_id"], "u0");
        }
    }
}

#[test]
fn nothing_comes_after_unsubscribe() {
    let mut node = Node::new(2);
    let channel = node.channel_on("live", 1);
    let (a, b) = (node.connect(0, "a"), node.connect(1, "b"));
    node.subscribe(a, &channel);
    node.publish(b, &channel, json!(1));
    assert_eq!(node.call(a, "unsubscribe", json!({"channel": channel}))["type"], "unsubscribed");
    node.take(a, "message");
    node.publish(b, &channel, json!(2));
    assert!(node.take_all(a).is_empty());
    // A second subscription of the same connection starts at the top.
    assert_eq!(node.subscribe(a, &channel)["data"]["offset"], 2);
    let again = node.call(a, "subscribe", json!({"channel": channel}));
    assert_eq!(again["data"]["error_code"], "ALREADY_SUBSCRIBED");
}

#[test]
fn permissions_are_checked() {
    let mut node = Node::new(2);
    let a = node.connect(0, "alice");
    let check = |node: &mut Node, kind: &str, data: serde_json::Value, expected: &str| {
        let reply = node.call(a, kind, data.clone());
        assert_eq!(reply["data"]["error_code"], expected, "{kind} {data} gave {reply}");
    };
    check(&mut node, "subscribe", json!({"channel": "user:bob"}), "PERMISSION_DENIED");
    check(&mut node, "subscribe", json!({"channel": "nowhere:1"}), "NOT_FOUND");
    check(&mut node, "subscribe", json!({"channel": "chat:a b"}), "INVALID_MESSAGE_FORMAT");
    check(&mut node, "subscribe", json!({}), "INVALID_MESSAGE_FORMAT");
    check(&mut node, "publish", json!({"channel": "system", "data": 1}), "PERMISSION_DENIED");
    check(&mut node, "publish", json!({"channel": "workflow:1", "data": 1}), "PERMISSION_DENIED");
    check(&mut node, "presence", json!({"channel": "chat:1"}), "PERMISSION_DENIED");
    check(&mut node, "history", json!({"channel": "live:1"}), "NOT_FOUND");
    check(
        &mut node,
        "publish",
        json!({"channel": "chat:1", "data": 1, "type": "welcome"}),
        "INVALID_MESSAGE_FORMAT",
    );
    check(
        &mut node,
        "publish",
        json!({"channel": "chat:1", "data": 1, "type": "notification"}),
        "INVALID_MESSAGE_FORMAT",
    );
}

#[test]
fn capabilities_in_the_token_open_what_the_namespace_does_not() {
    let mut node = Node::new(2);
    let caps = json!({"caps": [{"channels": ["workflow:*"], "allow": ["sub", "pub"]}]});
    let token = node.token("agent", caps);
    let a = node.upgrade(0, "/ws", &format!("Authorization: Bearer {token}\r\n"));
    node.settle();
    node.take(a, "welcome");
    node.subscribe(a, "workflow:7");
    let reply = node.call(
        a,
        "publish",
        json!({"channel": "workflow:7", "type": "workflow_update", "data": {"progress": 5}}),
    );
    assert_eq!(reply["type"], "published", "{reply}");
    assert_eq!(node.take(a, "workflow_update")["data"]["progress"], 5);
}

#[test]
fn an_idempotency_key_publishes_once() {
    let mut node = Node::new(2);
    let channel = node.channel_on("chat", 1);
    let a = node.connect(0, "a");
    node.subscribe(a, &channel);
    node.take_all(a);
    let data = json!({"channel": channel, "data": 1, "idempotency_key": "k1"});
    let first = node.call(a, "publish", data.clone());
    let second = node.call(a, "publish", data);
    assert_eq!(first["data"], second["data"]);
    assert_eq!(node.take_all(a).len(), 1);
}

#[test]
fn the_api_publishes_and_an_ephemeral_publication_has_no_place() {
    let mut node = Node::new(2);
    let channel = node.channel_on("chat", 1);
    let a = node.connect(0, "a");
    node.subscribe(a, &channel);
    node.take_all(a);
    let publish = |skip_history| {
        ChannelOp::Publish(Publish {
            kind: "workflow_update".into(),
            data: "{\"x\":1}".into(),
            skip_history,
            ..Publish::default()
        })
    };
    let outcome = node.api(&channel, publish(false)).unwrap();
    assert!(matches!(outcome, ChannelOutcome::Published(p) if p.offset == 1));
    node.api(&channel, publish(true)).unwrap();
    node.api(&channel, publish(false)).unwrap();
    let messages = node.take_all(a);
    let offsets: Vec<_> = messages.iter().map(|m| m["offset"].as_u64()).collect();
    assert_eq!(offsets, [Some(1), None, Some(2)]);
    assert!(messages.iter().all(|m| m["type"] == "workflow_update"));
    let history = node.call(a, "history", json!({"channel": channel}));
    assert_eq!(history["data"]["messages"].as_array().unwrap().len(), 2);
}

#[test]
fn history_pages_in_both_directions() {
    let mut node = Node::new(2);
    let channel = node.channel_on("chat", 0);
    let a = node.connect(1, "a");
    node.subscribe(a, &channel);
    for n in 0..10 {
        node.publish(a, &channel, json!(n));
    }
    let offsets = |reply: &serde_json::Value| -> Vec<u64> {
        let messages = reply["data"]["messages"].as_array().unwrap();
        messages.iter().map(|m| m["offset"].as_u64().unwrap()).collect()
    };
    let first = node.call(a, "history", json!({"channel": channel, "limit": 3}));
    assert_eq!(offsets(&first), [1, 2, 3]);
    let epoch = first["data"]["epoch"].clone();
    let since = json!({"offset": 3, "epoch": epoch});
    let next = node.call(a, "history", json!({"channel": channel, "limit": 3, "since": since}));
    assert_eq!(offsets(&next), [4, 5, 6]);
    let back = node.call(a, "history", json!({"channel": channel, "limit": 2, "reverse": true}));
    assert_eq!(offsets(&back), [10, 9]);
    let foreign = json!({"offset": 3, "epoch": "zzzzzzzz"});
    let wrong = node.call(a, "history", json!({"channel": channel, "since": foreign}));
    assert_eq!(wrong["data"]["error_code"], "UNRECOVERABLE_POSITION");
    let none = node.call(a, "history", json!({"channel": channel, "limit": 0}));
    assert_eq!(none["data"]["offset"], 10);
    assert!(offsets(&none).is_empty());
}

#[test]
fn channels_are_listed_from_the_first_by_name() {
    let mut node = Node::new(1);
    let client = node.connect(0, "a");
    let order = [7, 3, 9, 0, 5, 1, 8, 2, 6, 4];
    for n in order {
        node.subscribe(client, &format!("chat:{n}"));
    }
    node.subscribe(client, "live:0");
    let mut check = |prefix: &str, limit: u32, expected: &[&str]| {
        let op = || ShardOp::Channels { prefix: prefix.into(), limit };
        let Some(ShardOutcome::Channels(listed)) = node.ask_all(op).pop() else { panic!() };
        let names: Vec<&str> = listed.iter().map(|channel| &*channel.channel).collect();
        assert_eq!(names, expected, "{prefix} {limit}");
    };
    check("chat:", 4, &["chat:0", "chat:1", "chat:2", "chat:3"]);
    check("chat:9", 4, &["chat:9"]);
    check("live", 4, &["live:0"]);
    check("none", 4, &[]);
    check("", 0, &[]);
}
