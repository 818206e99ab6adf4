//! Decisions against an oracle that knows nothing of how they are made.
//!
//! The oracle reads the local time of each minute from another tz database (`chrono-tz`) and looks for what is asked
//! minute by minute. The two databases are of different releases; [`DIFFERENT`] lists where they do not agree, a test
//! finds any other difference, and the properties leave those zones and years out.
#![allow(clippy::unwrap_used)]

use std::ops::Range;

use chrono::{DateTime, Datelike, NaiveDate, Offset, TimeZone as _, Timelike};
use chrono_tz::{TZ_VARIANTS, Tz};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use super::*;

const MINUTE_MS: i64 = 60_000;
const DAY: i64 = 24 * 60;

/// Longest that anything can be held, two weeks of whole days around a date that was left out, and a day more.
const MARGIN: i64 = 15 * DAY;

/// Years that are tested: those with all three kinds of change, and no rules of a future that has not come.
const YEARS: Range<i32> = 2008..2027;

/// Zones and the years in which 2025b (`chrono-tz`) and 2026f (`jiff`) do not agree: the change of Moldova is at
/// another hour of the night, and in 2026 the rules of Morocco, of parts of Canada and of Cuba were changed.
const DIFFERENT: [(&[&str], Range<i32>); 2] = [
    (&["Europe/Chisinau", "Europe/Tiraspol"], 2022..2027),
    (
        &[
            "Africa/Casablanca",
            "Africa/El_Aaiun",
            "America/Edmonton",
            "America/Havana",
            "America/Inuvik",
            "America/Rainy_River",
            "America/Vancouver",
            "America/Winnipeg",
            "America/Yellowknife",
            "Canada/Central",
            "Canada/Mountain",
            "Canada/Pacific",
            "Cuba",
        ],
        2026..2027,
    ),
];

/// Whether the databases are known to differ in a year, or in the weeks around it that a test looks at.
fn is_different(zone: Tz, year: i32) -> bool {
    DIFFERENT.iter().any(|(names, years)| {
        names.contains(&zone.name()) && (years.start - 1..=years.end).contains(&year)
    })
}

/// First minute of a year in UTC, in minutes since 1970.
fn new_year(year: i32) -> i64 {
    let date = NaiveDate::from_ymd_opt(year, 1, 1).unwrap();
    date.and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp() / 60
}

fn offset_s(zone: Tz, second: i64) -> i32 {
    let utc = DateTime::from_timestamp(second, 0).unwrap().naive_utc();
    zone.offset_from_utc_datetime(&utc).fix().local_minus_utc()
}

#[test]
fn the_databases_differ_only_where_it_is_known() {
    for tz in TZ_VARIANTS {
        let zone: Zone = tz.name().parse().unwrap();
        assert_eq!(zone.as_str(), tz.name());
        for year in YEARS.filter(|year| !is_different(tz, *year)) {
            let (start, end) = (new_year(year) * 60, new_year(year + 1) * 60);
            let from = jiff::Timestamp::from_second(start).unwrap();
            let sets = zone.time_zone().following(from).map(|set| set.timestamp().as_second());
            let around = sets.take_while(|at| *at < end).flat_map(|at| [at - 1, at]);
            let daily = (start..end).step_by(24 * 3_600);
            for second in around.chain(daily) {
                let instant = jiff::Timestamp::from_second(second).unwrap();
                let offset = zone.time_zone().to_offset(instant).seconds();
                assert_eq!(offset, offset_s(tz, second), "{tz} at {instant}");
            }
        }
    }
}

/// What a clock shows at a minute.
struct Shown {
    /// Local time in minutes since 1970 by the calendar of the zone.
    wall: i64,
    /// Day of the week, Monday being 0.
    weekday: u8,
    /// Minute of the day.
    minute: i64,
}

/// What the clocks of a zone show, minute by minute.
struct Clock {
    minutes: Range<i64>,
    shown: Vec<Shown>,
}

