//! Bytes in and out: large messages, blocked sockets, few buffers, floods, idleness.

use std::thread;
use std::time::{Duration, Instant};

use gateway_core::ids::ShardId;
use tungstenite::Message;

use crate::node::{PATIENCE, echoes, eventually, start, start_with};

#[test]
fn many_clients_are_echoed_by_two_shards() {
    let mut node = start(2);
    let mut clients: Vec<_> = (0..50).map(|_| node.echo()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        echoes(client, &format!("hello {number}"));
    }
    let connections: u64 = node.snapshots().iter().map(|snapshot| snapshot.connections).sum();
    assert_eq!(connections, 50);
    drop(clients);
    for shard in 0..2 {
        node.until("every connection is gone", shard, |snapshot| {
            snapshot.connections == 0 && snapshot.core.connections == 0
        });
    }
    node.stop();
}

/// The client reads nothing until it has sent everything: sends become short, the rest waits for room.
#[test]
fn a_socket_that_is_full_is_continued_when_it_has_room() {
    let mut node = start(1);
    let mut client = node.echo();
    let messages: Vec<String> =
        (0..24).map(|number: u32| number.to_string().repeat(1 << 19)).collect();
    for message in &messages {
        client.send(Message::text(message.clone())).unwrap();
    }
    node.until("the socket is full", 0, |snapshot| snapshot.engine.sends_short > 0);
    for message in &messages {
        assert_eq!(client.read().unwrap(), Message::text(message.clone()));
    }
    echoes(&mut client, "still in step");
    node.stop();
}

#[test]
fn two_small_buffers_serve_everyone() {
    let mut node = start_with(1, |config, _| {
        config.receive_buffers = 2;
        config.receive_buffer_bytes = 64;
    });
    let clients: Vec<_> = (0..20).map(|_| node.echo()).collect();
    let workers: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(number, mut client)| {
            thread::spawn(move || {
                for length in [1, 63, 64, 65, 5000, 70_000] {
                    echoes(&mut client, &"abcdefghij"[number % 10..][..1].repeat(length));
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert!(node.snapshot(0).engine.receive_buffers_exhausted > 0);
    node.stop();
}

const FLOOD: usize = 20_000;

/// One connection sends as fast as it can; another one's echoes must not wait for it.
#[test]
fn a_flood_is_paused_and_others_are_served() {
    let mut node = start_with(1, |config, _| {
        config.receive_budget_bytes = 8 * 1024;
        config.receive_buffers = 16;
    });
    let flooder = node.echo();
    let (reader, writer) =
        (flooder.get_ref().try_clone().unwrap(), flooder.get_ref().try_clone().unwrap());
    let side = tungstenite::protocol::Role::Client;
    let mut reader = tungstenite::WebSocket::from_raw_socket(reader, side, None);
    let mut writer = tungstenite::WebSocket::from_raw_socket(writer, side, None);
    let sending = thread::spawn(move || {
        for number in 0..FLOOD {
            writer.send(Message::text(format!("{number:01000}"))).unwrap();
        }
    });
    let receiving = thread::spawn(move || {
        for number in 0..FLOOD {
            assert_eq!(reader.read().unwrap(), Message::text(format!("{number:01000}")));
        }
    });
    let mut other = node.echo();
    let mut slowest = Duration::ZERO;
    let mut count = 0;
    while !receiving.is_finished() {
        let before = Instant::now();
        echoes(&mut other, "are you there?");
        slowest = slowest.max(before.elapsed());
        count += 1;
    }
    sending.join().unwrap();
    receiving.join().unwrap();
    assert!(count > 10, "the other client got only {count} echoes");
    assert!(slowest < PATIENCE / 10, "{slowest:?}");
    assert!(node.snapshot(0).engine.receive_pauses > 0);
    node.stop();
}

#[test]
fn a_small_completion_queue_serves_a_burst() {
    let node = start_with(1, |config, _| config.completion_entries = 64);
    let mut clients: Vec<_> = (0..300).map(|_| node.echo()).collect();
    for client in &mut clients {
        client.send(Message::text("burst")).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.read().unwrap(), Message::text("burst"));
    }
    node.stop();
}

#[test]
fn an_idle_shard_sleeps_and_still_shows_that_it_lives() {
    let mut node = start(1);
    let before = node.snapshot(0).engine;
    let started = Instant::now();
    let handle = node.handle.clone();
    let mut oldest = Duration::ZERO;
    eventually("two seconds pass", || {
        oldest = oldest.max(handle.heartbeat_age(ShardId(0)));
        (started.elapsed() > Duration::from_secs(2)).then_some(())
    });
    let after = node.snapshot(0).engine;
    assert!(after.parks > before.parks);
    assert!(after.turns - before.turns < 50, "{} turns", after.turns - before.turns);
    assert!(oldest < Duration::from_secs(2), "{oldest:?}");
    node.stop();
}

#[test]
fn a_stall_is_counted_and_does_not_touch_the_other_shard() {
    let mut node = start(1);
    let mut client = node.websocket("/ws?token=");
    client
        .send(Message::text(r#"{"type":"fault","id":"1","data":{"kind":"stall","ms":200}}"#))
        .unwrap();
    let engine = node.until("a stall", 0, |snapshot| snapshot.engine.stalls > 0).engine;
    assert!(engine.stall_us_max >= 200_000, "{}", engine.stall_us_max);
    node.stop();
}
