//! What does it cost to take a client's message apart and to put a publication together, by size?

#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway_core::message::{Epoch, Publish, StreamPosition};
use gateway_core::proto::command::{Command, Envelope};
use gateway_core::proto::push;
use gateway_core::ws::deflate::Inflater;
use gateway_core::ws::frame::{self, Header, Opcode};
use gateway_core::ws::mask;
use gateway_core::ws::message::{Decoder, DecoderLimits, Item};
use serde_json::json;

const SIZES: [usize; 5] = [64, 256, 1 << 10, 16 << 10, 64 << 10];
const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 1 << 20, fragments_max: 1024 };

fn masked(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_masked(&mut out, Opcode::Text, payload, [1, 2, 3, 4]);
    out
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    let header = masked(&[b'x'; 300]);
    group.bench_function("parse_header", |b| {
        b.iter(|| Header::parse(black_box(&header)));
    });
    for size in SIZES {
        let text = vec![b'x'; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("unmask", size), &text, |b, text| {
            let mut data = text.clone();
            b.iter(|| mask::apply(black_box([1, 2, 3, 4]), 0, &mut data));
        });
        group.bench_with_input(BenchmarkId::new("encode", size), &text, |b, text| {
            let mut out = Vec::with_capacity(size + 16);
            b.iter(|| {
                out.clear();
                frame::encode(&mut out, Opcode::Text, false, black_box(text));
            });
        });
        // Header, unmasking in place and the check of UTF-8: a frame that came in one piece.
        group.bench_with_input(BenchmarkId::new("decode_message", size), &text, |b, text| {
            let input = masked(text);
            let (mut decoder, mut inflater) = (Decoder::new(false), Inflater::new());
            b.iter_batched_ref(
                || input.clone(),
                |input| {
                    let mut input = input.as_mut_slice();
                    let item = decoder.next(&mut input, &LIMITS, &mut inflater);
                    assert!(matches!(item, Ok(Some(Item::Text(_)))));
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn envelopes(c: &mut Criterion) {
    let mut group = c.benchmark_group("envelope");
    for size in SIZES {
        let data = json!({"channel": "chat:room-7", "data": {"text": "x".repeat(size)}});
        let text = json!({"type": "publish", "id": "42", "data": data}).to_string();
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_with_input(BenchmarkId::new("read_publish", size), &text, |b, text| {
            b.iter(|| {
                let envelope = Envelope::read(black_box(text), 64).expect("an envelope");
                let command = envelope.command().expect("a command");
                assert!(matches!(command, Command::Publish(_)));
            });
        });
        let publish = Publish {
            data: json!({"text": "x".repeat(size)}).to_string().into(),
            ..Publish::default()
        };
        let position = Some(StreamPosition { offset: 7, epoch: Epoch(*b"abcdefgh") });
        group.bench_with_input(
            BenchmarkId::new("write_publication", size),
            &publish,
            |b, publish| {
                let unix = Duration::from_secs(1_800_000_000);
                b.iter(|| {
                    push::publication("chat:room-7", black_box(publish), position, "p1", unix)
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, frames, envelopes);
criterion_main!(benches);
