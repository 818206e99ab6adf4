//! What does compression cost per message, and from which size does it save bytes worth having?
//!
//! A publication is compressed once and shared by all its subscribers, so `deflate` is per publication, not per
//! delivery; `inflate` is per message of a client. The ratios are printed before the measurements.

#![allow(missing_docs, reason = "a benchmark has no interface")]
#![allow(clippy::print_stderr, reason = "the sizes are half of the answer")]

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway_core::ws::deflate::{Deflater, Inflater};

/// A message like the product's own: keys that repeat, ids that do not.
fn message(bytes: usize) -> Vec<u8> {
    let mut text = String::from(r#"{"type":"workflow_update","data":{"components":["#);
    let mut index = 0_u64;
    while text.len() < bytes {
        let id = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        write!(
            text,
            r#"{{"component_id":"{id:016x}","status":"in_progress","progress":{},"message":"generating"}},"#,
            id % 100
        )
        .expect("a String takes any text");
        index += 1;
    }
    text.truncate(bytes);
    text.into_bytes()
}

fn deflate(c: &mut Criterion) {
    let mut group = c.benchmark_group("deflate");
    for size in [256, 512, 1 << 10, 4 << 10, 64 << 10] {
        let text = message(size);
        group.throughput(Throughput::Bytes(size as u64));
        for level in [1, 3, 6] {
            let mut deflater = Deflater::new(level);
            let mut out = Vec::new();
            deflater.deflate(&text, &mut out);
            eprintln!("level {level}: {size} bytes become {}", out.len());
            group.bench_function(BenchmarkId::new(format!("level_{level}"), size), |b| {
                b.iter(|| {
                    out.clear();
                    deflater.deflate(black_box(&text), &mut out);
                });
            });
        }
        let mut compressed = Vec::new();
        Deflater::new(3).deflate(&text, &mut compressed);
        let mut inflater = Inflater::new();
        group.bench_function(BenchmarkId::new("inflate", size), |b| {
            b.iter(|| {
                let text = inflater.inflate_in_place(black_box(&compressed), 1 << 20);
                assert_eq!(text.expect("a deflate stream").len(), size);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, deflate);
criterion_main!(benches);
