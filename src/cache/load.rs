//! How missing values come in: from the second level, else from the source, one call for all of a batch.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::counters::count;
use super::flight::{Follower, Leader, Seat};
use super::name::checked;
use super::region::{CacheValue, Core, Known, LoadError, Outcome, Region, Terms};
use super::second::{Loaded, Read, When};

/// Calls of the second level that a batch has open at once.
const SECOND_CALLS: usize = 32;
/// Expiry is spread over this part of the time to live, above and below.
const JITTER: f64 = 0.1;

/// Which of the keys of a call, and the right to load it.
type Lead<'a, V, E> = (usize, Leader<'a, Outcome<V, E>>);
/// What each of them came to.
type Landed<V, E> = Vec<(usize, Outcome<V, E>)>;

fn jittered(ttl: Duration) -> Duration {
    ttl.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
}

impl<V: CacheValue, E: Send + Sync + 'static> Core<V, E> {
    /// Gets the values of all `leads`; those that the second level does not have with one call of `load`, which is
    /// told their indices and answers in their order.
    pub(super) async fn lead<F, Fut>(
        &self,
        leads: Vec<Lead<'_, V, E>>,
        deadline: Instant,
        terms: Terms<'_, V>,
        load: F,
    ) -> Landed<V, E>
    where
        F: FnOnce(Vec<usize>) -> Fut,
        Fut: Future<Output = Result<Vec<Option<V>>, E>>,
    {
        let mut landed = Vec::with_capacity(leads.len());
        let mut missing = Vec::new();
        let reads = self.read_second(&leads, deadline).await;
        for ((index, leader), read) in leads.into_iter().zip(reads) {
            match read {
                Read::Found(value, left) if terms.take(value.as_ref()) => {
                    let value = value.map(Arc::new);
                    self.land(leader, value.clone(), jittered(left));
                    landed.push((index, Ok(value)));
                }
                // One that is not good enough is replaced.
                Read::Found(..) | Read::Absent => missing.push((index, leader, true)),
                Read::Away => missing.push((index, leader, false)),
            }
        }
        if missing.is_empty() {
            return landed;
        }
        let began = Instant::now();
        let indices: Vec<_> = missing.iter().map(|(index, ..)| *index).collect();
        let loaded = self.ask_source(indices, deadline, load).await;
        let values = match loaded {
            Ok(values) => values,
            Err(error) => {
                for (index, leader, _) in missing {
                    leader.land(Err(error.clone()), |_| ());
                    landed.push((index, Err(error.clone())));
                }
                return landed;
            }
        };
        let mut writes = Vec::new();
        for ((index, leader, may_write), value) in missing.into_iter().zip(values) {
            let value = value.map(Arc::new);
            let ttl = match value {
                Some(_) => Some(self.spec.ttl),
                None => self.spec.negative_ttl,
            };
            let ttl = ttl.map(jittered);
            let key = may_write.then(|| leader.key().to_owned());
            let current = self.land(leader, value.clone(), ttl.unwrap_or_default());
            if let (true, Some(key), Some(ttl)) = (current, key, ttl) {
                writes.push((key, value.clone(), ttl));
            }
            landed.push((index, Ok(value)));
        }
        self.write_second(writes, began, terms.when).await;
        landed
    }

    /// Gives the outcome to all who wait and keeps it, unless it was invalidated meanwhile or `ttl` is zero. Whether
    /// it was still valid.
    fn land(&self, leader: Leader<'_, Outcome<V, E>>, value: Known<V>, ttl: Duration) -> bool {
        leader.land(Ok(value.clone()), |key| {
            if ttl.is_zero() {
                // What expired before says something else.
                self.store.remove(self.key(key));
            } else {
                self.keep(key, value, ttl);
            }
        })
    }

    /// What the second level has; all of it is away when there is none, or no time for it.
    async fn read_second(&self, leads: &[Lead<'_, V, E>], deadline: Instant) -> Vec<Read<V>> {
        let mut reads = Vec::with_capacity(leads.len());
        if let Some(second) = &self.second {
            for some in leads.chunks(SECOND_CALLS) {
                let calls =
                    some.iter().map(|(_, leader)| second.read(leader.key(), self.counters()));
                let Ok(answers) = timeout_at(deadline, join_all(calls)).await else { break };
                reads.extend(answers);
                // One that does not answer costs its timeout once for a batch.
                if reads.iter().all(|read| matches!(read, Read::Away)) {
                    break;
                }
            }
        }
        reads.resize_with(leads.len(), || Read::Away);
        reads
    }

    async fn write_second(
        &self,
        writes: Vec<(String, Known<V>, Duration)>,
        began: Instant,
        when: When,
    ) {
        let Some(second) = &self.second else { return };
        for some in writes.chunks(SECOND_CALLS) {
            let calls = some.iter().map(|(key, value, ttl)| {
                let loaded = Loaded { value: value.as_deref(), ttl: *ttl, began, when };
                second.write(key, loaded, self.counters())
            });
            join_all(calls).await;
        }
    }

    async fn ask_source<F, Fut>(
        &self,
        indices: Vec<usize>,
        deadline: Instant,
        load: F,
    ) -> Result<Vec<Option<V>>, LoadError<E>>
    where
        F: FnOnce(Vec<usize>) -> Fut,
        Fut: Future<Output = Result<Vec<Option<V>>, E>>,
    {
        count(&self.counters().loads);
        let asked = indices.len();
        let answer = AssertUnwindSafe(async move { load(indices).await }).catch_unwind();
        let loaded = match timeout_at(deadline, answer).await {
            Ok(Ok(Ok(values))) if values.len() == asked => Ok(values),
            Ok(Ok(Ok(values))) => Err(LoadError::WrongCount { asked, given: values.len() }),
            Ok(Ok(Err(error))) => Err(LoadError::Failed(Arc::new(error))),
            Ok(Err(_panic)) => Err(LoadError::Panicked),
            Err(_elapsed) => Err(LoadError::TimedOut),
        };
        if loaded.is_err() {
            count(&self.counters().load_errors);
        }
        loaded
    }
}

