//! Sockets move to the shard that placement chose.

use std::io::Read;
use std::time::Duration;

use gateway_engine::Balance;
use tungstenite::Message;

use crate::node::{Node, connect, echoes, eventually, start_with};

fn connections(node: &mut Node) -> Vec<u64> {
    node.snapshots().iter().map(|snapshot| snapshot.core.connections).collect()
}

fn check_even(balance: Balance) {
    let mut node = start_with(2, |config, _| config.balance = balance);
    let mut clients: Vec<_> = (0..40).map(|_| node.echo()).collect();
    for client in &mut clients {
        echoes(client, "moved");
    }
    assert_eq!(connections(&mut node), [20, 20], "{balance:?}");
    let placed = node.snapshots().iter().fold([0, 0], |sums, snapshot| {
        [sums[0] + snapshot.engine.placed[0], sums[1] + snapshot.engine.placed[1]]
    });
    assert_eq!(placed, [20, 20]);
    node.stop();
}

#[test]
fn round_robin_is_even() {
    check_even(Balance::RoundRobin);
}

#[test]
fn least_connections_is_even() {
    check_even(Balance::LeastConnections);
}

#[test]
fn weights_are_kept() {
    let mut node = start_with(2, |config, _| {
        config.balance = Balance::WeightedRoundRobin;
        config.shards[0].weight = 3;
    });
    let _clients: Vec<_> = (0..40).map(|_| node.echo()).collect();
    assert_eq!(connections(&mut node), [30, 10]);
    node.stop();
}

/// `header.{"sub":"<user>"}.signature`, which nobody verifies on the echo endpoint.
fn token(payload: &str) -> String {
    format!("e30.{payload}.c2ln")
}

#[test]
fn the_same_user_comes_to_the_same_shard() {
    let mut node = start_with(2, |config, _| config.balance = Balance::Hash { by_user: true });
    // {"sub":"alice"}, {"sub":"u-1"} ... in base64url.
    let alice = token("eyJzdWIiOiJhbGljZSJ9");
    let mut clients: Vec<_> =
        (0..20).map(|_| node.websocket(&format!("/echo?token={alice}"))).collect();
    for client in &mut clients {
        echoes(client, "x");
    }
    let mut counts = connections(&mut node);
    counts.sort_unstable();
    assert_eq!(counts, [0, 20]);
    node.stop();
}

/// A socket that says nothing is placed by address in the end, and the core's own deadline meets it there.
#[test]
fn a_silent_socket_is_placed_by_address() {
    let node = start_with(2, |config, settings| {
        config.balance = Balance::Hash { by_user: true };
        settings.limits.handshake_timeout = Duration::from_millis(100);
    });
    let mut answer = String::new();
    connect(node.address()).read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    node.stop();
}

#[test]
fn shutdown_does_not_wait_for_silent_sockets() {
    let mut node = start_with(2, |config, settings| {
        config.balance = Balance::Hash { by_user: true };
        settings.limits.handshake_timeout = Duration::from_secs(3600);
    });
    let mut silent = connect(node.address());
    eventually("it is accepted", || {
        let accepted: u64 = node.snapshots().iter().map(|snapshot| snapshot.engine.accepted).sum();
        (accepted == 1).then_some(())
    });
    node.stop();
    assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0);
}

/// The chosen shard does not take its mail: whoever accepted the socket serves it.
#[test]
fn a_full_mailbox_means_served_where_accepted() {
    let mut node = start_with(2, |config, _| {
        config.balance = Balance::RoundRobin;
        config.mailbox_messages_max = 16;
    });
    let mut staller = node.websocket("/ws?token=");
    let stalled = connections(&mut node).iter().position(|count| *count == 1).unwrap() as u16;
    staller
        .send(Message::text(r#"{"type":"fault","id":"1","data":{"kind":"stall","ms":3000}}"#))
        .unwrap();
    let other = 1 - stalled;
    let mut sockets = Vec::new();
    eventually("a full mailbox", || {
        sockets.push(connect(node.address()));
        (node.snapshot(other).engine.placements_refused > 0).then_some(())
    });
    assert!(sockets.len() < 1000);
    for socket in sockets {
        let url = format!("ws://{}/echo", node.address());
        echoes(&mut tungstenite::client(url, socket).unwrap().0, "served");
    }
    node.stop();
}
