//! One region: its rules, lookups and invalidation.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::counters::{RegionCounters, count};
use super::flight::{Flights, Follower, Seat};
use super::name::{KeyTooLong, RegionName, checked};
use super::second::{Read, Second, When};
use super::store::{KeyRef, Slot, Store};
use super::weigh::HeapBytes;

/// Rules of a region.
#[derive(Clone, Debug)]
pub(crate) struct RegionSpec {
    /// How long a value is kept, give or take a tenth.
    pub ttl: Duration,
    /// How long it is kept that there is no value; `None` for not at all.
    pub negative_ttl: Option<Duration>,
    /// How long after its end a value is still given out when the source fails; zero for not at all.
    pub stale_if_error: Duration,
    /// Longest call, with all waiting.
    pub load_timeout: Duration,
    /// Most calls that load, or wait for others who do, at once.
    pub calls_max: usize,
    /// Whether values are kept in the second level too.
    pub second_level: bool,
    /// Number of the form of the values; another one for every change that old nodes would not understand.
    pub schema: u16,
}

impl RegionSpec {
    /// Local values for so long, and what is usual for the rest.
    pub(crate) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            negative_ttl: None,
            stale_if_error: Duration::ZERO,
            load_timeout: Duration::from_secs(5),
            calls_max: 10_000,
            second_level: false,
            schema: 1,
        }
    }
}

/// What can be cached.
pub(crate) trait CacheValue:
    HeapBytes + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<V: HeapBytes + Serialize + DeserializeOwned + Send + Sync + 'static> CacheValue for V {}

/// There is no value, and it is not known whether there should be one. All who waited for the same load get the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError<E> {
    /// The source says no.
    #[error("{0}")]
    Failed(Arc<E>),
    /// The source has not answered within the region's `load_timeout`.
    #[error("the source did not answer in time; try again later")]
    TimedOut,
    /// As many calls wait as the region's `calls_max` allows.
    #[error("too many calls wait for the source; try again later")]
    Busy,
    /// The code that asks the source panicked.
    #[error("asking the source panicked; the log has the place")]
    Panicked,
    /// A batch was answered with another number of values.
    #[error("the source gave {given} values for {asked} keys; it must give one, or none, for each")]
    WrongCount {
        /// Keys it was asked for.
        asked: usize,
        /// Values it gave.
        given: usize,
    },
    /// The key is no key.
    #[error(transparent)]
    Key(#[from] KeyTooLong),
}

impl<E> Clone for LoadError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Failed(error) => Self::Failed(Arc::clone(error)),
            Self::TimedOut => Self::TimedOut,
            Self::Busy => Self::Busy,
            Self::Panicked => Self::Panicked,
            Self::WrongCount { asked, given } => Self::WrongCount { asked: *asked, given: *given },
            Self::Key(error) => Self::Key(*error),
        }
    }
}

/// A value was not invalidated everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidateError {
    /// The local level no longer has it.
    #[error("the second level did not answer and may keep the old value; invalidate it again")]
    SecondLevel,
    /// The key is no key.
    #[error(transparent)]
    Key(#[from] KeyTooLong),
}

/// A value, or `None` when it is known that there is none.
pub(crate) type Known<V> = Option<Arc<V>>;

/// What a lookup comes to.
pub(crate) type Outcome<V, E> = Result<Known<V>, LoadError<E>>;

/// Which values a lookup takes, and what becomes of one that it loads.
pub(super) struct Terms<'a, V> {
    /// Whether a value that is kept is good enough.
    pub(super) good: &'a (dyn Fn(&V) -> bool + Sync),
    /// Whether a loaded value replaces what the second level has.
    pub(super) when: When,
}

// Not derived: that would ask the same of the values.
impl<V> Clone for Terms<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Terms<'_, V> {}

impl<V> Terms<'_, V> {
    /// Any value; and none is put where others may have invalidated one.
    pub(super) fn any() -> Self {
        Self { good: &|_| true, when: When::Absent }
    }

    /// Whether a known value is taken; that there is none always is.
    pub(super) fn take(&self, known: Option<&V>) -> bool {
        known.is_none_or(self.good)
    }
}

/// A region of values `V` under keys `K`, whose source fails with `E`. Clones are the same region.
pub(crate) struct Region<K: ?Sized, V, E> {
    pub(super) core: Arc<Core<V, E>>,
    pub(super) keys: PhantomData<fn(&K)>,
}

impl<K: ?Sized, V, E> Clone for Region<K, V, E> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), keys: PhantomData }
    }
}

