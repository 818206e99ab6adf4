//! Setup: two nodes and a real Redis; what Redis told was lost on its way, and nothing is told later that would show it.
//!
//! Must hold: a node finds by itself what it has missed: revocations, members, publications.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::{REPAIRED_MAX, ROOM, await_refused, await_together, members, node, pair};
use crate::chaos::hold;
use crate::gate::{Cut, Gate};
use crate::gateway::{Gateway, Setup};
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::{eventually, token_with, unix_now};

const BOTH_WAYS: Cut = Cut { there: true, back: true };
/// Longer than the subscriber needs to be back.
const BREAKER_OPEN: &str = "6s";

/// The default.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// A token for `eve` that was issued before anything is revoked.
fn token_of_before() -> String {
    token_with("eve", json!({"iat": unix_now() - 60}))
}

fn await_breaker(gateway: &Gateway, state: f64) {
    gateway.await_metric("archmesh_redis_breaker_state", &[], |found| found == state);
}

/// The connection for publications is back before anything may be asked.
#[test]
fn revocations_outlive_a_cut() {
    let redis = Redis::start(&[]);
    let gate = Gate::open(redis.address());
    let a = node(&redis.url(), "a").start();
    let url = format!("redis://{}", gate.address());
    let b = node(&url, "b").set("redis.breaker_open", BREAKER_OPEN).start();
    await_together(&[&a, &b]);
    let token = token_of_before();
    let mut eve = Socket::connect_with(&b, &token);
    gate.set(BOTH_WAYS);
    a.await_metric("archmesh_cluster_nodes", &[("state", "up")], |nodes| nodes == 1.0);
    // What waits for b there is lost.
    redis.ask("client kill type pubsub");
    await_breaker(&b, 2.0);
    // What was under way is not answered any more.
    hold(2 * COMMAND_TIMEOUT);
    let revoked = a.result("revoke", &json!({"user": "eve"}));
    assert_eq!(revoked["affected"], 0, "a has nobody to wait for");
    gate.set(Cut::default());
    eve.wait_close_within(REPAIRED_MAX);
    await_refused(&b, &token);
}

#[test]
fn a_node_that_started_without_redis_learns_of_revocations_when_it_comes() {
    let mut redis = Redis::start(&["--appendonly", "yes"]);
    let a = node(&redis.url(), "a").start();
    a.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
    let token = token_of_before();
    a.result("revoke", &json!({"user": "eve"}));
    drop(a);
    redis.kill();
    let b = node(&redis.url(), "b").set("redis.breaker_open", BREAKER_OPEN).start();
    b.await_metric("archmesh_broker_revocations_behind", &[], |behind| behind == 1.0);
    let mut eve = Socket::connect_with(&b, &token);
    await_breaker(&b, 2.0);
    redis.restart();
    eve.wait_close_within(REPAIRED_MAX);
    await_refused(&b, &token);
    b.await_metric("archmesh_broker_revocations_behind", &[], |behind| behind == 0.0);
}

fn users(gateway: &Gateway, channel: &str) -> BTreeSet<String> {
    let answer = gateway.result("presence", &json!({"channel": channel}));
    let members = answer["presence"].as_object().unwrap().values();
    members.map(|member| member["user"].as_str().unwrap().to_owned()).collect()
}

/// Somebody leaves and somebody comes on one node while the other is cut off, and nothing is published.
pub fn check_members_after_a_cut(redis: &Redis, channel: &str, node: impl Fn(&str) -> Setup) {
    let gate = Gate::open(redis.address());
    // The cut ends before the lease, which would repair it too.
    let start = |url: &str| node(url).set("cluster.lease_ttl", "60s").start();
    let (a, b) = (start(&redis.url()), start(&format!("redis://{}", gate.address())));
    await_together(&[&a, &b]);
    let mut bob = Socket::connect(&b, "bob");
    bob.subscribe(channel);
    let (mut ada, mut eve) = (Socket::connect(&a, "ada"), Socket::connect(&a, "eve"));
    for socket in [&mut ada, &mut eve] {
        socket.subscribe(channel);
        bob.take("join");
    }
    gate.set(BOTH_WAYS);
    redis.ask("client kill type pubsub");
    eve.close();
    let mut fay = Socket::connect(&a, "fay");
    fay.subscribe(channel);
    let present = BTreeSet::from(["ada", "bob", "fay"].map(str::to_owned));
    eventually("a knows who is there", || (users(&a, channel) == present).then_some(()));
    gate.set(Cut::default());
    assert_eq!(bob.take("leave")["data"]["user_id"], "eve");
    assert_eq!(bob.take("join")["data"]["user_id"], "fay");
    for gateway in [&a, &b] {
        eventually("the same are present", || (users(gateway, channel) == present).then_some(()));
        let stats = gateway.result("presence_stats", &json!({"channel": channel}));
        assert_eq!(stats["num_clients"], 3, "{stats}");
    }
    assert!(bob.settled("leave").is_empty() && bob.settled("join").is_empty());
}

