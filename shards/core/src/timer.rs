//! Hashed timer wheel of one shard.
//!
//! Owns `(deadline, key)` pairs and gives them back when they are due. Entries are never cancelled: whoever scheduled
//! one looks, when it fires, whether its deadline still stands and files a new one when it has moved.
//!
//! Invariants: nothing fires before its deadline, and nothing fires later than one tick after it when
//! [`TimerWheel::poll_expired`] is called in time. Entries beyond the horizon (`tick * slots`) stay in their slot and
//! are looked at once per revolution. Scheduling, firing and skipping empty slots allocate only when the number of
//! entries exceeds every earlier one.
//!
//! It does not order entries of one tick.

use std::time::Duration;

/// End of a list in [`TimerWheel::entries`].
const NONE: u32 = u32::MAX;

/// Timers by due tick. `K` tells the owner what to look at, typically a slot with a generation.
#[derive(Debug)]
pub struct TimerWheel<K> {
    tick_ns: u64,
    /// First tick that was not drained yet. Every entry's tick is at least this, except those in `due`.
    cursor: u64,
    /// First entry of each slot; the number of slots is a power of two and a multiple of 64.
    heads: Box<[u32]>,
    /// One bit per slot that is not empty.
    occupied: Box<[u64]>,
    /// Slab of linked-list nodes, shared by the slots, `due` and the free list.
    entries: Vec<Entry<K>>,
    due: u32,
    free: u32,
    len: usize,
}

#[derive(Debug)]
struct Entry<K> {
    deadline_ns: u64,
    key: K,
    next: u32,
}

impl<K: Copy> TimerWheel<K> {
    /// An empty wheel. `slots` is rounded up to a power of two, at least 64.
    ///
    /// # Panics
    /// When `tick` is zero.
    pub fn new(tick: Duration, slots: usize) -> Self {
        assert!(!tick.is_zero(), "a timer wheel needs a tick");
        let slots = slots.max(64).next_power_of_two();
        Self {
            tick_ns: nanos(tick),
            cursor: 0,
            heads: vec![NONE; slots].into_boxed_slice(),
            occupied: vec![0; slots / 64].into_boxed_slice(),
            entries: Vec::new(),
            due: NONE,
            free: NONE,
            len: 0,
        }
    }

    /// Entries that have not fired.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is scheduled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Files `key` under `deadline` (monotonic). A deadline that has passed fires with the next tick.
    ///
    /// # Panics
    /// With 2^32 - 1 entries, which the limits on connections and channels rule out.
    pub fn schedule(&mut self, deadline: Duration, key: K) {
        let deadline_ns = nanos(deadline);
        let slot = self.slot(self.tick_of(deadline_ns).max(self.cursor));
        let entry = Entry { deadline_ns, key, next: self.heads[slot] };
        let index = if self.free == NONE {
            let index = u32::try_from(self.entries.len()).unwrap_or(NONE);
            assert!(index != NONE, "timer wheel is full");
            self.entries.push(entry);
            index
        } else {
            let index = self.free;
            self.free = self.entries[index as usize].next;
            self.entries[index as usize] = entry;
            index
        };
        self.heads[slot] = index;
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.len += 1;
    }

