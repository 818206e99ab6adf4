//! The jobs of one priority, in a queue per key. Keys take turns: one job of each that may run, then round again.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::handler::DeadReason;
use super::{Full, KeyOrder, Priority, ProcessorLimits};

/// Whom a job belongs to, for fairness and order.
pub(crate) type Key = Arc<str>;

/// A job that is held.
#[derive(Debug)]
pub(super) struct Entry<J> {
    pub(super) job: J,
    pub(super) key: Key,
    pub(super) priority: Priority,
    /// Number of its acceptance.
    pub(super) seq: u64,
    /// Since when it could run: its acceptance, or the end of the delay of its retry.
    pub(super) ready_at: Instant,
    /// Begun so far; of [`super::Handler::dead`] once there is a verdict.
    pub(super) attempts: u32,
    /// Set when it is given up.
    pub(super) verdict: Option<DeadReason>,
}

/// Jobs of one key.
#[derive(Debug)]
struct KeyQueue<J> {
    waiting: VecDeque<Entry<J>>,
    running: usize,
    /// Those that wait for a retry, which are kept elsewhere.
    parked: usize,
    /// Whether the key is in the ring.
    listed: bool,
}

impl<J> KeyQueue<J> {
    fn held(&self) -> usize {
        self.waiting.len() + self.running + self.parked
    }

