//! Circuit breaker of a dependency: after so many failures in a row it is left alone for a while, then tried once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens and closes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BreakerLimits {
    /// Failures in a row that open it.
    pub failures: u32,
    /// From opening to the first trial.
    pub open: Duration,
}

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// Everything.
    Closed,
    /// One call, whose outcome decides.
    HalfOpen,
    /// Nothing.
    Open,
}

impl BreakerState {
    /// Name in health and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// A change that is worth a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The dependency is given up for now.
    Opened,
    /// It works again.
    Closed,
}

#[derive(Clone, Copy, Debug)]
enum Inner {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// A trial is under way since then; one that never ends counts as failed after the open time.
    HalfOpen {
        since: Instant,
    },
}

/// See the module's documentation. Time is an argument.
#[derive(Debug)]
pub(crate) struct Breaker {
    limits: BreakerLimits,
    inner: Mutex<Inner>,
}

impl Breaker {
    /// Closed.
    pub(crate) fn new(limits: BreakerLimits) -> Self {
        Self { limits, inner: Mutex::new(Inner::Closed { failures: 0 }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it lets through now.
    pub(crate) fn state(&self) -> BreakerState {
        match *self.lock() {
            Inner::Closed { .. } => BreakerState::Closed,
            Inner::Open { .. } => BreakerState::Open,
            Inner::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether a call may go through. When it may, [`Self::report`] must follow.
    pub(crate) fn try_enter(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        let trial = match *inner {
            Inner::Closed { .. } => return true,
            Inner::Open { until } => now >= until,
            Inner::HalfOpen { since } => now >= since + self.limits.open,
        };
        if trial {
            *inner = Inner::HalfOpen { since: now };
        }
        trial
    }

    /// How a call went.
    pub(crate) fn report(&self, now: Instant, ok: bool) -> Option<Change> {
        let mut inner = self.lock();
        let before = *inner;
        *inner = match (before, ok) {
            (_, true) => Inner::Closed { failures: 0 },
            (Inner::Closed { failures }, false) if failures + 1 < self.limits.failures => {
                Inner::Closed { failures: failures + 1 }
            }
            // A call from before the breaker opened says nothing new.
            (Inner::Open { until }, false) => Inner::Open { until },
            (_, false) => Inner::Open { until: now + self.limits.open },
        };
        match (before, *inner) {
            (Inner::Closed { .. }, Inner::Open { .. }) => Some(Change::Opened),
            (Inner::Open { .. } | Inner::HalfOpen { .. }, Inner::Closed { .. }) => {
                Some(Change::Closed)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(BreakerLimits { failures: 2, open: OPEN }), Instant::now())
    }

    #[test]
    fn it_opens_after_failures_in_a_row() {
        let (breaker, now) = breaker();
        assert_eq!(breaker.report(now, false), None);
        assert_eq!(breaker.report(now, true), None);
        assert_eq!(breaker.report(now, false), None, "the success in between counts");
        assert_eq!(breaker.report(now, false), Some(Change::Opened));
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.try_enter(now));
        assert_eq!(breaker.report(now, false), None, "it is open already");
    }

    #[test]
    fn one_trial_decides() {
        let (breaker, now) = breaker();
        breaker.report(now, false);
        breaker.report(now, false);
        let later = now + OPEN;
        assert!(breaker.try_enter(later));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(!breaker.try_enter(later), "only one at a time");
        assert_eq!(breaker.report(later, false), None);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.try_enter(later));
        let later = later + OPEN;
        assert!(breaker.try_enter(later));
        assert_eq!(breaker.report(later, true), Some(Change::Closed));
        assert!(breaker.try_enter(later));
    }

    #[test]
    fn a_trial_that_never_ends_is_replaced() {
        let (breaker, now) = breaker();
        breaker.report(now, false);
        breaker.report(now, false);
        assert!(breaker.try_enter(now + OPEN));
        assert!(breaker.try_enter(now + 2 * OPEN));
    }
}
