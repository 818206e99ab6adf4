//! Delay of a retry. Pure: the random number is an argument.

use std::time::Duration;

use super::ProcessorLimits;

/// Longest exponent of the backoff; the delay is cut by `retry_max` long before.
const DOUBLINGS_MAX: u32 = 30;

/// From the end of failed attempt number `attempt` (1 or more) to the next one. `asked` is the handler's own wish;
/// without one the delay is anything from nothing to the backoff, by `random` in 0.0..1.0, so that jobs which failed
/// together do not come back together.
pub(super) fn delay(
    limits: &ProcessorLimits,
    attempt: u32,
    asked: Option<Duration>,
    random: f64,
) -> Duration {
    if let Some(asked) = asked {
        return asked.min(limits.retry_after_max);
    }
    let factor = 1_u32 << attempt.saturating_sub(1).min(DOUBLINGS_MAX);
    limits.retry_base.saturating_mul(factor).min(limits.retry_max).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> ProcessorLimits {
        ProcessorLimits {
            retry_base: Duration::from_secs(1),
            retry_max: Duration::from_secs(10),
            retry_after_max: Duration::from_mins(1),
            ..ProcessorLimits::default()
        }
    }

    #[test]
    fn it_doubles_up_to_the_bound() {
        let limits = limits();
        for (attempt, seconds) in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (1_000, 10.0)]
        {
            let whole = delay(&limits, attempt, None, 1.0);
            assert_eq!(whole, Duration::from_secs_f64(seconds), "attempt {attempt}");
            assert_eq!(delay(&limits, attempt, None, 0.5), whole / 2);
            assert_eq!(delay(&limits, attempt, None, 0.0), Duration::ZERO);
        }
    }

    #[test]
    fn a_wish_counts_up_to_the_bound() {
        let limits = limits();
        let asked = Duration::from_secs(30);
        assert_eq!(delay(&limits, 1, Some(asked), 0.1), asked);
        assert_eq!(delay(&limits, 1, Some(Duration::MAX), 0.1), limits.retry_after_max);
    }
}
