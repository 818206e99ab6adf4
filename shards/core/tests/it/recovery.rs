//! Coming back: exactly what was missed, or an honest "no".

use std::time::Duration;

use gateway_core::message::ChannelOp;
use gateway_core::metrics::ShardMetrics;
use serde_json::{Value, json};

use crate::node::{Client, Node};

fn resume(node: &mut Node, client: Client, channel: &str, position: &Value) -> Value {
    let recover = json!({"offset": position["offset"], "epoch": position["epoch"]});
    node.call(client, "subscribe", json!({"channel": channel, "recover": recover}))
}

fn setup() -> (Node, String, Client, Client) {
    let mut node = Node::new(2);
    let channel = node.channel_on("chat", 1);
    let (a, b) = (node.connect(0, "a"), node.connect(1, "b"));
    node.subscribe(a, &channel);
    (node, channel, a, b)
}

#[test]
fn exactly_what_was_missed_comes_back() {
    let (mut node, channel, a, b) = setup();
    let seen = node.publish(b, &channel, json!("seen"));
    node.drop_socket(a);
    for n in 0..5 {
        node.publish(b, &channel, json!(n));
    }
    let a = node.connect(0, "a");
    let reply = resume(&mut node, a, &channel, &seen["data"]);
    assert_eq!(reply["data"]["recovered"], true);
    let missed = reply["data"]["messages"].as_array().unwrap();
    let data: Vec<_> = missed.iter().map(|m| m["data"].as_u64().unwrap()).collect();
    assert_eq!(data, [0, 1, 2, 3, 4]);
    node.publish(b, &channel, json!("live"));
    let live: Vec<_> = node.take_all(a).into_iter().filter(|m| m["type"] == "message").collect();
    assert_eq!(live.len(), 1);
    assert_eq!(live[0]["offset"], 7);
}

#[test]
fn what_cannot_be_recovered_is_said() {
    let (mut node, channel, a, b) = setup();
    let seen = node.publish(b, &channel, json!("seen"));
    node.drop_socket(a);
    for n in 0..60 {
        node.publish(b, &channel, json!(n));
    }
    let a = node.connect(0, "a");
    let reply = resume(&mut node, a, &channel, &seen["data"]);
    assert_eq!(reply["data"]["recovered"], false, "the history keeps 50 publications");
    assert_eq!(reply["data"]["messages"], json!([]));
    assert_eq!(reply["data"]["offset"], 61);
    node.call(a, "unsubscribe", json!({"channel": channel}));
    for position in [
        json!({"offset": 60, "epoch": "another1"}),
        json!({"offset": 60, "epoch": "no epoch at all"}),
        json!({"offset": 62, "epoch": seen["data"]["epoch"]}),
        json!({"offset": 0, "epoch": ""}),
    ] {
        let reply = resume(&mut node, a, &channel, &position);
        assert_eq!(reply["data"]["recovered"], false, "{position}");
        node.call(a, "unsubscribe", json!({"channel": channel}));
    }
    let top = json!({"offset": 61, "epoch": seen["data"]["epoch"]});
    assert_eq!(resume(&mut node, a, &channel, &top)["data"]["recovered"], true);
}

#[test]
fn a_fresh_client_may_ask_from_the_beginning() {
    let (mut node, channel, _, b) = setup();
    node.publish(b, &channel, json!(1));
    let c = node.connect(0, "c");
    let reply = resume(&mut node, c, &channel, &json!({"offset": 0, "epoch": ""}));
    assert_eq!(reply["data"]["recovered"], true);
    assert_eq!(reply["data"]["messages"].as_array().unwrap().len(), 1);
}

#[test]
fn removed_or_expired_history_is_no_recovery() {
    let (mut node, channel, a, b) = setup();
    let seen = node.publish(b, &channel, json!("seen"));
    node.drop_socket(a);
    node.publish(b, &channel, json!("missed"));
    node.api(&channel, ChannelOp::HistoryRemove).unwrap();
    let a = node.connect(0, "a");
    assert_eq!(resume(&mut node, a, &channel, &seen["data"])["data"]["recovered"], false);
    node.call(a, "unsubscribe", json!({"channel": channel}));
    let seen = node.publish(b, &channel, json!("again"));
    node.publish(b, &channel, json!("missed"));
    node.advance(Duration::from_secs(601));
    assert_eq!(resume(&mut node, a, &channel, &seen["data"])["data"]["recovered"], false);
}

