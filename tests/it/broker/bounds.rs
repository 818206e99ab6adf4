//! Setup: one or two nodes with small bounds, and a real Redis that is stopped, or tells more than a node can take.
//!
//! Must hold: what is too much is refused, counted and answered as a temporary error; what was not heard is asked for.

use std::time::Instant;

use serde_json::json;

use super::{REPAIRED_MAX, ROOM, await_number, await_refused, await_together, insist, node};
use crate::redis::Redis;
use crate::seen::Seen;
use crate::socket::Socket;
use crate::support::{token, unix_now, within};

/// Publishes while Redis is stopped.
const FLOOD: usize = 120;

/// Answers to a flood at a stopped Redis; all of it is answered.
fn flood(bound: (&str, &str), padding: usize) {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a")
        .set("redis.batch_max", 1)
        .set("redis.compression_bytes_min", 0)
        .set(bound.0, bound.1)
        .start();
    a.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
    let mut ada = Socket::connect(&a, "ada");
    ada.subscribe(ROOM);
    redis.signal("STOP");
    let data = json!({"padding": "x".repeat(padding)});
    let ids: Vec<String> =
        (0..FLOOD).map(|_| ada.send("publish", &json!({"channel": ROOM, "data": data}))).collect();
    for id in ids {
        let reply = ada.reply(&id);
        assert_eq!(reply["data"]["error_code"], "UNAVAILABLE", "{reply}");
        assert_eq!(reply["data"]["error_details"]["temporary"], true, "{reply}");
    }
    let refused = a.metric("archmesh_broker_writes_total", &[("outcome", "refused")]);
    let failed = a.metric("archmesh_broker_writes_total", &[("outcome", "failed")]);
    assert!(refused > 0.0 && failed > 0.0, "{refused} refused, {failed} failed");
    assert_eq!(a.metric("archmesh_broker_writes_waiting", &[]), 0.0);
    redis.signal("CONT");
    insist(&mut ada, 1);
}

#[test]
fn a_flood_at_a_stopped_redis_is_refused_beyond_the_bound() {
    flood(("redis.writes_waiting_max", "16"), 0);
}

#[test]
fn a_flood_at_a_stopped_redis_is_refused_beyond_the_bytes() {
    flood(("redis.writes_waiting_bytes_max", "64KiB"), 4096);
}

/// A letter between nodes that takes long to read and changes nothing.
fn letter() -> String {
    let report: Vec<(String, u32)> = (0..400).map(|n| (format!("u{n}"), 0)).collect();
    json!({"rates": [1, report]}).to_string()
}

/// Redis tells more than the node can take, and among it a publication; a revocation is only kept.
#[test]
fn what_a_slow_node_did_not_hear_is_asked_for() {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a").start();
    let b = node(&redis.url(), "b").set("redis.messages_waiting_max", 1024).start();
    await_together(&[&a, &b]);
    let mut on_b = Socket::connect(&b, "bob");
    on_b.subscribe(ROOM);
    let mut publisher = Socket::connect(&a, "ada");
    let mut seen = Seen::default();
    let revoked = token("eve");
    let order = json!({"do": "revoke_user", "user": "eve", "issued_before": unix_now() + 1});
    let quoted = order.to_string().replace('"', "\\\"");
    let until = unix_now() + 3600;
    assert_eq!(redis.ask(&format!("ZADD archmesh:{{revocations}} {until} \"{quoted}\"")), ":1");
    let (quoted, mut n) = (letter().replace('"', "\\\""), 0);
    let burst = "for i = 1, 2000 do redis.call('PUBLISH', KEYS[1], ARGV[1]) end return 1";
    within(REPAIRED_MAX, "the node is too slow", || {
        redis.ask(&format!("EVAL \"{burst}\" 1 archmesh:nodes:{{all}} \"{quoted}\""));
        n += 1;
        insist(&mut publisher, n);
        (b.metric("archmesh_broker_lagged_total", &[]) > 0.0).then_some(())
    });
    insist(&mut publisher, n + 1);
    await_number(&mut seen, &mut on_b, n + 1);
    assert_eq!(seen.numbers, (1..=n + 1).collect::<Vec<u64>>());
    assert!(seen.told.is_empty(), "everything was in the history");
    await_refused(&b, &revoked);
}

/// A node that has no time for a question says so, and whoever asked is told that a part is missing.
#[test]
fn questions_beyond_the_bound_are_answered_as_missing() {
    let redis = Redis::start(&[]);
    // Without a refusal one would wait for three quarters of this.
    let with = |name: &str| node(&redis.url(), name).set("api.timeout", "60s");
    let (a, b) = (with("a").start(), with("b").set("cluster.questions_at_once_max", 1).start());
    await_together(&[&a, &b]);
    let ask = || {
        let began = Instant::now();
        let answer = a.result("info", &json!({}));
        assert!(began.elapsed() < REPAIRED_MAX, "no refusal came");
        answer["partial"] == true
    };
    within(REPAIRED_MAX, "a question is refused", || {
        let partial = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .fold(false, |any, one| any | one)
        });
        let refused = b.metric("archmesh_broker_questions_refused_total", &[]);
        assert!(!partial || refused > 0.0, "partial without a refusal");
        (partial && refused > 0.0).then_some(())
    });
}
