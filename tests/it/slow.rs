//! Setup: many clients that never read, in a busy channel, beside clients that do.
//!
//! Must hold: a client that does not read costs at most its outbox, and delays nobody; what it loses it is told, as
//! the policy of the namespace says.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::raw::{Raw, text};
use crate::socket::{Opening, Socket};
use crate::support::{heavy, token};

const OUTBOX: u64 = 192 * 1024;

fn setup(toml: &str) -> Gateway {
    Setup::new()
        .toml(toml)
        .set("limits.message_bytes_max", "64KiB")
        .set("large_data.chunk_bytes_max", "32KiB")
        .set("channels.recovery_bytes_max", "64KiB")
        .set("outbox.connection_bytes_max", format!("{OUTBOX}B"))
        .set("engine.close_timeout", "300ms")
        .set("cache.memory_max_mb", 16)
        .start()
}

/// A client with a small receive buffer that subscribes and then reads nothing.
fn sleeper(gateway: &Gateway, channel: &str) -> Socket {
    let receive_buffer = Some(64 * 1024);
    let opening = Opening { receive_buffer, ..Opening::with_token(&token("sleeper")) };
    let mut socket = Socket::open(gateway, &opening).unwrap();
    socket.take("welcome");
    socket.subscribe(channel);
    socket
}

#[test]
fn a_hundred_sleepers_are_cut_off_and_delay_nobody() {
    const SLEEPERS: u64 = 100;
    let _turn = heavy();
    let gateway = setup("");
    let mut reader = Socket::connect(&gateway, "reader");
    reader.subscribe("feed:busy");
    let sleepers: Vec<Socket> = (0..SLEEPERS).map(|_| sleeper(&gateway, "feed:busy")).collect();
    let base = gateway.numbers().rss_kib;
    let payload = json!("x".repeat(15_000));
    let (mut peak, mut slowest) = (0, Duration::ZERO);
    let deadline = Instant::now() + Duration::from_secs(120);
    let cut = [("action", "disconnected")];
    for round in 1.. {
        let began = Instant::now();
        gateway.publish("feed:busy", payload.clone());
        assert_eq!(reader.take("message")["data"], payload);
        slowest = slowest.max(began.elapsed());
        if round % 20 == 0 {
            peak = peak.max(gateway.numbers().rss_kib);
            if gateway.metric("archmesh_slow_consumers_total", &cut) >= SLEEPERS as f64 {
                break;
            }
        }
        assert!(Instant::now() < deadline, "the sleepers are not cut off");
    }
    let bound = SLEEPERS * OUTBOX / 1024 + 64 * 1024;
    assert!(peak <= base + bound, "{base} KiB grew to {peak}, at most {bound} more");
    assert!(slowest < Duration::from_secs(2), "the reader waited {slowest:?}");
    gateway.await_metric("archmesh_sessions", &[], |now| now <= 1.0);
    gateway.await_metric("archmesh_outbox_bytes", &[], |now| now == 0.0);
    assert_eq!(reader.call("ping", json!({}))["type"], "pong");
    drop(sleepers);
}

fn publish_until_lost(
    gateway: &Gateway,
    channel: &str,
    key: impl Fn(u64) -> Option<String>,
    action: &str,
) -> u64 {
    let filler = "x".repeat(10_000);
    let deadline = Instant::now() + Duration::from_secs(60);
    for n in 1.. {
        let mut request = json!({"channel": channel, "data": {"n": n, "filler": filler}});
        if let Some(key) = key(n) {
            request["key"] = json!(key);
        }
        gateway.result("publish", &request);
        let done = n % 20 == 0
            && gateway.metric("archmesh_slow_consumers_total", &[("action", action)]) >= 30.0;
        if done {
            return n;
        }
        assert!(Instant::now() < deadline, "nothing is lost after {n} publications");
    }
    unreachable!("the loop ends by return or panic")
}

#[test]
fn drop_oldest_tells_every_loss() {
    let _turn = heavy();
    let gateway = setup(
        "[[namespaces]]\nname = \"ticker\"\nsubscribe = \"signed_in\"\nslow_policy = \"drop_oldest\"\n\
         history_size = 10\nhistory_ttl = \"1m\"\n",
    );
    let mut socket = sleeper(&gateway, "ticker:a");
    let last = publish_until_lost(&gateway, "ticker:a", |_| None, "dropped_oldest");
    let mut next = 1;
    let mut lost = 0;
    while next <= last {
        let message = socket.wait_for("a publication or its loss", |m| {
            m["type"] == "message" || m["type"] == "lost"
        });
        if message["type"] == "lost" {
            let data = &message["data"];
            assert_eq!((&data["from_offset"], &data["reason"]), (&json!(next), &json!("slow")));
            lost += data["count"].as_u64().unwrap();
            next = data["to_offset"].as_u64().unwrap() + 1;
        } else {
            assert_eq!(message["offset"], next, "no gap is silent");
            assert_eq!(message["data"]["n"], next);
            next += 1;
        }
    }
    assert!(lost >= 30, "{lost} were lost");
    gateway.publish("ticker:a", json!("live again"));
    assert_eq!(socket.take("message")["data"], "live again");
}

#[test]
fn keep_latest_ends_with_the_newest_of_each_key() {
    let _turn = heavy();
    let gateway = setup(
        "[[namespaces]]\nname = \"cursor\"\nsubscribe = \"signed_in\"\nslow_policy = \"keep_latest\"\n",
    );
    let mut socket = sleeper(&gateway, "cursor:a");
    let key = |n: u64| Some(format!("key-{}", n % 7));
    let last = publish_until_lost(&gateway, "cursor:a", key, "superseded");
    let mut newest = [0_u64; 7];
    while newest.iter().any(|n| *n + 7 <= last) {
        let message = socket.take("message");
        let n = message["data"]["n"].as_u64().unwrap();
        let slot = &mut newest[(n % 7) as usize];
        assert!(n > *slot, "never an older one after a newer one");
        *slot = n;
    }
    assert_eq!(socket.call("ping", json!({}))["type"], "pong");
}

/// One client sends as fast as it can; the others must not feel it.
#[test]
fn a_flooding_sender_starves_nobody() {
    let _turn = heavy();
    let gateway = Setup::new().shards(1).set("rate_limits.violations_max", 0).start();
    let mut flood = Raw::connect(gateway.public).unwrap();
    flood.attach(&token("flood")).unwrap();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let burst: Vec<u8> = (0..200)
        .flat_map(|n| {
            let data = Value::from("y".repeat(900));
            text(&json!({"type": "publish", "id": n.to_string(), "data": {"channel": "feed:flood", "data": data}}).to_string())
        })
        .collect();
    let mut answers = flood.socket.try_clone().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if flood.send(&burst).is_err() {
                    return;
                }
            }
        });
        scope.spawn(|| {
            let mut sink = [0; 64 * 1024];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = std::io::Read::read(&mut answers, &mut sink);
            }
        });
        let mut slowest = Duration::ZERO;
        for n in 0..100 {
            let began = Instant::now();
            ada.publish("chat:room", json!(n));
            ada.take("message");
            slowest = slowest.max(began.elapsed());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(slowest < Duration::from_secs(2), "a calm client waited {slowest:?}");
    });
}
