//! Presence, join/leave and online state.

use std::time::Duration;

use gateway_core::message::{ChannelOp, ChannelOutcome};
use serde_json::json;

use crate::node::Node;

#[test]
fn joins_and_leaves_are_told_and_counted() {
    let mut node = Node::new(2);
    let channel = node.channel_on("chat", 1);
    let (a, b) = (node.connect(0, "a"), node.connect(1, "b"));
    node.subscribe(a, &channel);
    assert!(node.take_all(a).is_empty(), "no join of its own");
    node.subscribe(b, &channel);
    let join = node.take(a, "join");
    assert_eq!(join["data"]["user_id"], "b");
    let presence = node.call(a, "presence", json!({"channel": channel}));
    assert_eq!(presence["data"]["clients"], 2);
    assert_eq!(presence["data"]["members"].as_array().unwrap().len(), 2);
    let device = node.connect(0, "b");
    node.subscribe(device, &channel);
    let stats = node.call(a, "presence_stats", json!({"channel": channel}));
    assert_eq!(
        (stats["data"]["clients"].as_u64(), stats["data"]["users"].as_u64()),
        (Some(3), Some(2))
    );
    node.take_all(a);
    node.drop_socket(b);
    node.settle();
    assert_eq!(node.take(a, "leave")["data"]["session_id"], join["data"]["session_id"]);
}

#[test]
fn fast_rounds_of_subscribe_and_unsubscribe_count_right() {
    let mut node = Node::new(2);
    let channel = node.channel_on("chat", 1);
    let a = node.connect(0, "a");
    for _ in 0..50 {
        node.subscribe(a, &channel);
        let clients = |node: &mut Node| match node.api(&channel, ChannelOp::PresenceStats) {
            Ok(ChannelOutcome::PresenceStats { clients, .. }) => clients,
            other => panic!("{other:?}"),
        };
        assert_eq!(clients(&mut node), 1);
        node.call(a, "unsubscribe", json!({"channel": channel}));
        assert_eq!(clients(&mut node), 0);
    }
}

#[test]
fn a_large_channel_gets_counts_instead_of_single_joins() {
    let mut node = Node::new(2);
    let channel = node.channel_on("chat", 0);
    let a = node.connect(0, "a");
    node.subscribe(a, &channel);
    for n in 0..20 {
        let client = node.connect(1, &format!("u{n}"));
        node.subscribe(client, &channel);
    }
    let joins = node.take_all(a);
    assert_eq!(joins.iter().filter(|m| m["type"] == "join").count(), 2, "up to 3 members singly");
    node.advance(Duration::from_secs(1));
    let pushes = node.take_all(a);
    let stats = &pushes[0];
    assert_eq!(stats["type"], "presence_stats");
    assert_eq!(stats["data"]["clients"], 21);
    assert_eq!(pushes.len(), 1);
}

#[test]
fn a_user_is_online_until_the_last_device_leaves() {
    let mut node = Node::new(2);
    let status = |node: &mut Node| match node.api("user:a", ChannelOp::UserStatus) {
        Ok(ChannelOutcome::UserStatus { connections, last_seen }) => (connections, last_seen),
        other => panic!("{other:?}"),
    };
    assert_eq!(status(&mut node), (0, None));
    let (phone, laptop) = (node.connect(0, "a"), node.connect(1, "a"));
    assert_eq!(status(&mut node), (2, None));
    node.drop_socket(phone);
    node.settle();
    assert_eq!(status(&mut node), (1, None));
    node.advance(Duration::from_secs(20));
    let left_at = node.now.unix;
    node.drop_socket(laptop);
    node.settle();
    assert_eq!(status(&mut node), (0, Some(left_at)));
}
