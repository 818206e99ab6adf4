//! Digests: notifications that are gathered and sent together, and when the next of them is due.
//!
//! Gathering itself is the caller's. A [`DigestKey`] is the same for all that belongs into one digest.

use std::collections::BTreeSet;
use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use super::clock::{ClockTime, first_at, stretches};
use super::object::Object;
use super::{CATEGORIES_MAX, Category, DeliveryChannel, shown};

/// Longest window, in minutes: a day.
const WINDOW_MINUTES_MAX: u16 = 24 * 60;

/// When a daily digest is due unless the user says.
const DAILY_AT: ClockTime = ClockTime::new(8, 0).expect("a time of day");

/// How often a digest is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Every {
    /// At each full hour of local time.
    Hourly,
    /// Once a day at a local time.
    Daily,
    /// So many minutes after the first item.
    Window,
}

/// Members of a digest that are missing or out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DigestError {
    /// It does not say how often.
    #[error("`every` is missing: set it to hourly, daily or window")]
    EveryMissing,
    /// No number, or out of bounds.
    #[error("{0} is no number of minutes: use a whole number from 1 to 1440")]
    Minutes(String),
    /// Too long a list.
    #[error("`categories` has {0} entries: use at most 64, or leave it out for all categories")]
    Categories(usize),
}

/// Length of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Value", into = "u16")]
struct Minutes(u16);

/// As long as a person is ready to wait who asked for a window and named no length.
const WINDOW: Minutes = Minutes(15);

/// From any value, so that the error says what is right whatever it is.
impl TryFrom<serde_json::Value> for Minutes {
    type Error = DigestError;

    fn try_from(value: serde_json::Value) -> Result<Self, DigestError> {
        value
            .as_u64()
            .and_then(|minutes| u16::try_from(minutes).ok())
            .filter(|minutes| (1..=WINDOW_MINUTES_MAX).contains(minutes))
            .map(Self)
            .ok_or_else(|| DigestError::Minutes(shown(&value.to_string())))
    }
}

impl From<Minutes> for u16 {
    fn from(minutes: Minutes) -> Self {
        minutes.0
    }
}

/// A digest as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    every: Option<Every>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<ClockTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minutes: Option<Minutes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    categories: Option<BTreeSet<Category>>,
}

/// Digest of a delivery channel. `at` counts for daily ones and `minutes` for windows; both are kept for when the user
/// changes between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Object<Document>", into = "Document")]
pub(crate) struct Digest {
    every: Every,
    at: Option<ClockTime>,
    minutes: Option<Minutes>,
    /// What is gathered; everything when not given.
    categories: Option<BTreeSet<Category>>,
}

impl TryFrom<Object<Document>> for Digest {
    type Error = DigestError;

    fn try_from(Object(document): Object<Document>) -> Result<Self, DigestError> {
        let Document { every, at, minutes, categories } = document;
        let listed = categories.as_ref().map_or(0, BTreeSet::len);
        if listed > CATEGORIES_MAX {
            return Err(DigestError::Categories(listed));
        }
        Ok(Self { every: every.ok_or(DigestError::EveryMissing)?, at, minutes, categories })
    }
}

impl From<Digest> for Document {
    fn from(digest: Digest) -> Self {
        let Digest { every, at, minutes, categories } = digest;
        Self { every: Some(every), at, minutes, categories }
    }
}

impl Digest {
    /// Whether notifications of a category are gathered.
    pub(super) fn gathers(&self, category: &Category) -> bool {
        self.categories.as_ref().is_none_or(|gathered| gathered.contains(category))
    }

    /// When a digest is due that an item of `now` goes into, always later than `now`; `None` at the ends of the
    /// calendar.
    pub(super) fn due(&self, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
        match self.every {
            Every::Hourly => next_full_hour(zone, now),
            Every::Daily => next_daily(zone, now, self.at.unwrap_or(DAILY_AT)),
            Every::Window => {
                let minutes = i64::from(self.minutes.unwrap_or(WINDOW).0);
                now.checked_add(SignedDuration::from_mins(minutes)).ok()
            }
        }
    }

