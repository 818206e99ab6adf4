//! Setup: nodes that meet in a real Redis, which is stopped, killed and emptied under them.
//!
//! Must hold: every node sees the others and what state they are in; a dead one is gone within seconds, one that was away
//! comes back as another; clients are sent to nodes that take them; without Redis a node serves on, says so, and finds
//! back by itself.

use std::time::{Duration, Instant, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::balancer::free_port;
use crate::gateway::{Gateway, Setup};
use crate::http::Answer;
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::{eventually, within};
use crate::tls::Authority;

/// A dead node is gone after 8 seconds with the default lease; the rest is for a busy machine.
const GONE_MAX: Duration = Duration::from_secs(20);
/// How long the members of a dead node may stay, and how long a hung server may go unnoticed, with the default settings.
const MEMBERS_GONE_MAX: Duration = Duration::from_secs(10);
const HANG_PROMISED: Duration = Duration::from_secs(3);
/// A server that hangs is found after 3 seconds with the default timeouts; the rest is for a busy machine.
const HANG_FOUND_MAX: Duration = Duration::from_secs(15);

fn node(redis: &str, name: &str) -> Setup {
    Setup::new()
        .set("node.name", name)
        .set("redis.url", redis)
        .set("cluster.url", format!("wss://{name}.example/ws"))
}

/// With leases so short that their end need not be waited for long.
fn hasty(setup: Setup) -> Setup {
    setup.set("cluster.lease_interval", "200ms").set("cluster.lease_ttl", "1s")
}

fn nodes(gateway: &Gateway) -> Vec<Value> {
    let answer = gateway.operators().get("/cluster/nodes").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["nodes"].as_array().unwrap().clone()
}

fn names(gateway: &Gateway) -> Vec<String> {
    nodes(gateway).iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
}

fn await_names(gateway: &Gateway, expected: &[&str]) {
    eventually(&format!("the nodes are {expected:?}"), || {
        (names(gateway) == expected).then_some(())
    });
}

fn own_id(gateway: &Gateway) -> String {
    let answer = gateway.operators().get("/cluster/nodes").unwrap().json();
    answer["self"].as_str().unwrap().to_owned()
}

fn connect(gateway: &Gateway) -> Answer {
    gateway.get("/connect?user=ada")
}

fn status(gateway: &Gateway) -> (u16, String) {
    let answer = gateway.get("/health");
    (answer.status, answer.json()["status"].as_str().unwrap().to_owned())
}

fn await_status(gateway: &Gateway, expected: &str) {
    eventually(&format!("health is {expected}"), || {
        (status(gateway) == (200, expected.to_owned())).then_some(())
    });
}

#[test]
fn nodes_see_each_other_and_clients_go_to_the_emptier() {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a").start();
    let sockets: Vec<Socket> = (0..5).map(|n| Socket::connect(&a, &format!("u{n}"))).collect();
    let b = node(&redis.url(), "b").set("cluster.weight", 50).start();
    await_names(&a, &["a", "b"]);
    await_names(&b, &["a", "b"]);
    let seen = eventually("b hears of a's connections", || {
        nodes(&b).into_iter().find(|node| node["name"] == "a" && node["connections"] == 5)
    });
    assert_eq!(seen["state"], "up");
    assert_eq!((&seen["url"], &seen["shards"]), (&json!("wss://a.example/ws"), &json!(2)));
    let answer = connect(&b);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.json(),
        json!({"url": "wss://b.example/ws", "node": "b", "strategy": "least_connections"})
    );
    assert_eq!(b.metric("archmesh_cluster_nodes", &[("state", "up")]), 2.0);
    assert_eq!(b.metric("archmesh_cluster_lease_held", &[]), 1.0);
    assert_eq!(b.metric("archmesh_redis_up", &[]), 1.0);
    assert!(b.metric("archmesh_redis_commands_total", &[("outcome", "ok")]) > 0.0);
    let detailed = b.operators().get("/health/detailed").unwrap().json();
    assert_eq!(detailed["components"]["redis"]["status"], "healthy");
    assert_eq!(detailed["components"]["cluster"]["nodes"], 2);
    drop(sockets);
}