#[test]
fn members_are_right_after_a_cut_without_a_publication() {
    let redis = Redis::start(&[]);
    check_members_after_a_cut(&redis, ROOM, |url| node(url, "n"));
}

/// As if Redis had dropped the message: the publication is kept and nobody was told.
#[test]
fn a_publication_that_redis_did_not_tell_is_found_by_the_regular_check() {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a").set("redis.check_interval", "100ms").start();
    a.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
    let mut ada = Socket::connect(&a, "ada");
    ada.subscribe(ROOM);
    ada.publish(ROOM, json!({"n": 1}));
    assert_eq!(ada.take("message")["offset"], 1);
    let keep = "redis.call('XADD', KEYS[1], '2-0', 'p', redis.call('XRANGE', KEYS[1], '1-0', '1-0')[1][2][2]) \
                return redis.call('HSET', KEYS[2], 'o', 2)";
    let key = format!("archmesh:{{{ROOM}}}");
    assert_eq!(redis.ask(&format!("EVAL \"{keep}\" 2 {key}:stream {key}:meta")), ":0");
    let message = ada.take("message");
    assert_eq!((&message["offset"], &message["data"]["n"]), (&json!(2), &json!(1)));
    assert_eq!(a.metric("archmesh_broker_missed_total", &[]), 1.0);
    assert_eq!(a.metric("archmesh_broker_probe_reconnects_total", &[]), 0.0);
    assert!(ada.settled("lost").is_empty());
}

/// A removal that was not heard is learned with the next question.
#[test]
fn a_removed_history_stays_removed_after_a_cut() {
    let redis = Redis::start(&[]);
    let (a, b) = pair(&redis);
    let mut on_b = Socket::connect(&b, "bob");
    on_b.subscribe(ROOM);
    let mut on_a = Socket::connect(&a, "ada");
    on_a.publish(ROOM, json!({"n": 1}));
    on_b.take("message");
    assert_eq!(members(&b), 1);
    // What `history_remove` does, without a word to anybody.
    redis.ask(&format!("DEL archmesh:{{{ROOM}}}:stream"));
    let reply = on_b.call("history", json!({"channel": ROOM, "limit": 10}));
    assert_eq!(reply["data"]["messages"], json!([]), "{reply}");
}

/// A call of another node, which took this one for gone, was late: the members were there again.
#[test]
fn members_that_were_taken_out_of_redis_are_told_again() {
    let redis = Redis::start(&[]);
    let (a, b) = pair(&redis);
    let mut on_b = Socket::connect(&b, "ada");
    on_b.subscribe(ROOM);
    eventually("a knows the member", || (members(&a) == 1).then_some(()));
    let topic = format!("archmesh:{{{ROOM}}}");
    let key = format!("{topic}:members");
    let field = redis.ask_all(&format!("HKEYS {key}")).concat();
    // What `lua/write.lua` does.
    assert_eq!(redis.ask(&format!("HDEL {key} {field}")), ":1");
    let first = &field[..=field.find('/').unwrap()];
    redis.ask(&format!("PUBLISH {topic} f{first}"));
    eventually("Redis has it again", || {
        (redis.ask_all(&format!("HKEYS {key}")).concat() == field).then_some(())
    });
    let c = node(&redis.url(), "c").start();
    let mut on_c = Socket::connect(&c, "bob");
    on_c.subscribe(ROOM);
    eventually("a new node knows it", || (members(&c) == 2).then_some(()));
}