impl<K: ?Sized, V, E> std::fmt::Debug for Region<K, V, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("name", &self.core.name).finish_non_exhaustive()
    }
}

impl<K: AsRef<str> + ?Sized, V: CacheValue, E: Send + Sync + 'static> Region<K, V, E> {
    /// The value: from the local level, else from the second, else from `load`, which is called once however many ask
    /// for it at the same time. Errors and panics go to all of them and are not kept.
    ///
    /// # Cancel safety
    /// When the call that loads is dropped, one of those who wait calls its own `load`.
    pub(crate) async fn get_or_load<F, Fut>(&self, key: &K, load: F) -> Outcome<V, E>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Option<V>, E>>,
    {
        let key = checked(key)?;
        if let Some(found) = self.core.look_up(key, Terms::any()) {
            return Ok(found);
        }
        let outcome = self.core.load_one(key, Terms::any(), load).await;
        self.core.or_stale(key, outcome)
    }

    /// The first value that `good` says yes to: from the local level, from the second, from `load`, whose value is taken in any
    /// case and replaces what both levels have. For regions whose values are replaced and never invalidated.
    ///
    /// # Cancel safety
    /// As [`Self::get_or_load`].
    pub(crate) async fn get_good_or_load<F, Fut>(
        &self,
        key: &K,
        good: impl Fn(&V) -> bool + Sync,
        load: F,
    ) -> Outcome<V, E>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Option<V>, E>>,
    {
        let key = checked(key)?;
        let terms = Terms { good: &good, when: When::Always };
        if let Some(found) = self.core.look_up(key, terms) {
            return Ok(found);
        }
        self.core.load_one(key, terms, load).await
    }

    /// What is kept, however old; the second level's, since other nodes may have replaced it, else the local one's. The source
    /// is not asked.
    pub(crate) async fn kept(&self, key: &K) -> Option<Arc<V>> {
        let key = checked(key).ok()?;
        if let Some(second) = &self.core.second
            && let Read::Found(Some(value), _) = second.read(key, self.core.counters()).await
        {
            return Some(Arc::new(value));
        }
        self.core.look_up(key, Terms::any()).flatten()
    }

    /// The value, or that there is none, when the local level knows it.
    #[cfg(test)]
    pub(crate) fn get(&self, key: &K) -> Option<Known<V>> {
        self.core.look_up(checked(key).ok()?, Terms::any())
    }

    /// Makes both levels forget a value, and every load of it that is under way come to nothing; then tells
    /// [`super::Cache::on_invalidate`]. Call it when the source has changed.
    ///
    /// # Errors
    /// When the second level does not answer: the local level has forgotten it all the same.
    ///
    /// # Cancel safety
    /// When it is dropped, the second level may keep the value and the callback is not called.
    pub(crate) async fn invalidate(&self, key: &K) -> Result<(), InvalidateError> {
        self.core.invalidate(checked(key)?).await
    }

    /// Makes the local level forget a value, and every load of it that is under way come to nothing.
    pub(crate) fn invalidate_local(&self, key: &K) {
        if let Ok(key) = checked(key) {
            self.core.forget(key);
        }
    }
}

/// Calls that load or wait.
pub(super) struct Call<'a>(&'a AtomicUsize);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all clones of a region share.
pub(super) struct Core<V, E> {
    pub(super) name: RegionName,
    pub(super) spec: RegionSpec,
    pub(super) store: Arc<Store>,
    pub(super) shared: Arc<Shared>,
    pub(super) second: Option<Second>,
    pub(super) flights: Flights<Outcome<V, E>>,
    pub(super) calls: AtomicUsize,
}