    /// A time before which nothing fires; `None` when nothing is scheduled. Calling [`Self::poll_expired`] at that
    /// time fires something or moves this time on.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.due != NONE {
            return Some(Duration::from_nanos(self.entries[self.due as usize].deadline_ns));
        }
        let tick = self.cursor.saturating_add(self.next_occupied()?);
        Some(Duration::from_nanos(tick.saturating_mul(self.tick_ns)))
    }

    /// Takes one entry that is due; call it until it answers `None`.
    pub fn poll_expired(&mut self, now: Duration) -> Option<(Duration, K)> {
        let now_tick = nanos(now) / self.tick_ns;
        if self.due == NONE {
            self.collect_due(now_tick);
        }
        if self.due == NONE {
            return None;
        }
        let index = self.due;
        let entry = &mut self.entries[index as usize];
        let expired = (Duration::from_nanos(entry.deadline_ns), entry.key);
        self.due = entry.next;
        entry.next = self.free;
        self.free = index;
        self.len -= 1;
        Some(expired)
    }

    /// Moves the cursor to the next slot with a due entry and puts what is due there into `due`, or moves it behind
    /// `now_tick`.
    fn collect_due(&mut self, now_tick: u64) {
        let slots = self.heads.len() as u64;
        // After a long pause the last revolution covers every slot, and slots give everything due by now.
        self.cursor = self.cursor.max(now_tick.saturating_sub(slots - 1));
        while self.due == NONE && self.cursor <= now_tick {
            let next = self.next_occupied().map(|distance| self.cursor.saturating_add(distance));
            match next {
                Some(tick) if tick <= now_tick => {
                    self.drain_slot(self.slot(tick), now_tick);
                    self.cursor = tick + 1;
                }
                _ => self.cursor = now_tick + 1,
            }
        }
    }

    /// Splits the list of `slot` into what is due by `now_tick` and what is left for a later revolution.
    fn drain_slot(&mut self, slot: usize, now_tick: u64) {
        let mut index = std::mem::replace(&mut self.heads[slot], NONE);
        let mut later = NONE;
        while index != NONE {
            let due = self.tick_of(self.entries[index as usize].deadline_ns) <= now_tick;
            let list = if due { &mut self.due } else { &mut later };
            let head = std::mem::replace(list, index);
            index = std::mem::replace(&mut self.entries[index as usize].next, head);
        }
        self.heads[slot] = later;
        if later == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
    }

    /// Distance in ticks from the cursor to the first slot that is not empty, at most one revolution.
    fn next_occupied(&self) -> Option<u64> {
        let start = self.slot(self.cursor);
        let words = self.occupied.len();
        // The first word is looked at twice: from the start bit on, and at the very end below it.
        for step in 0..=words {
            let at = (start / 64 + step) % words;
            let mut word = self.occupied[at];
            if step == 0 {
                word &= u64::MAX << (start % 64);
            }
            if word != 0 {
                let slot = at * 64 + word.trailing_zeros() as usize;
                return Some((slot.wrapping_sub(start) & (self.heads.len() - 1)) as u64);
            }
        }
        None
    }

    /// First tick at or after `deadline`: rounding up keeps a timer from firing early.
    fn tick_of(&self, deadline_ns: u64) -> u64 {
        deadline_ns.div_ceil(self.tick_ns)
    }

    fn slot(&self, tick: u64) -> usize {
        (tick & (self.heads.len() as u64 - 1)) as usize
    }
}

