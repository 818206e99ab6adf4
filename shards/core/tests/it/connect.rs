//! From socket to session: handshake, tokens, admission, deadlines, closing.

use std::time::Duration;

use gateway_core::settings::Rate;
use serde_json::json;

use crate::node::{Node, settings};

#[test]
fn a_welcome_says_who_and_what() {
    let mut node = Node::new(2);
    let token = node.token("alice", json!({"channels": ["chat:lobby", "nowhere:1"]}));
    let client =
        node.upgrade(1, &format!("/ws?token={token}"), "Sec-WebSocket-Protocol: archmesh.v1\r\n");
    node.settle();
    assert!(
        node.clients[client].head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert!(
        node.clients[client].head.to_lowercase().contains("sec-websocket-protocol: archmesh.v1")
    );
    let welcome = node.take(client, "welcome");
    let data = &welcome["data"];
    assert_eq!(data["user_id"], "alice");
    assert_eq!(data["session_id"].as_str().unwrap().len(), 36);
    assert_eq!(data["heartbeat_interval"], 30);
    assert!(data["expires_at"].as_u64().unwrap() > node.now.unix.as_secs());
    let channels: Vec<_> =
        data["subscriptions"].as_array().unwrap().iter().map(|s| s["channel"].clone()).collect();
    for channel in ["user:alice", "system", "chat:lobby"] {
        assert!(channels.contains(&json!(channel)), "{channels:?}");
    }
    assert_eq!(channels.len(), 3, "a claimed channel without a namespace is left out");
}

#[test]
fn a_token_may_come_in_four_ways() {
    let mut node = Node::new(1);
    let token = node.token("a", json!({}));
    for (target, headers) in [
        (format!("/ws?token={token}"), String::new()),
        ("/ws".into(), format!("Authorization: bearer {token}\r\n")),
        ("/ws".into(), format!("Sec-WebSocket-Protocol: archmesh.v1, bearer.{token}\r\n")),
    ] {
        let client = node.upgrade(0, &target, &headers);
        node.settle();
        assert!(!node.clients[client].head.contains(&token), "never echoed");
        node.take(client, "welcome");
    }
    let client = node.upgrade(0, "/ws", "");
    node.settle();
    let welcome = node.call(client, "auth", json!({"token": token}));
    assert_eq!(welcome["type"], "welcome");
    let twice = node.call(client, "auth", json!({"token": token}));
    assert_eq!(twice["type"], "error");
}

#[test]
fn bad_tokens_are_refused_in_the_handshake_and_after_it() {
    let mut node = Node::new(1);
    let expired = node.token("a", json!({"exp": node.now.unix.as_secs() - 100}));
    let client = node.upgrade(0, &format!("/ws?token={expired}"), "");
    node.settle();
    assert!(node.clients[client].head.starts_with("HTTP/1.1 401"), "{}", node.clients[client].head);
    assert!(node.clients[client].head.contains("TOKEN_EXPIRED"));
    assert!(node.clients[client].closed);
    let client = node.upgrade(0, "/ws", "");
    node.settle();
    let reply = node.call(client, "auth", json!({"token": "nonsense"}));
    assert_eq!(reply["data"]["error_code"], "AUTHENTICATION_FAILED");
    assert_eq!(node.clients[client].close_code, Some(4500));
    let client = node.upgrade(0, "/ws", "");
    node.settle();
    let reply = node.call(client, "subscribe", json!({"channel": "chat:1"}));
    assert_eq!(reply["data"]["error_code"], "AUTHENTICATION_FAILED");
    assert_eq!(node.count(|m| m.auth_failures.0.iter().sum()), 2);
}

#[test]
fn origins_are_checked_for_browsers() {
    let mut node = Node::new(1);
    let token = node.token("a", json!({}));
    for (origin, allowed) in [
        ("https://app.example.com", true),
        ("https://APP.example.com", true),
        ("http://gateway.test", true),
        ("https://evil.example.net", false),
        ("null", false),
    ] {
        let client =
            node.upgrade(0, &format!("/ws?token={token}"), &format!("Origin: {origin}\r\n"));
        node.settle();
        let expected = if allowed { "HTTP/1.1 101" } else { "HTTP/1.1 403" };
        assert!(node.clients[client].head.starts_with(expected), "{origin}");
    }
}

#[test]
fn what_is_no_upgrade_is_handed_over() {
    let mut node = Node::new(1);
    let client = node.dial(0);
    node.send_raw(client, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /live");
    node.settle();
    assert_eq!(node.clients[client].head, "handed over 42 bytes");
    assert_eq!(node.admission.connections(), 0);
}

#[test]
fn deadlines_of_the_handshake_and_the_token() {
    let mut node = Node::new(1);
    let head = node.dial(0);
    node.send_raw(head, b"GET /ws HTTP/1.1\r\nHo");
    let token = node.upgrade(0, "/ws", "");
    node.advance(Duration::from_secs(6));
    assert!(node.clients[head].head.starts_with("HTTP/1.1 408"));
    assert!(!node.clients[token].closed);
    node.advance(Duration::from_secs(5));
    let error = node.take(token, "error");
    assert_eq!(error["data"]["error_code"], "CONNECTION_TIMEOUT");
    assert_eq!(node.clients[token].close_code, Some(4007));
    node.advance(Duration::from_secs(6));
    assert!(node.clients[token].closed, "closed though the client never answered");
    assert_eq!(node.admission.connections(), 0);
}

#[test]
fn heartbeat_finds_dead_and_idle_peers() {
    let mut node = Node::new(1);
    let alive = node.connect(0, "alive");
    let dead = node.connect(0, "dead");
    node.clients[dead].silent = true;
    node.advance(Duration::from_secs(31));
    assert_eq!(node.clients[alive].pings, 1);
    node.advance(Duration::from_secs(11));
    assert_eq!(node.clients[dead].close_code, Some(4005));
    node.advance(Duration::from_secs(1200));
    assert!(!node.clients[alive].closed, "a pong is traffic");
    assert!((38..=41).contains(&node.clients[alive].pings), "{}", node.clients[alive].pings);
}

#[test]
fn limits_on_connections() {
    let mut settings = settings();
    settings.limits.connections_max = 3;
    settings.limits.connections_per_user_max = 2;
    let mut node = Node::with(1, settings);
    node.connect(0, "a");
    node.connect(0, "a");
    let token = node.token("a", json!({}));
    let third = node.upgrade(0, &format!("/ws?token={token}"), "");
    node.settle();
    assert!(node.clients[third].head.starts_with("HTTP/1.1 429"));
    node.connect(0, "b");
    let token = node.token("c", json!({}));
    let full = node.upgrade(0, &format!("/ws?token={token}"), "");
    node.settle();
    assert!(node.clients[full].head.starts_with("HTTP/1.1 503"), "{}", node.clients[full].head);
    assert!(node.clients[full].head.contains("Retry-After"));
    node.drop_socket(0);
    node.connect(0, "a");
}

#[test]
fn rates_answer_then_close() {
    let mut settings = settings();
    settings.limits.messages_per_connection = Rate { per_second: 10, burst: 5 };
    settings.limits.rate_violations_max = 3;
    let mut node = Node::with(1, settings);
    let a = node.connect(0, "a");
    for _ in 0..5 {
        assert_eq!(node.call(a, "ping", json!({}))["type"], "pong");
    }
    for _ in 0..3 {
        let reply = node.call(a, "ping", json!({}));
        assert_eq!(reply["data"]["error_code"], "RATE_LIMIT_EXCEEDED");
        assert!(reply["data"]["error_details"]["retry_after_ms"].as_u64().unwrap() <= 100);
    }
    node.advance(Duration::from_millis(110));
    assert_eq!(node.call(a, "ping", json!({}))["type"], "pong");
    node.call(a, "ping", json!({}));
    assert_eq!(node.clients[a].close_code, Some(4008));
}

#[test]
fn bad_messages_answer_then_close() {
    let mut node = Node::new(1);
    let a = node.connect(0, "a");
    for _ in 0..10 {
        node.send(a, &json!(["no", "envelope"]));
        node.settle();
        assert_eq!(node.take(a, "error")["data"]["error_code"], "INVALID_MESSAGE_FORMAT");
    }
    let unknown = node.call(a, "dance", json!({}));
    assert_eq!(unknown["data"]["error_code"], "NOT_FOUND");
    assert_eq!(node.clients[a].close_code, Some(4503));
}

#[test]
fn the_echo_endpoint_echoes_without_a_token() {
    let mut node = Node::new(1);
    let a = node.upgrade(0, "/echo", "Origin: https://evil.example.net\r\n");
    node.send(a, &json!({"any": "thing"}));
    node.settle();
    assert_eq!(node.clients[a].inbox.pop_front(), Some(json!({"any": "thing"})));
}

#[test]
fn input_may_be_split_at_every_byte() {
    let token = Node::new(1).token("a", json!({}));
    let mut bytes = format!(
        "GET /ws?token={token} HTTP/1.1\r\nHost: g\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes();
    let commands = [
        json!({"type": "subscribe", "id": "1", "data": {"channel": "chat:1"}}),
        json!({"type": "publish", "id": "2", "data": {"channel": "chat:1", "data": "ü"}}),
    ];
    for command in &commands {
        gateway_core::ws::frame::encode_masked(
            &mut bytes,
            gateway_core::ws::frame::Opcode::Text,
            command.to_string().as_bytes(),
            [9, 8, 7, 6],
        );
    }
    for split in 1..bytes.len() {
        let mut node = Node::new(2);
        let a = node.dial(0);
        node.send_raw(a, &bytes[..split]);
        node.settle();
        node.send_raw(a, &bytes[split..]);
        node.settle();
        let kinds: Vec<_> =
            node.take_all(a).iter().map(|m| m["type"].as_str().unwrap().to_owned()).collect();
        let mut sorted = kinds.clone();
        sorted.sort();
        assert_eq!(
            sorted,
            ["message", "published", "subscribed", "welcome"],
            "split at {split}: {kinds:?}"
        );
        assert_eq!(kinds[0], "welcome");
    }
}
