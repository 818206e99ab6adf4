//! Setup: two nodes with the default settings and a real Redis, in which somebody else has put keys of other types under the
//! names of one channel, or which takes no writes at all.
//!
//! Must hold: that channel is refused, clearly, and nothing of a refused operation is left; channels that are written in the
//! same calls notice nothing; the breaker stays closed; a server that takes no writes is refused as temporary and loses nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;

use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::redis::Redis;
use crate::seen::Seen;
use crate::socket::Socket;
use crate::support::eventually;

const POISONED: &str = "chat:poisoned";
/// Publishes under way at one time, so that many are written in one call.
const WINDOW: usize = 32;
/// Publications in each of the neighbours.
const COUNT: u64 = 300;

fn pair(redis: &Redis) -> [Gateway; 2] {
    let gateways = ["a", "b"].map(|name| {
        Setup::new()
            .set("node.name", name)
            .set("redis.url", redis.url())
            .set("limits.requests_in_flight_max", 2 * WINDOW)
            .start()
    });
    for gateway in &gateways {
        gateway.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
        gateway.await_metric("archmesh_cluster_nodes", &[("state", "up")], |nodes| nodes == 2.0);
    }
    gateways
}

fn key(part: &str) -> String {
    format!("archmesh:{{{POISONED}}}:{part}")
}

fn assert_well(gateways: &[Gateway]) {
    for gateway in gateways {
        assert!(gateway.log.events("redis_down").is_empty(), "{}", gateway.log.text());
        assert_eq!(gateway.get("/health").json()["status"], "healthy");
        assert_eq!(gateway.metric("archmesh_redis_up", &[]), 1.0);
    }
}

fn watch(gateway: &Gateway, channel: &str) -> (Socket, Seen) {
    let (mut watcher, mut seen) = (Socket::connect(gateway, "watcher"), Seen::default());
    seen.note_subscribed(&watcher.subscribe(channel));
    (watcher, seen)
}

/// Publishes `COUNT` numbers with many under way; all must be taken.
fn publish_all(gateway: &Gateway, channel: &str) {
    let mut socket = Socket::connect(gateway, "neighbour");
    let mut sent: Vec<String> = Vec::new();
    for n in 1..=COUNT {
        if sent.len() >= WINDOW {
            let answer = socket.reply(&sent.remove(0));
            assert_eq!(answer["type"], "published", "{channel}: {answer}");
        }
        sent.push(socket.send("publish", &json!({"channel": channel, "data": {"n": n}})));
    }
    for id in sent {
        let answer = socket.reply(&id);
        assert_eq!(answer["type"], "published", "{channel}: {answer}");
    }
}

/// Publishes to the poisoned channel until `stop`; gives all answers.
fn publish_poison(gateway: &Gateway, data: &Value, stop: &AtomicBool) -> Vec<Value> {
    let mut socket = Socket::connect(gateway, "poisoner");
    let mut answers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent: Vec<String> = (0..WINDOW).map(|_| socket.send("publish", data)).collect();
        answers.extend(sent.iter().map(|id| socket.reply(id)));
    }
    answers
}

/// Publishes to a poisoned channel and to its neighbours on both nodes at once.
fn check_neighbours(gateways: &[Gateway; 2], poison: &Value) {
    let [a, b] = gateways;
    let channels: Vec<String> = (0..4).map(|n| format!("chat:neighbour-{n}")).collect();
    let mut watchers: Vec<_> = channels.iter().map(|channel| watch(b, channel)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let poisoners =
            [a, b].map(|gateway| scope.spawn(|| publish_poison(gateway, poison, &stop)));
        let publishers: Vec<_> =
            channels.iter().map(|channel| scope.spawn(|| publish_all(a, channel))).collect();
        let published: Vec<_> = publishers.into_iter().map(ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        for result in published {
            result.unwrap();
        }
        for poisoner in poisoners {
            let answers = poisoner.join().unwrap();
            assert!(!answers.is_empty());
            for answer in answers {
                assert_eq!(answer["data"]["error_code"], "UNAVAILABLE", "{answer}");
                let message = answer["data"]["error_message"].as_str().unwrap_or_default();
                assert!(message.contains("nothing was published"), "{answer}");
            }
        }
    });
    for (channel, (watcher, seen)) in channels.iter().zip(&mut watchers) {
        eventually(&format!("everything of {channel} arrives"), || {
            seen.note_all(watcher, channel);
            (seen.numbers.len() >= COUNT as usize).then_some(())
        });
        assert_eq!(seen.numbers, (1..=COUNT).collect::<Vec<u64>>(), "{channel}");
        assert!(seen.told.is_empty(), "{channel}");
    }
    assert_well(gateways);
}

#[test]
fn a_poisoned_position_fails_its_own_channel_only() {
    let redis = Redis::start(&[]);
    let gateways = pair(&redis);
    redis.ask(&format!("SET {} x", key("meta")));
    check_neighbours(&gateways, &json!({"channel": POISONED, "data": 1}));
    let told = gateways[0].log.events("redis_write_refused");
    assert!(!told.is_empty() && told.len() < 30, "{} lines", told.len());
    assert_eq!(told[0]["channel"], POISONED);
    redis.ask(&format!("DEL {}", key("meta")));
    gateways[0].publish(POISONED, json!(2));
}

