//! The budget of a shard's histories is what they take on the heap, as an allocator counts it.

#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::sync::Arc;
use std::time::Duration;

use gateway_core::admission::Admission;
use gateway_core::auth::{KeyAlgorithm, KeySet, VerificationKey};
use gateway_core::ids::ShardId;
use gateway_core::message::{ChannelOp, ChannelRequest, Origin, Publish, ShardMessage};
use gateway_core::metrics::HistoryEviction;
use gateway_core::settings::{Namespace, Namespaces, Settings};
use gateway_core::time::Now;
use gateway_core::{Shard, ShardInit};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

const BUDGET: usize = 16 << 20;
const NOW: Now = Now { mono: Duration::from_secs(1), unix: Duration::from_secs(1_800_000_000) };

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that the process has asked for and not given back.
fn live() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.saturating_sub(stats.bytes_deallocated)
}

fn shard(history_size: u32) -> Shard {
    let key = VerificationKey::from_secret(KeyAlgorithm::Hs256, &[b'k'; 32]).unwrap();
    let mut settings = Settings::for_tests(KeySet::from(vec![key]));
    let mut namespaces = Namespaces::built_in();
    namespaces.push(Namespace {
        history_size,
        history_ttl: Duration::from_secs(600),
        ..Namespace::closed("chat")
    });
    settings.namespaces = Namespaces::new(namespaces);
    settings.limits.history_bytes_max = BUDGET;
    settings.limits.channels_per_shard_max = 1_000_000;
    Shard::new(ShardInit {
        id: ShardId(0),
        shards: 1,
        hash_seed: 42,
        seed: [1; 32],
        settings: Arc::new(settings),
        admission: Arc::new(Admission::new(42)),
    })
}

fn publish(shard: &mut Shard, channel: usize, bytes: usize, skip_history: bool) {
    let data = format!("\"{}\"", "x".repeat(bytes)).into_bytes().into();
    let publish = Publish { data, skip_history, ..Publish::default() };
    let channel = format!("chat:{channel}").into();
    let op = ChannelOp::Publish(publish);
    let request = ChannelRequest { origin: Origin::Control(1), channel, op };
    shard.handle_message(NOW, ShardMessage::Request(Box::new(request)));
    while shard.poll_output().is_some() {}
}

/// Publishes `of`, each a channel and a number of bytes, and compares what the heap has grown by with what the shard says,
/// again and again.
fn check(name: &str, history_size: u32, of: impl Iterator<Item = (usize, usize)> + Clone) -> Shard {
    let mut shard = shard(history_size);
    let channels = of.clone().map(|(channel, _)| channel).max().unwrap() + 1;
    for channel in 0..channels {
        publish(&mut shard, channel, 1, true);
    }
    let before = live();
    for (at, (channel, bytes)) in of.enumerate() {
        publish(&mut shard, channel, bytes, false);
        if at % 1_000 == 999 {
            let grown = live().saturating_sub(before) as f64;
            let said = shard.metrics().history_bytes as f64;
            assert!(said <= BUDGET as f64, "{name}: {said} bytes are over the budget");
            let part = grown / said;
            assert!(
                (0.9..=1.1).contains(&part),
                "{name}: {said} bytes are said, {grown} are taken"
            );
        }
    }
    shard
}

fn evicted(shard: &mut Shard, reason: HistoryEviction) -> u64 {
    shard.metrics().history_evicted.0[reason as usize]
}

#[test]
fn histories_take_no_more_than_their_budget() {
    const COUNT: usize = 100_000;
    let spread = |channels: usize, bytes: usize| (0..COUNT).map(move |at| (at % channels, bytes));
    for (name, channels, bytes) in [
        ("small, in a few channels", 10, 20),
        ("small, in many channels", 10_000, 20),
        ("small, one in each channel", COUNT, 20),
        ("larger, in many channels", 5_000, 2_000),
    ] {
        let mut shard = check(name, 1_000_000, spread(channels, bytes));
        let count = evicted(&mut shard, HistoryEviction::Budget);
        assert!(count > COUNT as u64 / 10, "{name}: it was never full");
        let held = shard.metrics().history_bytes as f64 / BUDGET as f64;
        assert!(held > 0.9, "{name}: only {held:.3} of the budget is put to use");
    }
    // Bounded by number: entries of the order are stale before the budget is used up.
    let mut shard = check("bounded by number", 5, spread(1_000, 20));
    assert_eq!(evicted(&mut shard, HistoryEviction::Budget), 0);
    assert_eq!(evicted(&mut shard, HistoryEviction::Size), COUNT as u64 - 5_000);
    // One channel grows large, and gives way to others.
    let shifted = (0..COUNT).map(|at| (if at < COUNT / 2 { 0 } else { 1 + at % 5_000 }, at % 300));
    check("shifted", 1_000_000, shifted);
}
