//! Setup: small limits, and clients that pass them.
//!
//! Must hold: every limit refuses with the documented status or code, what is within the limit goes on, and room is
//! given back. (That accepting rests without descriptors is shown in the engine's own tests; the start-up probe
//! refuses limits that could use them up.)

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use serde_json::json;

use crate::gateway::{Gateway, Setup, sum_of};
use crate::raw::{self, Raw};
use crate::socket::{Opening, Socket};
use crate::support::{eventually, token};

fn open(gateway: &Gateway, user: &str) -> Result<Socket, u16> {
    Socket::open(gateway, &Opening::with_token(&token(user)))
}

#[test]
fn connections_of_a_user() {
    let gateway = Setup::new().set("limits.connections_per_user_max", 2).start();
    let first = Socket::connect(&gateway, "ada");
    let _second = Socket::connect(&gateway, "ada");
    assert_eq!(open(&gateway, "ada").err(), Some(429));
    let opening = Opening { target: "/ws".into(), ..Opening::default() };
    let mut late = Socket::open(&gateway, &opening).unwrap();
    let answer = late.call("auth", json!({"token": token("ada")}));
    assert_eq!(answer["data"]["error_code"], "LIMIT_EXCEEDED", "{answer}");
    assert_eq!(late.wait_close().code, Some(4502));
    Socket::connect(&gateway, "bob").close();
    first.close();
    eventually("there is room again", || open(&gateway, "ada").ok());
    gateway.await_metric("archmesh_connections_refused_total", &[("reason", "user_limit")], |n| {
        n >= 1.0
    });
}

#[test]
fn connections_of_an_address() {
    let gateway = Setup::new().internal().set("limits.connections_per_address_max", 3).start();
    let mut open_ones: Vec<Socket> = Vec::new();
    eventually("three are let in", || {
        open_ones.extend(open(&gateway, "ada").ok());
        (open_ones.len() == 3).then_some(())
    });
    assert!(open(&gateway, "ada").is_err(), "the fourth is not");
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
    let mut neighbour = Raw::connect_from(source, gateway.public).unwrap();
    neighbour.attach(&token("bob")).expect("another address has room of its own");
    drop(open_ones);
    eventually("there is room again", || open(&gateway, "ada").ok());
    let reason = [("reason", "address_limit")];
    gateway.await_metric("archmesh_connections_refused_total", &reason, |n| n >= 1.0);
}

#[test]
fn connections_of_the_node() {
    let gateway = Setup::new().internal().set("limits.connections_max", 10).start();
    let mut all = Vec::new();
    eventually("ten are let in", || {
        all.extend(open(&gateway, "ada").ok());
        (all.len() == 10).then_some(())
    });
    assert_eq!(open(&gateway, "ada").err(), Some(503));
    assert_eq!(gateway.get("/ready").status, 200, "health is still answered");
    for socket in &mut all {
        assert_eq!(socket.call("ping", json!({}))["type"], "pong");
    }
    all.truncate(5);
    eventually("there is room again", || open(&gateway, "ada").ok());
}

#[test]
fn messages_of_a_connection() {
    let gateway = Setup::new()
        .set("rate_limits.connection_messages_per_second", 2)
        .set("rate_limits.connection_messages_burst", 5)
        .set("rate_limits.violations_max", 10)
        .start();
    let mut calm = Socket::connect(&gateway, "bob");
    let mut ada = Socket::connect(&gateway, "ada");
    for _ in 0..5 {
        assert_eq!(ada.call("ping", json!({}))["type"], "pong", "the burst passes");
    }
    let refused = eventually("a refusal", || {
        let answer = ada.call("ping", json!({}));
        (answer["type"] == "error").then_some(answer)
    });
    let data = &refused["data"];
    assert_eq!(data["error_code"], "RATE_LIMIT_EXCEEDED");
    assert!(data["error_details"]["retry_after"].as_u64().unwrap() >= 1, "{refused}");
    assert!(data["error_details"]["retry_after_ms"].as_u64().unwrap() <= 500, "{refused}");
    assert_eq!(calm.call("ping", json!({}))["type"], "pong", "others are not counted");
    for _ in 0..30 {
        if !ada.send_text("{\"type\":\"ping\",\"id\":\"x\"}") {
            break;
        }
    }
    assert_eq!(ada.wait_close().code, Some(4008));
    gateway.await_metric("archmesh_rate_limited_total", &[("scope", "connection")], |n| n >= 10.0);
}

