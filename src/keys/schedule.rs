//! When a remote key set is fetched next. Pure: times and jitter are arguments.

use std::time::{Duration, Instant};

use super::JwksSettings;

/// Longest exponent of the backoff; the delay is cut by `retry_max` long before.
const DOUBLINGS_MAX: u32 = 20;

/// Next fetch of one URL.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    interval_min: Duration,
    retry_min: Duration,
    retry_max: Duration,
    failures: u32,
    last: Instant,
    due: Instant,
}

impl Schedule {
    /// A schedule whose first fetch ended at `now`; tell it how with [`Self::succeeded`] or [`Self::failed`].
    pub(super) fn new(settings: &JwksSettings, now: Instant) -> Self {
        Self {
            interval: settings.interval,
            interval_min: settings.interval_min,
            retry_min: settings.retry_min,
            retry_max: settings.retry_max,
            failures: 0,
            last: now,
            due: now,
        }
    }

    /// When to fetch.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// A fetch succeeded. `jitter` is in 0.0..1.0 and takes up to a tenth off, so that nodes which started together
    /// drift apart.
    pub(super) fn succeeded(&mut self, now: Instant, jitter: f64) {
        self.failures = 0;
        self.last = now;
        self.due = now + self.interval.mul_f64(1.0 - jitter / 10.0);
    }

    /// A fetch failed: exponential backoff, of which `jitter` takes up to a half off.
    pub(super) fn failed(&mut self, now: Instant, jitter: f64) {
        let factor = 1_u32 << self.failures.min(DOUBLINGS_MAX);
        let delay = self.retry_min.saturating_mul(factor).min(self.retry_max);
        self.failures = self.failures.saturating_add(1);
        self.last = now;
        self.due = now + delay.mul_f64(1.0 - jitter / 2.0);
    }

    /// Nothing was fetched, because the key server is left alone for so long.
    pub(super) fn left_alone(&mut self, now: Instant, delay: Duration) {
        self.due = now + delay;
    }

    /// A token named a key that is not known. Brings the next fetch forward, but never closer than `interval_min`
    /// to the last one: whoever sends made-up key ids must not turn the gateway against the key server.
    pub(super) fn hint(&mut self, now: Instant) {
        self.due = self.due.min(now.max(self.last + self.interval_min));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn settings() -> JwksSettings {
        JwksSettings {
            interval: seconds(600),
            interval_min: seconds(10),
            retry_min: seconds(1),
            retry_max: seconds(60),
            ..JwksSettings::default()
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_bound_and_ends_with_success() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&settings(), start);
        for delay in [1, 2, 4, 8, 16, 32, 60, 60] {
            schedule.failed(start, 0.0);
            assert_eq!(schedule.due(), start + seconds(delay));
        }
        for _ in 0..1_000 {
            schedule.failed(start, 0.0);
        }
        assert_eq!(schedule.due(), start + seconds(60));
        schedule.succeeded(start, 0.0);
        assert_eq!(schedule.due(), start + seconds(600));
        schedule.failed(start, 0.0);
        assert_eq!(schedule.due(), start + seconds(1));
    }

    #[test]
    fn jitter_only_shortens() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&settings(), start);
        schedule.succeeded(start, 0.5);
        assert_eq!(schedule.due(), start + seconds(570));
        schedule.failed(start, 0.5);
        assert_eq!(schedule.due(), start + Duration::from_millis(750));
    }

    #[test]
    fn unknown_keys_cost_at_most_one_fetch_per_minimum_interval() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&settings(), start);
        schedule.succeeded(start, 0.0);
        for second in 0..10 {
            schedule.hint(start + seconds(second));
            assert_eq!(schedule.due(), start + seconds(10));
        }
        schedule.succeeded(start + seconds(10), 0.0);
        schedule.hint(start + seconds(300));
        assert_eq!(schedule.due(), start + seconds(300));
        // A hint never puts a fetch off.
        schedule.failed(start + seconds(300), 0.0);
        schedule.hint(start + seconds(300));
        assert_eq!(schedule.due(), start + seconds(301));
    }
}
