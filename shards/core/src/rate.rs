//! Rate limits as one number each (generic cell rate algorithm, the same as a token bucket).
//!
//! A cell holds the theoretical arrival time: the moment at which the bucket will be full again. An event is allowed
//! when that moment is at most `burst` intervals ahead, and moves it one interval on. The rate is an argument, so a
//! reload of the configuration takes effect at the next event without touching any cell.
//!
//! Invariant: in any window of `t` seconds at most `burst + t * per_second` events are allowed; a refused event costs
//! nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::settings::Rate;

/// Longest time for which an empty bucket can owe what was taken elsewhere.
pub const DEBT_MAX: Duration = Duration::from_secs(10);

/// Cell of one owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gcra {
    /// Theoretical arrival time in nanoseconds on the monotonic axis; 0 = the bucket is full.
    tat: u64,
}

impl Gcra {
    /// A full bucket.
    pub const fn new() -> Self {
        Self { tat: 0 }
    }

    /// Takes one event.
    ///
    /// # Errors
    /// How long to wait until an event would be allowed, when the bucket is empty.
    #[inline]
    pub fn check(&mut self, now: Duration, rate: Rate) -> Result<(), Duration> {
        let Some(spacing) = Spacing::of(rate) else { return Ok(()) };
        self.tat = spacing.next(self.tat, nanos(now))?;
        Ok(())
    }
}

/// Cell shared by all shards.
#[derive(Debug, Default)]
pub struct AtomicGcra {
    tat: AtomicU64,
}

impl AtomicGcra {
    /// A full bucket.
    pub const fn new() -> Self {
        Self { tat: AtomicU64::new(0) }
    }

    /// Takes one event; concurrent callers never get more than the rate together.
    ///
    /// # Errors
    /// How long to wait until an event would be allowed, when the bucket is empty.
    #[inline]
    pub fn check(&self, now: Duration, rate: Rate) -> Result<(), Duration> {
        let Some(spacing) = Spacing::of(rate) else { return Ok(()) };
        let now = nanos(now);
        // Nothing else is published with the cell, so no ordering beyond the cell's own is needed.
        let mut seen = self.tat.load(Ordering::Relaxed);
        loop {
            let next = spacing.next(seen, now)?;
            match self.tat.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(newer) => seen = newer,
            }
        }
    }

    /// How long to wait until an event would be allowed; zero when it is now. Takes nothing.
    #[inline]
    pub fn wait(&self, now: Duration, rate: Rate) -> Duration {
        let Some(spacing) = Spacing::of(rate) else { return Duration::ZERO };
        spacing.next(self.tat.load(Ordering::Relaxed), nanos(now)).err().unwrap_or_default()
    }

    /// Takes one event whether it is allowed or not, but never fills the cell beyond an empty bucket.
    #[inline]
    pub fn advance(&self, now: Duration, rate: Rate) {
        self.advance_by(now, rate, 1);
    }

    /// As [`Self::advance`], for several events that were allowed elsewhere: an empty bucket owes them, for [`DEBT_MAX`] at
    /// most.
    pub fn advance_by(&self, now: Duration, rate: Rate, events: u32) {
        let Some(spacing) = Spacing::of(rate) else { return };
        let now = nanos(now);
        let further = spacing.interval.saturating_mul(u64::from(events)).min(nanos(DEBT_MAX));
        let limit = now.saturating_add(spacing.tolerance).saturating_add(further);
        let forward = |tat: u64| Some(tat.max(now).saturating_add(further).min(limit));
        // The closure always answers a value, so the update cannot fail.
        let _ = self.tat.fetch_update(Ordering::Relaxed, Ordering::Relaxed, forward);
    }
}

/// A rate in nanoseconds.
#[derive(Clone, Copy)]
struct Spacing {
    /// Between two events of the sustained rate.
    interval: u64,
    /// How far ahead of now the theoretical arrival time may be.
    tolerance: u64,
}

impl Spacing {
    /// `None` when unlimited.
    #[inline]
    fn of(rate: Rate) -> Option<Self> {
        if rate.per_second == 0 {
            return None;
        }
        // Rounded up, so that the rounding never allows more than the rate.
        let interval = 1_000_000_000_u64.div_ceil(u64::from(rate.per_second));
        Some(Self { interval, tolerance: interval * u64::from(rate.burst.max(1) - 1) })
    }

    /// The arrival time after one more event.
    #[inline]
    fn next(self, tat: u64, now: u64) -> Result<u64, Duration> {
        let ahead = tat.saturating_sub(now);
        if ahead > self.tolerance {
            return Err(Duration::from_nanos(ahead - self.tolerance));
        }
        Ok(tat.max(now).saturating_add(self.interval))
    }
}

