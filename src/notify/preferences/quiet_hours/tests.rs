//! Periods of quiet hours by the calendar: days, whole days, and clocks that are set.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn read(document: Value) -> Result<QuietHours, String> {
    serde_json::from_value(document).map_err(|error| error.to_string())
}

/// Instant at which it is no longer quiet, as local time with offset; empty when it is not quiet at `now`.
fn check_until(quiet_hours: &Value, cases: &[(&str, &str)]) {
    let quiet_hours = read(quiet_hours.clone()).unwrap();
    let zone = quiet_hours.zone().unwrap().time_zone();
    let quiet = Quiet::of([Some(&quiet_hours), None], zone, DeliveryChannel::Email).unwrap();
    for (now, expected) in cases {
        let until = quiet.until(now.parse().unwrap());
        let shown = until
            .map(|until| until.display_with_offset(zone.to_offset(until)).to_string())
            .unwrap_or_default();
        assert_eq!(&shown, expected, "at {now}");
    }
}

#[test]
fn a_night_is_a_period_of_its_own() {
    let berlin = json!({"from": "22:00", "to": "07:00", "time_zone": "Europe/Berlin"});
    check_until(
        &berlin,
        &[
            ("2026-01-14T21:59:59.999+01", ""),
            ("2026-01-14T22:00+01", "2026-01-15T07:00:00+01:00"),
            ("2026-01-15T06:59:59.999+01", "2026-01-15T07:00:00+01:00"),
            ("2026-01-15T07:00+01", ""),
            ("2026-01-15T23:00+01", "2026-01-16T07:00:00+01:00"),
        ],
    );
}

#[test]
fn days_are_those_on_which_periods_begin() {
    // 2026-01-16 is a Friday.
    let days = ["fri"];
    let night = json!({"from": "22:00", "to": "07:00", "time_zone": "UTC", "days": days});
    check_until(
        &night,
        &[
            ("2026-01-16T06:00Z", ""),
            ("2026-01-16T22:00Z", "2026-01-17T07:00:00+00:00"),
            ("2026-01-17T06:59Z", "2026-01-17T07:00:00+00:00"),
            ("2026-01-17T22:00Z", ""),
        ],
    );
    let noon = json!({"from": "12:00", "to": "13:00", "time_zone": "UTC", "days": days});
    check_until(
        &noon,
        &[
            ("2026-01-15T12:30Z", ""),
            ("2026-01-16T12:00Z", "2026-01-16T13:00:00+00:00"),
            ("2026-01-16T13:00Z", ""),
        ],
    );
    let never = json!({"from": "12:00", "to": "13:00", "time_zone": "UTC", "days": []});
    check_until(&never, &[("2026-01-16T12:30Z", "")]);
}

#[test]
fn whole_days_that_adjoin_are_one_quiet_time() {
    // Saturday and Sunday, as a calendar has them.
    let weekend = json!({"from": "00:00", "to": "00:00", "time_zone": "UTC",
        "days": ["sat", "sun"]});
    check_until(
        &weekend,
        &[
            ("2026-01-16T23:59Z", ""),
            ("2026-01-17T00:00Z", "2026-01-19T00:00:00+00:00"),
            ("2026-01-18T00:00Z", "2026-01-19T00:00:00+00:00"),
            ("2026-01-19T00:00Z", ""),
        ],
    );
    // Six days of the week: the seventh begins at noon.
    let six = json!({"from": "12:00", "to": "12:00", "time_zone": "UTC",
        "days": ["mon", "tue", "wed", "thu", "fri", "sun"]});
    check_until(
        &six,
        &[
            ("2026-01-17T11:59Z", "2026-01-17T12:00:00+00:00"),
            ("2026-01-17T12:00Z", ""),
            ("2026-01-18T12:00Z", "2026-01-24T12:00:00+00:00"),
        ],
    );
}

#[test]
fn clocks_that_are_set_forward() {
    // 02:00 becomes 03:00.
    let ends_inside = json!({"from": "22:00", "to": "02:30", "time_zone": "Europe/Berlin"});
    check_until(&ends_inside, &[("2026-03-29T01:00+01", "2026-03-29T03:00:00+02:00")]);
    let begins_inside = json!({"from": "02:30", "to": "07:00", "time_zone": "Europe/Berlin"});
    check_until(
        &begins_inside,
        &[("2026-03-29T01:59:59.999+01", ""), ("2026-03-29T03:00+02", "2026-03-29T07:00:00+02:00")],
    );
    let all_inside = json!({"from": "02:10", "to": "02:50", "time_zone": "Europe/Berlin"});
    check_until(&all_inside, &[("2026-03-29T01:59+01", ""), ("2026-03-29T03:00+02", "")]);
    // The only hour that is not quiet is left out, and with it the end of that night.
    let all_but_that = json!({"from": "03:00", "to": "02:00", "time_zone": "Europe/Berlin"});
    check_until(
        &all_but_that,
        &[
            ("2026-03-28T01:00+01", "2026-03-28T02:00:00+01:00"),
            ("2026-03-28T12:00+01", "2026-03-30T02:00:00+02:00"),
        ],
    );
}

