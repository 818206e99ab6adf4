//! What becomes of one notification on one delivery channel, by the preferences of the user and the defaults.
//!
//! An opt-out holds whatever else is set. After it a critical notification is sent, one that belongs into a digest
//! waits for that, and of the others those that come in quiet hours wait for the end of them. A digest is not sent in
//! quiet hours either: it comes due when they end.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::clock::Zone;
use super::digest::DigestKey;
use super::quiet_hours::Quiet;
use super::{Category, DeliveryChannel, Preferences, Priority};

/// For those who name no time zone.
static UTC: TimeZone = TimeZone::UTC;

/// A notification on its way to one delivery channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery<'a> {
    /// What it is about.
    pub category: &'a Category,
    /// Where it is to go.
    pub channel: DeliveryChannel,
    /// How urgent it is.
    pub priority: Priority,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It goes out now.
    Send,
    /// It goes out when quiet hours end.
    Hold {
        /// First instant that is not quiet.
        until_ms: i64,
    },
    /// It goes out with others.
    Digest {
        /// When the digest is sent; of an open window, what its first item was told.
        due_ms: i64,
        /// Which digest it goes into.
        key: DigestKey,
    },
    /// It does not go out.
    Drop(OptedOut),
}

/// Whose answer a notification was dropped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OptedOut {
    /// The user's, to the category.
    UserCategory,
    /// The user's, to the delivery channel.
    UserChannel,
    /// That of the defaults, to the category.
    DefaultCategory,
    /// That of the defaults, to the delivery channel.
    DefaultChannel,
    /// Nobody has an answer, and the delivery channel is one that has to be asked for.
    BuiltIn,
}

/// Whether a category does not go out on a delivery channel, and by whose answer. The first answer counts: of the user
/// to the category, of the user to the delivery channel, then of the defaults in the same order.
pub(crate) fn opted_out(
    user: &Preferences,
    defaults: &Preferences,
    category: &Category,
    channel: DeliveryChannel,
) -> Option<OptedOut> {
    let to_category = |preferences: &Preferences| {
        preferences.categories.get(category).and_then(|answers| answers.get(&channel)).copied()
    };
    let to_channel = |preferences: &Preferences| preferences.channels.get(&channel).copied();
    let answers = [
        (to_category(user), OptedOut::UserCategory),
        (to_channel(user), OptedOut::UserChannel),
        (to_category(defaults), OptedOut::DefaultCategory),
        (to_channel(defaults), OptedOut::DefaultChannel),
        (Some(channel == DeliveryChannel::InApp), OptedOut::BuiltIn),
    ];
    let (wanted, by) = answers.into_iter().find(|(answer, _)| answer.is_some())?;
    (wanted == Some(false)).then_some(by)
}

