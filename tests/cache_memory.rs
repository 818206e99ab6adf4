//! The cache's budget is what it takes on the heap, as an allocator counts it.

#![allow(clippy::unwrap_used)]

#[path = "../src"]
mod parts {
    #[allow(dead_code, unused_imports, reason = "only a part of it is used here")]
    pub(crate) mod cache;
}

use std::alloc::System;
use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use parts::cache::{Cache, CacheOptions, CacheValue, HeapBytes, Region, RegionName, RegionSpec};
use serde::{Deserialize, Serialize};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

const BUDGET: usize = 32 << 20;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that the process has asked for and not given back.
fn live() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.saturating_sub(stats.bytes_deallocated)
}

/// A value of many small parts.
#[derive(Serialize, Deserialize)]
struct Preferences {
    language: String,
    quiet: Option<(u32, u32)>,
    rules: HashMap<String, u64>,
    devices: Vec<String>,
}

impl HeapBytes for Preferences {
    fn heap_bytes(&self) -> usize {
        self.language.heap_bytes() + self.rules.heap_bytes() + self.devices.heap_bytes()
    }
}

/// Puts so many values into an empty cache; the largest growth seen, and the growth that is left after a clearing.
async fn fill<V: CacheValue>(count: usize, value: impl Fn(usize) -> Option<V>) -> (usize, usize) {
    let before = live();
    let options = CacheOptions { memory_max: BUDGET as u64, shares: Vec::new() };
    let cache = Cache::new(&options, None).unwrap();
    let minute = Duration::from_mins(1);
    let spec = RegionSpec { negative_ttl: Some(minute), ..RegionSpec::new(minute) };
    let region: Region<str, V, Infallible> = cache.region(RegionName::Preferences, spec).unwrap();
    let mut most = 0;
    for at in 0..count {
        let key = format!("user:{at:08}");
        region.get_or_load(&key, || async { Ok(value(at)) }).await.unwrap();
        // Used once more, so that it is worth more than what is there.
        region.get(&key);
        most = most.max(live().saturating_sub(before));
    }
    let stats = cache.stats()[0].1;
    assert!(stats.evicted_by_size > count as u64 / 10, "it was never full: {stats:?}");
    cache.clear_local();
    (most, live().saturating_sub(before))
}

fn check(name: &str, (most, left): (usize, usize)) {
    let part = |bytes: usize| bytes as f64 / BUDGET as f64;
    assert!(part(most) <= 1.05, "{name}: {:.3} of the budget", part(most));
    assert!(part(most) >= 0.5, "{name}: only {:.3} of the budget is put to use", part(most));
    assert!(part(left) < 0.1, "{name}: {left} bytes are left of {most} after a clearing");
}

fn text(length: usize) -> Option<String> {
    "v".repeat(length).into()
}

#[tokio::test]
async fn the_heap_grows_by_no_more_than_the_budget() {
    check("small", fill(400_000, |_| text(100)).await);
    check("medium", fill(60_000, |_| text(2_048)).await);
    let mixed = |at: usize| match at % 20 {
        0 => None,
        1 => text(50_000),
        2..8 => text(2_048),
        _ => text(at % 300),
    };
    check("mixed", fill(80_000, mixed).await);
    check("nothing", fill(400_000, |_| None::<String>).await);
    // Tables of many small entries first, then large ones.
    let shift = |at: usize| if at < 200_000 { None } else { text(2_048) };
    check("shift", fill(260_000, shift).await);
    let preferences = |at: usize| {
        Some(Preferences {
            language: "en".to_owned(),
            quiet: Some((22, 7)),
            rules: (0..at % 12).map(|rule| (format!("rule.{rule}"), rule as u64)).collect(),
            devices: (0..at % 5).map(|device| format!("device-{device}")).collect(),
        })
    };
    check("preferences", fill(120_000, preferences).await);
}