#[test]
fn clocks_that_are_set_back() {
    // 03:00 becomes 02:00.
    let ends_inside = json!({"from": "22:00", "to": "02:30", "time_zone": "Europe/Berlin"});
    check_until(
        &ends_inside,
        &[
            ("2026-10-25T01:00+02", "2026-10-25T02:30:00+02:00"),
            ("2026-10-25T02:30+02", ""),
            ("2026-10-25T02:00+01", "2026-10-25T02:30:00+01:00"),
            ("2026-10-25T02:30+01", ""),
        ],
    );
    let ends_with_it = json!({"from": "22:00", "to": "03:00", "time_zone": "Europe/Berlin"});
    check_until(&ends_with_it, &[("2026-10-25T01:00+02", "2026-10-25T03:00:00+01:00")]);
    let begins_inside = json!({"from": "02:30", "to": "07:00", "time_zone": "Europe/Berlin"});
    check_until(
        &begins_inside,
        &[
            ("2026-10-25T02:29+02", ""),
            // Not at 07:00: the clock shows 02:00 again, which is before the period.
            ("2026-10-25T02:30+02", "2026-10-25T02:00:00+01:00"),
            ("2026-10-25T02:30+01", "2026-10-25T07:00:00+01:00"),
        ],
    );
}

#[test]
fn clocks_that_are_set_by_half_an_hour_or_a_day() {
    // On 2026-04-05 02:00 becomes 01:30, on 2026-10-04 it becomes 02:30.
    let night = json!({"from": "22:00", "to": "02:15", "time_zone": "Australia/Lord_Howe"});
    check_until(
        &night,
        &[
            ("2026-04-05T01:00+11", "2026-04-05T02:15:00+10:30"),
            ("2026-10-04T01:00+10:30", "2026-10-04T02:30:00+11:00"),
        ],
    );
    // Friday 2011-12-30 was left out.
    let apia = |days: &[&str]| json!({"from": "22:00", "to": "07:00", "time_zone": "Pacific/Apia", "days": days});
    let thursday = [("2011-12-29T23:00-10", "2011-12-31T00:00:00+14:00")];
    check_until(&apia(&["thu"]), &thursday);
    let both = [("2011-12-29T23:00-10", "2011-12-31T07:00:00+14:00")];
    check_until(&apia(&["thu", "fri"]), &both);
    let whole = json!({"from": "00:00", "to": "00:00", "time_zone": "Pacific/Apia",
        "days": ["thu", "sat"]});
    check_until(&whole, &[("2011-12-29T12:00-10", "2012-01-01T00:00:00+14:00")]);
}

#[test]
fn the_ends_of_the_calendar_are_times_as_others() {
    let night = read(json!({"from": "22:00", "to": "07:00"})).unwrap();
    let zone = TimeZone::UTC;
    let quiet = Quiet::of([Some(&night), None], &zone, DeliveryChannel::Email).unwrap();
    assert_eq!(quiet.until(Timestamp::MAX), None, "the end of it is in no calendar");
    let until = quiet.until(Timestamp::MIN).unwrap();
    assert_eq!(until.to_string(), "-009999-01-02T07:00:00Z");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let check = |document: Value, expected: &str| {
        let error = read(document.clone()).unwrap_err();
        assert!(error.contains(expected), "{document}: {error}");
    };
    check(json!({"from": "22:00"}), "`from` stands alone: give `from` and `to`, or neither");
    check(json!({"to": "22:00"}), "`to` stands alone");
    check(json!({"days": ["mon"]}), "`days` stands alone");
    let endless = "both 08:00 on all days, which never ends: make them differ";
    check(json!({"from": "08:00", "to": "08:00"}), endless);
    check(json!({"from": "08:00", "to": "08:00", "days": Day::ALL}), endless);
    check(json!({"enabled": false, "from": "08:00", "to": "08:00"}), endless);
    check(json!([true, "22:00", "07:00"]), "expected an object");
    check(json!({"until": "08:00"}), "unknown field `until`, expected one of");
    check(json!({"from": "22:00", "to": "07:00", "days": ["monday"]}), "`monday`");
}

#[test]
fn what_the_user_does_not_say_the_defaults_say() {
    let document = |document: Value| read(document).unwrap();
    let check = |user: &QuietHours, defaults: &QuietHours, expected: Option<&str>| {
        let layers = [Some(user), Some(defaults)];
        let until = Quiet::of(layers, &TimeZone::UTC, DeliveryChannel::Email)
            .and_then(|quiet| quiet.until("2026-01-16T23:00Z".parse().unwrap()));
        assert_eq!(until, expected.map(|text| text.parse().unwrap()), "{user:?}");
    };
    let none = QuietHours::default();
    let night = document(json!({"from": "22:00", "to": "07:00"}));
    let offered = document(json!({"enabled": false, "from": "22:00", "to": "07:00"}));
    let (seven, eight) = (Some("2026-01-17T07:00Z"), Some("2026-01-17T08:00Z"));
    check(&none, &none, None);
    check(&night, &none, seven);
    check(&none, &night, seven);
    check(&none, &offered, None);
    check(&document(json!({"enabled": false})), &night, None);
    check(&document(json!({"enabled": true})), &offered, seven);
    check(&document(json!({"enabled": true})), &none, None);
    check(&document(json!({"from": "20:00", "to": "08:00"})), &offered, eight);
    check(&document(json!({"channels": ["sms"]})), &night, None);
    check(&document(json!({"channels": ["email"]})), &night, seven);
    // The days of the defaults belong to their period.
    let fridays = document(json!({"from": "20:00", "to": "21:00", "days": ["mon"]}));
    check(&document(json!({"from": "20:00", "to": "08:00"})), &fridays, eight);
}
