//! Setup: signals: the orderly end, the hasty end, and reloads with good and bad configurations.
//!
//! Must hold: a drain tells every client to move, paced, and exits 0 within its limit; a second signal ends at once; a
//! bad configuration changes nothing, a good one changes what is live without dropping anybody.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::raw::Raw;
use crate::redis::Redis;
use crate::socket::{Opening, Socket};
use crate::support::{WAIT, eventually, read_to_end, token};

#[test]
fn a_drain_tells_everybody_and_exits_zero() {
    let mut gateway = Setup::new()
        .internal()
        .set("limits.connections_max", 200)
        .set("drain.timeout", "20s")
        .set("drain.connections_per_second", 20)
        .set("drain.reconnect_delay_max", "3s")
        .start();
    let mut inside = gateway.operators();
    assert_eq!(inside.get("/ready").unwrap().status, 200);
    let mut sockets: Vec<Socket> =
        (0..30).map(|n| Socket::connect(&gateway, &format!("u{n}"))).collect();
    let began = Instant::now();
    gateway.signal("TERM");
    eventually("/ready says that the node drains", || {
        let mut http = crate::http::Http::connect(gateway.internal?, None).ok()?;
        let answer = http.get("/ready").ok()?;
        (answer.status == 503 && answer.json()["status"] == "draining").then_some(())
    });
    let opened = Socket::open(&gateway, &Opening::with_token(&token("late")));
    assert_eq!(opened.err(), Some(503), "nobody new is let in, and is told so");
    let mut delays = BTreeSet::new();
    let mut told = Vec::new();
    for socket in &mut sockets {
        let data = socket.take("disconnect")["data"].clone();
        told.push(began.elapsed());
        assert_eq!((&data["code"], &data["reconnect"]), (&json!(4001), &json!(true)), "{data}");
        let delay = data["reconnect_after_ms"].as_u64().unwrap();
        assert!(delay <= 3000, "{data}");
        delays.insert(delay);
        assert_eq!(socket.wait_close().code, Some(4001));
    }
    assert!(delays.len() >= 15, "the delays are spread: {delays:?}");
    let last = told.iter().max().unwrap();
    assert!(*last >= Duration::from_millis(700), "30 clients at 20 per second, all in {last:?}");
    let status = gateway.await_exit(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0));
    assert_eq!(gateway.log.events("drain_finished").len(), 1);
}

/// They are answered as long as clients are left, and hold up nothing: neither do connections that say nothing.
#[test]
fn whoever_comes_during_a_drain_is_told_where_to_go() {
    let redis = Redis::start(&[]);
    let node = |name: &str| {
        Setup::new()
            .internal()
            .set("node.name", name)
            .set("redis.url", redis.url())
            .set("cluster.url", format!("wss://{name}.example/ws"))
            .set("limits.connections_max", 100)
            .set("drain.connections_per_second", 1)
            .set("drain.timeout", "2m")
    };
    let (mut a, b) = (node("a").start(), node("b").start());
    for gateway in [&a, &b] {
        gateway.await_metric("archmesh_cluster_nodes", &[("state", "up")], |nodes| nodes == 2.0);
    }
    let mut sockets: Vec<Socket> = (0..20).map(|n| Socket::connect(&a, &format!("u{n}"))).collect();
    a.signal("TERM");
    eventually("the drain begins", || a.log.events("drain_started").pop());
    let mut silent: Vec<Raw> = Vec::new();
    for socket in sockets.iter_mut().take(4) {
        let mut http = a.http();
        let headers = [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        let answer = http.request("GET", "/ws", &headers.map(str::to_owned), &[]).unwrap();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.header("location"), Some("wss://b.example/ws"));
        let body = answer.json();
        assert_eq!(body["error"]["code"], "DRAINING", "{body}");
        assert_eq!(body["url"], "wss://b.example/ws");
        assert_eq!(a.get("/ready").json()["status"], "draining");
        silent.push(Raw::connect(a.public).unwrap());
        socket.take("disconnect");
    }
    // The last client goes, and nobody waits for the silent ones.
    drop(sockets);
    let gone = Instant::now();
    assert_eq!(a.await_exit(Duration::from_secs(60)).code(), Some(0));
    assert!(gone.elapsed() < Duration::from_secs(30), "{:?}", gone.elapsed());
    assert!(a.log.events("drain_limit_reached").is_empty());
    assert_eq!(a.log.events("drain_finished")[0]["connections"], 0);
    drop(silent);
}

#[test]
fn a_drain_ends_in_time_with_clients_that_do_not_answer() {
    let mut gateway = Setup::new()
        .set("drain.timeout", "2s")
        .set("drain.connections_per_second", 0)
        .set("engine.close_timeout", "30s")
        .start();
    let mut deaf: Vec<Raw> = (0..5)
        .map(|n| {
            let mut raw = Raw::connect(gateway.public).unwrap();
            raw.attach(&token(&format!("deaf-{n}"))).unwrap();
            raw
        })
        .collect();
    let began = Instant::now();
    gateway.signal("TERM");
    let status = gateway.await_exit(Duration::from_secs(15));
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    for raw in &mut deaf {
        assert_eq!(raw.close_code(), Some(4001), "even they were told");
    }
}