impl Clock {
    fn scan(zone: Tz, minutes: Range<i64>) -> Self {
        let show = |minute: i64| {
            let utc = DateTime::from_timestamp(minute * 60, 0).unwrap();
            let local = utc.with_timezone(&zone).naive_local();
            assert_eq!(local.second(), 0, "whole minutes");
            Shown {
                wall: local.and_utc().timestamp().div_euclid(60),
                weekday: local.weekday().num_days_from_monday() as u8,
                minute: i64::from(local.hour() * 60 + local.minute()),
            }
        };
        Self { minutes: minutes.clone(), shown: minutes.map(show).collect() }
    }

    /// Place of a minute.
    fn index(&self, minute: i64) -> usize {
        (minute - self.minutes.start) as usize
    }

    /// For each minute the first one from it on that is not quiet; itself when it is not.
    fn open_from(&self, quiet: &Setting) -> Vec<i64> {
        let mut open = vec![i64::MAX; self.shown.len()];
        let (mut now, mut next) = (self.minutes.end, i64::MAX);
        for (open, shown) in open.iter_mut().zip(&self.shown).rev() {
            now -= 1;
            if !quiet.is_quiet(shown) {
                next = now;
            }
            *open = next;
        }
        open
    }

    /// Each minute but the first, after what the clock showed before it and what it shows.
    fn steps(&self) -> impl Iterator<Item = (i64, i64, i64)> {
        let pairs = self.shown.windows(2).zip(self.minutes.start + 1..);
        pairs.map(|(pair, minute)| (pair[0].wall, pair[1].wall, minute))
    }

    /// Minutes at which the clock was set.
    fn sets(&self) -> impl Iterator<Item = i64> {
        self.steps().filter(|(before, wall, _)| *wall != before + 1).map(|(.., minute)| minute)
    }

    /// Minutes at which the clock shows a full hour, or was set from one hour to a later one.
    fn full_hours(&self) -> Vec<i64> {
        let hour = |wall: i64| wall.div_euclid(60);
        self.steps()
            .filter(|(before, wall, _)| wall % 60 == 0 || hour(*wall) > hour(*before))
            .map(|(.., minute)| minute)
            .collect()
    }

    /// Minutes at which the latest time that was ever shown passes `at` of a date.
    fn firsts_of_a_date(&self, at: i64) -> Vec<i64> {
        let date = |wall: i64| (wall - at).div_euclid(DAY);
        let mut latest = self.shown[0].wall;
        let mut passes = |wall: i64| {
            let before = latest;
            latest = latest.max(wall);
            date(latest) > date(before)
        };
        self.steps().filter(|(_, wall, _)| passes(*wall)).map(|(.., minute)| minute).collect()
    }
}

/// Quiet hours of one test case.
#[derive(Clone, Debug)]
struct Setting {
    from: i64,
    to: i64,
    /// By day of the week, Monday being 0.
    days: [bool; 7],
}

impl Setting {
    fn is_quiet(&self, shown: &Shown) -> bool {
        let Shown { weekday, minute, .. } = *shown;
        let today = self.days[usize::from(weekday)];
        if self.from < self.to {
            return today && self.from <= minute && minute < self.to;
        }
        let yesterday = self.days[usize::from((weekday + 6) % 7)];
        (today && minute >= self.from) || (yesterday && minute < self.to)
    }

    fn document(&self, zone: Tz, digest: &Value) -> Preferences {
        let text = |minute: i64| format!("{:02}:{:02}", minute / 60, minute % 60);
        let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let days = names.iter().zip(self.days).filter_map(|(name, on)| on.then_some(name));
        let document = json!({
            "channels": {"email": true},
            "quiet_hours": {"from": text(self.from), "to": text(self.to),
                "days": days.collect::<Vec<_>>(), "time_zone": zone.name()},
            "digest": digest,
        });
        Preferences::from_value(&document).unwrap()
    }
}

prop_compose! {
    /// Any quiet hours; those of every day and of whole days are as common as others.
    fn settings()(
        from in 0..DAY,
        other in 0..DAY,
        whole in proptest::bool::weighted(0.15),
        every in proptest::bool::weighted(0.3),
        days: [bool; 7],
        left_out in 0..7usize,
    ) -> Setting {
        let to = if whole { from } else { other };
        let mut days = if every { [true; 7] } else { days };
        if from == to {
            days[left_out] = false;
        }
        Setting { from, to, days }
    }
}

