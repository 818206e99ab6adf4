//! Hazard: a scrape that Prometheus cannot read, or that names something twice.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use gateway_core::metrics::{DropKind, HistoryEviction, HistoryRead, MessageKind, ShardMetrics};
use gateway_engine::{EngineMetrics, ShardSnapshot};

use super::*;
use crate::plane::testing::plane;

fn snapshots_of_one_shard() -> Snapshots {
    let mut snapshot = ShardSnapshot {
        core: ShardMetrics::new(),
        engine: EngineMetrics::new(2),
        mailbox_depth: 0,
        mailbox_capacity: 64,
        connections: 5,
    };
    snapshot.core.connections = 5;
    snapshot.core.messages_in.add(MessageKind::Publish as usize, 3);
    snapshot.core.dropped.add(DropKind::Deliver as usize, 2);
    snapshot.core.history_bytes_max = 1024;
    snapshot.core.history_evicted.add(HistoryEviction::Budget as usize, 6);
    snapshot.core.history_reads.add(HistoryRead::Held as usize, 7);
    snapshot.core.recovery_reads.add(HistoryRead::Short as usize, 8);
    snapshot.core.delivered(Duration::from_micros(400));
    snapshot.mailbox_depth = 4;
    Snapshots { shards: vec![Some(Arc::new(snapshot)), None], partial: true }
}

#[tokio::test]
async fn numbers_of_the_shards_are_rendered() {
    let (_, plane) = plane();
    let text = String::from_utf8(render(&plane, &snapshots_of_one_shard()).unwrap()).unwrap();
    for line in [
        "archmesh_connections{shard=\"0\"} 5",
        "archmesh_mailbox_depth{shard=\"0\"} 4",
        "archmesh_messages_received_total{type=\"publish\"} 3",
        "archmesh_mailbox_dropped_total{kind=\"deliver\"} 2",
        "archmesh_history_bytes_max{shard=\"0\"} 1024",
        "archmesh_history_evicted_total{reason=\"budget\"} 6",
        "archmesh_history_reads_total{outcome=\"held\"} 7",
        "archmesh_recovery_reads_total{outcome=\"short\"} 8",
        "archmesh_delivery_latency_seconds_bucket{le=\"0.00025\"} 0",
        "archmesh_delivery_latency_seconds_bucket{le=\"0.0005\"} 1",
        "archmesh_delivery_latency_seconds_count 1",
        "archmesh_tls_certificate_expiry_timestamp_seconds 1900000000",
        "archmesh_scrape_partial 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

/// What `promtool check metrics` would object to, as far as it can be told from the text.
#[tokio::test]
async fn names_follow_the_conventions() {
    let (_, plane) = plane();
    let text = String::from_utf8(render(&plane, &snapshots_of_one_shard()).unwrap()).unwrap();
    let mut seen = HashSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(seen.insert(name), "{name} comes twice");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(name.starts_with("archmesh_") || name.starts_with("process_"), "{name}");
        for unit in ["_ms", "_us", "_milliseconds", "_kb", "_count", "_sum", "_bucket"] {
            assert!(!name.ends_with(unit), "{name}");
        }
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    assert!(seen.len() > 50, "{}", seen.len());
}
