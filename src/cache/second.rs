//! The second level: a store that nodes share, and that may be slow, wrong or away at any time.
//!
//! An invalidated value is not removed but replaced by a *hold*, which expires by itself; values are written only where
//! nothing stands. So a node that loaded before the invalidation cannot put its old value back after it, wherever it
//! runs, as long as it writes before the hold ends. Who loaded for longer than that does not write at all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::counters::{RegionCounters, count};
use super::envelope::{self, Body, Corrupt};
use super::name::RegionName;

/// A call of the second level failed. The cache goes on without it, and counts.
#[derive(Debug, thiserror::Error)]
#[error("the cache's second level failed: {0}; until it answers, values come from their source")]
pub(crate) struct SecondLevelError(pub String);

/// Whether a write replaces what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Only where nothing is; otherwise nothing is done, which is no failure. `SET NX` in Redis.
    Absent,
    /// In any case.
    Always,
}

/// What is written.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// The value.
    pub bytes: Bytes,
    /// It is gone after it.
    pub ttl: Duration,
    /// Whether it replaces what is there.
    pub when: When,
}

/// A store of bytes that expire. Every call is given up after [`SecondOptions::timeout`].
pub(crate) trait SecondLevel: Send + Sync {
    /// The bytes under a key, if any.
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Bytes>, SecondLevelError>>;

    /// Writes bytes under a key.
    fn set<'a>(
        &'a self,
        key: &'a [u8],
        write: Write,
    ) -> BoxFuture<'a, Result<(), SecondLevelError>>;
}

/// How the second level is used.
#[derive(Clone)]
pub(crate) struct SecondOptions {
    /// In front of all keys.
    pub prefix: String,
    /// Longest call.
    pub timeout: Duration,
    /// How long nothing is written where a value was invalidated. Longer than usual loads; a few seconds.
    pub hold: Duration,
    /// Longer values are compressed.
    pub compress_above: usize,
    /// Longer values, as JSON, are neither written nor read.
    pub value_max: usize,
    /// Unix milliseconds now.
    pub clock: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for SecondOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecondOptions").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Answer to a lookup.
#[derive(Debug)]
pub(super) enum Read<V> {
    /// The value, or the word that there is none, and how long it may be kept.
    Found(Option<V>, Duration),
    /// Nothing: a value may be written.
    Absent,
    /// Nothing, and nothing should be written.
    Away,
}

/// The second level as one region sees it.
pub(super) struct Second {
    store: Arc<dyn SecondLevel>,
    options: SecondOptions,
    /// In front of the keys of the region.
    prefix: String,
}

impl Second {
    /// For a region. Values of another `schema` are out of sight.
    pub(super) fn new(
        store: Arc<dyn SecondLevel>,
        options: SecondOptions,
        region: RegionName,
        schema: u16,
    ) -> Self {
        let prefix = format!("{}{}:{schema}:", options.prefix, region.as_str());
        Self { store, options, prefix }
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// Looks a key up.
    pub(super) async fn read<V: DeserializeOwned>(
        &self,
        key: &str,
        counters: &RegionCounters,
    ) -> Read<V> {
        let name = self.key(key);
        let bytes = match timeout(self.options.timeout, self.store.get(&name)).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => {
                count(&counters.second_misses);
                return Read::Absent;
            }
            Ok(Err(_)) | Err(_) => {
                count(&counters.second_errors);
                return Read::Away;
            }
        };
        let read = self.understand(&bytes);
        match &read {
            Ok(Read::Found(..)) => count(&counters.second_hits),
            Ok(Read::Absent | Read::Away) => count(&counters.second_misses),
            Err(Corrupt) => {
                count(&counters.second_corrupt);
                // What cannot be read is in the way of what can; a hold makes room and cannot undo an invalidation.
                self.hold(key, counters).await;
            }
        }
        read.unwrap_or(Read::Away)
    }

    fn understand<V: DeserializeOwned>(&self, bytes: &[u8]) -> Result<Read<V>, Corrupt> {
        let (expires, body) = envelope::open(bytes, self.options.value_max)?;
        let left = Duration::from_millis(expires.saturating_sub((self.options.clock)()));
        let value = match body {
            Body::Value(json) => Some(serde_json::from_slice(&json).map_err(|_| Corrupt)?),
            Body::Nothing => None,
            Body::Hold => return Ok(Read::Away),
        };
        Ok(if left.is_zero() { Read::Away } else { Read::Found(value, left) })
    }

    /// Writes what was loaded since `began`, unless that is so long ago that an invalidation may be forgotten.
    pub(super) async fn write<V: Serialize>(
        &self,
        key: &str,
        loaded: Loaded<'_, V>,
        counters: &RegionCounters,
    ) {
        // Where values are replaced nothing is invalidated.
        let slow = loaded.began.elapsed() + self.options.timeout >= self.options.hold;
        if slow && loaded.when == When::Absent {
            return count(&counters.second_skipped);
        }
        let expires = self.in_unix_millis(loaded.ttl);
        let bytes = match loaded.value {
            Some(value) => match serde_json::to_vec(value) {
                Ok(json) if json.len() <= self.options.value_max => {
                    envelope::seal_value(&json, expires, self.options.compress_above)
                }
                Ok(_) | Err(_) => return count(&counters.second_skipped),
            },
            None => envelope::seal_nothing(expires),
        };
        self.set(key, Write { bytes, ttl: loaded.ttl, when: loaded.when }, counters).await;
    }

    /// Puts a hold in place of what is there. Whether that worked.
    pub(super) async fn hold(&self, key: &str, counters: &RegionCounters) -> bool {
        let ttl = self.options.hold;
        let bytes = envelope::seal_hold(self.in_unix_millis(ttl));
        self.set(key, Write { bytes, ttl, when: When::Always }, counters).await
    }

    async fn set(&self, key: &str, write: Write, counters: &RegionCounters) -> bool {
        let name = self.key(key);
        let done = timeout(self.options.timeout, self.store.set(&name, write)).await;
        let done = matches!(done, Ok(Ok(())));
        if !done {
            count(&counters.second_errors);
        }
        done
    }

    fn in_unix_millis(&self, ttl: Duration) -> u64 {
        (self.options.clock)().saturating_add(ttl.as_millis() as u64)
    }
}

/// A value that may be written.
pub(super) struct Loaded<'a, V> {
    pub(super) value: Option<&'a V>,
    pub(super) ttl: Duration,
    pub(super) began: Instant,
    pub(super) when: When,
}
