//! What does it cost to keep a publication, and to find what a returning subscriber missed?

#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gateway_core::history::History;
use gateway_core::message::{Epoch, HistoryQuery, Publication, StreamPosition};
use gateway_core::settings::Priority;

const TTL: Duration = Duration::from_secs(600);

fn publication(offset: u64) -> Arc<Publication> {
    let frame = Bytes::from_static(&[b'x'; 260]);
    Arc::new(Publication {
        position: StreamPosition { offset, epoch: Epoch(*b"abcdefgh") },
        priority: Priority::Normal,
        key_hash: 0,
        sender: None,
        accepted_at: Duration::ZERO,
        heap_bytes: 0,
        json: frame.slice(4..),
        frame,
        deflated: None,
    })
}

fn full(size: u32) -> History {
    let mut history = History::new();
    for offset in 1..=u64::from(size) {
        history.append(publication(offset), TTL, size);
    }
    history
}

fn history(c: &mut Criterion) {
    let mut group = c.benchmark_group("history");
    for size in [100, 10_000] {
        let mut history = full(size);
        let mut offset = u64::from(size);
        group.bench_function(BenchmarkId::new("append_to_full", size), |b| {
            b.iter(|| {
                offset += 1;
                history.append(publication(offset), TTL, size)
            });
        });
        let history = full(size);
        for missed in [1, 50] {
            let from = u64::from(size) - missed;
            group.bench_function(BenchmarkId::new(format!("recover_{missed}"), size), |b| {
                b.iter(|| history.since(black_box(from), 1000).expect("all of it is kept"));
            });
        }
        let query = HistoryQuery { since: None, limit: 20, reverse: true };
        group.bench_function(BenchmarkId::new("newest_20", size), |b| {
            b.iter(|| history.page(black_box(&query), 1000));
        });
    }
    group.finish();
}

criterion_group!(benches, history);
criterion_main!(benches);
