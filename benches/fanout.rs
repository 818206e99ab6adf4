//! What does the core spend on one delivery, and on one connection, without any socket?
//!
//! `fanout`: one publication to 1,000 subscribers, from the request to the last byte taken from an outbox; per element
//! is per delivery. With 8 publications before the flush, the outboxes hold 8 frames each, as under load.
//! `connect`: accept, request head, token, welcome, close; `subscribe`: subscribe and unsubscribe commands.

#![allow(missing_docs, reason = "a benchmark has no interface")]

mod node;

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use node::Node;
use serde_json::json;

const SUBSCRIBERS: u64 = 1_000;

fn crowd(channel: &str) -> Node {
    let mut node = Node::new();
    for user in 0..SUBSCRIBERS {
        let head = node.head(&format!("user-{user}"));
        let id = node.connect(&head);
        node.subscribe(id, channel);
    }
    node
}

fn payload(bytes: usize) -> Bytes {
    json!({"text": "x".repeat(bytes.saturating_sub(11))}).to_string().into()
}

fn fanout(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout");
    for (name, channel, bytes, in_flight) in [
        ("live_256B", "live:room", 256, 1),
        ("kept_256B", "kept:room", 256, 1),
        ("kept_256B_8_in_flight", "kept:room", 256, 8),
        ("kept_16KiB", "kept:room", 16 << 10, 1),
    ] {
        let mut node = crowd(channel);
        let (channel, data): (Arc<str>, _) = (channel.into(), payload(bytes));
        group.throughput(Throughput::Elements(SUBSCRIBERS * in_flight));
        group.bench_function(name, |b| {
            b.iter(|| {
                for _ in 0..in_flight {
                    node.publish(&channel, &data);
                }
                let sent = node.settle();
                assert!(sent as u64 > SUBSCRIBERS * in_flight * bytes as u64);
            });
        });
    }
    group.finish();
}

fn connect(c: &mut Criterion) {
    let mut group = c.benchmark_group("connect");
    let mut node = Node::new();
    let head = node.head("the same user");
    group.bench_function("cached_token", |b| {
        b.iter(|| {
            let id = node.connect(&head);
            node.shard.handle_closed(node.now, id);
            node.settle();
        });
    });
    let (mut node, minter) = (Node::new(), Node::new());
    let mut user = 0_u64;
    group.bench_function("new_token", |b| {
        b.iter_batched(
            || {
                user += 1;
                minter.head(&format!("user-{user}"))
            },
            |head| {
                let id = node.connect(&head);
                node.shard.handle_closed(node.now, id);
                node.settle();
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn subscribe(c: &mut Criterion) {
    let mut node = crowd("live:room");
    let head = node.head("one more");
    let id = node.connect(&head);
    let subscribe = Node::command("subscribe", &json!({"channel": "live:room"}));
    let unsubscribe = Node::command("unsubscribe", &json!({"channel": "live:room"}));
    c.bench_function("subscribe/and_unsubscribe", |b| {
        b.iter(|| {
            let sent = node.bytes(id, &mut subscribe.clone());
            black_box(sent + node.bytes(id, &mut unsubscribe.clone()));
        });
    });
}

fn publish(c: &mut Criterion) {
    let mut node = Node::new();
    let head = node.head("publisher");
    let id = node.connect(&head);
    let data = json!({"channel": "kept:empty", "data": {"text": "x".repeat(245)}});
    let command = Node::command("publish", &data);
    c.bench_function("publish/command_to_acknowledgement", |b| {
        b.iter(|| {
            let sent = node.bytes(id, &mut command.clone());
            assert!(sent > 0);
        });
    });
}

criterion_group!(benches, fanout, connect, subscribe, publish);
criterion_main!(benches);
