//! What does the core spend on one delivery, and on one connection, without any socket?
//!
//! `fanout`: publications to 1,000 or 10,000 subscribers, from the request to the last byte taken from an outbox; per
//! element is per delivery. With 8 publications before the flush, the outboxes hold 8 frames each, as under load.
//! `deflated` goes to subscribers that negotiated compression: the home compresses once for all of them.
//! `connect`: accept, request head, token, welcome, close; `subscribe`: subscribe and unsubscribe commands.

#![allow(missing_docs, reason = "a benchmark has no interface")]

mod node;

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use node::Node;
use serde_json::json;

/// A fan-out; its name says it all again.
struct Case {
    name: &'static str,
    channel: &'static str,
    subscribers: u64,
    bytes: usize,
    in_flight: u64,
    deflated: bool,
}

const ONE: Case = Case {
    name: "kept_256B",
    channel: "kept:room",
    subscribers: 1_000,
    bytes: 256,
    in_flight: 1,
    deflated: false,
};

const CASES: [Case; 8] = [
    Case { name: "live_256B", channel: "live:room", ..ONE },
    ONE,
    Case { name: "kept_256B_8_in_flight", in_flight: 8, ..ONE },
    Case { name: "kept_256B_to_10000", subscribers: 10_000, ..ONE },
    Case { name: "kept_256B_to_10000_8_in_flight", subscribers: 10_000, in_flight: 8, ..ONE },
    Case { name: "kept_2KiB", bytes: 2 << 10, ..ONE },
    Case { name: "kept_2KiB_deflated", bytes: 2 << 10, deflated: true, ..ONE },
    Case { name: "kept_16KiB", bytes: 16 << 10, ..ONE },
];

fn crowd(subscribers: u64, channel: &str, deflated: bool) -> Node {
    let mut node = Node::new();
    for user in 0..subscribers {
        let head = node.head(&format!("user-{user}"), deflated);
        let id = node.connect(&head);
        node.subscribe(id, channel);
    }
    node
}

/// Text that compresses like messages do: words that repeat between numbers that do not.
fn payload(bytes: usize) -> Bytes {
    let mut text = String::new();
    let mut index = 0_u64;
    while text.len() < bytes {
        write!(text, "component {:x} in progress, ", index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .expect("a String takes any text");
        index += 1;
    }
    text.truncate(bytes.saturating_sub(11));
    json!({"text": text}).to_string().into()
}

fn fanout(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout");
    for case in &CASES {
        let mut node = crowd(case.subscribers, case.channel, case.deflated);
        let (channel, data): (Arc<str>, _) = (case.channel.into(), payload(case.bytes));
        let deliveries = case.subscribers * case.in_flight;
        let plain = deliveries * case.bytes as u64;
        group.throughput(Throughput::Elements(deliveries));
        group.bench_function(case.name, |b| {
            b.iter(|| {
                for _ in 0..case.in_flight {
                    node.publish(&channel, &data);
                }
                let sent = node.settle() as u64;
                assert_eq!(sent < plain, case.deflated, "{sent} bytes of {plain}");
                assert!(sent > 100 * deliveries);
            });
        });
    }
    group.finish();
}

fn connect(c: &mut Criterion) {
    let mut group = c.benchmark_group("connect");
    let mut node = Node::new();
    let head = node.head("the same user", false);
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
                minter.head(&format!("user-{user}"), false)
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
    let mut node = crowd(1_000, "live:room", false);
    let head = node.head("one more", false);
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
    let head = node.head("publisher", false);
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
