//! Clients that read too slowly: each policy, and that others feel nothing.

use gateway_core::settings::{Access, Namespace, Namespaces, SlowPolicy};
use serde_json::{Value, json};

use crate::node::{Client, Node, settings};

fn setup(policy: SlowPolicy) -> (Node, Client, Client) {
    let mut settings = settings();
    settings.limits.outbox_bytes_max = 16 << 10;
    settings.namespaces = Namespaces::new(vec![Namespace {
        subscribe: Access::SignedIn,
        publish: Access::SignedIn,
        slow: policy,
        ..Namespace::closed("feed")
    }]);
    let mut node = Node::with(2, settings);
    let (slow, publisher) = (node.connect(0, "slow"), node.connect(1, "p"));
    node.subscribe(slow, "feed:1");
    node.subscribe(publisher, "feed:1");
    node.clients[slow].stalled = true;
    (node, slow, publisher)
}

fn flood(node: &mut Node, publisher: Client, count: usize, keys: usize) {
    for n in 0..count {
        let data = json!({
            "channel": "feed:1",
            "data": {"n": n, "pad": "x".repeat(500)},
            "key": format!("k{}", n % keys),
        });
        assert_eq!(node.call(publisher, "publish", data)["type"], "published");
    }
    let got = node.take_all(publisher).iter().filter(|m| m["type"] == "message").count();
    assert_eq!(got, count, "the publisher itself is not slowed");
}

fn offsets_and_losses(messages: &[Value]) -> (Vec<u64>, u64) {
    let offsets = messages.iter().filter_map(|m| m["offset"].as_u64()).collect();
    let lost = messages
        .iter()
        .filter(|m| m["type"] == "lost")
        .map(|m| m["data"]["count"].as_u64().unwrap())
        .sum();
    (offsets, lost)
}

#[test]
fn disconnect_closes_and_counts() {
    let (mut node, slow, publisher) = setup(SlowPolicy::Disconnect);
    flood(&mut node, publisher, 100, 100);
    assert_eq!(node.count(|m| m.slow.0[0]), 1);
    node.resume(slow);
    assert_eq!(node.clients[slow].close_code, Some(4002));
    let messages = node.take_all(slow);
    assert_eq!(messages.last().unwrap()["type"], "disconnect");
    assert_eq!(messages.last().unwrap()["data"]["reconnect"], true);
}

#[test]
fn drop_oldest_keeps_the_newest_and_tells_the_loss() {
    let (mut node, slow, publisher) = setup(SlowPolicy::DropOldest);
    flood(&mut node, publisher, 200, 200);
    node.resume(slow);
    let messages = node.take_all(slow);
    let (offsets, lost) = offsets_and_losses(&messages);
    assert_eq!(offsets.len() as u64 + lost, 200);
    assert_eq!(*offsets.last().unwrap(), 200);
    assert!(offsets.windows(2).all(|w| w[0] < w[1]), "{offsets:?}");
    assert!(lost > 100);
    assert!(!node.clients[slow].closed);
}

#[test]
fn keep_latest_keeps_one_of_each_key() {
    let (mut node, slow, publisher) = setup(SlowPolicy::KeepLatest);
    flood(&mut node, publisher, 200, 5);
    node.resume(slow);
    let messages = node.take_all(slow);
    let (offsets, lost) = offsets_and_losses(&messages);
    assert_eq!(offsets.len() as u64 + lost, 200);
    assert_eq!(&offsets[offsets.len() - 5..], [196, 197, 198, 199, 200]);
}

#[test]
fn outbox_accounting_returns_to_zero() {
    for policy in [SlowPolicy::Disconnect, SlowPolicy::DropOldest, SlowPolicy::KeepLatest] {
        let (mut node, slow, publisher) = setup(policy);
        flood(&mut node, publisher, 200, 7);
        assert!(node.count(|m| m.outbox_bytes) > 0);
        node.drop_socket(slow);
        node.settle();
        assert_eq!(node.count(|m| m.outbox_bytes), 0, "{policy:?}");
    }
}
