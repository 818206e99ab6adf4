//! Clients that vanish at any moment, by reset too, leave nothing behind: no slot, no descriptor, no memory that
//! grows with them. Alone in its process, because it counts the process's descriptors.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

#[path = "it/node.rs"]
#[allow(dead_code)]
mod node;

use std::io::Write;
use std::time::Duration;

use node::{Node, connect, echoes, eventually, start};
use socket2::SockRef;
use tungstenite::Message;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn churn(node: &Node, rounds: u32) {
    for round in 0..rounds {
        let socket = connect(node.address());
        match round % 5 {
            0 => {}
            1 => (&socket).write_all(b"GET /echo HTTP/1.1\r\n").unwrap(),
            2 => SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap(),
            3 => {
                let mut client = node.echo();
                echoes(&mut client, "x");
                let socket = SockRef::from(client.get_ref());
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
            _ => {
                let mut client = node.echo();
                client.send(Message::text("never read".repeat(1000))).unwrap();
            }
        }
    }
}

#[test]
fn churn_leaves_nothing_behind() {
    let mut node = start(2);
    let mut witness = node.echo();
    let base = open_files();
    churn(&node, 500);
    for shard in 0..2 {
        node.until("connections are gone", shard, |snapshot| snapshot.connections <= 1);
    }
    let warm = resident_bytes();
    churn(&node, 3000);
    for shard in 0..2 {
        node.until("connections are gone", shard, |snapshot| snapshot.connections <= 1);
    }
    let left: u64 = node.snapshots().iter().map(|snapshot| snapshot.core.connections).sum();
    assert_eq!(left, 1);
    eventually("descriptors are back", || (open_files() == base).then_some(()));
    let grown = resident_bytes().saturating_sub(warm);
    assert!(grown < 4 << 20, "{grown} bytes more after 3,000 connections");
    echoes(&mut witness, "unharmed");
    node.stop();
}
