//! Setup: two shards and each strategy of `engine.balance`.
//!
//! Must hold: sockets land on the shards as the strategy says, and work wherever they land.

use serde_json::json;

use crate::gateway::{Gateway, Setup};
use crate::socket::Socket;

/// Shard of each connection, in the order of `users`.
fn shards(gateway: &Gateway, users: &[&str]) -> Vec<u64> {
    let mut sockets: Vec<Socket> =
        users.iter().map(|user| Socket::connect(gateway, user)).collect();
    let listed = gateway.connections();
    for socket in &mut sockets {
        socket.subscribe("chat:room");
    }
    gateway.publish("chat:room", json!("to all"));
    sockets
        .iter_mut()
        .map(|socket| {
            assert_eq!(socket.take("message")["data"], "to all");
            let entry = listed.iter().find(|entry| entry["session"] == socket.session());
            entry.expect("it is listed")["shard"].as_u64().unwrap()
        })
        .collect()
}

fn started(balance: &str) -> Gateway {
    Setup::new().internal().set("engine.balance", balance).start()
}

fn on_first(shards: &[u64]) -> usize {
    shards.iter().filter(|shard| **shard == 0).count()
}

#[test]
fn round_robin_alternates() {
    let found = shards(&started("round_robin"), &["ada"; 20]);
    assert!(found.windows(2).all(|pair| pair[0] != pair[1]), "{found:?}");
}

#[test]
fn weighted_round_robin_follows_the_weights() {
    let gateway = Setup::new()
        .internal()
        .set("engine.balance", "weighted_round_robin")
        .set("engine.weights", "3,1")
        .start();
    let found = shards(&gateway, &["ada"; 40]);
    assert_eq!(on_first(&found), 30, "{found:?}");
}

#[test]
fn least_connections_evens_out() {
    let gateway = started("least_connections");
    let found = shards(&gateway, &["ada"; 41]);
    assert!((19..=22).contains(&on_first(&found)), "{found:?}");
}

#[test]
fn least_load_uses_all_shards() {
    let found = shards(&started("least_load"), &["ada"; 60]);
    assert!((1..60).contains(&on_first(&found)), "{found:?}");
}

#[test]
fn random_and_kernel_use_all_shards() {
    for balance in ["random", "kernel"] {
        let found = shards(&started(balance), &["ada"; 60]);
        assert!((1..60).contains(&on_first(&found)), "{balance}: {found:?}");
    }
}

#[test]
fn hash_by_address_pins_an_address() {
    let found = shards(&started("hash"), &["ada", "bob", "carl", "dora", "eve", "fred"]);
    assert!(found.iter().all(|shard| *shard == found[0]), "{found:?}");
}

#[test]
fn hash_by_user_pins_a_user() {
    let gateway =
        Setup::new().internal().set("engine.balance", "hash").set("engine.hash_by", "user").start();
    let names: Vec<String> = (0..24).map(|n| format!("user-{n}")).collect();
    let users: Vec<&str> = names.iter().map(String::as_str).collect();
    let first = shards(&gateway, &users);
    assert!((1..24).contains(&on_first(&first)), "users are spread: {first:?}");
    assert_eq!(shards(&gateway, &users), first, "each comes back to its shard");
}