#[test]
fn a_forgotten_channel_comes_back_with_another_epoch() {
    let (mut node, channel, a, b) = setup();
    let seen = node.publish(b, &channel, json!("seen"));
    node.drop_socket(a);
    node.advance(Duration::from_secs(601 + 61));
    assert_eq!(node.count(|m| m.history_publications), 0);
    let a = node.connect(0, "a");
    let reply = resume(&mut node, a, &channel, &seen["data"]);
    assert_eq!(reply["data"]["recovered"], false);
    assert_ne!(reply["data"]["epoch"], seen["data"]["epoch"]);
}

#[test]
fn a_server_side_subscription_recovers_too_and_without_duplicates() {
    let mut node = Node::new(2);
    let a = node.connect(0, "a");
    let publish = |node: &mut Node, text: &str| {
        let publish = gateway_core::message::Publish {
            data: format!("\"{text}\"").into(),
            ..Default::default()
        };
        node.api("user:a", ChannelOp::Publish(publish)).unwrap();
    };
    publish(&mut node, "seen");
    let seen = node.take(a, "message");
    node.drop_socket(a);
    publish(&mut node, "missed");
    let a = node.connect(0, "a");
    publish(&mut node, "live");
    assert_eq!(node.take(a, "message")["data"], "live");
    let reply = resume(&mut node, a, "user:a", &seen);
    assert_eq!(reply["data"]["recovered"], true);
    let missed = reply["data"]["messages"].as_array().unwrap();
    assert_eq!(missed.len(), 1);
    assert_eq!(missed[0]["data"], "missed");
}

#[test]
fn the_first_message_may_carry_positions() {
    let mut node = Node::new(2);
    let a = node.connect(0, "a");
    let publish = |text: &str| {
        ChannelOp::Publish(gateway_core::message::Publish {
            data: format!("\"{text}\"").into(),
            ..Default::default()
        })
    };
    node.api("user:a", publish("seen")).unwrap();
    let seen = node.take(a, "message");
    node.drop_socket(a);
    node.api("user:a", publish("missed")).unwrap();
    let a = node.upgrade(1, "/ws", "");
    node.settle();
    let token = node.token("a", json!({}));
    let recover = json!({"user:a": {"offset": seen["offset"], "epoch": seen["epoch"]}});
    let welcome = node.call(a, "auth", json!({"token": token, "recover": recover}));
    let subscriptions = welcome["data"]["subscriptions"].as_array().unwrap();
    let mine = subscriptions.iter().find(|s| s["channel"] == "user:a").unwrap();
    assert_eq!(mine["recovered"], true);
    assert_eq!(mine["messages"][0]["data"], "missed");
}

#[test]
fn reads_are_counted_by_what_answered_them_and_evictions_by_their_cause() {
    let (mut node, channel, a, b) = setup();
    let first = node.publish(b, &channel, json!(1));
    for n in 2..=60 {
        node.publish(b, &channel, json!(n));
    }
    let position = |offset: u64| json!({"offset": offset, "epoch": first["data"]["epoch"]});
    let recoveries = |m: &ShardMetrics| m.recovery_reads.0;
    for (offset, recovered) in [(9, false), (10, true), (60, true)] {
        node.call(a, "unsubscribe", json!({"channel": channel}));
        let reply = resume(&mut node, a, &channel, &position(offset));
        assert_eq!(reply["data"]["recovered"], recovered, "{reply}");
    }
    assert_eq!(sums(&mut node, recoveries), [2, 0, 1]);
    for query in [
        json!({"channel": channel, "limit": 50}),
        json!({"channel": channel, "limit": 51}),
        json!({"channel": channel, "since": position(9)}),
        json!({"channel": channel, "limit": 5, "reverse": true}),
        json!({"channel": channel, "limit": 0}),
    ] {
        let reply = node.call(a, "history", query);
        assert_eq!(reply["type"], "history", "{reply}");
    }
    assert_eq!(sums(&mut node, |m| m.history_reads.0), [2, 0, 2]);
    assert_eq!(sums(&mut node, |m| m.history_evicted.0), [0, 10, 0]);
    node.advance(Duration::from_secs(601));
    assert_eq!(sums(&mut node, |m| m.history_evicted.0), [0, 10, 50]);
}

/// Counters by label, of all shards together.
fn sums<const N: usize>(node: &mut Node, counts: fn(&ShardMetrics) -> [u64; N]) -> [u64; N] {
    std::array::from_fn(|label| node.count(|metrics| counts(metrics)[label]))
}