    /// Name of the digest that is due then.
    pub(super) fn key(&self, channel: DeliveryChannel, due_ms: i64) -> DigestKey {
        match self.every {
            Every::Hourly | Every::Daily => DigestKey::Due { channel, due_ms },
            Every::Window => DigestKey::Window { channel },
        }
    }
}

/// Which digest of a user an item goes into. The text of it is a name for stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DigestKey {
    /// The one that is due then; items that are due at the same instant are sent together.
    Due {
        /// What it is sent on.
        channel: DeliveryChannel,
        /// When it is sent.
        due_ms: i64,
    },
    /// The one whose window is open. The first item opens it and its `due_ms` stands; later ones go in as long as it
    /// has not been sent.
    Window {
        /// What it is sent on.
        channel: DeliveryChannel,
    },
}

impl fmt::Display for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Due { channel, due_ms } => write!(f, "{channel}:{due_ms}"),
            Self::Window { channel } => write!(f, "{channel}:window"),
        }
    }
}

/// The next instant at which the clock shows a full hour, or is set to one or over one.
fn next_full_hour(zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
    let mut awaited: Option<DateTime> = None;
    for stretch in stretches(zone, now) {
        let wall = stretch.wall();
        let hour = wall.date().at(wall.hour(), 0, 0, 0);
        if awaited.is_some_and(|awaited| wall == hour || wall >= awaited) {
            return Some(stretch.start);
        }
        let next = hour.checked_add(1.hour()).ok()?;
        if let Some(due) = stretch.reach(next) {
            return Some(due);
        }
        awaited = Some(next);
    }
    None
}