    fn may_run(&self, order: KeyOrder) -> bool {
        !self.waiting.is_empty()
            && self.running < order.running_max()
            && (self.parked == 0 || order != KeyOrder::Ordered)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Lane<J> {
    priority: Priority,
    jobs_max: usize,
    key_jobs_max: usize,
    running_max: usize,
    order: KeyOrder,
    /// Only keys that hold jobs.
    keys: HashMap<Key, KeyQueue<J>>,
    /// Keys that may run a job, once each, the next one first.
    ring: VecDeque<Key>,
    /// Every waiting job, the oldest first.
    ages: BTreeSet<(Instant, u64)>,
    held: usize,
    running: usize,
}

impl<J> Lane<J> {
    pub(super) fn new(limits: &ProcessorLimits, priority: Priority) -> Self {
        Self {
            priority,
            jobs_max: limits.lanes[priority.index()].jobs_max,
            key_jobs_max: limits.key_jobs_max,
            running_max: limits.running_max(priority),
            order: limits.key_order,
            keys: HashMap::new(),
            ring: VecDeque::new(),
            ages: BTreeSet::new(),
            held: 0,
            running: 0,
        }
    }

    /// Jobs that wait, run, or wait for a retry.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Jobs that wait for a worker or for their key's turn.
    pub(super) fn waiting(&self) -> usize {
        self.ages.len()
    }

    /// Since when the oldest of them waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.ages.first().map(|(since, _)| *since)
    }

    /// Whether a job of a key may start, and a worker may run it.
    pub(super) fn can_run(&self) -> bool {
        !self.ring.is_empty() && self.running < self.running_max
    }

    /// Why there is no room for another job of a key.
    pub(super) fn refusal(&self, key: &str) -> Option<Full> {
        if self.held >= self.jobs_max {
            return Some(Full::Lane(self.priority));
        }
        let held = self.keys.get(key).map_or(0, KeyQueue::held);
        (held >= self.key_jobs_max).then_some(Full::Key)
    }

    /// Takes a new job in, for which [`Self::refusal`] found room.
    pub(super) fn push(&mut self, entry: Entry<J>) {
        self.held += 1;
        self.ages.insert((entry.ready_at, entry.seq));
        let key = Arc::clone(&entry.key);
        let queue = match self.keys.entry(Arc::clone(&key)) {
            Slot::Occupied(slot) => slot.into_mut(),
            Slot::Vacant(slot) => slot.insert(KeyQueue {
                waiting: VecDeque::new(),
                running: 0,
                parked: 0,
                listed: false,
            }),
        };
        queue.waiting.push_back(entry);
        self.settle(&key);
    }

    /// The job whose turn it is, in a lane that [`Self::can_run`]. It counts as running until it is released or parked.
    pub(super) fn take(&mut self) -> Option<Entry<J>> {
        let key = self.ring.pop_front()?;
        let queue = self.keys.get_mut(&key).expect("a listed key holds jobs");
        queue.listed = false;
        queue.running += 1;
        let entry = queue.waiting.pop_front().expect("a listed key has a waiting job");
        self.running += 1;
        self.ages.remove(&(entry.ready_at, entry.seq));
        self.settle(&key);
        Some(entry)
    }

    /// A running job is no longer held.
    pub(super) fn release(&mut self, key: &Key) {
        self.running -= 1;
        self.held -= 1;
        self.change(key, |queue| queue.running -= 1);
    }

    /// A running job begins to wait for a retry.
    pub(super) fn park(&mut self, key: &Key) {
        self.running -= 1;
        self.change(key, |queue| {
            queue.running -= 1;
            queue.parked += 1;
        });
    }

    /// A parked job waits for a worker again.
    pub(super) fn unpark(&mut self, entry: Entry<J>) {
        self.ages.insert((entry.ready_at, entry.seq));
        let key = Arc::clone(&entry.key);
        let ordered = self.order == KeyOrder::Ordered;
        self.change(&key, |queue| {
            queue.parked -= 1;
            if ordered {
                queue.waiting.push_front(entry);
            } else {
                queue.waiting.push_back(entry);
            }
        });
    }

    /// A parked job is no longer held.
    pub(super) fn release_parked(&mut self, key: &Key) {
        self.held -= 1;
        self.change(key, |queue| queue.parked -= 1);
    }

    /// The waiting jobs of a key that may not run any, which are no longer held.
    pub(super) fn take_blocked(&mut self, key: &Key) -> VecDeque<Entry<J>> {
        let Some(queue) = self.keys.get_mut(key) else { return VecDeque::new() };
        debug_assert!(!queue.listed, "the key may run jobs");
        let taken = std::mem::take(&mut queue.waiting);
        self.forget(&taken);
        taken
    }

    /// All waiting jobs, which are no longer held.
    pub(super) fn take_waiting(&mut self) -> Vec<Entry<J>> {
        self.ring.clear();
        let mut all = Vec::with_capacity(self.ages.len());
        for queue in self.keys.values_mut() {
            queue.listed = false;
            all.extend(queue.waiting.drain(..));
        }
        self.keys.retain(|_, queue| queue.held() > 0);
        self.held -= all.len();
        self.ages.clear();
        all
    }

    fn forget(&mut self, taken: &VecDeque<Entry<J>>) {
        self.held -= taken.len();
        for entry in taken {
            self.ages.remove(&(entry.ready_at, entry.seq));
        }
    }

    fn change(&mut self, key: &Key, change: impl FnOnce(&mut KeyQueue<J>)) {
        change(self.keys.get_mut(key).expect("the key holds the job that changes"));
        self.settle(key);
    }

    /// Lists a key that may run a job, at the end of the ring; drops one that holds nothing.
    fn settle(&mut self, key: &Key) {
        let Some(queue) = self.keys.get_mut(key) else { return };
        if queue.held() == 0 {
            self.keys.remove(key);
        } else if !queue.listed && queue.may_run(self.order) {
            queue.listed = true;
            self.ring.push_back(Arc::clone(key));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lane(order: KeyOrder) -> Lane<u64> {
        let mut limits =
            ProcessorLimits { key_order: order, key_jobs_max: 4, ..Default::default() };
        limits.lanes[1].jobs_max = 6;
        Lane::new(&limits, Priority::Normal)
    }

    fn push(lane: &mut Lane<u64>, key: &str, seq: u64) {
        assert_eq!(lane.refusal(key), None);
        lane.push(Entry {
            job: seq,
            key: key.into(),
            priority: Priority::Normal,
            seq,
            ready_at: Instant::now(),
            attempts: 0,
            verdict: None,
        });
    }

    fn take(lane: &mut Lane<u64>) -> Option<u64> {
        lane.take().map(|entry| entry.job)
    }

    #[test]
    fn keys_take_turns() {
        let mut lane = lane(KeyOrder::Parallel(9));
        for seq in 0..4 {
            push(&mut lane, "busy", seq);
        }
        push(&mut lane, "one", 4);
        push(&mut lane, "other", 5);
        let order: Vec<u64> = std::iter::from_fn(|| take(&mut lane)).collect();
        assert_eq!(order, [0, 4, 5, 1, 2, 3]);
        assert_eq!((lane.waiting(), lane.running(), lane.held()), (0, 6, 6));
        assert_eq!(lane.oldest(), None);
    }

    #[test]
    fn a_held_job_takes_room_until_it_is_released() {
        let mut lane = lane(KeyOrder::Parallel(9));
        for seq in 0..4 {
            push(&mut lane, "a", seq);
        }
        assert_eq!(lane.refusal("a"), Some(Full::Key));
        push(&mut lane, "b", 4);
        push(&mut lane, "c", 5);
        assert_eq!(lane.refusal("d"), Some(Full::Lane(Priority::Normal)));
        let entry = lane.take().unwrap();
        lane.park(&entry.key);
        assert!(lane.refusal("d").is_some(), "it comes back");
        lane.unpark(entry);
        let again = std::iter::from_fn(|| lane.take()).find(|entry| entry.job == 0).unwrap();
        lane.release(&again.key);
        assert_eq!(lane.refusal("a"), None);
    }

    #[test]
    fn an_ordered_key_runs_one_after_the_other() {
        let mut lane = lane(KeyOrder::Ordered);
        push(&mut lane, "a", 0);
        push(&mut lane, "a", 1);
        let first = lane.take().unwrap();
        assert!(!lane.can_run());
        assert_eq!(take(&mut lane), None, "0 runs");
        lane.park(&first.key);
        assert_eq!(take(&mut lane), None, "0 is to run again first");
        lane.unpark(first);
        let first = lane.take().unwrap();
        assert_eq!(first.job, 0);
        lane.release(&first.key);
        assert!(lane.can_run());
        assert_eq!(take(&mut lane), Some(1));
    }

    #[test]
    fn a_key_runs_no_more_at_once_than_it_may() {
        let mut lane = lane(KeyOrder::Parallel(2));
        for seq in 0..4 {
            push(&mut lane, "a", seq);
        }
        push(&mut lane, "b", 4);
        let order: Vec<u64> = std::iter::from_fn(|| take(&mut lane)).collect();
        assert_eq!(order, [0, 4, 1]);
        lane.release(&"a".into());
        assert_eq!(take(&mut lane), Some(2));
        assert_eq!(take(&mut lane), None);
    }

    #[test]
    fn a_key_without_jobs_is_forgotten() {
        let mut lane = lane(KeyOrder::Ordered);
        push(&mut lane, "a", 0);
        push(&mut lane, "b", 1);
        push(&mut lane, "b", 2);
        let first = lane.take().unwrap();
        lane.release(&first.key);
        let second = lane.take().unwrap();
        assert_eq!(lane.take_blocked(&second.key).len(), 1);
        lane.release(&second.key);
        push(&mut lane, "c", 3);
        assert_eq!(lane.take_waiting().len(), 1);
        assert!(lane.keys.is_empty() && lane.ring.is_empty() && lane.ages.is_empty());
        assert_eq!(lane.held(), 0);
    }
}
