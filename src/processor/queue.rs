//! All jobs that are held: four lanes, and the ones that wait for a retry. Pure: time is an argument.
//!
//! A job takes room from its acceptance until it leaves, wherever it is meanwhile. So the structure for delayed jobs
//! needs no bound of its own, and a retry is never refused.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::lane::{Entry, Key, Lane};
use super::stride::Stride;
use super::{Full, KeyOrder, Phase, Priority, ProcessorLimits};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue<J> {
    lanes: [Lane<J>; 4],
    stride: Stride,
    /// Jobs that wait for a retry, by when it is due and the number of their acceptance.
    delayed: BTreeMap<(Instant, u64), Entry<J>>,
    phase: Phase,
    /// Jobs that a drain hands back; no longer held.
    unfinished: Vec<Entry<J>>,
    handed_back: [u64; 4],
    jobs_max: usize,
    ordered: bool,
    next_seq: u64,
}

impl<J> Queue<J> {
    pub(super) fn new(limits: &ProcessorLimits) -> Self {
        Self {
            lanes: Priority::ALL.map(|priority| Lane::new(limits, priority)),
            stride: Stride::new(limits.lanes.map(|lane| lane.weight)),
            delayed: BTreeMap::new(),
            phase: Phase::Open,
            unfinished: Vec::new(),
            handed_back: [0; 4],
            jobs_max: limits.jobs_max,
            ordered: limits.key_order == KeyOrder::Ordered,
            next_seq: 0,
        }
    }

    pub(super) fn lane(&self, priority: Priority) -> &Lane<J> {
        &self.lanes[priority.index()]
    }

    pub(super) fn held(&self) -> usize {
        self.lanes.iter().map(Lane::held).sum()
    }

    pub(super) fn running(&self) -> usize {
        self.lanes.iter().map(Lane::running).sum()
    }

