//! A source that counts, a second level that fails when told to, and a cache over both.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::super::*;

pub(super) const TTL: Duration = Duration::from_secs(100);
pub(super) const HOLD: Duration = Duration::from_secs(3);
pub(super) const MIB: u64 = 1 << 20;

/// What a source fails with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source is down")]
pub(super) struct Down;

pub(super) type TestRegion = Region<str, String, Down>;

/// Rules with nothing optional.
pub(super) fn spec() -> RegionSpec {
    RegionSpec { second_level: true, ..RegionSpec::new(TTL) }
}

pub(super) fn options(memory_max: u64) -> CacheOptions {
    CacheOptions { memory_max, shares: Vec::new() }
}

/// A cache without a second level, and one region of it.
pub(super) fn local(spec: RegionSpec) -> (Cache, TestRegion) {
    let cache = Cache::new(&options(4 * MIB), None).unwrap();
    let region = cache.region(RegionName::Contacts, spec).unwrap();
    (cache, region)
}

/// A node over a second level, and one region of it.
pub(super) fn node(second: &Arc<Memory>, spec: RegionSpec) -> (Cache, TestRegion) {
    let second_options = second.options();
    let second: Arc<dyn SecondLevel> = second.clone();
    let cache = Cache::new(&options(4 * MIB), Some((second, second_options))).unwrap();
    let region = cache.region(RegionName::Contacts, spec).unwrap();
    (cache, region)
}

pub(super) fn stats(cache: &Cache) -> RegionStats {
    cache.stats().into_iter().find(|(name, _)| *name == RegionName::Contacts).unwrap().1
}

/// Asks for a value and says whether the source was asked for it.
pub(super) async fn get(region: &TestRegion, key: &str, source: &str) -> (Option<String>, bool) {
    let asked = AtomicBool::new(false);
    let load = || {
        asked.store(true, Ordering::Relaxed);
        async { Ok(Some(source.to_owned())) }
    };
    let value = region.get_or_load(key, load).await.unwrap();
    (value.map(|value| (*value).clone()), asked.into_inner())
}

/// Waits, without time passing, until something holds.
pub(super) async fn until(holds: impl Fn() -> bool) {
    for _ in 0..1_000_000 {
        if holds() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never held");
}

/// A place where a call waits until it is let through.
#[derive(Debug)]
pub(super) struct Gate {
    arrived: AtomicUsize,
    open: Semaphore,
}

impl Gate {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { arrived: AtomicUsize::new(0), open: Semaphore::new(0) })
    }

    pub(super) async fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        self.open.acquire().await.unwrap().forget();
    }

    pub(super) fn arrived(&self) -> usize {
        self.arrived.load(Ordering::SeqCst)
    }

    /// Waits until so many calls stand or stood here.
    pub(super) async fn reached_by(&self, calls: usize) {
        until(|| self.arrived() >= calls).await;
    }

    pub(super) fn let_through(&self, calls: usize) {
        self.open.add_permits(calls);
    }
}

/// How a second level behaves.
#[derive(Clone, Debug, Default)]
pub(super) enum Mood {
    #[default]
    Well,
    Failing,
    Hanging,
    /// Reads are done, then wait at the gate with their answer.
    SlowReads(Arc<Gate>),
    /// Writes wait at the gate before they are done.
    SlowWrites(Arc<Gate>),
}

/// A second level in memory, on tokio's clock.
#[derive(Debug)]
pub(super) struct Memory {
    started: Instant,
    mood: Mutex<Mood>,
    pub(super) values: Mutex<HashMap<Vec<u8>, (Bytes, Instant)>>,
    pub(super) calls: AtomicUsize,
}

impl Memory {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            mood: Mutex::default(),
            values: Mutex::default(),
            calls: AtomicUsize::new(0),
        })
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn options(&self) -> SecondOptions {
        let started = self.started;
        SecondOptions {
            prefix: "test:".to_owned(),
            timeout: Duration::from_millis(100),
            hold: HOLD,
            compress_above: 1_000,
            value_max: 10_000,
            clock: Arc::new(move || 1_700_000_000_000 + started.elapsed().as_millis() as u64),
        }
    }

    /// What stands under a key of the region that tests use.
    pub(super) fn stored(&self, key: &str) -> Option<Bytes> {
        let name = format!("test:contacts:1:{key}").into_bytes();
        let values = self.values.lock().unwrap();
        let (bytes, expires) = values.get(&name)?;
        (Instant::now() < *expires).then(|| bytes.clone())
    }

    pub(super) fn overwrite(&self, key: &str, bytes: &[u8]) {
        let name = format!("test:contacts:1:{key}").into_bytes();
        let value = (Bytes::copy_from_slice(bytes), Instant::now() + TTL);
        self.values.lock().unwrap().insert(name, value);
    }

    async fn behave(&self) -> Result<Mood, SecondLevelError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mood = self.mood.lock().unwrap().clone();
        match mood {
            Mood::Failing => Err(SecondLevelError("told to fail".to_owned())),
            Mood::Hanging => std::future::pending().await,
            mood => Ok(mood),
        }
    }
}

impl SecondLevel for Memory {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Bytes>, SecondLevelError>> {
        async move {
            let mood = self.behave().await?;
            let value = self.values.lock().unwrap().get(key).cloned();
            if let Mood::SlowReads(gate) = mood {
                gate.pass().await;
            }
            Ok(value.filter(|(_, expires)| Instant::now() < *expires).map(|(bytes, _)| bytes))
        }
        .boxed()
    }

    fn set<'a>(
        &'a self,
        key: &'a [u8],
        write: Write,
    ) -> BoxFuture<'a, Result<(), SecondLevelError>> {
        async move {
            if let Mood::SlowWrites(gate) = self.behave().await? {
                gate.pass().await;
            }
            let now = Instant::now();
            let mut values = self.values.lock().unwrap();
            let taken = values.get(key).is_some_and(|(_, expires)| now < *expires);
            if write.when == When::Always || !taken {
                values.insert(key.to_vec(), (write.bytes, now + write.ttl));
            }
            Ok(())
        }
        .boxed()
    }
}
