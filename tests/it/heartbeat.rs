//! Setup: short ping intervals, clients that answer and clients that have died without a word.
//!
//! Must hold: the gateway pings; who answers stays, also without any message of its own; who does not is closed in
//! time, with its presence.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::gateway::{Gateway, Setup};
use crate::raw::{self, Raw};
use crate::socket::Socket;
use crate::support::{eventually, token};

fn started() -> Gateway {
    Setup::new()
        .set("heartbeat.ping_interval", "1s")
        .set("heartbeat.pong_timeout", "500ms")
        .set("engine.close_timeout", "300ms")
        .start()
}

#[test]
fn who_answers_pings_stays() {
    let gateway = started();
    let mut ada = Socket::connect(&gateway, "ada");
    eventually("three pings are answered", || {
        ada.poll();
        (ada.pings >= 3).then_some(())
    });
    assert_eq!(ada.call("ping", json!({}))["type"], "pong");
}

#[test]
fn who_does_not_is_closed_with_its_presence() {
    let gateway = started();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let mut dead = Raw::connect(gateway.public).unwrap();
    dead.attach(&token("dead")).unwrap();
    let subscribe = json!({"type": "subscribe", "id": "1", "data": {"channel": "chat:room"}});
    dead.send(&raw::text(&subscribe.to_string())).unwrap();
    ada.wait_for("the join", |m| m["type"] == "join" && m["data"]["user_id"] == "dead");
    let began = Instant::now();
    // Waiting for the leave also answers the pings that ada gets.
    ada.wait_for("the leave", |m| m["type"] == "leave" && m["data"]["user_id"] == "dead");
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert_eq!(dead.close_code(), Some(4005));
    gateway.await_metric("archmesh_disconnects_total", &[("reason", "no_pong")], |n| n == 1.0);
    gateway.await_metric("archmesh_sessions", &[], |now| now == 1.0);
}
