//! What does a connection's timer cost in a wheel with 100,000 of them, beside an ordered map?

#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gateway_core::timer::TimerWheel;

const ENTRIES: u64 = 100_000;
const TICK: Duration = Duration::from_millis(50);
const SPREAD_MS: u64 = 30_000;

fn deadline(from: Duration, index: u64) -> Duration {
    from + Duration::from_millis(1 + index.wrapping_mul(2_654_435_761) % SPREAD_MS)
}

fn full() -> TimerWheel<u64> {
    let mut wheel = TimerWheel::new(TICK, 1024);
    for index in 0..ENTRIES {
        wheel.schedule(deadline(Duration::ZERO, index), index);
    }
    wheel
}

fn timers(c: &mut Criterion) {
    let mut group = c.benchmark_group("timer");
    // One second of a node whose connections each have a timer within the next 30 s: what is due fires and is filed
    // again. Per element is per timer fired.
    let (mut wheel, mut now) = (full(), Duration::ZERO);
    group.throughput(Throughput::Elements(ENTRIES * 1_000 / SPREAD_MS));
    group.bench_function("wheel_second_of_100k", |b| {
        b.iter(|| {
            now += Duration::from_secs(1);
            while let Some((_, key)) = wheel.poll_expired(now) {
                wheel.schedule(now + Duration::from_millis(SPREAD_MS), black_box(key));
            }
        });
    });
    let mut set: BTreeSet<(Duration, u64)> =
        (0..ENTRIES).map(|index| (deadline(Duration::ZERO, index), index)).collect();
    let mut now = Duration::ZERO;
    group.bench_function("ordered_map_second_of_100k", |b| {
        b.iter(|| {
            now += Duration::from_secs(1);
            while set.first().is_some_and(|(at, _)| *at <= now) {
                let Some((_, key)) = set.pop_first() else { break };
                set.insert((now + Duration::from_millis(SPREAD_MS), black_box(key)));
            }
        });
    });
    group.throughput(Throughput::Elements(1));
    let wheel = full();
    group.bench_function("next_deadline", |b| b.iter(|| black_box(&wheel).next_deadline()));
    group.finish();
}

criterion_group!(benches, timers);
criterion_main!(benches);
