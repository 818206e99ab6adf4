//! Setup: faults injected by a client in development: a panic in one connection, a dead shard, a loop that stands still.
//!
//! Must hold: a panic closes its connection and no other; a dead shard ends the process, because half a node is worse
//! than a restart; a stall is seen in metrics and health, and one without end is ended by the watchdog.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use serde_json::json;

use crate::gateway::{Gateway, Setup};
use crate::http::Http;
use crate::socket::Socket;
use crate::support::eventually;

const SIGABRT: i32 = 6;

fn setup() -> Setup {
    Setup::new().internal().set("diagnostics.fault_injection", true)
}

#[test]
fn a_panic_closes_its_connection_only() {
    let gateway = setup().shards(1).start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    for round in 1..=20 {
        let mut eve = Socket::connect(&gateway, "eve");
        eve.subscribe("chat:room");
        eve.send("fault", &json!({"kind": "panic"}));
        eve.wait_close();
        gateway.await_metric("archmesh_panics_total", &[], |now| now == f64::from(round));
        gateway.publish("chat:room", json!(round));
        assert_eq!(ada.take("message")["data"], round);
    }
    eventually("the log tells it", || gateway.log.events("connection_panic").pop());
    gateway.await_metric("archmesh_sessions", &[], |now| now == 1.0);
    let stats = gateway.result("presence_stats", &json!({"channel": "chat:room"}));
    assert_eq!(stats["num_clients"], 1, "no ghost is left in the channel");
}

#[test]
fn a_dead_shard_ends_the_process() {
    let mut gateway = setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.send("fault", &json!({"kind": "panic_shard"}));
    let status = gateway.await_exit(Duration::from_secs(10));
    assert_eq!(status.signal(), Some(SIGABRT), "{status}");
    assert_eq!(ada.wait_close().code, None);
}

#[test]
fn a_stall_is_counted_and_healed() {
    let gateway = setup().set("engine.stall_threshold", "50ms").start();
    let mut ada = Socket::connect(&gateway, "ada");
    let mut bob = Socket::connect(&gateway, "bob");
    let before = gateway.metric("archmesh_loop_stalls_total", &[]);
    ada.send("fault", &json!({"kind": "stall", "ms": 400}));
    gateway.await_metric("archmesh_loop_stalls_total", &[], |now| now > before);
    gateway.await_metric("archmesh_loop_stall_longest_seconds", &[], |now| now >= 0.4);
    eventually("the log tells it", || gateway.log.events("stall").pop());
    assert_eq!(ada.call("ping", json!({}))["type"], "pong");
    assert_eq!(bob.call("ping", json!({}))["type"], "pong");
}

fn status_of(gateway: &Gateway, path: &str) -> Option<(u16, String)> {
    let answer = Http::connect(gateway.internal?, None).ok()?.get(path).ok()?;
    Some((answer.status, answer.json()["status"].as_str()?.to_owned()))
}

#[test]
fn a_long_stall_shows_in_health_and_passes() {
    let gateway = setup().set("engine.watchdog_timeout", "20s").start();
    let mut ada = Socket::connect(&gateway, "ada");
    // Health calls a shard stalled after half the watchdog's time.
    ada.send("fault", &json!({"kind": "stall", "ms": 13_000}));
    eventually("/live says stalled", || {
        (status_of(&gateway, "/live")? == (503, "stalled".into())).then_some(())
    });
    assert_eq!(status_of(&gateway, "/ready").map(|(status, _)| status), Some(503));
    eventually("it passes", || {
        (status_of(&gateway, "/live")? == (200, "live".into())).then_some(())
    });
    assert_eq!(ada.call("ping", json!({}))["type"], "pong");
}

#[test]
fn the_watchdog_ends_a_process_that_stands_still() {
    let mut gateway = setup().set("engine.watchdog_timeout", "1s").start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.send("fault", &json!({"kind": "stall", "ms": 60_000}));
    let status = gateway.await_exit(Duration::from_secs(30));
    assert_eq!(status.signal(), Some(SIGABRT), "{status}");
    assert!(gateway.log.text().contains("has not turned"), "the reason is said");
}

#[test]
fn without_the_switch_faults_are_unknown() {
    let gateway = Gateway::start();
    let mut eve = Socket::connect(&gateway, "eve");
    for kind in ["panic", "panic_shard", "stall"] {
        let answer = eve.call("fault", json!({"kind": kind, "ms": 10_000}));
        assert_eq!(answer["data"]["error_code"], "NOT_FOUND", "{answer}");
    }
    assert_eq!(eve.call("ping", json!({}))["type"], "pong");
}
