//! Cache of the control plane: values of slow sources, near by and for a while.
//!
//! Two levels. The local one holds typed values of all regions inside one budget of bytes. The second one, optional, is
//! a store that nodes share; it is asked before the source, and everything works without it. What neither has is loaded
//! once, however many ask for it.
//!
//! An invalidation wins against every load that is under way, on this node at once, in the second level by a hold (see
//! `second`), on other nodes when they are told: [`Cache::on_invalidate`] is called here, [`Cache::invalidate_local`]
//! there. A message that is lost costs the time to live, or [`Cache::clear_local`] once it is noticed.
//!
//! It has no task of its own: [`Cache::sweep`] wants to be called now and then.

mod counters;
mod envelope;
mod flight;
mod load;
mod name;
mod region;
mod second;
mod shard;
mod store;
#[cfg(test)]
mod tests;
mod weigh;

use std::marker::PhantomData;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

use counters::Counters;
use flight::Flights;
use region::{AnyRegion, Core};
use second::Second;
use store::Store;

pub(crate) use counters::RegionStats;
pub(crate) use name::RegionName;
#[cfg(test)]
pub(crate) use name::{KEY_BYTES_MAX, KeyTooLong};
pub(crate) use region::{CacheValue, LoadError, Region, RegionSpec};
#[cfg(test)]
pub(crate) use region::{InvalidateError, Known, Outcome};
pub(crate) use second::{SecondLevel, SecondLevelError, SecondOptions, When, Write};
pub(crate) use weigh::HeapBytes;

/// A smaller budget, or share of it, holds too little to be of use.
pub(crate) const BUDGET_BYTES_MIN: u64 = 64 << 10;

/// How much memory the cache may take, and who gets it.
#[derive(Clone, Debug)]
pub(crate) struct CacheOptions {
    /// All of it, in bytes.
    pub memory_max: u64,
    /// Regions with a part of their own, in percent. All others share the rest.
    pub shares: Vec<(RegionName, u8)>,
}

/// The cache cannot be made as it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CacheError {
    /// Nothing is left for the regions without a share.
    #[error("the shares of the cache come to {0} percent; leave at least 1 percent for the rest")]
    Shares(u32),
    /// A region has two shares.
    #[error("the cache has two shares for {}; give one", .0.as_str())]
    ShareTwice(RegionName),
    /// A part of the budget is too small.
    #[error("a part of the cache has {0} bytes; give it at least {BUDGET_BYTES_MIN}")]
    Budget(u64),
    /// Two parts of the program would mix up their values.
    #[error("the region {} of the cache is in use already; open it once and clone it", .0.as_str())]
    Opened(RegionName),
}

/// Told of what was invalidated here: region and key.
type OnInvalidate = Box<dyn Fn(RegionName, &str) + Send + Sync>;

/// What all regions share.
pub(crate) struct Shared {
    counters: Arc<Counters>,
    on_invalidate: OnceLock<OnInvalidate>,
}

/// See the module's documentation.
pub(crate) struct Cache {
    shared: Arc<Shared>,
    second: Option<(Arc<dyn SecondLevel>, SecondOptions)>,
    common: Arc<Store>,
    own: Vec<(RegionName, u8, Arc<Store>)>,
    regions: [OnceLock<Arc<dyn AnyRegion>>; RegionName::ALL.len()],
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("common", &self.common).finish_non_exhaustive()
    }
}

