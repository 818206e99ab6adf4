//! Tokens on live connections: expiry, refresh, revocation, channel tokens, anonymous access.

use std::collections::BTreeMap;
use std::time::Duration;

use gateway_core::error::Disconnect;
use gateway_core::message::{Revocation, ShardOp, ShardOutcome, Target};
use serde_json::json;

use crate::node::{Node, settings};

fn in_seconds(node: &Node, seconds: u64) -> serde_json::Value {
    json!({"exp": node.now.unix.as_secs() + seconds})
}

#[test]
fn an_expired_token_ends_the_connection_unless_refreshed() {
    let mut node = Node::new(1);
    let connect = |node: &mut Node| {
        let token = node.token("a", in_seconds(node, 60));
        let client = node.upgrade(0, &format!("/ws?token={token}"), "");
        node.settle();
        node.take(client, "welcome");
        client
    };
    let (lazy, diligent) = (connect(&mut node), connect(&mut node));
    node.advance(Duration::from_secs(50));
    let token = node.token("a", in_seconds(&node, 600));
    let reply = node.call(diligent, "refresh", json!({"token": token}));
    assert_eq!(reply["type"], "refreshed");
    let other = node.token("b", json!({}));
    let reply = node.call(diligent, "refresh", json!({"token": other}));
    assert_eq!(reply["data"]["error_code"], "AUTHENTICATION_FAILED", "another user's token");
    node.advance(Duration::from_secs(16));
    assert_eq!(node.clients[lazy].close_code, Some(4003));
    assert_eq!(node.clients[diligent].close_code, None);
}

#[test]
fn revocation_acts_at_once_and_stays() {
    let mut node = Node::new(2);
    let (a0, a1, b) = (node.connect(0, "a"), node.connect(1, "a"), node.connect(1, "b"));
    let token = node.token("a", json!({}));
    let now = node.now.unix;
    let op = || {
        ShardOp::Revoke(Revocation::User {
            user: "a".into(),
            issued_before: now + Duration::from_secs(1),
        })
    };
    node.ask_all(op);
    assert_eq!(node.clients[a0].close_code, Some(4501));
    assert_eq!(node.clients[a1].close_code, Some(4501));
    assert_eq!(node.clients[b].close_code, None);
    let again = node.upgrade(0, &format!("/ws?token={token}"), "");
    node.settle();
    assert!(
        node.clients[again].head.starts_with("HTTP/1.1 401"),
        "the cached verification does not help"
    );
    node.advance(Duration::from_secs(2));
    node.connect(0, "a");
}

#[test]
fn a_token_id_can_be_revoked() {
    let mut node = Node::new(1);
    let token = node.token("a", json!({"jti": "t1"}));
    let a = node.upgrade(0, &format!("/ws?token={token}"), "");
    node.settle();
    let other = node.connect(0, "a");
    let expires_at = node.now.unix + Duration::from_secs(3600);
    node.ask_all(|| ShardOp::Revoke(Revocation::TokenId { token_id: "t1".into(), expires_at }));
    assert_eq!(node.clients[a].close_code, Some(4501));
    assert_eq!(node.clients[other].close_code, None);
}

#[test]
fn channel_tokens_open_private_channels_for_a_time() {
    let mut node = Node::new(2);
    let a = node.connect(0, "a");
    let channel = "user:shared";
    let token = |node: &Node, channel: &str, extra: serde_json::Value| {
        let mut claims = json!({"channel": channel, "exp": node.now.unix.as_secs() + 60});
        for (key, value) in extra.as_object().unwrap() {
            claims[key] = value.clone();
        }
        let key = gateway_core::auth::SigningKey::from_secret(
            gateway_core::auth::KeyAlgorithm::Hs256,
            crate::node::SECRET,
        );
        gateway_core::auth::mint(&key.unwrap(), &claims).unwrap()
    };
    let wrong = token(&node, "user:other", json!({}));
    let reply = node.call(a, "subscribe", json!({"channel": channel, "token": wrong}));
    assert_eq!(reply["data"]["error_code"], "PERMISSION_DENIED");
    let foreign = token(&node, channel, json!({"sub": "b"}));
    let reply = node.call(a, "subscribe", json!({"channel": channel, "token": foreign}));
    assert_eq!(reply["data"]["error_code"], "PERMISSION_DENIED");
    let good = token(&node, channel, json!({"sub": "a"}));
    let reply = node.call(a, "subscribe", json!({"channel": channel, "token": good}));
    assert_eq!(reply["type"], "subscribed");
    node.advance(Duration::from_secs(61));
    let end = node.take_all(a).pop().unwrap();
    assert_eq!(
        (end["type"].as_str(), end["data"]["reason"].as_str()),
        (Some("unsubscribed"), Some("expired"))
    );
}

