//! Time as an argument.
//!
//! The core never reads a clock: every `handle_*` takes a [`Now`]. Deadlines are points on the monotonic axis.

use std::num::NonZeroU64;
use std::time::Duration;

/// The moment at which an input is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since the process started; the same axis on every shard of the node.
    pub mono: Duration,
    /// Wall-clock time since the Unix epoch.
    pub unix: Duration,
}

impl Now {
    /// The monotonic point at which wall-clock time `unix` will be reached if the clock is not stepped.
    pub fn mono_at(self, unix: Duration) -> Duration {
        self.mono + unix.saturating_sub(self.unix)
    }
}

/// A point in time in eight bytes, also when it is optional: for what every connection and channel has one of. Whole
/// nanoseconds since the zero of its axis, which ends after 584 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(NonZeroU64);

impl Moment {
    /// The same as a duration since the zero of the axis.
    pub(crate) fn get(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }
}

impl From<Duration> for Moment {
    fn from(mono: Duration) -> Self {
        let nanos = u64::try_from(mono.as_nanos()).unwrap_or(u64::MAX);
        Self(NonZeroU64::MIN.saturating_add(nanos))
    }
}

/// Formats a wall-clock time as RFC 3339 in UTC with milliseconds, e.g. `2026-11-23T09:30:00.125Z`.
pub fn rfc3339(unix: Duration) -> [u8; 24] {
    let ms = unix.subsec_millis();
    let secs = unix.as_secs();
    let (year, month, day) = civil_from_days(secs / 86_400);
    let of_day = (secs % 86_400) as u32;
    let mut out = *b"0000-00-00T00:00:00.000Z";
    write_digits(&mut out[0..4], year);
    write_digits(&mut out[5..7], month);
    write_digits(&mut out[8..10], day);
    write_digits(&mut out[11..13], of_day / 3600);
    write_digits(&mut out[14..16], of_day / 60 % 60);
    write_digits(&mut out[17..19], of_day % 60);
    write_digits(&mut out[20..23], ms);
    out
}

fn write_digits(out: &mut [u8], mut value: u32) {
    for byte in out.iter_mut().rev() {
        *byte = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Days since 1970-01-01 to a civil date; years are counted from March so that a leap day ends its year.
fn civil_from_days(days: u64) -> (u32, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year as u32, month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(unix_ms: u64, expected: &str) {
        let text = rfc3339(Duration::from_millis(unix_ms));
        assert_eq!(std::str::from_utf8(&text).expect("ascii"), expected);
    }

    #[test]
    fn rfc3339_known_dates() {
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_709_251_199_999, "2024-02-29T23:59:59.999Z");
        check(1_795_426_200_125, "2026-11-23T09:30:00.125Z");
        check(4_102_444_800_000, "2100-01-01T00:00:00.000Z");
    }
}
