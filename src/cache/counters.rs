//! What the regions count, and how it is read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::name::RegionName;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of one region.
        #[derive(Debug, Default)]
        pub(super) struct RegionCounters {
            $($(#[$doc])* pub(super) $name: AtomicU64,)*
        }

        /// The counters of a region at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct RegionStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl RegionCounters {
            pub(super) fn read(&self) -> RegionStats {
                RegionStats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Lookups that the local level answered.
    hits,
    /// Lookups that it did not.
    misses,
    /// Calls of a source; one for a batch.
    loads,
    /// Those that failed, ran out of time or panicked.
    load_errors,
    /// Lookups that waited for a load which another had begun.
    coalesced,
    /// Calls refused because too many waited.
    refused,
    /// Expired values given out because the source failed.
    stale_served,
    /// Values found in the second level.
    second_hits,
    /// Values that were not there, or held back after an invalidation.
    second_misses,
    /// Calls of the second level that failed or ran out of time.
    second_errors,
    /// Values of the second level that could not be read.
    second_corrupt,
    /// Values not put there: too large, or loaded for so long that they may be outdated.
    second_skipped,
    /// Entries that made room for others.
    evicted_by_size,
    /// Entries that went because their time was over.
    evicted_by_ttl,
    /// Values that were not kept because they are too large.
    too_large,
    /// Keys that were invalidated, here or by another node.
    invalidations,
    /// Entries of the local level; a gauge.
    entries,
    /// What they take, overhead included; a gauge.
    bytes,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counters of all regions.
#[derive(Debug, Default)]
pub(super) struct Counters {
    regions: [RegionCounters; RegionName::ALL.len()],
}

impl Counters {
    pub(super) fn of(&self, region: RegionName) -> &RegionCounters {
        &self.regions[region.index()]
    }
}
