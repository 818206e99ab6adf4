//! Counters and histograms, and the snapshot of them for metrics and health.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::Priority;

/// Longest time that the histograms tell apart, in microseconds: one hour.
const HIGH_US: u64 = 3_600_000_000;

/// What happened to the jobs of a lane since the start. Jobs: `accepted` is the sum of `done`, `dead`, `abandoned`,
/// `handed_back` and of what is held. Attempts: each failed one counts as `retried`, or ends in `dead`, `abandoned` or
/// `handed_back`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneCounts {
    /// Jobs taken in.
    pub accepted: u64,
    /// Jobs not taken in, for want of room or because of a drain.
    pub refused: u64,
    /// Jobs finished.
    pub done: u64,
    /// Attempts that another one was to follow.
    pub retried: u64,
    /// Jobs given up, of which the handler was told.
    pub dead: u64,
    /// Jobs given up, of which the handler could not be told: every call timed out or panicked.
    pub abandoned: u64,
    /// Jobs that a drain handed back.
    pub handed_back: u64,
    /// Attempts and calls about dead jobs that took too long.
    pub timed_out: u64,
    /// Attempts and calls about dead jobs that panicked.
    pub panicked: u64,
}

/// Times of one lane, in microseconds up to one hour with two significant digits.
#[derive(Clone, Debug)]
pub(crate) struct LaneTimes {
    /// Of one attempt.
    pub run_us: Histogram<u64>,
    /// From the acceptance of a job, or from when its retry was due, to the start of the attempt.
    pub wait_us: Histogram<u64>,
}

impl LaneTimes {
    pub(super) fn new() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, HIGH_US, 2).expect("bounds are constant and valid");
        Self { run_us: histogram(), wait_us: histogram() }
    }

    pub(super) fn ran(&mut self, time: Duration) {
        self.run_us.saturating_record(time.as_micros() as u64);
    }

    pub(super) fn waited(&mut self, time: Duration) {
        self.wait_us.saturating_record(time.as_micros() as u64);
    }
}

impl LaneTimes {
    /// Adds what another lane has recorded.
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, other) in [(&mut self.run_us, &other.run_us), (&mut self.wait_us, &other.wait_us)]
        {
            sum.add(other).expect("all of them have the same bounds");
        }
    }
}

/// Where a processor is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Takes jobs in.
    Open,
    /// Takes none in, and works off what is queued.
    Draining,
    /// Runs nothing any more.
    Stopped,
}

impl Phase {
    /// Name in health and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// A processor at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessorSnapshot {
    /// Where it is in its life.
    pub phase: Phase,
    /// Jobs held in all lanes together.
    pub held: usize,
    /// Of these, jobs that wait for a retry.
    pub delayed: usize,
    /// Workers.
    pub workers: usize,
    /// Workers that run a job.
    pub busy: usize,
    /// The lanes, each at its [`Priority::index`].
    pub lanes: [LaneSnapshot; 4],
}

impl ProcessorSnapshot {
    /// Adds what another processor holds and has counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.held += other.held;
        self.delayed += other.delayed;
        self.workers += other.workers;
        self.busy += other.busy;
        for (sum, other) in self.lanes.iter_mut().zip(&other.lanes) {
            sum.held += other.held;
            sum.depth += other.depth;
            sum.running += other.running;
            sum.oldest = sum.oldest.max(other.oldest);
            sum.counts.add(&other.counts);
        }
    }
}

impl LaneCounts {
    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.done += other.done;
        self.retried += other.retried;
        self.dead += other.dead;
        self.abandoned += other.abandoned;
        self.handed_back += other.handed_back;
        self.timed_out += other.timed_out;
        self.panicked += other.panicked;
    }
}

/// A lane at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneSnapshot {
    /// Which one.
    pub priority: Priority,
    /// Jobs that wait, run, or wait for a retry.
    pub held: usize,
    /// Jobs that wait for a worker or for their key's turn.
    pub depth: usize,
    /// Jobs that run.
    pub running: usize,
    /// How long the oldest of those in `depth` waits.
    pub oldest: Option<Duration>,
    /// What happened since the start.
    pub counts: LaneCounts,
}