impl Cache {
    /// Empty, over a second level if there is one. Must be called inside the runtime.
    pub(crate) fn new(
        options: &CacheOptions,
        second: Option<(Arc<dyn SecondLevel>, SecondOptions)>,
    ) -> Result<Self, CacheError> {
        let counters = Arc::new(Counters::default());
        let taken = options.shares.iter().map(|(_, percent)| u32::from(*percent)).sum::<u32>();
        if taken > 99 {
            return Err(CacheError::Shares(taken));
        }
        let store = |percent: u32| {
            let budget = part(options.memory_max, percent);
            if budget < BUDGET_BYTES_MIN {
                return Err(CacheError::Budget(budget));
            }
            Ok(Arc::new(Store::new(budget, Arc::clone(&counters))))
        };
        let mut own: Vec<(RegionName, u8, Arc<Store>)> = Vec::new();
        for (region, percent) in &options.shares {
            if own.iter().any(|(other, ..)| other == region) {
                return Err(CacheError::ShareTwice(*region));
            }
            own.push((*region, *percent, store(u32::from(*percent))?));
        }
        let common = store(100 - taken)?;
        let shared = Arc::new(Shared { counters, on_invalidate: OnceLock::new() });
        Ok(Self { shared, second, common, own, regions: Default::default() })
    }

    /// Opens a region, which is possible once.
    pub(crate) fn region<K, V, E>(
        &self,
        name: RegionName,
        spec: RegionSpec,
    ) -> Result<Region<K, V, E>, CacheError>
    where
        K: AsRef<str> + ?Sized,
        V: CacheValue,
        E: Send + Sync + 'static,
    {
        let own = self.own.iter().find(|(region, ..)| *region == name);
        let store = own.map_or(&self.common, |(.., store)| store);
        let second = self.second.as_ref().filter(|_| spec.second_level).map(|(second, options)| {
            Second::new(Arc::clone(second), options.clone(), name, spec.schema)
        });
        let core = Arc::new(Core {
            name,
            spec,
            store: Arc::clone(store),
            shared: Arc::clone(&self.shared),
            second,
            flights: Flights::default(),
            calls: AtomicUsize::new(0),
        });
        let any: Arc<dyn AnyRegion> = core.clone();
        self.regions[name.index()].set(any).map_err(|_| CacheError::Opened(name))?;
        Ok(Region { core, keys: PhantomData })
    }

    /// What is called after every invalidation here, so that other nodes hear of it. Only the first is kept; whether
    /// it was this one. It must not block.
    pub(crate) fn on_invalidate(
        &self,
        tell: impl Fn(RegionName, &str) + Send + Sync + 'static,
    ) -> bool {
        self.shared.on_invalidate.set(Box::new(tell)).is_ok()
    }

    /// Makes the local level forget what another node has invalidated.
    pub(crate) fn invalidate_local(&self, region: RegionName, key: &str) {
        if let Some(region) = self.regions[region.index()].get() {
            region.forget(key);
        }
    }

    /// Makes the local level forget everything: for a node that may have missed invalidations.
    pub(crate) fn clear_local(&self) {
        self.opened().for_each(AnyRegion::forget_all);
    }

    /// Gives it another budget in bytes. What has no room in it is evicted now, under the lock of a part at a time.
    pub(crate) fn resize(&self, memory_max: u64) {
        let mut left = 100;
        for (_, percent, store) in &self.own {
            left -= u32::from(*percent);
            store.resize(part(memory_max, u32::from(*percent)).max(BUDGET_BYTES_MIN));
        }
        self.common.resize(part(memory_max, left).max(BUDGET_BYTES_MIN));
    }

    /// Removes expired entries before others push them out. Locks a part of the local level at a time, for as long as
    /// it takes to look at all of its entries.
    pub(crate) fn sweep(&self) {
        self.opened().for_each(AnyRegion::sweep);
    }

    /// What every region that is in use has counted.
    pub(crate) fn stats(&self) -> Vec<(RegionName, RegionStats)> {
        let opened =
            RegionName::ALL.into_iter().filter(|name| self.regions[name.index()].get().is_some());
        opened.map(|name| (name, self.shared.counters.of(name).read())).collect()
    }

    fn opened(&self) -> impl Iterator<Item = &dyn AnyRegion> {
        self.regions.iter().filter_map(|region| Some(&**region.get()?))
    }
}

fn part(memory_max: u64, percent: u32) -> u64 {
    memory_max / 100 * u64::from(percent)
}
