//! The local level: entries of all regions that share a budget of bytes, least useful ones out first.
//!
//! It knows weights and expiry, not what the values are. An expired entry stays until it is replaced, swept or pushed
//! out: its place in the ranking survives a reload that way, and a source that is down can be answered for.

use std::any::Any;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use quick_cache::{DefaultHashBuilder, Equivalent};
use tokio::time::Instant;

use super::counters::{Counters, count};
use super::name::RegionName;
use super::shard::{ENTRY_BYTES, Shard};
use super::weigh::allocated;

/// A smaller part of the budget makes large values unfit for it.
const SHARD_BYTES_MIN: u64 = 4 << 20;
/// More locks gain nothing.
const SHARDS_MAX: u64 = 16;
/// An entry takes at most this fraction of a shard.
const LARGEST_FRACTION: u64 = 8;

/// A value of some region; `None` for one that does not exist.
pub(super) type Erased = Option<Arc<dyn Any + Send + Sync>>;

/// Key of an entry.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct StoreKey {
    pub(super) region: RegionName,
    pub(super) text: Box<str>,
}

/// A key that is looked up. Fields and their order are those of [`StoreKey`], so both have the same hash.
#[derive(Clone, Copy, Hash)]
pub(super) struct KeyRef<'a> {
    pub(super) region: RegionName,
    pub(super) text: &'a str,
}

impl Equivalent<StoreKey> for KeyRef<'_> {
    fn equivalent(&self, key: &StoreKey) -> bool {
        self.region == key.region && *self.text == *key.text
    }
}

/// What is kept of a value.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) value: Erased,
    /// On the clock of the store.
    pub(super) expires: u64,
    /// Fixed when it is stored: the policy asks for it often.
    pub(super) weight: u32,
}

/// See the module's documentation.
pub(super) struct Store {
    shards: Box<[RwLock<Shard>]>,
    /// Chooses the shard. The tables inside have seeds of their own, so what shares a shard does not collide in it.
    hashes: DefaultHashBuilder,
    weight_max: AtomicU64,
    started: Instant,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("weight_max", &self.weight_max).finish_non_exhaustive()
    }
}

impl Store {
    /// Empty. It takes at most `budget` bytes, its own tables included.
    pub(super) fn new(budget: u64, counters: Arc<Counters>) -> Self {
        let count = 1_u64 << (budget / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX).ilog2();
        let shard = budget / count;
        let shards = (0..count).map(|_| RwLock::new(Shard::new(shard as usize))).collect();
        let hashes = DefaultHashBuilder::default();
        let weight_max = AtomicU64::new(shard / LARGEST_FRACTION);
        Self { shards, hashes, weight_max, started: Instant::now(), counters }
    }

    /// Gives it another budget in bytes; the number of its parts stays.
    pub(super) fn resize(&self, budget: u64) {
        let part = budget / self.shards.len() as u64;
        self.weight_max.store(part / LARGEST_FRACTION, Ordering::Relaxed);
        for shard in &self.shards {
            let pushed_out =
                shard.write().unwrap_or_else(PoisonError::into_inner).resize(part as usize);
            for (key, slot) in pushed_out {
                self.taken_out(key.region, &slot);
                count(&self.counters.of(key.region).evicted_by_size);
            }
        }
    }

    fn shard(&self, key: KeyRef<'_>) -> &RwLock<Shard> {
        // Their number is a power of two.
        &self.shards[self.hashes.hash_one(key) as usize & (self.shards.len() - 1)]
    }

    fn read(&self, key: KeyRef<'_>) -> RwLockReadGuard<'_, Shard> {
        self.shard(key).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, key: KeyRef<'_>) -> RwLockWriteGuard<'_, Shard> {
        self.shard(key).write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds on the clock of the store.
    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The entry, expired or not. Raises its rank.
    pub(super) fn get(&self, key: KeyRef<'_>) -> Option<Slot> {
        self.read(key).get(key)
    }

    /// The entry, expired or not. Does not change its rank.
    pub(super) fn peek(&self, key: KeyRef<'_>) -> Option<Slot> {
        self.read(key).peek(key)
    }

    /// Keeps a value of `value_bytes` for `ttl` in place of what is there. One that is too large is not kept.
    pub(super) fn insert(&self, key: KeyRef<'_>, value: Erased, ttl: Duration, value_bytes: usize) {
        let region = self.counters.of(key.region);
        let weight = ENTRY_BYTES + allocated(key.text.len()) + value_bytes;
        let weight = match u32::try_from(weight) {
            Ok(weight) if u64::from(weight) <= self.weight_max.load(Ordering::Relaxed) => weight,
            _ => {
                count(&region.too_large);
                self.remove(key);
                return;
            }
        };
        let expires = self.now().saturating_add(ttl.as_millis() as u64);
        // Added before it is there, so that whoever pushes it out at once takes nothing below zero.
        count(&region.entries);
        region.bytes.fetch_add(u64::from(weight), Ordering::Relaxed);
        let stored = StoreKey { region: key.region, text: key.text.into() };
        let pushed_out = self.write(key).insert(stored, Slot { value, expires, weight });
        let now = self.now();
        for (other, slot) in pushed_out {
            self.taken_out(other.region, &slot);
            let counters = self.counters.of(other.region);
            if slot.expires <= now {
                count(&counters.evicted_by_ttl);
            } else if !key.equivalent(&other) {
                count(&counters.evicted_by_size);
            }
        }
    }

    /// Whether there was an entry.
    pub(super) fn remove(&self, key: KeyRef<'_>) -> bool {
        let removed = self.write(key).remove(key);
        if let Some(slot) = &removed {
            self.taken_out(key.region, slot);
        }
        removed.is_some()
    }

    /// Removes all entries of a region.
    pub(super) fn remove_region(&self, region: RegionName) {
        self.retain(|key, _| key.region != region);
    }

    /// Removes entries of a region that expired at least `grace` ago.
    pub(super) fn sweep(&self, region: RegionName, grace: Duration) {
        let now = self.now();
        let grace = grace.as_millis() as u64;
        self.retain(|key, slot| {
            let keep = key.region != region || now < slot.expires.saturating_add(grace);
            if !keep {
                count(&self.counters.of(region).evicted_by_ttl);
            }
            keep
        });
    }

    fn retain(&self, keep: impl Fn(&StoreKey, &Slot) -> bool) {
        for shard in &self.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|key, slot| {
                let keep = keep(key, slot);
                if !keep {
                    self.taken_out(key.region, slot);
                }
                keep
            });
        }
    }

    fn taken_out(&self, region: RegionName, slot: &Slot) {
        let counters = self.counters.of(region);
        subtract(&counters.entries, 1);
        subtract(&counters.bytes, u64::from(slot.weight));
    }
}

fn subtract(gauge: &AtomicU64, amount: u64) {
    gauge.fetch_sub(amount, Ordering::Relaxed);
}