#[test]
fn an_acknowledged_publication_before_the_drain_arrives() {
    let mut gateway = Setup::new()
        .set("drain.connections_per_second", 0)
        .set("limits.requests_in_flight_max", 200)
        .start();
    let mut ada = Socket::connect(&gateway, "ada");
    let mut bob = Socket::connect(&gateway, "bob");
    ada.subscribe("chat:room");
    for n in 0..200 {
        bob.send("publish", &json!({"channel": "chat:room", "data": n}));
    }
    for _ in 0..200 {
        bob.take("published");
    }
    gateway.signal("TERM");
    for n in 0..200 {
        assert_eq!(ada.take("message")["data"], n);
    }
    ada.take("disconnect");
    bob.take("disconnect");
    assert_eq!((ada.wait_close().code, bob.wait_close().code), (Some(4001), Some(4001)));
    drop((ada, bob));
    assert_eq!(gateway.await_exit(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut gateway = Setup::new()
        .set("limits.connections_max", 100)
        .set("drain.timeout", "10m")
        .set("drain.connections_per_second", 1)
        .start();
    let sockets: Vec<Socket> =
        (0..20).map(|n| Socket::connect(&gateway, &format!("u{n}"))).collect();
    gateway.signal("TERM");
    eventually("the drain begins", || gateway.log.events("drain_started").pop());
    assert!(gateway.is_running());
    gateway.signal("TERM");
    let status = gateway.await_exit(Duration::from_secs(10));
    assert_ne!(status.code(), Some(0), "it was not orderly");
    drop(sockets);
}

fn publishing_is(socket: &mut Socket, channel: &str) -> Value {
    let answer = socket.call("publish", json!({"channel": channel, "data": 1}));
    if answer["type"] == "published" {
        json!("allowed")
    } else {
        answer["data"]["error_code"].clone()
    }
}

fn refused_reloads(gateway: &Gateway) -> f64 {
    gateway.metric("archmesh_config_reload_failures_total", &[])
}

#[test]
fn a_bad_configuration_is_refused_and_the_old_one_stays() {
    let good = "[limits]\nsubscriptions_max = 50\n[[namespaces]]\nname = \"news\"\npublish = \"signed_in\"\n";
    let gateway = Setup::new().toml(good).start();
    let mut ada = Socket::connect(&gateway, "ada");
    let bad = [
        "this is no TOML [",
        "[limits]\nsubscriptions_max = 0\n",
        "[limits]\nno_such_key = 1\n",
        "[[namespaces]]\nname = \"news\"\nrecovery = true\npublish = \"nobody\"\n",
        "[auth]\nsecret = \"short\"\n",
    ];
    for (index, text) in bad.iter().enumerate() {
        gateway.rewrite(text);
        gateway.signal("HUP");
        eventually(&format!("bad configuration {index} is refused"), || {
            (refused_reloads(&gateway) >= (index + 1) as f64).then_some(())
        });
        assert_eq!(gateway.metric("archmesh_config_last_reload_success", &[]), 0.0);
        assert_eq!(publishing_is(&mut ada, "news:1"), "allowed", "the old namespace stays");
    }
    eventually("the log says so", || {
        (gateway.log.events("reload_refused").len() == bad.len()).then_some(())
    });
    gateway.rewrite(good);
    gateway.signal("HUP");
    gateway.await_metric("archmesh_config_last_reload_success", &[], |value| value == 1.0);
    assert_eq!(Socket::connect(&gateway, "bob").welcome()["data"]["limits"]["subscriptions"], 50);
}

#[test]
fn a_good_configuration_takes_effect_on_live_connections() {
    let gateway = Setup::new().toml("[log]\nlevel = \"info\"\n").start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let before = ada.publish("chat:room", json!("before"));
    ada.take("message");
    assert_eq!(publishing_is(&mut ada, "news:1"), "NOT_FOUND");
    gateway.rewrite(
        "[log]\nlevel = \"debug\"\n[limits]\nmessage_bytes_max = \"70KiB\"\n\
         [large_data]\nchunk_bytes_max = \"32KiB\"\n\
         [[namespaces]]\nname = \"news\"\npublish = \"signed_in\"\n\
         [[namespaces]]\nname = \"chat\"\npublish = \"nobody\"\n",
    );
    gateway.signal("HUP");
    eventually("the new namespace is there", || {
        (publishing_is(&mut ada, "news:1") == "allowed").then_some(())
    });
    eventually("the old one is read-only", || {
        (publishing_is(&mut ada, "chat:room") == "PERMISSION_DENIED").then_some(())
    });
    let position = gateway.publish("chat:room", json!("after"));
    assert_eq!(position["epoch"], before["epoch"], "the stream goes on");
    let after = ada.wait_for("the publication", |m| m["data"] == "after");
    assert_eq!(after["offset"], position["offset"]);
    eventually("the log level has changed", || {
        // An HTTP connection that breaks off is worth a debug line.
        let mut http = gateway.http();
        http.get("/live").ok()?;
        http.send(b"\0\0\r\n\r\n").ok()?;
        read_to_end(&mut http.stream, WAIT)?;
        let lines = gateway.log.lines();
        lines.iter().any(|line| line.contains("\"level\":\"DEBUG\"")).then_some(())
    });
    let big = json!({"type": "publish", "id": "1", "data": {"channel": "news:1", "data": "x".repeat(100_000)}});
    ada.send_text(&big.to_string());
    assert_eq!(ada.wait_close().code, Some(1009), "the new limit holds for old connections");
    gateway.await_metric("archmesh_config_last_reload_success", &[], |value| value == 1.0);
}
