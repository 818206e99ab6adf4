//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential growth with full jitter: a random part of `base * 2^(attempt - 1)`, on top of what the other side asked
/// for, never more than `max`. `attempt` counts the attempts made, from 1; `random` is uniform over all of `u64`.
pub(crate) fn retry_delay(
    attempt: u32,
    base: Duration,
    max: Duration,
    retry_after: Option<Duration>,
    random: u64,
) -> Duration {
    let factor = 1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    let ceiling = base.saturating_mul(factor).min(max);
    let jitter = (ceiling.as_nanos().min(u128::from(u64::MAX)) * u128::from(random)) >> 64;
    let floor = retry_after.unwrap_or_default();
    floor.saturating_add(Duration::from_nanos(jitter as u64)).min(max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Duration = Duration::from_secs(2);
    const MAX: Duration = Duration::from_mins(10);

    fn longest(attempt: u32) -> u64 {
        retry_delay(attempt, BASE, MAX, None, u64::MAX).as_millis() as u64
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_bound() {
        let ceilings: Vec<u64> = [1, 2, 3, 9, 10, 33, u32::MAX].map(longest).to_vec();
        assert_eq!(ceilings, [1_999, 3_999, 7_999, 511_999, 599_999, 599_999, 599_999]);
        assert_eq!(longest(0), 1_999, "zero counts as the first");
    }

    #[test]
    fn jitter_covers_the_whole_range() {
        assert_eq!(retry_delay(3, BASE, MAX, None, 0), Duration::ZERO);
        assert_eq!(retry_delay(3, BASE, MAX, None, 1 << 63), Duration::from_secs(4));
    }

    #[test]
    fn the_other_side_is_heeded_within_the_bound() {
        let asked = Some(Duration::from_secs(30));
        assert_eq!(retry_delay(1, BASE, MAX, asked, 0), Duration::from_secs(30));
        assert_eq!(retry_delay(1, BASE, MAX, asked, 1 << 63), Duration::from_secs(31));
        let absurd = Some(Duration::MAX);
        assert_eq!(retry_delay(1, BASE, MAX, absurd, u64::MAX), MAX);
    }

    proptest! {
        #[test]
        fn it_is_bounded_for_every_input(
            attempt: u32, base: u64, max: u64, retry_after: Option<u64>, random: u64,
        ) {
            let (base, max) = (Duration::from_millis(base), Duration::from_millis(max));
            let retry_after = retry_after.map(Duration::from_millis);
            let delay = retry_delay(attempt, base, max, retry_after, random);
            prop_assert!(delay <= max);
            prop_assert!(delay >= retry_after.unwrap_or_default().min(max));
        }
    }
}