#[test]
fn a_channel_token_is_no_connection_token() {
    let mut node = Node::new(1);
    let token = node.token("a", json!({"channel": "chat:1"}));
    let client = node.upgrade(0, &format!("/ws?token={token}"), "");
    node.settle();
    assert!(node.clients[client].head.starts_with("HTTP/1.1 401"), "{}", node.clients[client].head);
}

#[test]
fn anonymous_access_only_where_configured() {
    for allowed in [false, true] {
        let mut settings = settings();
        settings.auth.anonymous = allowed;
        let mut node = Node::with(1, settings);
        let first = node.upgrade(0, "/ws", "");
        node.settle();
        let reply = node.call(first, "auth", json!({}));
        assert_eq!(reply["type"], if allowed { "welcome" } else { "error" });
        let query = node.upgrade(0, "/ws?token=", "");
        node.settle();
        assert_eq!(node.clients[query].inbox.len(), usize::from(allowed));
        if allowed {
            assert_eq!(reply["data"]["user_id"], "");
            let denied = node.call(first, "subscribe", json!({"channel": "chat:1"}));
            assert_eq!(denied["data"]["error_code"], "PERMISSION_DENIED");
        }
    }
}

#[test]
fn operators_disconnect_subscribe_and_look() {
    let mut node = Node::new(2);
    let (a0, a1) = (node.connect(0, "a"), node.connect(1, "a"));
    let affected = |outcomes: Vec<ShardOutcome>| -> u32 {
        outcomes.iter().map(|o| if let ShardOutcome::Affected(n) = o { *n } else { 0 }).sum()
    };
    let user = Target::User("a".into());
    let op = || ShardOp::Subscribe { target: user.clone(), channel: "chat:9".into() };
    assert_eq!(affected(node.ask_all(op)), 2);
    assert_eq!(node.take_all(a0).iter().filter(|m| m["type"] == "subscribed").count(), 1);
    let pages = node.ask_all(|| ShardOp::Connections { user: None, from_slot: 0, limit: 10 });
    let infos: Vec<_> = pages
        .iter()
        .flat_map(|p| {
            if let ShardOutcome::Connections { page, .. } = p { page.clone() } else { vec![] }
        })
        .collect();
    assert_eq!(infos.len(), 2);
    assert!(infos.iter().all(|info| info.channels.iter().any(|c| &**c == "chat:9")));
    let op = || ShardOp::Unsubscribe { target: user.clone(), channel: "chat:9".into() };
    assert_eq!(affected(node.ask_all(op)), 2);
    let op = || ShardOp::Disconnect { target: user.clone(), reason: Disconnect::ForceNoReconnect };
    assert_eq!(affected(node.ask_all(op)), 2);
    assert_eq!(affected(node.ask_all(op)), 0, "those that are being closed do not count again");
    for client in [a0, a1] {
        let last = node.take_all(client).pop().unwrap();
        assert_eq!(last["type"], "disconnect");
        assert_eq!(last["data"]["reconnect"], false);
        assert_eq!(node.clients[client].close_code, Some(4504));
    }
}

#[test]
fn a_drain_spreads_the_clients() {
    let mut node = Node::new(2);
    let clients: Vec<_> = (0..20).map(|n| node.connect(n % 2, &format!("u{n}"))).collect();
    node.ask_all(|| ShardOp::Drain {
        duration: Duration::from_secs(10),
        reconnect_delay_max: Duration::from_secs(5),
        urls: ["wss://a.example/ws".into(), "wss://b.example/ws".into()].into(),
    });
    node.advance(Duration::from_secs(5));
    let gone = clients.iter().filter(|c| node.clients[**c].close_code == Some(4001)).count();
    assert!((8..=12).contains(&gone), "{gone} of 20 after half the time");
    node.advance(Duration::from_secs(6));
    let mut told = BTreeMap::new();
    for &client in &clients {
        let last = node.take_all(client).pop().unwrap();
        assert_eq!(last["data"]["reconnect"], true);
        assert!(last["data"]["reconnect_after_ms"].as_u64().unwrap() <= 5000);
        *told.entry(last["data"]["url"].to_string()).or_insert(0) += 1;
    }
    let told: Vec<(String, u32)> = told.into_iter().collect();
    let each = |name: &str| (format!("\"wss://{name}.example/ws\""), 10);
    assert_eq!(told, [each("a"), each("b")], "each shard tells both in turn");
}
