//! What does an outbox cost per frame: for a client that keeps up, and for one that does not, by policy?

#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::hint::black_box;
use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway_core::outbox::{Class, Outbox, Spare};
use gateway_core::settings::{Priority, SlowPolicy};

const FRAME: usize = 260;

fn class(offset: u64, channel: u32, priority: Priority, policy: SlowPolicy) -> Class {
    let key_hash = offset % 64;
    Class::Publication { channel, key_hash, offset, policy, priority, accepted_at: Duration::ZERO }
}

fn send_all(outbox: &mut Outbox, spare: &mut Spare) -> usize {
    let mut total = 0;
    loop {
        let mut slices = [IoSlice::new(&[]); 64];
        let filled = outbox.gather(&mut slices);
        let bytes: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
        if bytes == 0 {
            return total;
        }
        outbox.advance(bytes, spare, |class| {
            black_box(class);
        });
        total += bytes;
    }
}

fn keeping_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("outbox");
    let frame = Bytes::from(vec![b'x'; FRAME]);
    let mut spare = Spare::default();
    for frames in [1, 8, 64] {
        let (mut outbox, mut offset) = (Outbox::new(), 0);
        group.throughput(Throughput::Elements(frames));
        group.bench_function(BenchmarkId::new("push_gather_advance", frames), |b| {
            b.iter(|| {
                outbox.prepare(&mut spare);
                for _ in 0..frames {
                    offset += 1;
                    let class = class(offset, 1, Priority::Normal, SlowPolicy::Disconnect);
                    outbox.push(frame.clone(), class, 1 << 20);
                }
                assert_eq!(send_all(&mut outbox, &mut spare), FRAME * frames as usize);
            });
        });
    }
    group.finish();
}

fn slow(c: &mut Criterion) {
    let mut group = c.benchmark_group("outbox_full");
    let frame = Bytes::from(vec![b'x'; FRAME]);
    for (name, policy) in
        [("drop_oldest", SlowPolicy::DropOldest), ("keep_latest", SlowPolicy::KeepLatest)]
    {
        let (mut outbox, mut offset) = (Outbox::new(), 0);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("push_{name}_256KiB"), |b| {
            b.iter(|| {
                offset += 1;
                let class = class(offset, 1, Priority::Normal, policy);
                black_box(outbox.push(frame.clone(), class, 256 << 10))
            });
        });
    }
    let (mut outbox, mut spare) = (Outbox::new(), Spare::default());
    for offset in 1..=1000 {
        let class = class(offset, 1, Priority::Normal, SlowPolicy::Disconnect);
        outbox.push(frame.clone(), class, 1 << 20);
    }
    // It passes the 1,000 normal ones that wait, and is sent and taken out again with the rest of the first writev.
    group.bench_function("push_critical_past_1000", |b| {
        b.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                let begin = std::time::Instant::now();
                let class = class(1, 2, Priority::Critical, SlowPolicy::Disconnect);
                outbox.push(frame.clone(), class, 1 << 20);
                total += begin.elapsed();
                outbox.advance(FRAME, &mut spare, |_| {});
            }
            total
        });
    });
    group.finish();
}

criterion_group!(benches, keeping_up, slow);
criterion_main!(benches);