impl<V: CacheValue, E: Send + Sync + 'static> Core<V, E> {
    pub(super) fn counters(&self) -> &RegionCounters {
        self.shared.counters.of(self.name)
    }

    pub(super) fn key<'a>(&self, text: &'a str) -> KeyRef<'a> {
        KeyRef { region: self.name, text }
    }

    /// The local level's answer, counted.
    pub(super) fn look_up(&self, key: &str, terms: Terms<'_, V>) -> Option<Known<V>> {
        let found = self.fresh(self.store.get(self.key(key)), terms);
        count(if found.is_some() { &self.counters().hits } else { &self.counters().misses });
        found
    }

    /// What a slot holds, unless it has expired or is not taken.
    fn fresh(&self, slot: Option<Slot>, terms: Terms<'_, V>) -> Option<Known<V>> {
        let slot = slot.filter(|slot| self.store.now() < slot.expires)?;
        let known: Known<V> = match slot.value {
            None => None,
            Some(value) => Some(value.downcast().ok()?),
        };
        terms.take(known.as_deref()).then_some(known)
    }

    /// Counts a call in, if there is room for it.
    pub(super) fn enter(&self) -> Result<Call<'_>, LoadError<E>> {
        let call = Call(&self.calls);
        if self.calls.fetch_add(1, Ordering::Relaxed) < self.spec.calls_max {
            return Ok(call);
        }
        count(&self.counters().refused);
        Err(LoadError::Busy)
    }

    /// Joins the flight of a key, or begins one.
    pub(super) fn join(&self, key: &str, terms: Terms<'_, V>) -> Seat<'_, Outcome<V, E>, Known<V>> {
        self.flights.join(key, || self.fresh(self.store.peek(self.key(key)), terms))
    }

    async fn load_one<F, Fut>(&self, key: &str, terms: Terms<'_, V>, load: F) -> Outcome<V, E>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Option<V>, E>>,
    {
        let _call = self.enter()?;
        let deadline = Instant::now() + self.spec.load_timeout;
        let mut waited = false;
        loop {
            let follower = match self.join(key, terms) {
                Seat::Found(found) => return Ok(found),
                Seat::Follow(follower) => follower,
                Seat::Lead(leader) => {
                    let load = |_| async { Ok(vec![load().await?]) };
                    let outcomes = self.lead(vec![(0, leader)], deadline, terms, load).await;
                    let outcome = outcomes.into_iter().next();
                    return outcome.expect("one leader has one outcome").1;
                }
            };
            if !waited {
                count(&self.counters().coalesced);
                waited = true;
            }
            if let Some(outcome) = Self::wait(follower, deadline).await {
                return outcome;
            }
        }
    }

    /// The outcome of another's load; `None` when nobody loads any more.
    pub(super) async fn wait(
        follower: Follower<Outcome<V, E>>,
        deadline: Instant,
    ) -> Option<Outcome<V, E>> {
        timeout_at(deadline, follower.landed()).await.unwrap_or(Some(Err(LoadError::TimedOut)))
    }

    /// Puts the last known value in place of an error, where the region wants it.
    pub(super) fn or_stale(&self, key: &str, outcome: Outcome<V, E>) -> Outcome<V, E> {
        let Err(error) = outcome else { return outcome };
        let grace = self.spec.stale_if_error.as_millis() as u64;
        let slot = self.store.peek(self.key(key));
        let slot = slot.filter(|slot| self.store.now() < slot.expires.saturating_add(grace));
        let stale = slot.and_then(|slot| slot.value?.downcast().ok());
        if grace == 0 || stale.is_none() {
            return Err(error);
        }
        count(&self.counters().stale_served);
        Ok(stale)
    }

    /// Keeps a value, or that there is none, for `ttl`. Under the lock of the flights.
    pub(super) fn keep(&self, key: &str, value: Known<V>, ttl: Duration) {
        let bytes = value.as_deref().map_or(0, |value| {
            super::weigh::allocated_arc::<V>().saturating_add(value.heap_bytes())
        });
        let value = value.map(|value| value as Arc<dyn std::any::Any + Send + Sync>);
        self.store.insert(self.key(key), value, ttl, bytes);
    }

    async fn invalidate(&self, key: &str) -> Result<(), InvalidateError> {
        self.forget(key);
        let mut done = true;
        if let Some(second) = &self.second {
            done = second.hold(key, self.counters()).await;
            // A load that began meanwhile may have read what the second level had before the hold.
            self.drop_entry(key);
        }
        if let Some(tell) = self.shared.on_invalidate.get() {
            tell(self.name, key);
        }
        if done { Ok(()) } else { Err(InvalidateError::SecondLevel) }
    }

    fn forget(&self, key: &str) {
        count(&self.counters().invalidations);
        self.drop_entry(key);
    }

    fn drop_entry(&self, key: &str) {
        self.flights.detach(key, || {
            self.store.remove(self.key(key));
        });
    }
}

/// A region whose types do not matter.
pub(super) trait AnyRegion: Send + Sync {
    /// Makes the local level forget a value.
    fn forget(&self, key: &str);

    /// Makes the local level forget all values.
    fn forget_all(&self);

    /// Removes what has expired and is of no use any more.
    fn sweep(&self);
}

impl<V: CacheValue, E: Send + Sync + 'static> AnyRegion for Core<V, E> {
    fn forget(&self, key: &str) {
        Self::forget(self, key);
    }

    fn forget_all(&self) {
        self.flights.detach_all(|| self.store.remove_region(self.name));
    }

    fn sweep(&self) {
        self.store.sweep(self.name, self.spec.stale_if_error);
    }
}