#[test]
fn nodes_tell_each_other_how_busy_their_cores_and_loops_are() {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a").start();
    let b = node(&redis.url(), "b").start();
    await_names(&b, &["a", "b"]);
    let of_a = || nodes(&b).into_iter().find(|node| node["name"] == "a");
    let mut ada = Socket::connect(&a, "ada");
    let busy = eventually("b hears that a works", || {
        while ada.call("ping", json!({}))["type"] != "pong" {}
        of_a().filter(|node| {
            node["cpu_permille"].as_u64() > Some(0) && node["loop_lag_us"].as_u64() > Some(0)
        })
    });
    assert!(busy["cpu_permille"].as_u64().unwrap() <= 1000, "{busy}");
    // A node of another version does not tell it; nobody invents a number for it.
    let stranger = json!({
        "id": "old-1", "name": "old", "url": null, "state": "up", "version": "0", "uptime_seconds": 1, "shards": 1,
        "connections": 0, "connections_max": 1, "load_permille": 0, "weight": 1,
    });
    let quoted = stranger.to_string().replace('"', "\\\"");
    redis.ask(&format!("HSET archmesh:{{nodes}}:nodes old-1 \"{quoted}\""));
    let old = eventually("b sees the other version", || {
        nodes(&b).into_iter().find(|node| node["name"] == "old")
    });
    assert_eq!((&old["cpu_permille"], &old["loop_lag_us"]), (&Value::Null, &Value::Null), "{old}");
}

#[test]
fn a_draining_node_sends_its_clients_to_another_and_is_forgotten() {
    let redis = Redis::start(&[]);
    let mut a = node(&redis.url(), "a")
        .set("limits.connections_max", 30)
        .set("drain.connections_per_second", 2)
        .set("drain.timeout", "20s")
        .start();
    let b = node(&redis.url(), "b").start();
    await_names(&a, &["a", "b"]);
    let mut sockets: Vec<Socket> = (0..4).map(|n| Socket::connect(&a, &format!("u{n}"))).collect();
    a.signal("TERM");
    eventually("b hears that a drains", || {
        let draining = |node: &Value| node["name"] == "a" && node["state"] == "draining";
        nodes(&b).iter().any(draining).then_some(())
    });
    for _ in 0..5 {
        assert_eq!(connect(&b).json()["node"], "b");
    }
    for socket in &mut sockets {
        assert_eq!(socket.take("disconnect")["data"]["url"], "wss://b.example/ws");
        assert_eq!(socket.wait_close().code, Some(4001));
    }
    assert_eq!(a.await_exit(Duration::from_secs(25)).code(), Some(0));
    await_names(&b, &["b"]);
    assert!(b.log.events("node_lease_ended").is_empty(), "it said goodbye");
    for event in ["redis_down", "lease_lost"] {
        assert!(a.log.events(event).is_empty(), "{event} after the goodbye");
    }
}

#[test]
fn a_killed_node_is_gone_within_seconds() {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a").start();
    let b = node(&redis.url(), "b").start();
    await_names(&b, &["a", "b"]);
    drop(a);
    within(GONE_MAX, "the killed node is gone", || (names(&b) == ["b"]).then_some(()));
    eventually("the log says who ended the lease", || b.log.events("node_lease_ended").pop());
    eventually("the log says so", || b.log.events("node_left").pop());
}

#[test]
fn a_node_that_was_away_comes_back_as_another() {
    let redis = Redis::start(&[]);
    let a = hasty(node(&redis.url(), "a")).start();
    let b = hasty(node(&redis.url(), "b")).start();
    await_names(&b, &["a", "b"]);
    let before = own_id(&a);
    a.signal("STOP");
    await_names(&b, &["b"]);
    a.signal("CONT");
    eventually("it notices", || a.log.events("lease_lost").pop());
    await_names(&b, &["a", "b"]);
    let ids: Vec<Value> = nodes(&b).iter().map(|node| node["id"].clone()).collect();
    assert!(!ids.contains(&json!(before)), "{ids:?} has the old id {before}");
    assert!(a.metric("archmesh_cluster_leases_lost_total", &[]) >= 1.0);
    eventually("it holds its new lease", || {
        (a.metric("archmesh_cluster_lease_held", &[]) == 1.0).then_some(())
    });
}

