//! Setup: a node behind proxies, or full, beside other nodes.
//!
//! Must hold: who is not taken hears of another node, each in turn; a client behind a proxy counts as itself, and nobody
//! else can say who they are.

use std::time::Duration;

use gateway_core::message::{ShardOp, ShardOutcome};
use gateway_core::proxies::Proxies;
use gateway_core::settings::Settings;
use serde_json::{Value, json};

use crate::node::{Node, settings};

fn full_after(connections: u64) -> Settings {
    let mut settings = settings();
    settings.limits.connections_max = connections;
    settings
}

fn others(node: &mut Node, names: &[&str]) {
    let urls = names.iter().map(|name| format!("wss://{name}.example/ws").into());
    let urls: std::sync::Arc<[Box<str>]> = urls.collect();
    assert!(node.ask_all(|| ShardOp::Others(urls.clone())).is_empty(), "nothing is answered");
}

/// Location, body and whole text of the answer to an upgrade on a shard that is refused with 503.
fn refused(node: &mut Node, shard: u16) -> (Option<String>, Value, String) {
    let token = node.token("late", json!({}));
    let client = node.upgrade(shard, &format!("/ws?token={token}"), "");
    node.settle();
    let text = node.clients[client].head.clone();
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let location = head.lines().find_map(|line| line.strip_prefix("Location: "));
    let body: Value = serde_json::from_str(body).unwrap();
    crate::schema::check_refusal(&body);
    (location.map(str::to_owned), body, text.clone())
}

#[test]
fn a_full_node_names_the_others_in_turn() {
    let mut node = Node::with(2, full_after(1));
    node.connect(0, "a");
    let (location, body, text) = refused(&mut node, 0);
    assert_eq!((location, &body["url"]), (None, &Value::Null), "it knows none");
    assert_eq!(body["error"]["code"], "NODE_FULL");
    assert!(text.contains("Retry-After: 1"));
    others(&mut node, &["b", "c"]);
    let told: Vec<String> = [0, 0, 1, 1]
        .into_iter()
        .map(|shard| {
            let (location, body, text) = refused(&mut node, shard);
            assert_eq!(location.as_deref(), body["url"].as_str());
            assert!(text.contains("Retry-After: 1"), "{text}");
            location.unwrap()
        })
        .collect();
    let url = |name| format!("wss://{name}.example/ws");
    assert_eq!(told, [url("b"), url("c"), url("c"), url("b")], "each shard begins with another");
    others(&mut node, &["d"]);
    assert_eq!(refused(&mut node, 0).0, Some(url("d")));
    others(&mut node, &[]);
    assert_eq!(refused(&mut node, 0).0, None);
}

#[test]
fn a_draining_node_names_others_to_those_it_refuses_and_those_it_sends_away() {
    let mut node = Node::new(1);
    let staying = node.connect(0, "a");
    node.admission.set_draining(true);
    node.ask_all(|| ShardOp::Drain {
        duration: Duration::from_secs(10),
        reconnect_delay_max: Duration::from_secs(1),
        urls: ["wss://b.example/ws".into()].into(),
    });
    let (location, body, _) = refused(&mut node, 0);
    assert_eq!(location.as_deref(), Some("wss://b.example/ws"));
    assert_eq!(body["error"]["code"], "DRAINING");
    node.advance(Duration::from_secs(10));
    assert_eq!(node.take(staying, "disconnect")["data"]["url"], "wss://b.example/ws");
    others(&mut node, &["c"]);
    assert_eq!(refused(&mut node, 0).0.as_deref(), Some("wss://c.example/ws"), "b has gone");
}

fn behind(proxies: &str, per_address: u32) -> Settings {
    let mut settings = settings();
    settings.proxies = Proxies::new([proxies.parse().unwrap()]);
    settings.limits.connections_per_address_max = per_address;
    settings
}

fn addresses(node: &mut Node) -> Vec<String> {
    let outcomes = node.ask_all(|| ShardOp::Connections { user: None, from_slot: 0, limit: 100 });
    let mut found = Vec::new();
    for outcome in outcomes {
        let ShardOutcome::Connections { page, .. } = outcome else { continue };
        found.extend(page.iter().map(|info| info.address.to_string()));
    }
    found
}

fn upgrade_for(node: &mut Node, forwarded: &str) -> String {
    let token = node.token("a", json!({}));
    let headers = format!("X-Forwarded-For: {forwarded}\r\n");
    let client = node.upgrade(0, &format!("/ws?token={token}"), &headers);
    node.settle();
    node.clients[client].head.clone()
}

#[test]
fn a_client_behind_a_proxy_counts_as_itself() {
    // The test's clients come from the loopback.
    let mut node = Node::with(1, behind("127.0.0.0/8", 2));
    for client in ["198.51.100.1", "198.51.100.1", "198.51.100.2"] {
        assert!(upgrade_for(&mut node, client).starts_with("HTTP/1.1 101"), "{client}");
    }
    let third = upgrade_for(&mut node, "203.0.113.1, 198.51.100.1");
    assert!(third.starts_with("HTTP/1.1 429"), "{third}");
    assert!(third.contains("ADDRESS_LIMIT") && third.contains("Retry-After"), "{third}");
    assert_eq!(addresses(&mut node), ["198.51.100.1", "198.51.100.1", "198.51.100.2"]);
    node.drop_socket(0);
    assert!(upgrade_for(&mut node, "198.51.100.1").starts_with("HTTP/1.1 101"), "one has gone");
    // As many as wanted come from the proxy itself, which checks the node's health.
    for _ in 0..10 {
        node.dial(0);
    }
}

#[test]
fn nobody_else_can_say_who_they_are() {
    let mut node = Node::with(1, behind("10.0.0.0/8", 0));
    assert!(upgrade_for(&mut node, "198.51.100.1").starts_with("HTTP/1.1 101"));
    assert_eq!(addresses(&mut node), ["127.0.0.1"]);
}
