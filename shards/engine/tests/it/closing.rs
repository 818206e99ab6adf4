//! Ends of connections and of the engine.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use socket2::SockRef;
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::node::{connect, echoes, start};

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_closing_handshake_ends_in_order() {
    let mut node = start(1);
    let mut client = node.echo();
    let frame = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
    client.close(Some(frame)).unwrap();
    let answer = loop {
        match client.read() {
            Ok(Message::Close(frame)) => break frame,
            Ok(_) => {}
            Err(error) => panic!("no close frame: {error}"),
        }
    };
    assert_eq!(answer.map(|frame| frame.code), Some(CloseCode::Normal));
    let mut socket = client.get_ref();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0, "the end of the stream, no reset");
    drop(client);
    node.until("the slot is free", 0, |snapshot| snapshot.core.connections == 0);
    node.stop();
}

/// Clients that vanish at any moment, by reset too, leave nothing behind.
#[test]
fn churn_leaves_nothing_behind() {
    let mut node = start(2);
    let _first = node.echo();
    let base = open_files();
    for round in 0..500 {
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
    for shard in 0..2 {
        node.until("connections are gone", shard, |snapshot| snapshot.connections <= 1);
    }
    let left: u64 = node.snapshots().iter().map(|snapshot| snapshot.core.connections).sum();
    assert_eq!(left, 1);
    // Other tests of this binary open sockets too; a leak would be 500 of them.
    assert!(open_files() < base + 300, "{} after {base}", open_files());
    node.stop();
}

/// A client that says everything and shuts its side down still gets its answers.
#[test]
fn answers_to_the_last_bytes_are_sent() {
    let node = start(1);
    let mut client = node.echo();
    client.send(Message::text("last words")).unwrap();
    client.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("last words"));
    node.stop();
}

#[test]
fn a_panic_closes_one_connection_only() {
    let mut node = start(1);
    let mut other = node.echo();
    let mut client = node.websocket("/ws?token=");
    client.send(Message::text(r#"{"type":"fault","id":"1","data":{"kind":"panic"}}"#)).unwrap();
    while client.read().is_ok() {}
    echoes(&mut other, "unharmed");
    let snapshot = node.until("the slot is free", 0, |snapshot| snapshot.connections == 1);
    assert_eq!(snapshot.engine.panics, 1);
    assert_eq!(snapshot.core.panics, 1);
    node.stop();
}

#[test]
fn shutdown_closes_every_connection_and_ends_every_thread() {
    let node = start(2);
    let mut clients: Vec<_> = (0..100).map(|_| node.echo()).collect();
    for client in &mut clients {
        echoes(client, "x");
    }
    let address = node.address();
    node.stop();
    for client in clients {
        assert_eq!(client.get_ref().read(&mut [0; 64]).unwrap_or(0), 0);
    }
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
}