#[test]
fn a_poisoned_stream_fails_its_own_channel_only_and_leaves_no_hole() {
    let redis = Redis::start(&[]);
    let gateways = pair(&redis);
    let (mut watcher, mut seen) = watch(&gateways[1], POISONED);
    let mut publisher = Socket::connect(&gateways[0], "publisher");
    let first = publisher.publish(POISONED, json!({"n": 1}));
    redis.ask(&format!("SET {} x", key("stream")));
    check_neighbours(&gateways, &json!({"channel": POISONED, "data": {"n": 2}}));
    redis.ask(&format!("DEL {}", key("stream")));
    let second = publisher.publish(POISONED, json!({"n": 3}));
    assert_eq!(second["offset"], 2, "no refused publish has taken a place: {second}");
    assert_eq!(second["epoch"], first["epoch"]);
    eventually("the watcher has both", || {
        seen.note_all(&mut watcher, POISONED);
        (seen.numbers == [1, 3]).then_some(())
    });
    assert!(seen.told.is_empty());
}

#[test]
fn a_poisoned_idempotency_key_fails_what_carries_it_only() {
    let redis = Redis::start(&[]);
    let gateways = pair(&redis);
    redis.ask(&format!("RPUSH {} x", key("key:once")));
    let poison = json!({"channel": POISONED, "data": 1, "idempotency_key": "once"});
    check_neighbours(&gateways, &poison);
    let published = gateways[0].publish(POISONED, json!(2));
    assert_eq!(published["offset"], 1, "no refused publish has taken a place: {published}");
}

#[test]
fn poisoned_members_hold_up_no_publication_and_come_back() {
    let redis = Redis::start(&[]);
    let gateways = pair(&redis);
    let mut on_b = Socket::connect(&gateways[1], "bob");
    on_b.subscribe(POISONED);
    redis.ask(&format!("SET {} x", key("members")));
    let mut on_a = Socket::connect(&gateways[0], "ada");
    on_a.subscribe(POISONED);
    eventually("it is told", || gateways[0].log.events("redis_write_refused").pop());
    for n in 1..=50 {
        on_a.publish(POISONED, json!({"n": n}));
        assert_eq!(on_b.take("message")["data"]["n"], n);
    }
    assert_well(&gateways);
    let refused = || gateways[0].metric("archmesh_broker_writes_total", &[("outcome", "failed")]);
    assert!(refused() < 20.0, "tried again with every publication: {}", refused());
    redis.ask(&format!("DEL {}", key("members")));
    let mut n = 50;
    eventually("ada is told to the other node", || {
        n += 1;
        on_a.publish(POISONED, json!({"n": n}));
        let answer = gateways[1].result("presence_stats", &json!({"channel": POISONED}));
        (answer["num_clients"] == 2).then_some(())
    });
}

#[test]
fn a_server_without_memory_is_refused_as_temporary_and_loses_nothing() {
    let redis = Redis::start(&[]);
    let gateways = pair(&redis);
    let channels = ["chat:first", "chat:second"];
    let mut watchers = channels.map(|channel| watch(&gateways[1], channel));
    let mut publisher = Socket::connect(&gateways[0], "publisher");
    let mut acknowledged = channels.map(|_| Vec::new());
    let mut publish = |n: u64, acknowledged: &mut [Vec<u64>; 2]| {
        let ids = channels.map(|channel| {
            publisher.send("publish", &json!({"channel": channel, "data": {"n": n}}))
        });
        let mut refused = 0;
        for (id, acknowledged) in ids.iter().zip(acknowledged) {
            let answer = publisher.reply(id);
            if answer["type"] == "published" {
                acknowledged.push(n);
            } else {
                assert_eq!(answer["data"]["error_details"]["temporary"], true, "{answer}");
                let message = answer["data"]["error_message"].as_str().unwrap_or_default();
                assert!(message.contains("nothing was published"), "{answer}");
                refused += 1;
            }
        }
        refused
    };
    assert_eq!(publish(1, &mut acknowledged), 0);
    redis.ask("CONFIG SET maxmemory 100000");
    for n in 2..=40 {
        assert_eq!(publish(n, &mut acknowledged), 2, "nothing is taken");
    }
    eventually("health says so", || {
        (gateways[0].get("/health").json()["status"] == "degraded").then_some(())
    });
    assert!(gateways[0].log.events("redis_down").is_empty(), "it answers");
    assert_eq!(gateways[0].log.events("redis_refuses").len(), 1);
    redis.ask("CONFIG SET maxmemory 0");
    let mut n = 40;
    eventually("publishes are taken again", || {
        n += 1;
        (publish(n, &mut acknowledged) == 0).then_some(())
    });
    for ((channel, (watcher, seen)), acknowledged) in
        channels.iter().zip(&mut watchers).zip(&acknowledged)
    {
        eventually("what was acknowledged arrives", || {
            seen.note_all(watcher, channel);
            (seen.numbers == *acknowledged).then_some(())
        });
        assert!(seen.told.is_empty());
    }
    eventually("health is well again", || {
        (gateways[0].get("/health").json()["status"] == "healthy").then_some(())
    });
    eventually("the log says so", || gateways[0].log.events("redis_accepts").pop());
}