/// A zone and a year in which the databases agree.
fn places() -> impl Strategy<Value = (Tz, i32)> {
    (select(&TZ_VARIANTS[..]), YEARS)
        .prop_filter("the databases differ", |(zone, year)| !is_different(*zone, *year))
}

/// A few weeks of one zone, most of them around a minute at which its clocks are set; the minutes to ask about.
#[derive(Debug)]
struct Weeks {
    zone: Tz,
    asked: Range<i64>,
    set: Option<i64>,
}

impl Weeks {
    /// `day` and `which` choose among the days and the changes of the year.
    fn choose(zone: Tz, year: i32, day: i64, which: Index) -> Self {
        let offset = |day: i64| offset_s(zone, (new_year(year) + day * DAY) * 60);
        let days: Vec<i64> = (0..365).filter(|day| offset(*day) != offset(day + 1)).collect();
        let day = if days.is_empty() { day } else { days[which.index(days.len())] };
        let first = new_year(year) + (day - 3) * DAY;
        let asked = first..first + 6 * DAY;
        let set = Clock::scan(zone, asked.clone()).sets().next();
        Self { zone, asked, set }
    }

    fn scan(&self) -> Clock {
        // Earlier minutes too, for what has been shown before.
        Clock::scan(self.zone, self.asked.start - 3 * DAY..self.asked.end + MARGIN)
    }

    /// Sets the ends of quiet hours near the local times that are left out or come twice.
    fn attract(&self, setting: &mut Setting, near: [i64; 2]) {
        let Some(set) = self.set else { return };
        let local = set + i64::from(offset_s(self.zone, (set - 1) * 60) / 60);
        setting.from = (local + near[0]).rem_euclid(DAY);
        if near[1] != near[0] {
            setting.to = (local + near[1]).rem_euclid(DAY);
        }
        if setting.from == setting.to {
            setting.days[0] = false;
        }
    }
}

fn mail(user: &Preferences, priority: Priority, now_ms: i64) -> Decision {
    let category: Category = "marketing".parse().unwrap();
    let what = Delivery { category: &category, channel: DeliveryChannel::Email, priority };
    decide(user, &Preferences::default(), what, now_ms)
}

