//! Time of the generator and open-loop schedules.
//!
//! A schedule says when each event is due, whatever happened to the earlier ones. Latency is measured from that
//! moment, so that a server (or generator) that stalls makes every event of the stall late instead of leaving them out.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the generator started.
pub(crate) type Nanos = u64;

/// Nanoseconds of one second and one millisecond.
pub(crate) const SECOND: Nanos = 1_000_000_000;
/// See [`SECOND`].
pub(crate) const MILLISECOND: Nanos = 1_000_000;

/// The generator's clock; all processes of a run have the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base: Nanos,
}

impl Clock {
    /// Starts at zero.
    pub(crate) fn start() -> Self {
        Self { base: monotonic() }
    }

    /// The clock of another process of this machine, from its [`Self::base`].
    pub(crate) fn since(base: Nanos) -> Self {
        Self { base }
    }

    /// When it started, on the system's monotonic clock.
    pub(crate) fn base(self) -> Nanos {
        self.base
    }

    /// Time since the start.
    pub(crate) fn now(self) -> Nanos {
        monotonic().saturating_sub(self.base)
    }
}

fn monotonic() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as Nanos * SECOND + time.tv_nsec as Nanos
}

/// A [`Duration`] on the generator's axis.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

/// Seconds, for reports.
pub(crate) fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}

/// Events at a fixed rate, from a start, up to a number of them.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    start: Nanos,
    per_second: f64,
    next: u64,
    count: u64,
}

impl Schedule {
    /// Events at `per_second` (above 0) from `start` on, as many as fit into `length`.
    pub(crate) fn new(start: Nanos, per_second: f64, length: Nanos) -> Self {
        let count = (seconds(length) * per_second).round() as u64;
        Self { start, per_second, next: 0, count }
    }

    /// Takes the next event that is due: its number and the time it was due at.
    pub(crate) fn poll(&mut self, now: Nanos) -> Option<(u64, Nanos)> {
        let due = self.next_at()?;
        if due > now {
            return None;
        }
        self.next += 1;
        Some((self.next - 1, due))
    }

    /// When the next event is due; `None` when all have been taken.
    pub(crate) fn next_at(&self) -> Option<Nanos> {
        // From the number each time: adding intervals would add their rounding errors.
        let offset = self.next as f64 * SECOND as f64 / self.per_second;
        (self.next < self.count).then_some(self.start + offset as Nanos)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn events_come_at_their_time_and_never_early() {
        let mut schedule = Schedule::new(1_000, 4.0, SECOND);
        assert_eq!(schedule.poll(999), None);
        assert_eq!(schedule.poll(1_000), Some((0, 1_000)));
        assert_eq!(schedule.poll(1_000), None);
        assert_eq!(schedule.next_at(), Some(1_000 + SECOND / 4));
    }

    #[test]
    fn a_stall_leaves_no_event_out_and_keeps_their_times() {
        let mut schedule = Schedule::new(0, 1_000.0, 2 * SECOND);
        let late = 10 * SECOND;
        let taken: Vec<_> = std::iter::from_fn(|| schedule.poll(late)).collect();
        assert_eq!(taken.len(), 2_000);
        assert_eq!(taken[1_999], (1_999, 1_999 * MILLISECOND));
        assert_eq!(schedule.next_at(), None);
    }

    #[test]
    fn odd_rates_do_not_drift() {
        let mut schedule = Schedule::new(0, 3.0, 3_000 * SECOND);
        let last = std::iter::from_fn(|| schedule.poll(Nanos::MAX)).last().unwrap();
        assert_eq!(last.0, 8_999);
        assert!(last.1.abs_diff(8_999 * SECOND / 3) <= 1);
    }

    #[test]
    fn clocks_with_one_base_agree() {
        let clock = Clock::start();
        let before = clock.now();
        let other = Clock::since(clock.base()).now();
        assert!(before <= other && other <= clock.now());
    }

    #[test]
    fn slow_rates_have_few_events() {
        let mut schedule = Schedule::new(0, 0.5, 4 * SECOND);
        assert_eq!(schedule.poll(Nanos::MAX), Some((0, 0)));
        assert_eq!(schedule.poll(Nanos::MAX), Some((1, 2 * SECOND)));
        assert_eq!(schedule.poll(Nanos::MAX), None);
    }
}