/// Whole nanoseconds; the axis ends after 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn drain(wheel: &mut TimerWheel<u32>, now: Duration) -> Vec<u32> {
        let mut keys: Vec<u32> =
            std::iter::from_fn(|| wheel.poll_expired(now)).map(|(_, key)| key).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn fires_at_the_tick_after_the_deadline() {
        let mut wheel = TimerWheel::new(TICK, 64);
        wheel.schedule(ms(25), 1);
        assert_eq!(wheel.next_deadline(), Some(ms(30)));
        assert_eq!(wheel.poll_expired(ms(25)), None);
        assert_eq!(wheel.poll_expired(ms(29)), None);
        assert_eq!(wheel.poll_expired(ms(30)), Some((ms(25), 1)));
        assert_eq!(wheel.poll_expired(ms(30)), None);
        assert_eq!(wheel.next_deadline(), None);
        assert!(wheel.is_empty());
    }

    #[test]
    fn an_exact_deadline_fires_on_time() {
        let mut wheel = TimerWheel::new(TICK, 64);
        wheel.schedule(ms(30), 1);
        assert_eq!(wheel.poll_expired(ms(30)), Some((ms(30), 1)));
    }

    #[test]
    fn a_passed_deadline_fires_with_the_next_tick() {
        let mut wheel = TimerWheel::new(TICK, 64);
        assert_eq!(wheel.poll_expired(ms(500)), None);
        wheel.schedule(ms(100), 1);
        assert_eq!(wheel.next_deadline(), Some(ms(510)));
        assert_eq!(wheel.poll_expired(ms(505)), None);
        assert_eq!(wheel.poll_expired(ms(510)), Some((ms(100), 1)));
    }

    #[test]
    fn beyond_the_horizon_it_waits_for_its_revolution() {
        let mut wheel = TimerWheel::new(TICK, 64);
        wheel.schedule(ms(640 * 3 + 50), 1);
        wheel.schedule(ms(50), 2);
        assert_eq!(drain(&mut wheel, ms(50)), [2]);
        for revolution in 1..3 {
            assert_eq!(wheel.next_deadline(), Some(ms(640 * revolution + 50)));
            assert!(drain(&mut wheel, ms(640 * revolution + 50)).is_empty());
        }
        assert!(drain(&mut wheel, ms(640 * 3 + 49)).is_empty());
        assert_eq!(drain(&mut wheel, ms(640 * 3 + 50)), [1]);
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let mut wheel = TimerWheel::new(TICK, 64);
        for n in 0..1_000 {
            wheel.schedule(ms(u64::from(n) * 7), n);
        }
        wheel.schedule(ms(1_000_000), 1_000);
        assert_eq!(drain(&mut wheel, ms(900_000)), (0..1_000).collect::<Vec<_>>());
        assert_eq!(drain(&mut wheel, ms(1_000_000)), [1_000]);
    }

    #[test]
    fn memory_is_bounded_by_the_most_entries_at_once() {
        let mut wheel = TimerWheel::new(TICK, 1024);
        for round in 0..20u64 {
            for n in 0..5_000u32 {
                wheel.schedule(ms(round * 100 + u64::from(n % 90)), n);
            }
            assert_eq!(drain(&mut wheel, ms(round * 100 + 100)).len(), 5_000);
        }
        assert_eq!(wheel.entries.len(), 5_000);
        assert!(wheel.occupied.iter().all(|word| *word == 0));
    }

    #[test]
    fn the_far_end_of_time_does_not_overflow() {
        let mut wheel = TimerWheel::new(TICK, 64);
        wheel.schedule(Duration::MAX, 1);
        assert!(wheel.next_deadline().is_some());
        assert_eq!(wheel.poll_expired(ms(10_000)), None);
        assert_eq!(wheel.len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Schedule(u64),
        Pass(u64),
        TakeOne,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..3_000).prop_map(Step::Schedule),
            1 => (10_000u64..100_000).prop_map(Step::Schedule),
            3 => (0u64..400).prop_map(Step::Pass),
            1 => (400u64..20_000).prop_map(Step::Pass),
            2 => Just(Step::TakeOne),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = TimerWheel::new(TICK, 64);
            // key -> (deadline, time from which the next full drain must have fired it)
            let mut model: BTreeMap<u32, (Duration, Duration)> = BTreeMap::new();
            let mut now = Duration::ZERO;
            for (key, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Schedule(after) => {
                        let deadline = (now + ms(after)).saturating_sub(ms(50));
                        wheel.schedule(deadline, key as u32);
                        model.insert(key as u32, (deadline, deadline.max(now) + TICK));
                    }
                    Step::Pass(by) => {
                        let bound = wheel.next_deadline();
                        prop_assert_eq!(bound.is_some(), !model.is_empty());
                        now += ms(by);
                        while let Some((deadline, key)) = wheel.poll_expired(now) {
                            let (expected, _) = model.remove(&key).expect("fired once");
                            prop_assert_eq!(expected, deadline);
                            prop_assert!(deadline <= now, "early");
                            prop_assert!(bound.expect("something was scheduled") <= now);
                        }
                        prop_assert!(model.values().all(|(_, latest)| *latest > now), "late");
                    }
                    Step::TakeOne => {
                        if let Some((deadline, key)) = wheel.poll_expired(now) {
                            prop_assert_eq!(model.remove(&key).expect("fired once").0, deadline);
                            prop_assert!(deadline <= now);
                        }
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }
}