/// Compares the decision at an instant inside of a minute; `open` is of [`Clock::open_from`].
fn check_hold(
    user: &Preferences,
    clock: &Clock,
    open: &[i64],
    now_ms: i64,
) -> Result<(), TestCaseError> {
    let minute = now_ms.div_euclid(MINUTE_MS);
    let until = open[clock.index(minute)];
    prop_assert_ne!(until, i64::MAX, "it ends inside of the margin");
    let expected = if until == minute {
        Decision::Send
    } else {
        Decision::Hold { until_ms: until * MINUTE_MS }
    };
    prop_assert_eq!(mail(user, Priority::High, now_ms), expected, "at {}", now_ms);
    prop_assert_eq!(mail(user, Priority::Critical, now_ms), Decision::Send);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Every border of a whole year, and instants between them.
    #[test]
    fn a_year_of_quiet_hours((zone, year) in places(),
        settings in proptest::collection::vec(settings(), 4), ms in 0..MINUTE_MS)
    {
        let asked = new_year(year)..new_year(year + 1);
        let clock = Clock::scan(zone, asked.start..asked.end + MARGIN);
        for setting in settings {
            let user = setting.document(zone, &json!(null));
            let open = clock.open_from(&setting);
            let is_quiet = |minute: i64| open[clock.index(minute)] != minute;
            let borders = (asked.start + 1..asked.end)
                .filter(|minute| is_quiet(*minute) != is_quiet(minute - 1));
            for minute in borders {
                check_hold(&user, &clock, &open, minute * MINUTE_MS - 1)?;
                check_hold(&user, &clock, &open, minute * MINUTE_MS)?;
            }
            for minute in asked.clone().step_by(67) {
                check_hold(&user, &clock, &open, minute * MINUTE_MS + ms)?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Quiet hours that begin or end when clocks are set.
    #[test]
    fn quiet_hours_where_clocks_are_set((zone, year) in places(), mut setting in settings(),
        day in 3..360i64, which: Index, near in [-150..150i64, -150..150i64],
        minutes in proptest::collection::vec(0..6 * DAY, 200), ms in 0..MINUTE_MS)
    {
        let weeks = Weeks::choose(zone, year, day, which);
        weeks.attract(&mut setting, near);
        let (clock, user) = (weeks.scan(), setting.document(zone, &json!(null)));
        let open = clock.open_from(&setting);
        let around = weeks.set.unwrap_or(weeks.asked.start + 3 * DAY);
        let minutes = minutes.into_iter().map(|minute| weeks.asked.start + minute);
        for minute in minutes.chain(around - 200..around + 200) {
            check_hold(&user, &clock, &open, minute * MINUTE_MS + ms)?;
        }
    }

    /// Digests, in quiet hours and out of them.
    #[test]
    fn digests_where_clocks_are_set((zone, year) in places(), mut setting in settings(),
        day in 3..360i64, which: Index, near in [-150..150i64, -150..150i64], at in -150..150i64,
        length in 1..=DAY, minutes in proptest::collection::vec(0..6 * DAY, 100),
        ms in 0..MINUTE_MS)
    {
        let weeks = Weeks::choose(zone, year, day, which);
        weeks.attract(&mut setting, near);
        let clock = weeks.scan();
        let open = clock.open_from(&setting);
        let around = weeks.set.unwrap_or(weeks.asked.start + 3 * DAY);
        let local = around + i64::from(offset_s(zone, (around - 1) * 60) / 60);
        let at = (local + at).rem_euclid(DAY);
        let rules = [
            (json!({"every": "hourly"}), clock.full_hours()),
            (json!({"every": "daily", "at": format!("{:02}:{:02}", at / 60, at % 60)}),
                clock.firsts_of_a_date(at)),
            (json!({"every": "window", "minutes": length}), Vec::new()),
        ];
        for (rule, dues) in rules {
            let user = setting.document(zone, &json!({"email": rule}));
            let asked = minutes.iter().map(|minute| weeks.asked.start + minute);
            for minute in asked.chain(around - 100..around + 100) {
                let now_ms = minute * MINUTE_MS + ms;
                let next = dues.get(dues.partition_point(|due| *due <= minute));
                let due_ms = next.map_or(now_ms + length * MINUTE_MS, |due| due * MINUTE_MS);
                let due = due_ms.div_euclid(MINUTE_MS);
                let end = open[clock.index(due)];
                let expected = if end == due { due_ms } else { end * MINUTE_MS };
                match mail(&user, Priority::Normal, now_ms) {
                    Decision::Digest { due_ms, .. } => prop_assert_eq!(due_ms, expected),
                    other => prop_assert!(false, "{:?}", other),
                }
                prop_assert_eq!(mail(&user, Priority::Critical, now_ms), Decision::Send);
            }
        }
    }

    /// Whatever else is set, and whenever.
    #[test]
    fn an_opt_out_always_drops(zone in select(&TZ_VARIANTS[..]), setting in settings(),
        priority in select(&Priority::ALL[..]), now_ms: i64, seconds in 0..4_000_000_000i64,
        every in select(&["hourly", "daily", "window"][..]))
    {
        let wanted = setting.document(zone, &json!({"email": {"every": every}}));
        let no = [
            json!({"channels": {"email": false}}),
            json!({"categories": {"marketing": {"email": false}}}),
        ];
        for user in no.map(|no| wanted.merge_patch(&no).unwrap()) {
            for now_ms in [now_ms, seconds * 1_000] {
                let decision = mail(&user, priority, now_ms);
                prop_assert!(matches!(decision, Decision::Drop(_)), "{:?}", decision);
                let decision = mail(&wanted, priority, now_ms);
                prop_assert!(!matches!(decision, Decision::Drop(_)), "{:?}", decision);
            }
        }
    }
}