/// Keys of a batch that are not settled yet, and how the rest came out.
struct Batch<'a, V, E> {
    /// Each distinct key once.
    keys: Vec<&'a str>,
    outcomes: Vec<Option<Outcome<V, E>>>,
}

impl<V, E> Batch<'_, V, E> {
    fn unsettled(&self) -> Vec<usize> {
        (0..self.keys.len()).filter(|index| self.outcomes[*index].is_none()).collect()
    }
}

impl<K: AsRef<str> + ?Sized, V: CacheValue, E: Send + Sync + 'static> Region<K, V, E> {
    /// The values of many keys, in their order. Those that neither level has come from one call of `load_many`, which
    /// gives a value, or `None`, for each of its keys. It is called again only when another call, which was loading
    /// some of them, was dropped.
    ///
    /// # Errors
    /// When a single value cannot be had.
    pub(crate) async fn get_many_or_load<Q, F, Fut>(
        &self,
        keys: &[Q],
        mut load_many: F,
    ) -> Result<Vec<Known<V>>, LoadError<E>>
    where
        Q: Borrow<K> + Clone,
        F: FnMut(Vec<Q>) -> Fut,
        Fut: Future<Output = Result<Vec<Option<V>>, E>>,
    {
        let mut batch = Batch { keys: Vec::new(), outcomes: Vec::new() };
        let mut places = HashMap::new();
        // For each key its place in the batch, and for each place a key.
        let mut place_of = Vec::with_capacity(keys.len());
        let mut owned = Vec::new();
        for key in keys {
            let text = checked(key.borrow())?;
            let place = *places.entry(text).or_insert_with(|| {
                batch.keys.push(text);
                batch.outcomes.push(self.core.look_up(text, Terms::any()).map(Ok));
                owned.push(key);
                owned.len() - 1
            });
            place_of.push(place);
        }
        if batch.outcomes.iter().any(Option::is_none) {
            let load = |indices: Vec<usize>| {
                load_many(indices.into_iter().map(|index| owned[index].clone()).collect())
            };
            self.core.load_batch(&mut batch, load).await;
        }
        let settled = batch.keys.iter().zip(batch.outcomes).map(|(key, outcome)| {
            self.core.or_stale(key, outcome.expect("every key of the batch was settled"))
        });
        let settled = settled.collect::<Result<Vec<_>, _>>()?;
        Ok(place_of.into_iter().map(|place| settled[place].clone()).collect())
    }
}

impl<V: CacheValue, E: Send + Sync + 'static> Core<V, E> {
    /// Settles all that is unsettled. What is loaded here is loaded before others are waited for, so two batches with
    /// keys in common do not wait for each other.
    async fn load_batch<F, Fut>(&self, batch: &mut Batch<'_, V, E>, mut load: F)
    where
        F: FnMut(Vec<usize>) -> Fut,
        Fut: Future<Output = Result<Vec<Option<V>>, E>>,
    {
        let call = self.enter();
        let deadline = Instant::now() + self.spec.load_timeout;
        loop {
            let unsettled = batch.unsettled();
            if unsettled.is_empty() {
                return;
            }
            if let Err(error) = &call {
                for index in unsettled {
                    batch.outcomes[index] = Some(Err(error.clone()));
                }
                return;
            }
            let mut leads = Vec::new();
            let mut follows: Vec<(usize, Follower<Outcome<V, E>>)> = Vec::new();
            for index in unsettled {
                match self.join(batch.keys[index], Terms::any()) {
                    Seat::Found(found) => batch.outcomes[index] = Some(Ok(found)),
                    Seat::Lead(leader) => leads.push((index, leader)),
                    Seat::Follow(follower) => {
                        count(&self.counters().coalesced);
                        follows.push((index, follower));
                    }
                }
            }
            if !leads.is_empty() {
                for (index, outcome) in self.lead(leads, deadline, Terms::any(), &mut load).await {
                    batch.outcomes[index] = Some(outcome);
                }
            }
            for (index, follower) in follows {
                batch.outcomes[index] = Self::wait(follower, deadline).await;
            }
        }
    }
}