/// See the module's documentation. An instant outside of the calendar (years -9999 to 9999) is in no quiet hours.
pub(crate) fn decide(
    user: &Preferences,
    defaults: &Preferences,
    what: Delivery<'_>,
    now_ms: i64,
) -> Decision {
    let Delivery { category, channel, priority } = what;
    if let Some(by) = opted_out(user, defaults, category, channel) {
        return Decision::Drop(by);
    }
    let Ok(now) = Timestamp::from_millisecond(now_ms) else { return Decision::Send };
    if priority == Priority::Critical {
        return Decision::Send;
    }
    let zone = user.zone().or_else(|| defaults.zone()).map_or(&UTC, Zone::time_zone);
    let layers = [user.quiet_hours.as_ref(), defaults.quiet_hours.as_ref()];
    let quiet = Quiet::of(layers, zone, channel);
    let quiet_until = |instant| quiet.and_then(|quiet| quiet.until(instant));
    let digest = user.digest.get(&channel).or_else(|| defaults.digest.get(&channel));
    if let Some(digest) = digest.filter(|digest| digest.gathers(category))
        && let Some(due) = digest.due(zone, now)
    {
        let due_ms = quiet_until(due).unwrap_or(due).as_millisecond();
        return Decision::Digest { due_ms, key: digest.key(channel, due_ms) };
    }
    match quiet_until(now) {
        Some(until) => Decision::Hold { until_ms: until.as_millisecond() },
        None => Decision::Send,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ALL: [DeliveryChannel; 5] = DeliveryChannel::ALL;

    fn read(document: &Value) -> Preferences {
        Preferences::from_value(document).unwrap()
    }

    fn ms(instant: &str) -> i64 {
        instant.parse::<Timestamp>().unwrap().as_millisecond()
    }

    /// Decision on a mail about `marketing`.
    fn mail(user: &Preferences, defaults: &Preferences, priority: Priority, now: &str) -> Decision {
        let category = "marketing".parse().unwrap();
        let what = Delivery { category: &category, channel: DeliveryChannel::Email, priority };
        decide(user, defaults, what, ms(now))
    }

    /// Mail is wanted, quiet from 22:00 to 07:00 in Berlin.
    fn night(more: &Value) -> Preferences {
        let night = json!({"from": "22:00", "to": "07:00", "time_zone": "Europe/Berlin"});
        read(&json!({"channels": {"email": true}, "quiet_hours": night})).merge_patch(more).unwrap()
    }

    #[test]
    fn the_first_answer_counts() {
        let no = json!({"channels": {"in_app": false}});
        let yes = json!({"channels": {"in_app": true}});
        let category_no = json!({"categories": {"marketing": {"in_app": false}}});
        let category_yes = json!({"categories": {"marketing": {"in_app": true}}});
        let both = json!({"categories": {"marketing": {"in_app": true}},
            "channels": {"in_app": false}});
        let other =
            json!({"categories": {"marketing": {"email": false}, "system": {"in_app": false}}});
        let none = json!({});
        let cases = [
            (&none, &none, None),
            (&none, &no, Some(OptedOut::DefaultChannel)),
            (&none, &category_no, Some(OptedOut::DefaultCategory)),
            (&none, &both, None),
            (&yes, &no, None),
            (&yes, &category_no, None),
            (&no, &category_yes, Some(OptedOut::UserChannel)),
            (&category_yes, &category_no, None),
            (&category_no, &yes, Some(OptedOut::UserCategory)),
            (&both, &category_no, None),
            (&other, &none, None),
            (&other, &no, Some(OptedOut::DefaultChannel)),
        ];
        let category = "marketing".parse().unwrap();
        for (user, defaults, expected) in cases {
            let found = opted_out(&read(user), &read(defaults), &category, DeliveryChannel::InApp);
            assert_eq!(found, expected, "{user} before {defaults}");
        }
    }

    #[test]
    fn without_any_answer_only_in_app_goes_out() {
        let none = Preferences::default();
        let category = "security".parse().unwrap();
        let out = ALL.map(|channel| opted_out(&none, &none, &category, channel));
        let built_in = Some(OptedOut::BuiltIn);
        assert_eq!(out, [None, built_in, built_in, built_in, built_in]);
    }

    #[test]
    fn quiet_hours_hold_all_but_what_is_critical() {
        let (user, none) = (night(&json!({})), Preferences::default());
        let until_ms = ms("2026-01-15T07:00+01");
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            let decision = mail(&user, &none, priority, "2026-01-14T23:00+01");
            assert_eq!(decision, Decision::Hold { until_ms });
            let decision = mail(&user, &none, priority, "2026-01-15T07:00+01");
            assert_eq!(decision, Decision::Send);
        }
        let decision = mail(&user, &none, Priority::Critical, "2026-01-14T23:00+01");
        assert_eq!(decision, Decision::Send);
    }

    #[test]
    fn nothing_overrides_an_opt_out() {
        let no = night(&json!({
            "channels": {"email": false}, "digest": {"email": {"every": "hourly"}}
        }));
        let yes = night(&json!({"categories": {"marketing": {"email": true}}}));
        for priority in Priority::ALL {
            for now in ["2026-01-14T23:00+01", "2026-01-14T12:00+01"] {
                let decision = mail(&no, &yes, priority, now);
                assert_eq!(decision, Decision::Drop(OptedOut::UserChannel));
            }
        }
    }

    #[test]
    fn digests_gather_and_keep_quiet_hours() {
        let none = Preferences::default();
        let check = |digest: Value, now: &str, due: &str, key: &str| {
            let user = night(&json!({"digest": {"email": digest}}));
            let due_ms = ms(due);
            let decision = mail(&user, &none, Priority::High, now);
            let Decision::Digest { due_ms: found, key: found_key } = decision else {
                panic!("{now}: {decision:?}");
            };
            assert_eq!((found, found_key.to_string().as_str()), (due_ms, key), "{now}");
            assert_eq!(mail(&user, &none, Priority::Critical, now), Decision::Send);
        };
        let hourly = json!({"every": "hourly"});
        let morning = "email:1768456800000";
        check(hourly.clone(), "2026-01-14T12:01+01", "2026-01-14T13:00+01", "email:1768392000000");
        // All that comes due in one night goes out in one digest.
        for now in ["2026-01-14T21:30+01", "2026-01-15T02:00+01", "2026-01-15T06:59+01"] {
            check(hourly.clone(), now, "2026-01-15T07:00+01", morning);
        }
        let early = json!({"every": "daily", "at": "06:00"});
        check(early, "2026-01-14T12:00+01", "2026-01-15T07:00+01", morning);
        let late = json!({"every": "daily", "at": "07:00"});
        check(late, "2026-01-14T23:00+01", "2026-01-15T07:00+01", morning);
        let window = json!({"every": "window", "minutes": 30});
        let now = "2026-01-14T12:00+01";
        check(window.clone(), now, "2026-01-14T12:30+01", "email:window");
        let now = "2026-01-14T21:30+01";
        check(window.clone(), now, "2026-01-15T07:00+01", "email:window");
        check(window, "2026-01-15T06:45+01", "2026-01-15T07:15+01", "email:window");
    }

    #[test]
    fn what_is_not_gathered_is_sent_or_held() {
        let none = Preferences::default();
        let others = json!({"digest": {"email": {"every": "hourly", "categories": ["system"]}}});
        let everything = read(&json!({"digest": {"email": {"every": "hourly"}}}));
        let user = night(&others);
        for defaults in [&none, &everything] {
            let decision = mail(&user, defaults, Priority::Normal, "2026-01-14T12:00+01");
            assert_eq!(decision, Decision::Send, "the user's digest stands for the default one");
            let decision = mail(&user, defaults, Priority::Normal, "2026-01-14T23:00+01");
            assert_eq!(decision, Decision::Hold { until_ms: ms("2026-01-15T07:00+01") });
        }
        let decision = mail(&night(&json!({})), &everything, Priority::Low, "2026-01-14T12:00+01");
        assert!(matches!(decision, Decision::Digest { .. }), "{decision:?}");
    }

    #[test]
    fn the_time_zone_is_the_users_before_the_default_one() {
        let user = json!({"channels": {"email": true}, "quiet_hours": {"time_zone": "Asia/Tokyo"}});
        let user = read(&user);
        let decision = mail(&user, &night(&json!({})), Priority::Normal, "2026-01-14T23:00+09");
        assert_eq!(decision, Decision::Hold { until_ms: ms("2026-01-15T07:00+09") });
        let nowhere = read(&json!({"channels": {"email": true}}));
        let decision = mail(&nowhere, &night(&json!({})), Priority::Normal, "2026-01-14T23:00+01");
        assert_eq!(decision, Decision::Hold { until_ms: ms("2026-01-15T07:00+01") });
        let utc = night(&json!({"quiet_hours": {"time_zone": null}}));
        let decision = mail(&utc, &nowhere, Priority::Normal, "2026-01-14T23:00Z");
        assert_eq!(decision, Decision::Hold { until_ms: ms("2026-01-15T07:00Z") });
    }

    #[test]
    fn any_number_is_an_instant() {
        let category = "marketing".parse().unwrap();
        let none = Preferences::default();
        let what = Delivery {
            category: &category,
            channel: DeliveryChannel::Email,
            priority: Priority::Normal,
        };
        for more in [json!({}), json!({"digest": {"email": {"every": "daily"}}})] {
            for now_ms in [i64::MIN, i64::MAX] {
                assert_eq!(decide(&night(&more), &none, what, now_ms), Decision::Send);
            }
            for edge in [Timestamp::MIN, Timestamp::MAX] {
                let now_ms = edge.as_millisecond();
                if let Decision::Hold { until_ms: due_ms } | Decision::Digest { due_ms, .. } =
                    decide(&night(&more), &none, what, now_ms)
                {
                    assert!(due_ms > now_ms);
                }
            }
        }
    }
}