#[test]
fn a_redis_that_hangs_is_found_and_does_not_stop_a_node() {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a").start();
    let mut ada = Socket::connect(&a, "ada");
    ada.subscribe("chat:room");
    await_names(&a, &["a"]);
    await_status(&a, "healthy");
    let broker = eventually("the broker is well, and has a channel", || {
        let detailed = a.operators().get("/health/detailed").unwrap().json();
        let broker = detailed["components"]["broker"].clone();
        (broker["status"] == "healthy" && broker["channels"].as_u64() > Some(0)).then_some(broker)
    });
    assert_eq!((&broker["kind"], &broker["writes_waiting"]), (&json!("redis"), &json!(0)));
    assert!(broker["probe_seconds"].as_f64().unwrap() > 0.0, "{broker}");
    redis.signal("STOP");
    within(HANG_FOUND_MAX, "the hang is found", || {
        (status(&a) == (200, "degraded".to_owned())).then_some(())
    });
    assert_eq!(a.metric("archmesh_redis_up", &[]), 0.0);
    assert_eq!(a.get("/ready").status, 200, "it serves on");
    let refused = a.api("publish", &json!({"channel": "chat:room", "data": "too soon"}));
    assert_eq!(refused["error"]["temporary"], true, "{refused}");
    assert_eq!(ada.call("ping", json!({}))["type"], "pong");
    eventually("the log says that it hangs", || a.log.events("redis_down").pop());
    let broker = &a.operators().get("/health/detailed").unwrap().json()["components"]["broker"];
    assert_eq!((&broker["kind"], &broker["status"]), (&json!("redis"), &json!("unavailable")));
    assert!(broker["probe_age_seconds"].as_f64().unwrap() > 0.5, "{broker}");
    eventually("what is known of the others is called stale", || {
        let answer = a.operators().get("/cluster/nodes").unwrap().json();
        (answer["stale"] == true).then_some(())
    });
    assert_eq!(connect(&a).json()["node"], "a", "what was known stays in use");
    redis.signal("CONT");
    await_status(&a, "healthy");
    eventually("it is at home again", || {
        (a.metric("archmesh_cluster_lease_held", &[]) == 1.0).then_some(())
    });
    eventually("the log says so", || a.log.events("redis_up").pop());
}

/// By the log's own times. It hangs at another moment of the watchdog's interval each time.
#[test]
fn a_hang_is_found_within_three_seconds_with_the_default_settings() {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a").start();
    for round in 1..=3 {
        await_status(&a, "healthy");
        let commands = || a.metric("archmesh_redis_commands_total", &[("outcome", "ok")]);
        let before = commands();
        eventually("an answer has come just now", || (commands() > before).then_some(()));
        let stopped = UNIX_EPOCH.elapsed().unwrap();
        redis.signal("STOP");
        let down = eventually("the hang is found", || {
            let events = a.log.events("redis_down");
            (events.len() == round).then(|| events[round - 1].clone())
        });
        let found: DateTime<Utc> = down["timestamp"].as_str().unwrap().parse().unwrap();
        let found = Duration::from_millis(found.timestamp_millis().cast_unsigned());
        let took = found.saturating_sub(stopped);
        assert!(took < HANG_PROMISED, "round {round}: found after {took:?}");
        redis.signal("CONT");
        eventually("it is used again", || (a.log.events("redis_up").len() == round).then_some(()));
    }
}

#[test]
fn members_of_a_dead_node_leave_within_ten_seconds_with_the_default_settings() {
    let redis = Redis::start(&[]);
    let a = node(&redis.url(), "a").start();
    let b = node(&redis.url(), "b").start();
    await_names(&b, &["a", "b"]);
    let mut watcher = Socket::connect(&b, "bob");
    watcher.subscribe("chat:room");
    let mut ada = Socket::connect(&a, "ada");
    ada.subscribe("chat:room");
    assert_eq!(watcher.take("join")["data"]["user_id"], "ada");
    let killed = Instant::now();
    drop(a);
    assert_eq!(watcher.take("leave")["data"]["user_id"], "ada");
    let took = killed.elapsed();
    assert!(took < MEMBERS_GONE_MAX, "after {took:?}");
    let left = b.result("presence_stats", &json!({"channel": "chat:room"}));
    assert_eq!(left["num_clients"], 1);
}

#[test]
fn a_redis_that_lost_its_data_gets_all_nodes_again() {
    let mut redis = Redis::start(&[]);
    let gateways = ["a", "b"]
        .map(|name| hasty(node(&redis.url(), name)).set("redis.breaker_open", "200ms").start());
    await_names(&gateways[0], &["a", "b"]);
    let before = gateways.each_ref().map(own_id);
    redis.kill();
    for gateway in &gateways {
        await_status(gateway, "degraded");
    }
    redis.restart();
    for gateway in &gateways {
        await_status(gateway, "healthy");
        eventually("all nodes are there again, under new ids", || {
            let ids: Vec<String> =
                nodes(gateway).iter().map(|node| node["id"].as_str().unwrap().to_owned()).collect();
            (ids.len() == 2 && ids.iter().all(|id| !before.contains(id))).then_some(())
        });
    }
    assert_eq!(redis.ask("FLUSHALL"), "+OK");
    for gateway in &gateways {
        await_names(gateway, &["a", "b"]);
    }
}