/// Each date has one digest, when the clock first shows `at` of it or later. A time that comes twice is thus used
/// once, and one that is left out is made up for when the clock is set.
fn next_daily(zone: &TimeZone, now: Timestamp, at: ClockTime) -> Option<Timestamp> {
    let today = zone.to_datetime(now).date();
    // Clocks that were set back over midnight show a date whose end has been reached before.
    (0..=3).find_map(|days| {
        let due = first_at(zone, at.on(today.checked_add(days.days()).ok()?))?;
        (due > now).then_some(due)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::super::clock::Zone;
    use super::*;

    fn read(document: Value) -> Result<Digest, String> {
        serde_json::from_value(document).map_err(|error| error.to_string())
    }

    fn check_due(document: Value, zone: &str, cases: &[(&str, &str)]) {
        let digest = read(document).unwrap();
        let zone: Zone = zone.parse().unwrap();
        let zone = zone.time_zone();
        for (now, expected) in cases {
            let due = digest.due(zone, now.parse().unwrap()).unwrap();
            let shown = due.display_with_offset(zone.to_offset(due)).to_string();
            assert_eq!(&shown, expected, "at {now}");
        }
    }

    #[test]
    fn hourly_is_at_full_hours_of_local_time() {
        let hourly = json!({"every": "hourly", "at": "09:30", "minutes": 5});
        check_due(
            hourly.clone(),
            "Asia/Kathmandu",
            &[
                ("2026-01-14T08:00:00.001+05:45", "2026-01-14T09:00:00+05:45"),
                ("2026-01-14T08:59:59.999+05:45", "2026-01-14T09:00:00+05:45"),
                ("2026-01-14T23:00+05:45", "2026-01-15T00:00:00+05:45"),
            ],
        );
        check_due(
            hourly.clone(),
            "Europe/Berlin",
            &[
                ("2026-03-29T01:30+01", "2026-03-29T03:00:00+02:00"),
                ("2026-10-25T02:30+02", "2026-10-25T02:00:00+01:00"),
                ("2026-10-25T02:30+01", "2026-10-25T03:00:00+01:00"),
            ],
        );
        check_due(
            hourly,
            "Australia/Lord_Howe",
            &[
                ("2026-10-04T01:45+10:30", "2026-10-04T02:30:00+11:00"),
                ("2026-10-04T02:30+11", "2026-10-04T03:00:00+11:00"),
                ("2026-04-05T01:45+11", "2026-04-05T02:00:00+10:30"),
            ],
        );
    }

    #[test]
    fn daily_is_once_on_every_date() {
        check_due(
            json!({"every": "daily"}),
            "Europe/Berlin",
            &[
                ("2026-01-14T07:59+01", "2026-01-14T08:00:00+01:00"),
                ("2026-01-14T08:00+01", "2026-01-15T08:00:00+01:00"),
                ("2026-03-28T12:00+01", "2026-03-29T08:00:00+02:00"),
            ],
        );
        check_due(
            json!({"every": "daily", "at": "02:30"}),
            "Europe/Berlin",
            &[
                ("2026-03-28T12:00+01", "2026-03-29T03:00:00+02:00"),
                ("2026-03-29T03:00+02", "2026-03-30T02:30:00+02:00"),
                ("2026-10-25T02:00+02", "2026-10-25T02:30:00+02:00"),
                ("2026-10-25T02:30+02", "2026-10-26T02:30:00+01:00"),
                ("2026-10-25T02:00+01", "2026-10-26T02:30:00+01:00"),
            ],
        );
        // One minute after midnight the clock was set back by an hour.
        check_due(
            json!({"every": "daily", "at": "00:00"}),
            "America/St_Johns",
            &[
                ("2010-11-06T23:30-02:30", "2010-11-07T00:00:00-02:30"),
                ("2010-11-06T23:30-03:30", "2010-11-08T00:00:00-03:30"),
            ],
        );
    }

    #[test]
    fn a_window_opens_with_an_item() {
        check_due(
            json!({"every": "window", "minutes": 90, "at": "08:00"}),
            "Europe/Berlin",
            &[("2026-03-29T01:30+01", "2026-03-29T04:00:00+02:00")],
        );
        check_due(
            json!({"every": "window"}),
            "UTC",
            &[("2026-01-14T08:00:01.500Z", "2026-01-14T08:15:01.5+00:00")],
        );
    }

    #[test]
    fn keys_are_the_same_for_what_is_sent_together() {
        let email = DeliveryChannel::Email;
        let key = |every: &str, due_ms| {
            read(json!({"every": every})).unwrap().key(email, due_ms).to_string()
        };
        assert_eq!(key("hourly", 1_000), "email:1000");
        assert_eq!(key("daily", 1_000), "email:1000");
        assert_eq!(key("window", 1_000), "email:window");
        assert_eq!(key("window", 1_000), key("window", 2_000));
    }

    #[test]
    fn what_is_gathered() {
        let all = read(json!({"every": "hourly"})).unwrap();
        let some = read(json!({"every": "hourly", "categories": ["marketing"]})).unwrap();
        let none = read(json!({"every": "hourly", "categories": []})).unwrap();
        let gathers = |name: &str| {
            let category = name.parse().unwrap();
            [&all, &some, &none].map(|digest| digest.gathers(&category))
        };
        assert_eq!(gathers("marketing"), [true, true, false]);
        assert_eq!(gathers("security"), [true, false, false]);
    }

    #[test]
    fn what_is_refused() {
        let check = |document: Value, expected: &str| {
            let error = read(document.clone()).unwrap_err();
            assert!(error.contains(expected), "{document}: {error}");
        };
        check(json!({"at": "08:00"}), "`every` is missing: set it to hourly, daily or window");
        check(json!(["hourly"]), "expected an object");
        check(json!({"every": "weekly"}), "expected one of `hourly`, `daily`, `window`");
        for minutes in
            [json!(0), json!(1_441), json!(65_537), json!(-1), json!(1.5), json!("15"), json!([])]
        {
            let expected = format!("{minutes} is no number of minutes: use a whole number from 1");
            check(json!({"every": "window", "minutes": minutes}), &expected);
        }
        let categories: Vec<String> = (0..=CATEGORIES_MAX).map(|n| format!("c{n}")).collect();
        check(json!({"every": "hourly", "categories": categories}), "65 entries: use at most 64");
        let categories = &categories[1..];
        assert!(read(json!({"every": "hourly", "categories": categories})).is_ok());
        assert!(read(json!({"every": "window", "minutes": 1})).is_ok());
        assert!(read(json!({"every": "window", "minutes": 1_440})).is_ok());
    }
}