#[test]
fn messages_of_a_user() {
    let gateway = Setup::new()
        .set("rate_limits.user_messages_per_second", 1)
        .set("rate_limits.user_messages_burst", 6)
        .start();
    let mut sockets = [
        Socket::connect(&gateway, "ada"),
        Socket::connect(&gateway, "ada"),
        Socket::connect(&gateway, "ada"),
    ];
    let mut other = Socket::connect(&gateway, "bob");
    let mut refused = 0;
    for _ in 0..5 {
        for socket in &mut sockets {
            refused += u32::from(socket.call("ping", json!({}))["type"] == "error");
        }
    }
    assert!((3..=9).contains(&refused), "{refused} of 15 were refused, with a burst of 6");
    assert_eq!(other.call("ping", json!({}))["type"], "pong");
}

#[test]
fn sizes_of_messages() {
    let gateway = Setup::new().set("limits.message_bytes_max", "128KiB").start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.publish("chat:a", json!("x".repeat(100_000)));
    let big = json!({"type": "publish", "id": "1", "data": {"channel": "chat:a", "data": "x".repeat(140_000)}});
    ada.send_text(&big.to_string());
    assert_eq!(ada.wait_close().code, Some(1009));
    // Only the header comes: the length alone is refused, and nothing is allocated for it.
    let mut raw = Raw::connect(gateway.public).unwrap();
    raw.attach(&token("ada")).unwrap();
    let before = gateway.numbers().rss_kib;
    raw.send(&[0x81, 0xff, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]).unwrap();
    assert_eq!(raw.close_code(), Some(1009));
    assert!(gateway.numbers().rss_kib < before + 20_000);
    let mut raw = Raw::connect(gateway.public).unwrap();
    raw.attach(&token("ada")).unwrap();
    raw.send(&raw::frame(raw::TEXT, &[b'a'; 100_000])).unwrap();
    raw.send(&raw::frame(0x80, &[b'a'; 100_000])).unwrap();
    assert_eq!(raw.close_code(), Some(1009), "fragments together are too large");
}

#[test]
fn counts_of_a_connection() {
    let gateway = Setup::new()
        .set("limits.subscriptions_max", 5)
        .set("limits.bad_messages_max", 3)
        .set("limits.json_depth_max", 10)
        .start();
    let mut ada = Socket::connect(&gateway, "ada");
    let held = ada.welcome()["data"]["subscriptions"].as_array().unwrap().len();
    for n in held..5 {
        ada.subscribe(&format!("chat:{n}"));
    }
    let answer = ada.call("subscribe", json!({"channel": "chat:more"}));
    assert_eq!(answer["data"]["error_code"], "LIMIT_EXCEEDED", "{answer}");
    let answer = ada.call("subscribe", json!({"channel": "chat:4"}));
    assert_eq!(answer["data"]["error_code"], "ALREADY_SUBSCRIBED", "{answer}");
    let deep = format!("{}1{}", "[".repeat(20), "]".repeat(20));
    for bad in ["no json", "[]", "{\"type\":7}", &deep] {
        ada.send_text(bad);
    }
    assert_eq!(ada.wait_close().code, Some(4503));
}

#[test]
fn handshakes_per_second() {
    let gateway = Setup::new()
        .internal()
        .set("rate_limits.handshakes_per_second", 5)
        .set("rate_limits.handshakes_burst", 10)
        .start();
    let mut kept = gateway.operators();
    let began = Instant::now();
    let results: Vec<Result<Socket, u16>> = (0..60).map(|_| open(&gateway, "ada")).collect();
    let allowed = 10 + (began.elapsed().as_secs_f64() * 5.0).ceil() as usize + 1;
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    assert!(accepted <= allowed, "{accepted} of at most {allowed}");
    assert!(accepted < 60, "the storm was bounded");
    for status in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!([0, 429, 503].contains(status), "refused with {status}");
    }
    eventually("the bucket fills again", || open(&gateway, "ada").ok());
    let scrape = kept.get("/metrics").unwrap().text();
    let refused =
        sum_of(&scrape, "archmesh_connections_refused_total", &[("reason", "handshake_rate")]);
    assert!(refused >= (60 - accepted) as f64, "{refused}");
}