/// Whole nanoseconds; the axis ends after 584 years.
#[inline]
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_cell_is_eight_bytes() {
        assert_eq!(size_of::<Gcra>(), 8);
        assert_eq!(size_of::<AtomicGcra>(), 8);
    }

    #[test]
    fn burst_then_sustained() {
        let mut cell = Gcra::new();
        for _ in 0..3 {
            assert_eq!(cell.check(ms(0), RATE), Ok(()));
        }
        assert_eq!(cell.check(ms(0), RATE), Err(ms(100)));
        assert_eq!(cell.check(ms(60), RATE), Err(ms(40)));
        assert_eq!(cell.check(ms(100), RATE), Ok(()));
        assert_eq!(cell.check(ms(100), RATE), Err(ms(100)));
        assert_eq!(cell.check(ms(400), RATE), Ok(()));
        assert_eq!(cell.check(ms(400), RATE), Ok(()));
        assert_eq!(cell.check(ms(400), RATE), Ok(()));
        assert_eq!(cell.check(ms(400), RATE), Err(ms(100)));
    }

    #[test]
    fn unlimited_is_always_allowed() {
        let (mut cell, shared) = (Gcra::new(), AtomicGcra::new());
        for _ in 0..1_000 {
            assert_eq!(cell.check(ms(1), Rate::UNLIMITED), Ok(()));
            assert_eq!(shared.check(ms(1), Rate::UNLIMITED), Ok(()));
        }
        assert_eq!(cell, Gcra::new());
        assert_eq!(shared.wait(ms(1), Rate::UNLIMITED), Duration::ZERO);
    }

    #[test]
    fn a_burst_of_zero_counts_as_one() {
        let rate = Rate { per_second: 1, burst: 0 };
        let mut cell = Gcra::new();
        assert_eq!(cell.check(ms(5), rate), Ok(()));
        assert_eq!(cell.check(ms(5), rate), Err(ms(1000)));
    }

    #[test]
    fn the_largest_rate_does_not_overflow() {
        let rate = Rate { per_second: 1, burst: u32::MAX };
        let mut cell = Gcra::new();
        assert_eq!(cell.check(Duration::MAX, rate), Ok(()));
        assert_eq!(Gcra::new().check(Duration::ZERO, rate), Ok(()));
    }

    #[test]
    fn advancing_is_capped_at_an_empty_bucket() {
        let cell = AtomicGcra::new();
        for _ in 0..50 {
            cell.advance(ms(0), RATE);
        }
        assert_eq!(cell.wait(ms(0), RATE), ms(100));
        assert_eq!(cell.check(ms(100), RATE), Ok(()));
    }

    #[allow(clippy::disallowed_methods)] // Only threads can show that the cell is shared safely.
    #[test]
    fn threads_share_one_bucket() {
        let cell = AtomicGcra::new();
        let rate = Rate { per_second: 1, burst: 5_000 };
        let allowed = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_500 {
                        let passed = cell.check(ms(1), rate).is_ok();
                        allowed.fetch_add(u32::from(passed), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(allowed.load(Ordering::Relaxed), 5_000);
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_the_wait_is_exact(
            per_second in 1u32..2_000,
            burst in 1u32..50,
            gaps in prop::collection::vec(0u64..20_000, 1..300),
        ) {
            let rate = Rate { per_second, burst };
            let (mut cell, shared) = (Gcra::new(), AtomicGcra::new());
            let mut now = Duration::ZERO;
            let mut allowed: Vec<Duration> = Vec::new();
            for gap in gaps {
                now += Duration::from_micros(gap);
                let mut later = cell;
                let result = cell.check(now, rate);
                prop_assert_eq!(shared.wait(now, rate), result.err().unwrap_or_default());
                prop_assert_eq!(shared.check(now, rate), result);
                match result {
                    Ok(()) => allowed.push(now),
                    Err(wait) => {
                        let almost = (now + wait).saturating_sub(Duration::from_nanos(1));
                        prop_assert!(later.check(almost, rate).is_err());
                        prop_assert!(later.check(now + wait, rate).is_ok());
                    }
                }
            }
            for (first, start) in allowed.iter().enumerate() {
                for (last, end) in allowed.iter().enumerate().skip(first) {
                    let window = end.saturating_sub(*start).as_secs_f64();
                    let bound = f64::from(burst) + window * f64::from(per_second);
                    prop_assert!((last - first + 1) as f64 <= bound + 1e-6);
                }
            }
        }
    }
}
