//! Ends of connections and of the engine.

use std::io::Read;
use std::net::Shutdown;

use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::node::{echoes, start};

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
