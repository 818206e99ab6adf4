//! Which library reads, and which writes, the JSON of the gateway faster, by kind and size of text?
//!
//! `json_read`: simd-json parses in place and the received text must stay as it is (payloads are passed on raw), so its
//! time includes the copy; `simd_json_reused` keeps copy and working memory from text to text. `json_write`: the long
//! strings of `large_data` chunks, and lists of many short ones.

#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::borrow::Cow;
use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use gateway_core::proto::command::{AuthData, LargeDataChunk, SubscribeData};
use gateway_core::proto::json::Object;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A client message read in one step.
#[derive(Deserialize)]
#[allow(dead_code, reason = "what is measured is reading it")]
struct Message<'a, D> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    data: D,
}

/// `publish` without its payload, which simd-json has no raw form for.
#[derive(Deserialize)]
#[allow(dead_code, reason = "what is measured is reading it")]
struct Publish<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    data: IgnoredAny,
}

/// Names a type that may borrow from the text it is read from.
trait Shape {
    type Of<'a>: Deserialize<'a>;
}

struct SubscribeMessage;
impl Shape for SubscribeMessage {
    type Of<'a> = Message<'a, SubscribeData>;
}

struct PublishMessage;
impl Shape for PublishMessage {
    type Of<'a> = Message<'a, Publish<'a>>;
}

struct Auth;
impl Shape for Auth {
    type Of<'a> = AuthData;
}

struct Chunk;
impl Shape for Chunk {
    type Of<'a> = LargeDataChunk<'a>;
}

fn compare<S: Shape>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, text: &Value) {
    let text = text.to_string();
    let id = |library| BenchmarkId::new(library, format!("{name}_{}B", text.len()));
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function(id("serde_json"), |b| {
        b.iter(|| {
            let value: S::Of<'_> = serde_json::from_str(black_box(&text)).expect("it is JSON");
            drop(black_box(value));
        });
    });
    group.bench_function(id("simd_json"), |b| {
        b.iter(|| {
            let mut copy = black_box(&text).as_bytes().to_vec();
            let value: S::Of<'_> = simd_json::serde::from_slice(&mut copy).expect("it is JSON");
            drop(black_box(value));
        });
    });
    group.bench_function(id("simd_json_reused"), |b| {
        let (mut copy, mut buffers) = (Vec::new(), simd_json::Buffers::default());
        b.iter(|| {
            copy.clear();
            copy.extend_from_slice(black_box(&text).as_bytes());
            let value: S::Of<'_> =
                simd_json::serde::from_slice_with_buffers(&mut copy, &mut buffers)
                    .expect("it is JSON");
            drop(black_box(value));
        });
    });
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("json_read");
    let message = |kind: &str, data: Value| json!({"type": kind, "id": "42", "data": data});
    let recover = json!({"offset": 17, "epoch": "abcdefgh"});
    let subscribe = json!({"channel": "workflow:550e8400-e29b", "recover": recover});
    compare::<SubscribeMessage>(&mut group, "subscribe", &message("subscribe", subscribe));
    for size in [150, 4 << 10] {
        let data = json!({"channel": "chat:room-7", "data": {"text": "x".repeat(size)}});
        compare::<PublishMessage>(&mut group, "publish", &message("publish", data));
    }
    let positions: Map<_, _> =
        (0..64).map(|n| (format!("workflow:{n}"), recover.clone())).collect();
    compare::<Auth>(&mut group, "auth", &json!({"token": "x".repeat(250), "recover": positions}));
    for size in [1 << 10, 16 << 10, 64 << 10] {
        let chunk = json!({
            "data_id": "d-1", "chunk_index": 1, "total_chunks": 16,
            "chunk_data": "QUJD".repeat(size / 3), "checksum": "0".repeat(64),
        });
        compare::<Chunk>(&mut group, "chunk", &chunk);
    }
    group.finish();
}

#[derive(Serialize)]
struct ChunkOut {
    data_id: &'static str,
    chunk_data: String,
}

#[derive(Serialize)]
struct ConnectionOut {
    id: String,
    user: String,
    channels: u32,
}

fn compare_writers(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, value: &impl Serialize) {
    let bytes = serde_json::to_vec(value).expect("it can be written");
    let same = simd_json::serde::to_vec(value).expect("it can be written");
    assert!(bytes == same, "both write the same");
    let id = |library| BenchmarkId::new(library, format!("{name}_{}B", bytes.len()));
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(id("serde_json"), |b| b.iter(|| serde_json::to_vec(black_box(value))));
    group
        .bench_function(id("simd_json"), |b| b.iter(|| simd_json::serde::to_vec(black_box(value))));
}

fn write(c: &mut Criterion) {
    let mut group = c.benchmark_group("json_write");
    let connections: Vec<_> = (0..100)
        .map(|n| ConnectionOut { id: format!("0-{n:08}"), user: format!("user-{n}"), channels: 7 })
        .collect();
    compare_writers(&mut group, "connections", &connections);
    for size in [1 << 10, 64 << 10] {
        let chunk = ChunkOut { data_id: "d-1", chunk_data: "QUJD".repeat(size / 3) };
        compare_writers(&mut group, "chunk", &chunk);
        group.bench_function(BenchmarkId::new("core_writer", format!("chunk_{size}B")), |b| {
            b.iter(|| {
                let mut out = Vec::new();
                let mut object = Object::begin(&mut out);
                object
                    .str("data_id", chunk.data_id)
                    .str("chunk_data", black_box(&chunk.chunk_data));
                object.end();
                out
            });
        });
    }
    group.finish();
}

criterion_group!(benches, read, write);
criterion_main!(benches);
