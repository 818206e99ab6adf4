//! Quiet hours: when a person is left alone, and until when what comes up in between is held.
//!
//! It is quiet when the clock of the user shows a time inside a period. A period begins at `from` on each of the days
//! and ends at the next `to`; when the two are equal it is a whole day. What the clock shows decides, so that when it
//! is set back over the end of a period the end comes twice, and when it is set forward over the end the period ends
//! at that instant. Where one period ends as another begins, as whole days of neighbouring days do, it stays quiet.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::civil::{DateTime, Weekday};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::DeliveryChannel;
use super::clock::{ClockTime, Zone, stretches};
use super::object::Object;

/// Day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Day {
    /// The whole week.
    pub(crate) const ALL: [Self; 7] =
        [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];

    fn of(weekday: Weekday) -> Self {
        match weekday {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

/// Members of quiet hours that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuietHoursError {
    /// Half a period.
    #[error("`{given}` stands alone: give `from` and `to`, or neither")]
    Half {
        /// The one there is.
        given: &'static str,
    },
    /// Days without a period.
    #[error("`days` stands alone: give `from` and `to` with it, or leave it out")]
    DaysAlone,
    /// Nothing held would ever be sent.
    #[error(
        "`from` and `to` are both {at} on all days, which never ends: make them differ, leave a day out of `days`, \
         or refuse a delivery channel with `channels` of the document"
    )]
    Endless {
        /// Both of them.
        at: ClockTime,
    },
}

/// The member `quiet_hours` as it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<ClockTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<ClockTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_zone: Option<Zone>,
    #[serde(skip_serializing_if = "Option::is_none")]
    days: Option<BTreeSet<Day>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<BTreeSet<DeliveryChannel>>,
}

/// What a document says of quiet hours. Each answer that it does not give is left to the defaults; `from`, `to` and
/// `days` are one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Object<Document>", into = "Document")]
pub(crate) struct QuietHours {
    enabled: Option<bool>,
    window: Option<Window>,
    time_zone: Option<Zone>,
    channels: Option<BTreeSet<DeliveryChannel>>,
}

impl TryFrom<Object<Document>> for QuietHours {
    type Error = QuietHoursError;

    fn try_from(Object(document): Object<Document>) -> Result<Self, QuietHoursError> {
        let Document { enabled, from, to, time_zone, days, channels } = document;
        let window = match (from, to) {
            (Some(from), Some(to)) => Some(Window::new(from, to, days)?),
            (Some(_), None) => return Err(QuietHoursError::Half { given: "from" }),
            (None, Some(_)) => return Err(QuietHoursError::Half { given: "to" }),
            (None, None) if days.is_some() => return Err(QuietHoursError::DaysAlone),
            (None, None) => None,
        };
        Ok(Self { enabled, window, time_zone, channels })
    }
}

impl From<QuietHours> for Document {
    fn from(quiet_hours: QuietHours) -> Self {
        let QuietHours { enabled, window, time_zone, channels } = quiet_hours;
        let (from, to) = window.as_ref().map(|window| (window.from, window.to)).unzip();
        Self { enabled, from, to, time_zone, days: window.and_then(|window| window.days), channels }
    }
}

impl QuietHours {
    /// The time zone of the document.
    pub(super) fn zone(&self) -> Option<&Zone> {
        self.time_zone.as_ref()
    }

    /// Whether they are on. A period is written to be kept, so it need not be switched on.
    fn switch(&self) -> Option<bool> {
        self.enabled.or(self.window.as_ref().map(|_| true))
    }
}

/// Periods of a week; there is always an end to them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    from: ClockTime,
    to: ClockTime,
    /// On which a period begins; all when not given.
    days: Option<BTreeSet<Day>>,
}

impl Window {
    fn new(
        from: ClockTime,
        to: ClockTime,
        days: Option<BTreeSet<Day>>,
    ) -> Result<Self, QuietHoursError> {
        let window = Self { from, to, days };
        if from == to && Day::ALL.into_iter().all(|day| window.begins_on(day)) {
            return Err(QuietHoursError::Endless { at: from });
        }
        Ok(window)
    }

    fn begins_on(&self, day: Day) -> bool {
        self.days.as_ref().is_none_or(|days| days.contains(&day))
    }

    /// End of the period that `wall` is in.
    fn end_around(&self, wall: DateTime) -> Option<DateTime> {
        let today = wall.date();
        [today.yesterday().ok()?, today].into_iter().find_map(|date| {
            let last = if self.from < self.to { date } else { date.tomorrow().ok()? };
            let (start, end) = (self.from.on(date), self.to.on(last));
            let inside = start <= wall && wall < end && self.begins_on(Day::of(date.weekday()));
            inside.then_some(end)
        })
    }

    /// First local time from `wall` on that is in no period, by a clock that nobody sets.
    fn open_from(&self, wall: DateTime) -> DateTime {
        // A day of the week is without whole days, so fewer than a week of them adjoin.
        std::iter::successors(Some(wall), |wall| self.end_around(*wall))
            .take(Day::ALL.len() + 1)
            .last()
            .unwrap_or(wall)
    }
}

/// The quiet hours of one user on one delivery channel, with the defaults where the user said nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet<'a> {
    window: &'a Window,
    zone: &'a TimeZone,
}

impl<'a> Quiet<'a> {
    /// `None` when the delivery channel is not held at any time. `layers` is the user before the defaults.
    pub(super) fn of(
        layers: [Option<&'a QuietHours>; 2],
        zone: &'a TimeZone,
        channel: DeliveryChannel,
    ) -> Option<Self> {
        let layers = layers.into_iter().flatten();
        let on = layers.clone().find_map(QuietHours::switch).unwrap_or(false);
        let channels = layers.clone().find_map(|layer| layer.channels.as_ref());
        let window = layers.into_iter().find_map(|layer| layer.window.as_ref())?;
        (on && channels.is_none_or(|held| held.contains(&channel))).then_some(Self { window, zone })
    }

    /// When it is quiet at `now`: the first instant at which it no longer is.
    pub(super) fn until(self, now: Timestamp) -> Option<Timestamp> {
        let end = stretches(self.zone, now)
            .find_map(|stretch| stretch.reach(self.window.open_from(stretch.wall())))?;
        (end > now).then_some(end)
    }
}
