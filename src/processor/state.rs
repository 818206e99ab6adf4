//! What the mutex guards: the queue, its counters, the number of workers, and when the supervisor is to look next.

use std::time::Duration;

use tokio::time::Instant;

use super::handler::{DeadReason, Failure, Outcome};
use super::lane::{Entry, Key};
use super::queue::Queue;
use super::stats::{LaneCounts, LaneSnapshot, LaneTimes};
use super::{Full, Phase, Priority, ProcessorLimits, ProcessorSnapshot, backoff};

/// How a call of the handler ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It came to its end.
    Returned(Outcome),
    /// It was dropped at its timeout.
    TimedOut,
    /// It panicked.
    Panicked,
    /// It was dropped because a drain reached its deadline.
    Stopped,
}

/// What a worker does with a job whose call ended.
#[derive(Debug)]
pub(super) enum After<J> {
    /// Tells the handler that it is given up.
    Tell(Entry<J>),
    /// Drops it, out of the lock: it is finished.
    Drop(Entry<J>),
    /// Nothing: it waits for a retry, or is handed back.
    Kept,
}

/// What the supervisor is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Orders {
    /// Jobs whose delay ended; a worker is to be woken for each.
    pub promoted: usize,
    /// Workers to start; they are counted already.
    pub start: usize,
    /// When to look again.
    pub next: Option<Instant>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct State<J> {
    pub(super) queue: Queue<J>,
    limits: ProcessorLimits,
    counts: [LaneCounts; 4],
    times: [LaneTimes; 4],
    workers: usize,
    grown: Option<Instant>,
    /// When the supervisor looks next without being told.
    alarm: Option<Instant>,
    random: fastrand::Rng,
}

impl<J> State<J> {
    pub(super) fn new(limits: &ProcessorLimits, random: fastrand::Rng) -> Self {
        Self {
            queue: Queue::new(limits),
            limits: limits.clone(),
            counts: [LaneCounts::default(); 4],
            times: Priority::ALL.map(|_| LaneTimes::new()),
            workers: 0,
            grown: None,
            alarm: None,
            random,
        }
    }

    fn counts(&mut self, priority: Priority) -> &mut LaneCounts {
        &mut self.counts[priority.index()]
    }

    pub(super) fn offer(
        &mut self,
        priority: Priority,
        key: Key,
        job: J,
        now: Instant,
    ) -> Result<(), (J, Full)> {
        self.queue.offer(priority, key, job, now)?;
        self.counts(priority).accepted += 1;
        Ok(())
    }

    pub(super) fn refused(&mut self, priority: Priority) {
        self.counts(priority).refused += 1;
    }

    /// A job to run, and whether there is another one.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Entry<J>, bool)> {
        let mut entry = self.queue.take(now)?;
        entry.attempts += 1;
        self.times[entry.priority.index()].waited(now.saturating_duration_since(entry.ready_at));
        Some((entry, self.queue.can_run()))
    }

    /// A call of the handler ended: of [`super::Handler::dead`] when there is a verdict, of an attempt otherwise.
    pub(super) fn ended(&mut self, entry: Entry<J>, ended: Ended, times: Times) -> After<J> {
        let lane = entry.priority;
        if entry.verdict.is_none() {
            self.times[lane.index()].ran(times.ran);
        }
        let (failure, asked) = match ended {
            Ended::Stopped => {
                self.queue.hand_back(entry);
                return After::Kept;
            }
            Ended::Returned(Outcome::Done) => {
                let told = entry.verdict.is_some();
                let counts = self.counts(lane);
                *(if told { &mut counts.dead } else { &mut counts.done }) += 1;
                self.queue.finish(&entry);
                return After::Drop(entry);
            }
            Ended::Returned(Outcome::Dead(reason)) => {
                return give_up(entry, DeadReason::Handler(reason));
            }
            Ended::Returned(Outcome::Retry { after }) => (Failure::Retry, after),
            Ended::TimedOut => (Failure::TimedOut, None),
            Ended::Panicked => (Failure::Panicked, None),
        };
        match failure {
            Failure::Retry => {}
            Failure::TimedOut => self.counts(lane).timed_out += 1,
            Failure::Panicked => self.counts(lane).panicked += 1,
        }
        if entry.attempts < self.limits.attempts_max {
            let delay = backoff::delay(&self.limits, entry.attempts, asked, self.random.f64());
            if self.queue.delay(entry, times.now + delay) {
                self.counts(lane).retried += 1;
            }
            return After::Kept;
        }
        if entry.verdict.is_none() {
            let attempts = entry.attempts;
            return give_up(entry, DeadReason::Attempts { attempts, last: failure });
        }
        self.counts(lane).abandoned += 1;
        self.queue.finish(&entry);
        After::Drop(entry)
    }

    /// Whether a worker that was idle for long may end; it is then no longer counted.
    pub(super) fn retire(&mut self) -> bool {
        // A job that came this moment may have woken the very worker that asks.
        let may = self.workers > self.limits.workers_min && !self.queue.can_run();
        if may {
            self.workers -= 1;
        }
        may
    }

    /// A worker ended in any other way.
    pub(super) fn left(&mut self) {
        self.workers -= 1;
    }

    /// Whether the supervisor would look later than it must.
    pub(super) fn must_wake(&mut self) -> bool {
        let due = self.due();
        let must = due.is_some_and(|due| self.alarm.is_none_or(|alarm| due < alarm));
        if must {
            self.alarm = due;
        }
        must
    }

    /// The supervisor looks.
    pub(super) fn look(&mut self, now: Instant) -> Orders {
        let promoted = self.queue.promote(now);
        let missing = self.limits.workers_min.saturating_sub(self.workers);
        let grow = self.grow_due().is_some_and(|due| due <= now);
        let mut start = 0;
        if self.queue.phase() != Phase::Stopped {
            start = missing;
            if missing == 0 && grow {
                start = (self.workers / 2).max(1).min(self.limits.workers_max - self.workers);
                self.grown = Some(now);
            }
        }
        self.workers += start;
        self.alarm = self.due();
        Orders { promoted, start, next: self.alarm }
    }

    fn due(&self) -> Option<Instant> {
        [self.queue.due(), self.grow_due()].into_iter().flatten().min()
    }

    /// When workers are to be added if nothing changes; in the past when they are due.
    fn grow_due(&self) -> Option<Instant> {
        if self.workers >= self.limits.workers_max || self.queue.running() < self.workers {
            return None;
        }
        let due = Priority::ALL.into_iter().filter_map(|priority| {
            let lane = self.queue.lane(priority);
            let oldest = lane.oldest().filter(|_| lane.can_run())?;
            let full = lane.waiting() >= self.limits.grow_depth(priority);
            Some(if full { oldest } else { oldest + self.limits.wait_target })
        });
        let due = due.min()?;
        Some(self.grown.map_or(due, |grown| due.max(grown + self.limits.grow_every)))
    }

    pub(super) fn times(&self) -> [LaneTimes; 4] {
        self.times.clone()
    }

    pub(super) fn snapshot(&self, now: Instant) -> ProcessorSnapshot {
        let handed_back = self.queue.handed_back();
        ProcessorSnapshot {
            phase: self.queue.phase(),
            held: self.queue.held(),
            delayed: self.queue.delayed(),
            workers: self.workers,
            busy: self.queue.running(),
            lanes: Priority::ALL.map(|priority| {
                let lane = self.queue.lane(priority);
                LaneSnapshot {
                    priority,
                    held: lane.held(),
                    depth: lane.waiting(),
                    running: lane.running(),
                    oldest: lane.oldest().map(|since| now.saturating_duration_since(since)),
                    counts: LaneCounts {
                        handed_back: handed_back[priority.index()],
                        ..self.counts[priority.index()]
                    },
                }
            }),
        }
    }
}

