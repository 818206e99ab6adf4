//! Accepting, refusing, and no longer accepting.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use gateway_core::admission::Admission;
use gateway_core::settings::Rate;
use gateway_engine::{Engine, EngineError, ListenerConfig};

use crate::node::{self, connect, echoes, eventually, start, start_with};

#[test]
fn a_refused_socket_is_told_why() {
    let mut node = start_with(1, |_, settings| {
        settings.limits.handshakes = Rate { per_second: 1, burst: 1 };
    });
    let _first = node.echo();
    let mut answer = String::new();
    connect(node.address()).read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429 ") || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let snapshot = node.until("it is gone", 0, |snapshot| snapshot.connections == 1);
    assert_eq!(snapshot.core.connections, 1);
    node.stop();
}

#[test]
fn stop_accepting_leaves_open_connections_alone() {
    let node = start(2);
    let mut client = node.echo();
    node.handle.stop_accepting();
    let address = node.address();
    eventually("connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    echoes(&mut client, "still here");
    node.stop();
}

/// What reached the kernel's queue before the listeners closed is served: none of the clients that connected is lost.
#[test]
fn stop_accepting_serves_what_is_queued() {
    let mut node = start(2);
    let sockets: Vec<_> = (0..200).map(|_| connect(node.address())).collect();
    node.handle.stop_accepting();
    let address = node.address();
    eventually("connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    eventually("every socket is accepted", || {
        let accepted: u64 = node.snapshots().iter().map(|snapshot| snapshot.engine.accepted).sum();
        (accepted >= 200).then_some(())
    });
    for socket in sockets {
        let url = format!("ws://{address}/echo");
        let mut client = tungstenite::client(url, socket).unwrap().0;
        echoes(&mut client, "served");
    }
    node.stop();
}

#[test]
fn an_address_in_use_is_a_typed_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = node::config(2);
    let address = taken.local_addr().unwrap();
    config.listeners = vec![ListenerConfig { address }];
    let admission = Arc::new(Admission::new(7));
    match Engine::start(config, Arc::new(node::settings()), admission) {
        Err(EngineError::Bind { address: told, .. }) => assert_eq!(told, address),
        other => panic!("{other:?}"),
    }
}

#[test]
fn shard_threads_are_named_and_pinned() {
    let node = start_with(1, |config, _| config.shards[0].cpu = Some(0));
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let pinned = tasks.filter_map(Result::ok).any(|task| {
        // A thread of another test may end meanwhile.
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let has = |line: &str| status.lines().any(|found| found == line);
        has("Name:\tshard-0") && has("Cpus_allowed_list:\t0")
    });
    assert!(pinned);
    node.stop();
}

#[test]
fn a_cpu_that_does_not_exist_is_an_error_and_nothing_is_left() {
    let mut config = node::config(2);
    config.shards[1].cpu = Some(100_000);
    let admission = Arc::new(Admission::new(7));
    match Engine::start(config, Arc::new(node::settings()), admission) {
        Err(EngineError::Executor { shard: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
}
