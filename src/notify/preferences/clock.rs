//! Local time of a user: times of day, time zones, and the instants at which the clocks of a zone reach a time.
//!
//! Clocks are set forward (a gap in local time) and back (a fold: the same local time twice). Nothing here asks which
//! of the two it is. Time is walked in [`Stretch`]es, in which local time runs as evenly as UTC; the rules look at what
//! the clock shows at the start of a stretch and at what it reaches before the next.
//!
//! The tz database is the one in the binary, whatever the machine has: all nodes of a cluster decide alike.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{Offset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

use super::super::kinds::{TextVisitor, serde_as_text, shown};

static DATABASE: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Further than any zone is from UTC, plus the longest time by which clocks were ever set back.
const ZONES_APART: SignedDuration = SignedDuration::from_hours(52);

/// Text that is no time of day, or names no time zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClockError {
    /// Not `HH:MM`.
    #[error("{0:?} is no time of day: use HH:MM from 00:00 to 23:59, such as 22:00")]
    Time(String),
    /// Not in the tz database.
    #[error("{0:?} is no time zone: use an IANA name such as Europe/Berlin or UTC")]
    Zone(String),
}

/// Time of day to the minute, written `HH:MM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClockTime(Time);

impl ClockTime {
    /// A time of day; `None` unless there is such an hour and minute.
    pub(super) const fn new(hour: i8, minute: i8) -> Option<Self> {
        if hour < 0 || hour > 23 || minute < 0 || minute > 59 {
            return None;
        }
        Some(Self(Time::constant(hour, minute, 0, 0)))
    }

    /// This time on a date.
    pub(super) fn on(self, date: Date) -> DateTime {
        date.to_datetime(self.0)
    }
}

impl fmt::Display for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
    }
}

impl FromStr for ClockTime {
    type Err = ClockError;

    fn from_str(text: &str) -> Result<Self, ClockError> {
        let number = |text: &str| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        text.split_once(':')
            .and_then(|(hour, minute)| Self::new(number(hour)?, number(minute)?))
            .ok_or_else(|| ClockError::Time(shown(text)))
    }
}

serde_as_text!(ClockTime, "a time of day such as 22:00");

/// A time zone of the tz database, and its name. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Zone(TimeZone);

impl Zone {
    /// What the clocks show.
    pub(super) fn time_zone(&self) -> &TimeZone {
        &self.0
    }

    /// Name in the tz database.
    pub(crate) fn as_str(&self) -> &str {
        self.0.iana_name().expect("zones come from the database by their name")
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Upper and lower case do not matter.
impl FromStr for Zone {
    type Err = ClockError;

    fn from_str(text: &str) -> Result<Self, ClockError> {
        let zone = DATABASE.get(text).ok().filter(|zone| !zone.is_unknown());
        zone.map(Self).ok_or_else(|| ClockError::Zone(shown(text)))
    }
}

serde_as_text!(Zone, "a time zone such as Europe/Berlin");

/// A time in which the clocks of a zone are not set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    /// First instant.
    pub start: Timestamp,
    /// First instant after it, if the clocks are ever set again.
    end: Option<Timestamp>,
    offset: Offset,
}

impl Stretch {
    /// What the clock shows at the start.
    pub(super) fn wall(&self) -> DateTime {
        self.offset.to_datetime(self.start)
    }