#[test]
fn a_node_starts_without_redis_and_is_not_ready_if_it_must_have_one() {
    let mut redis = Redis::start(&[]);
    redis.kill();
    let a = node(&redis.url(), "a").start();
    await_status(&a, "degraded");
    assert_eq!(connect(&a).status, 503);
    assert_eq!(connect(&a).json()["error"]["code"], "no_node");
    let mut strict = node(&redis.url(), "b").set("redis.required", true).spawn();
    strict.await_address();
    assert_eq!(strict.get("/ready").status, 503, "it has no Redis yet");
    redis.restart();
    strict.await_ready();
    await_names(&a, &["a", "b"]);
    await_status(&a, "healthy");
    redis.kill();
    eventually("the strict node is not ready", || {
        let answer = strict.get("/ready");
        (answer.status == 503 && answer.json()["status"] == "degraded").then_some(())
    });
    assert_eq!(status(&strict), (200, "degraded".to_owned()), "but it lives");
    assert_eq!(a.get("/ready").status, 200);
}

#[test]
fn a_failover_of_sentinel_is_followed() {
    let mut master = Redis::start(&[]);
    let port = master.address().port().to_string();
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &port]);
    let sentinel = Redis::sentinel(&master);
    let url = format!("redis-sentinel://{}/0?sentinelServiceName=main", sentinel.address());
    let a = node(&url, "a").set("redis.breaker_open", "200ms").start();
    await_names(&a, &["a"]);
    await_status(&a, "healthy");
    eventually("the replica has all and the Sentinel knows it", || {
        let known = sentinel.ask("SENTINEL CKQUORUM main").starts_with("+OK")
            && sentinel.ask("SENTINEL REPLICAS main") == "*1";
        (known && master.ask("WAIT 1 1000") == ":1").then_some(())
    });
    master.kill();
    // Only a master deletes; the node has to come there to have a lease again.
    eventually("the replica is the master", || {
        (replica.try_ask("DEL archmesh:{nodes}:leases")? == ":1").then_some(())
    });
    eventually("the node has its lease at the new master", || {
        (replica.try_ask("ZCARD archmesh:{nodes}:leases")? == ":1").then_some(())
    });
    await_status(&a, "healthy");
}

#[test]
fn a_password_and_a_redis_cluster_work() {
    let secret = Redis::start(&["--requirepass", "a word of the tests"]);
    let address = secret.address();
    let a = node(&format!("redis://:a%20word%20of%20the%20tests@{address}"), "a").start();
    await_names(&a, &["a"]);
    assert!(!a.log.text().contains("a word of"), "passwords are not logged");
    let b = node(&format!("redis://:wrong@{address}"), "b").start();
    await_status(&b, "degraded");

    let clustered =
        Redis::start(&["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"]);
    assert_eq!(clustered.ask("CLUSTER ADDSLOTSRANGE 0 16383"), "+OK");
    eventually("the Redis Cluster is up", || {
        (clustered.ask("SET {nodes} 1") == "+OK").then_some(())
    });
    let url = format!("redis-cluster://{}", clustered.address());
    let c = node(&url, "c").set("redis.command_timeout", "10s").start();
    await_names(&c, &["c"]);
    await_status(&c, "healthy");
    assert_eq!(c.log.events("redis_down").len(), 0, "its first calls wait for the connection");
}

/// The rights that docs/redis.md asks for, over TLS.
#[test]
fn tls_and_a_user_with_few_rights_are_enough() {
    let authority = Authority::new();
    let port = free_port().to_string();
    let file = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let (certificate, key) = (file(authority.certificate()), file(authority.key()));
    let ca = file(authority.ca_file());
    let redis = Redis::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ]);
    let rights = "+@read +@write +@pubsub +@scripting +ping +info +time";
    let user = format!("ACL SETUSER gateway on >secret ~archmesh:* &archmesh:* {rights}");
    assert_eq!(redis.ask(&user), "+OK");
    let url = format!("rediss://gateway:secret@127.0.0.1:{port}");
    let a = node(&url, "a").variable("SSL_CERT_FILE", &ca).start();
    await_names(&a, &["a"]);
    await_status(&a, "healthy");
    let mut socket = Socket::connect(&a, "ada");
    socket.subscribe("chat:room");
    let published = within(HANG_FOUND_MAX, "a publish is acknowledged", || {
        let reply = socket.call("publish", json!({"channel": "chat:room", "data": {"n": 1}}));
        (reply["type"] == "published").then_some(reply)
    });
    assert_eq!(published["data"]["offset"], 1, "{published}");
    assert_eq!(socket.take("message")["data"]["n"], 1);
    assert_eq!(a.result("history", &json!({"channel": "chat:room", "limit": 10}))["offset"], 1);
    // Who signed it matters.
    let b = node(&url, "b").start();
    eventually("it has tried", || {
        let detailed = b.operators().get("/health/detailed").unwrap().json();
        detailed["components"]["redis"]["last_error"].as_str().map(str::to_owned)
    });
    await_status(&b, "degraded");
}