/// When a call ended and how long it took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub now: Instant,
    pub ran: Duration,
}

/// The job goes on running, as the call that tells the handler.
fn give_up<J>(mut entry: Entry<J>, reason: DeadReason) -> After<J> {
    entry.verdict = Some(reason);
    entry.attempts = 1;
    After::Tell(entry)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::KeyOrder;
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Two workers that run a job each.
    fn busy(now: Instant) -> State<u32> {
        let limits = ProcessorLimits {
            workers_min: 2,
            workers_max: 6,
            key_order: KeyOrder::Parallel(100),
            wait_target: ms(100),
            grow_every: ms(50),
            ..ProcessorLimits::default()
        };
        let mut state = State::new(&limits, fastrand::Rng::with_seed(0));
        assert_eq!(state.look(now), Orders { promoted: 0, start: 2, next: None });
        for job in 0..2 {
            state.offer(Priority::Critical, "a".into(), job, now).unwrap();
            state.take(now).unwrap();
        }
        assert!(!state.must_wake());
        state
    }

    #[test]
    fn workers_are_added_while_a_job_waits_for_long() {
        let now = Instant::now();
        let mut state = busy(now);
        for job in 2..20 {
            state.offer(Priority::Critical, "a".into(), job, now).unwrap();
        }
        assert!(state.must_wake());
        assert!(!state.must_wake(), "it is told already");
        let next = Some(now + ms(100));
        assert_eq!(state.look(now + ms(99)), Orders { promoted: 0, start: 0, next });
        assert_eq!(state.look(now + ms(100)).start, 1);
        assert_eq!(state.look(now + ms(200)).start, 0, "one is idle");
        state.take(now + ms(120)).unwrap();
        assert!(state.must_wake());
        let next = Some(now + ms(150));
        assert_eq!(state.look(now + ms(120)), Orders { promoted: 0, start: 0, next });
        for (at, start) in [(150, 1), (200, 2), (250, 0)] {
            assert_eq!(state.look(now + ms(at)).start, start, "half of those there are, up to 6");
            while state.queue.running() < state.workers {
                state.take(now + ms(at)).unwrap();
            }
        }
        assert_eq!((state.workers, state.look(now + ms(300)).next), (6, None));
    }

    #[test]
    fn workers_end_down_to_the_minimum_and_not_beside_a_job() {
        let now = Instant::now();
        let mut state = busy(now);
        assert!(!state.retire());
        state.workers = 4;
        state.offer(Priority::Critical, "a".into(), 2, now).unwrap();
        assert!(!state.retire(), "a job waits");
        state.take(now).unwrap();
        assert_eq!([state.retire(), state.retire(), state.retire()], [true, true, false]);
        assert_eq!(state.workers, 2);
    }
}
