//! File descriptors run out: accepting rests without spinning, open connections live, and afterwards everything goes
//! on. Alone in its process, because it takes every descriptor the process may have.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types, missing_docs)]

#[path = "it/node.rs"]
#[allow(dead_code)]
mod node;

use std::fs::File;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use node::{echoes, eventually, start};
use socket2::{Domain, Socket, Type};

#[test]
fn accepting_rests_and_goes_on() {
    let mut node = start(1);
    let mut open = node.echo();
    // Its descriptor is taken before the others are.
    let late = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    late.set_read_timeout(Some(node::PATIENCE)).unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    let before = node.snapshot(0).engine;
    late.connect(&node.address().into()).unwrap();
    node.until("accepting rests", 0, |snapshot| snapshot.engine.accept_pauses > 0);
    let started = Instant::now();
    eventually("half a second passes", || {
        echoes(&mut open, "alive");
        (started.elapsed() > Duration::from_millis(500)).then_some(())
    });
    let pauses = node.snapshot(0).engine.accept_pauses - before.accept_pauses;
    assert!((1..=40).contains(&pauses), "{pauses} pauses of 50 ms: no spin");

    drop(hoard);
    let address = node.address();
    let socket = TcpStream::from(late);
    let mut client = tungstenite::client(format!("ws://{address}/echo"), socket).unwrap().0;
    echoes(&mut client, "accepted in the end");
    node.stop();
}