    pub(super) fn delayed(&self) -> usize {
        self.delayed.len()
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn handed_back(&self) -> [u64; 4] {
        self.handed_back
    }

    /// When the first delayed job is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// Whether [`Self::take`] would find a job that is not delayed.
    pub(super) fn can_run(&self) -> bool {
        self.lanes.iter().any(Lane::can_run)
    }

    /// Accepts a job, or hands it back with the bound that is in the way.
    pub(super) fn offer(
        &mut self,
        priority: Priority,
        key: Key,
        job: J,
        now: Instant,
    ) -> Result<(), (J, Full)> {
        if self.phase != Phase::Open {
            return Err((job, Full::Draining));
        }
        if self.held() >= self.jobs_max {
            return Err((job, Full::Total));
        }
        let lane = &mut self.lanes[priority.index()];
        if let Some(why) = lane.refusal(&key) {
            return Err((job, why));
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        lane.push(Entry { job, key, priority, seq, ready_at: now, attempts: 0, verdict: None });
        Ok(())
    }

    /// Moves delayed jobs that are due into their lanes; how many.
    pub(super) fn promote(&mut self, now: Instant) -> usize {
        let mut promoted = 0;
        while let Some(slot) = self.delayed.first_entry() {
            let (due, _) = *slot.key();
            if due > now {
                break;
            }
            let mut entry = slot.remove();
            entry.ready_at = due;
            self.lanes[entry.priority.index()].unpark(entry);
            promoted += 1;
        }
        promoted
    }

    /// The job whose turn it is. It runs until one of the functions below takes it back.
    pub(super) fn take(&mut self, now: Instant) -> Option<Entry<J>> {
        self.promote(now);
        let runnable = [0, 1, 2, 3].map(|lane| self.lanes[lane].can_run());
        let lane = self.stride.pick(runnable)?;
        self.lanes[lane].take()
    }

    /// A running job is finished.
    pub(super) fn finish(&mut self, entry: &Entry<J>) {
        self.lanes[entry.priority.index()].release(&entry.key);
    }

    /// A running job is to run again; once a drain began it is handed back instead. Whether it is still held.
    pub(super) fn delay(&mut self, entry: Entry<J>, due: Instant) -> bool {
        if self.phase != Phase::Open {
            self.hand_back(entry);
            return false;
        }
        self.lanes[entry.priority.index()].park(&entry.key);
        self.delayed.insert((due, entry.seq), entry);
        true
    }

    /// A running job is handed back, and with it those that must not run before it.
    pub(super) fn hand_back(&mut self, entry: Entry<J>) {
        self.hand_back_blocked(&entry);
        self.lanes[entry.priority.index()].release(&entry.key);
        self.put_aside(entry);
    }

    /// Accepts no more jobs, and hands back those that wait for a retry and those that must not run before them.
    pub(super) fn close(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        self.phase = Phase::Draining;
        for entry in std::mem::take(&mut self.delayed).into_values() {
            self.hand_back_blocked(&entry);
            self.lanes[entry.priority.index()].release_parked(&entry.key);
            self.put_aside(entry);
        }
    }

    /// Hands back every job that waits. The ones that run follow when their workers give them up.
    pub(super) fn stop(&mut self) {
        self.close();
        self.phase = Phase::Stopped;
        for lane in 0..self.lanes.len() {
            for entry in self.lanes[lane].take_waiting() {
                self.put_aside(entry);
            }
        }
    }

    /// What is handed back, in the order of acceptance.
    pub(super) fn take_unfinished(&mut self) -> Vec<J> {
        let mut entries = std::mem::take(&mut self.unfinished);
        entries.sort_unstable_by_key(|entry| entry.seq);
        entries.into_iter().map(|entry| entry.job).collect()
    }

    fn hand_back_blocked(&mut self, entry: &Entry<J>) {
        if !self.ordered {
            return;
        }
        for blocked in self.lanes[entry.priority.index()].take_blocked(&entry.key) {
            self.put_aside(blocked);
        }
    }

    fn put_aside(&mut self, entry: Entry<J>) {
        self.handed_back[entry.priority.index()] += 1;
        self.unfinished.push(entry);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn queue(key_order: KeyOrder) -> Queue<u32> {
        let mut limits = ProcessorLimits { key_order, jobs_max: 5, ..Default::default() };
        limits.lanes[3].jobs_max = 2;
        Queue::new(&limits)
    }

    fn offer(queue: &mut Queue<u32>, priority: Priority, key: &str, job: u32) -> Option<Full> {
        queue.offer(priority, key.into(), job, Instant::now()).err().map(|(back, why)| {
            assert_eq!(back, job);
            why
        })
    }

    #[test]
    fn every_bound_holds() {
        let mut queue = queue(KeyOrder::Parallel(4));
        for job in 0..2 {
            assert_eq!(offer(&mut queue, Priority::Critical, "a", job), None);
        }
        let full = Full::Lane(Priority::Critical);
        assert_eq!(offer(&mut queue, Priority::Critical, "b", 2), Some(full));
        for job in 2..5 {
            assert_eq!(offer(&mut queue, Priority::Low, "a", job), None);
        }
        assert_eq!(offer(&mut queue, Priority::Low, "b", 5), Some(Full::Total));
        let entry = queue.take(Instant::now()).unwrap();
        assert_eq!(entry.priority, Priority::Critical);
        assert_eq!(offer(&mut queue, Priority::Low, "b", 5), Some(Full::Total), "it runs");
        assert!(queue.delay(entry, Instant::now() + SECOND));
        assert_eq!(offer(&mut queue, Priority::Low, "b", 5), Some(Full::Total), "it comes back");
        queue.close();
        assert_eq!(queue.held(), 4);
        assert_eq!(offer(&mut queue, Priority::Low, "b", 5), Some(Full::Draining));
    }

    #[test]
    fn a_delayed_job_comes_back_when_it_is_due() {
        let mut queue = queue(KeyOrder::Parallel(4));
        let now = Instant::now();
        offer(&mut queue, Priority::Normal, "a", 0);
        let entry = queue.take(now).unwrap();
        queue.delay(entry, now + SECOND);
        assert_eq!((queue.due(), queue.delayed(), queue.running()), (Some(now + SECOND), 1, 0));
        assert!(queue.take(now + SECOND / 2).is_none());
        assert_eq!(queue.promote(now + 2 * SECOND), 1);
        assert_eq!(queue.lane(Priority::Normal).oldest(), Some(now + SECOND));
        assert_eq!(queue.take(now + 2 * SECOND).unwrap().job, 0);
    }

    #[test]
    fn what_a_drain_hands_back_is_in_order_and_takes_successors_along() {
        let mut queue = queue(KeyOrder::Ordered);
        let now = Instant::now();
        for (job, key) in [(0, "a"), (1, "b"), (2, "a"), (3, "c"), (4, "b")] {
            assert_eq!(offer(&mut queue, Priority::Normal, key, job), None);
        }
        let (a, b) = (queue.take(now).unwrap(), queue.take(now).unwrap());
        queue.delay(a, now + SECOND);
        queue.close();
        assert_eq!(queue.take_unfinished(), [0, 2], "2 must not run before 0");
        assert_eq!(queue.take(now).unwrap().job, 3);
        assert!(!queue.delay(b, now + SECOND));
        assert_eq!(queue.take_unfinished(), [1, 4]);
        assert!(!queue.can_run());
        assert_eq!((queue.held(), queue.running()), (1, 1));
        assert_eq!(queue.handed_back()[1], 4);
    }

    #[test]
    fn a_stop_hands_back_all_that_waits() {
        let mut queue = queue(KeyOrder::Parallel(4));
        let now = Instant::now();
        for job in 0..5 {
            offer(&mut queue, Priority::ALL[job as usize % 3], "a", job);
        }
        let entry = queue.take(now).unwrap();
        let running = entry.job;
        queue.stop();
        assert!(queue.take(now).is_none());
        assert_eq!((queue.phase(), queue.held()), (Phase::Stopped, 1));
        queue.hand_back(entry);
        assert_eq!(queue.take_unfinished(), [0, 1, 2, 3, 4], "{running} ran");
        assert_eq!(queue.held(), 0);
    }
}
