//! Single flight: one of all who want a missing key loads it, the others wait for the outcome.
//!
//! The one who loads is no task of its own. When it is dropped before the end, its followers find out, and one of them
//! takes its place. A key that is invalidated loses its flight: the load goes on for those who wait for it already, but
//! its result is not stored, and whoever comes later begins a new one.
//!
//! Invariant: an entry is stored, or removed because it is invalid, only under the lock of its region's flights. So a
//! result is stored only while its flight is the current one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Outcome of a flight, once there is one.
type Landing<T> = Option<T>;

struct Flight<T> {
    id: u64,
    landing: watch::Receiver<Landing<T>>,
}

struct State<T> {
    last_id: u64,
    by_key: HashMap<Box<str>, Flight<T>>,
}

/// Flights of a region. As many as calls, which are bounded.
pub(super) struct Flights<T> {
    state: Mutex<State<T>>,
}

/// What a caller is to do.
pub(super) enum Seat<'a, T, L> {
    /// Nothing: another call has stored the value meanwhile.
    Found(L),
    /// Load.
    Lead(Leader<'a, T>),
    /// Wait.
    Follow(Follower<T>),
}

/// The right to load a key.
pub(super) struct Leader<'a, T> {
    flights: &'a Flights<T>,
    key: Box<str>,
    id: u64,
    landing: watch::Sender<Landing<T>>,
}

/// A place in the queue for an outcome.
pub(super) struct Follower<T>(watch::Receiver<Landing<T>>);

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State { last_id: 0, by_key: HashMap::new() }) }
    }
}

impl<T> Flights<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the flight of a key, or begins one unless `look` finds the value stored.
    pub(super) fn join<L>(&self, key: &str, look: impl FnOnce() -> Option<L>) -> Seat<'_, T, L> {
        let mut state = self.lock();
        if let Some(flight) = state.by_key.get(key) {
            return Seat::Follow(Follower(flight.landing.clone()));
        }
        if let Some(found) = look() {
            return Seat::Found(found);
        }
        state.last_id += 1;
        let id = state.last_id;
        let (landing, receiver) = watch::channel(None);
        state.by_key.insert(key.into(), Flight { id, landing: receiver });
        Seat::Lead(Leader { flights: self, key: key.into(), id, landing })
    }

    /// Takes the flight of a key out of use, and does `and` before another can begin.
    pub(super) fn detach(&self, key: &str, and: impl FnOnce()) {
        let mut state = self.lock();
        state.by_key.remove(key);
        and();
    }

    /// Takes all flights out of use, and does `and` before another can begin.
    pub(super) fn detach_all(&self, and: impl FnOnce()) {
        let mut state = self.lock();
        state.by_key.clear();
        and();
    }
}

impl<T> Leader<'_, T> {
    /// What is to be loaded.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Ends the flight. Does `store` unless the key was invalidated meanwhile, and says whether it did.
    pub(super) fn land(self, outcome: T, store: impl FnOnce(&str)) -> bool {
        let current = {
            let mut state = self.flights.lock();
            let current = self.take(&mut state);
            if current {
                store(&self.key);
            }
            current
        };
        self.landing.send_replace(Some(outcome));
        current
    }

    /// Removes the flight from the table, unless it is no longer the current one.
    fn take(&self, state: &mut State<T>) -> bool {
        let current = state.by_key.get(&self.key).is_some_and(|flight| flight.id == self.id);
        if current {
            state.by_key.remove(&self.key);
        }
        current
    }
}

impl<T> Drop for Leader<'_, T> {
    fn drop(&mut self) {
        let mut state = self.flights.lock();
        self.take(&mut state);
    }
}

impl<T: Clone> Follower<T> {
    /// The outcome; `None` when the leader was dropped before it had one.
    pub(super) async fn landed(mut self) -> Option<T> {
        let landing = self.0.wait_for(Option::is_some).await.ok()?;
        (*landing).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead<'a>(flights: &'a Flights<u32>, key: &str) -> Leader<'a, u32> {
        match flights.join(key, || None::<()>) {
            Seat::Lead(leader) => leader,
            _ => panic!("{key} has a flight already"),
        }
    }

    fn follow(flights: &Flights<u32>, key: &str) -> Follower<u32> {
        match flights.join(key, || None::<()>) {
            Seat::Follow(follower) => follower,
            _ => panic!("{key} has no flight"),
        }
    }

    #[tokio::test]
    async fn followers_get_the_outcome() {
        let flights = Flights::default();
        let leader = lead(&flights, "a");
        let (one, two) = (follow(&flights, "a"), follow(&flights, "a"));
        assert!(leader.land(7, |key| assert_eq!(key, "a")));
        assert_eq!(one.landed().await, Some(7));
        assert_eq!(two.landed().await, Some(7));
        assert!(matches!(flights.join("a", || Some(7)), Seat::Found(7)));
    }

    #[tokio::test]
    async fn a_dropped_leader_leaves_its_place() {
        let flights = Flights::default();
        let leader = lead(&flights, "a");
        let follower = follow(&flights, "a");
        drop(leader);
        assert_eq!(follower.landed().await, None);
        lead(&flights, "a");
    }

    #[tokio::test]
    async fn a_detached_flight_stores_nothing_and_ends_no_other() {
        let flights = Flights::default();
        let old = lead(&flights, "a");
        let follower = follow(&flights, "a");
        flights.detach("a", || ());
        let new = lead(&flights, "a");
        assert!(!old.land(1, |_| panic!("stored")));
        assert_eq!(follower.landed().await, Some(1), "it came before the invalidation");
        let follower = follow(&flights, "a");
        assert!(new.land(2, |_| ()));
        assert_eq!(follower.landed().await, Some(2));
        let old = lead(&flights, "a");
        flights.detach_all(|| ());
        let new = lead(&flights, "a");
        drop(old);
        assert!(new.land(3, |_| ()), "the drop of the old one left it alone");
    }
}