    /// When the clock shows `wall`, which must not be before what it shows at the start; `None` when the clocks are
    /// set before that.
    pub(super) fn reach(&self, wall: DateTime) -> Option<Timestamp> {
        let instant = self.offset.to_timestamp(wall).ok()?;
        self.end.is_none_or(|end| instant < end).then_some(instant)
    }
}

/// The stretches from `now` on. The first starts at `now`, each other one when the clocks are set.
pub(super) fn stretches(zone: &TimeZone, now: Timestamp) -> impl Iterator<Item = Stretch> {
    let mut next = Some((now, zone.to_offset(now)));
    let mut following = zone.following(now);
    std::iter::from_fn(move || {
        let (start, offset) = next.take()?;
        next = following.next().map(|set| (set.timestamp(), set.offset()));
        Some(Stretch { start, end: next.map(|(end, _)| end), offset })
    })
}

/// The first instant ever at which the clock shows `wall` or something later; `None` at the ends of the calendar.
pub(super) fn first_at(zone: &TimeZone, wall: DateTime) -> Option<Timestamp> {
    let before = Offset::UTC.to_timestamp(wall).ok()?.checked_sub(ZONES_APART).ok()?;
    stretches(zone, before).find_map(|stretch| {
        if stretch.wall() >= wall { Some(stretch.start) } else { stretch.reach(wall) }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_hours_and_minutes() {
        for text in ["00:00", "07:30", "23:59"] {
            assert_eq!(text.parse::<ClockTime>().unwrap().to_string(), text);
        }
        for text in ["", "7:00", "24:00", "12:60", "12", "12:00:00", "+1:00", "12:-1", "１２:00"]
        {
            let error = text.parse::<ClockTime>().unwrap_err().to_string();
            assert!(error.contains("use HH:MM"), "{text}: {error}");
        }
    }

    #[test]
    fn zones_are_names_of_the_database_in_the_binary() {
        for name in ["Europe/Berlin", "UTC", "America/Argentina/Buenos_Aires", "US/Pacific"] {
            assert_eq!(name.parse::<Zone>().unwrap().as_str(), name);
        }
        assert_eq!("europe/BERLIN".parse::<Zone>().unwrap().as_str(), "Europe/Berlin");
        assert_eq!("utc".parse::<Zone>().unwrap().as_str(), "UTC");
        for name in ["", "Berlin", "CET-1CEST", "+02:00", "../etc/passwd", "Etc/Unknown", "EST/"] {
            let error = name.parse::<Zone>().unwrap_err().to_string();
            assert!(error.contains("use an IANA name"), "{name}: {error}");
        }
    }

    fn check_first_at(zone: &str, wall: &str, expected: &str) {
        let zone: Zone = zone.parse().unwrap();
        let found = first_at(zone.time_zone(), wall.parse().unwrap()).unwrap();
        assert_eq!(found.to_string(), expected, "{wall} in {zone}");
    }

    #[test]
    fn the_first_instant_of_a_local_time() {
        check_first_at("UTC", "2026-01-01T08:00", "2026-01-01T08:00:00Z");
        check_first_at("Pacific/Kiritimati", "2026-01-01T08:00", "2025-12-31T18:00:00Z");
        check_first_at("Pacific/Pago_Pago", "2026-01-01T08:00", "2026-01-01T19:00:00Z");
        // A local time that was left out is reached when the clocks are set.
        check_first_at("Europe/Berlin", "2026-03-29T02:30", "2026-03-29T01:00:00Z");
        // Of two, the first; the clock shows 03:00 only once.
        check_first_at("Europe/Berlin", "2026-10-25T02:30", "2026-10-25T00:30:00Z");
        check_first_at("Europe/Berlin", "2026-10-25T03:00", "2026-10-25T02:00:00Z");
        // A day that was left out.
        check_first_at("Pacific/Apia", "2011-12-30T12:00", "2011-12-30T10:00:00Z");
    }

    #[test]
    fn stretches_adjoin_and_the_last_has_no_end() {
        let zone: Zone = "Asia/Tokyo".parse().unwrap();
        let all: Vec<Stretch> = stretches(zone.time_zone(), Timestamp::UNIX_EPOCH).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].end, None);
        let zone: Zone = "Australia/Lord_Howe".parse().unwrap();
        let some: Vec<Stretch> =
            stretches(zone.time_zone(), Timestamp::UNIX_EPOCH).take(99).collect();
        assert_eq!(some.len(), 99);
        for pair in some.windows(2) {
            assert_eq!(pair[0].end, Some(pair[1].start));
            assert!(pair[0].start < pair[1].start);
        }
    }
}
