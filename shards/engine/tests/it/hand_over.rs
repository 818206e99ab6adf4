//! Requests that are no WebSocket upgrade go to the control plane, with every byte.

use std::io::{Read, Write};
use std::net::TcpStream;

use gateway_core::metrics::DropKind;

use crate::node::{connect, eventually, start, start_with};

#[test]
fn socket_and_bytes_arrive_whole() {
    let mut node = start(1);
    let mut client = connect(node.address());
    client.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    client.write_all(b"Content-Length: 100000\r\n\r\n").unwrap();
    let body: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
    let mut writing = client.try_clone().unwrap();
    let sent = body.clone();
    let writer = std::thread::spawn(move || writing.write_all(&sent).unwrap());

    let http = node.http();
    assert_eq!(http.peer.port, client.local_addr().unwrap().port());
    assert!(!http.peer.tls && http.tls.is_none());
    let mut received = http.received;
    let mut socket = TcpStream::from(http.socket);
    socket.set_nonblocking(false).unwrap();
    let head = received.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let missing = head + body.len() - received.len();
    let start = received.len();
    received.resize(start + missing, 0);
    socket.read_exact(&mut received[start..]).unwrap();
    writer.join().unwrap();
    assert_eq!(received[head..], body);

    socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    let mut answer = [0; 27];
    client.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 204"));
    let snapshot = node.until("the slot is free", 0, |snapshot| snapshot.connections == 0);
    assert_eq!(snapshot.engine.handed_over, 1);
    assert_eq!(snapshot.core.connections, 0);
    node.stop();
}

#[test]
fn a_half_closed_client_is_handed_over_too() {
    let mut node = start(1);
    let mut client = connect(node.address());
    client.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let http = node.http();
    assert!(http.received.starts_with(b"GET /health HTTP/1.0\r\n\r\n"));
    TcpStream::from(http.socket).write_all(b"ok").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ok");
    node.stop();
}

fn is_closed(mut socket: &TcpStream) -> bool {
    matches!(socket.read(&mut [0; 1]), Ok(0))
}

/// A control plane that does not drain its queue costs the requests, nothing else.
#[test]
fn a_full_queue_closes_and_counts() {
    let mut node = start_with(1, |config, _| config.control_messages_max = 16);
    let mut clients: Vec<_> = (0..20).map(|_| connect(node.address())).collect();
    for client in &mut clients {
        client.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        client.set_nonblocking(true).unwrap();
    }
    eventually("four are closed", || {
        let closed = clients.iter().filter(|client| is_closed(client)).count();
        (closed == 4).then_some(())
    });
    let snapshot = node.snapshot(0);
    assert_eq!(snapshot.core.dropped.0[DropKind::HandOver as usize], 4);
    assert_eq!(snapshot.connections, 0);
    node.stop();
}
