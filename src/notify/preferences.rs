//! Notification preferences of a user: the document, its bounds, and how a change is merged into it.
//!
//! A [`Preferences`] is always inside its bounds: reading is the only way to one. What follows from it for a single
//! notification is in [`decide()`]; nothing here stores or sends.
//!
//! A list names what it covers. One that is left out covers everything, and an empty one covers nothing.

mod clock;
mod decide;
mod digest;
mod object;
#[cfg(test)]
mod oracle;
mod quiet_hours;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use oxilangtag::LanguageTag;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::kinds::{Category, DeliveryChannel, Priority, TextVisitor, serde_as_text, shown};
pub(crate) use clock::Zone;
pub(crate) use decide::{Decision, Delivery, decide};
pub(crate) use digest::Digest;
use object::Object;
pub(crate) use quiet_hours::QuietHours;

/// Most categories that a document answers for.
pub(crate) const CATEGORIES_MAX: usize = 64;

/// Bytes of the longest locale.
const LOCALE_BYTES_MAX: usize = 35;

/// Characters of an error's text; it repeats what somebody sent.
const PROBLEM_MAX: usize = 400;

/// Why a document is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreferencesError {
    /// Not a JSON text at all.
    #[error("preferences: not JSON: {0}; send one JSON object")]
    NotJson(serde_json::Error),
    /// A member that is not as it should be.
    #[error("{field}: {problem}")]
    Member {
        /// Path of the member, such as `digest.email.minutes`; `preferences` for the document itself.
        field: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
}

impl PreferencesError {
    fn of(error: serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = error.path().to_string();
        let error = error.into_inner();
        if error.is_syntax() || error.is_eof() {
            return Self::NotJson(error);
        }
        let path = if path == "." { "preferences" } else { &path };
        let cut = |text: &str| text.chars().take(PROBLEM_MAX).collect();
        Self::Member { field: cut(path), problem: cut(&error.to_string()) }
    }
}

/// Text that is no locale.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no locale: use a language tag of at most 35 characters such as de-DE")]
pub(crate) struct LocaleError(String);

/// Language tag (BCP 47), in its usual upper and lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locale(LanguageTag<String>);

impl fmt::Display for Locale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl FromStr for Locale {
    type Err = LocaleError;

    fn from_str(text: &str) -> Result<Self, LocaleError> {
        Some(text)
            .filter(|text| text.len() <= LOCALE_BYTES_MAX)
            .and_then(|text| LanguageTag::parse_and_normalize(text).ok())
            .map(Self)
            .ok_or_else(|| LocaleError(shown(text)))
    }
}

serde_as_text!(Locale, "a locale such as de-DE");

/// Yes or no to delivery channels.
type Answers = BTreeMap<DeliveryChannel, bool>;

/// What a user wants to be told, where and when. What it does not answer is answered by the defaults of the
/// deployment, which are of the same shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preferences {
    #[serde(default, deserialize_with = "categories", skip_serializing_if = "BTreeMap::is_empty")]
    categories: BTreeMap<Category, Answers>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "BTreeMap::is_empty")]
    channels: Answers,
    #[serde(skip_serializing_if = "Option::is_none")]
    quiet_hours: Option<QuietHours>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "BTreeMap::is_empty")]
    digest: BTreeMap<DeliveryChannel, Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<Locale>,
}

impl Preferences {
    /// Reads a whole document, as a `PUT` brings it.
    pub(crate) fn from_slice(json: &[u8]) -> Result<Self, PreferencesError> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let Object(preferences) =
            serde_path_to_error::deserialize(&mut deserializer).map_err(PreferencesError::of)?;
        deserializer.end().map_err(PreferencesError::NotJson)?;
        Ok(preferences)
    }

    /// Reads a stored document. A newer release may have written members that this one does not know: they are left out, and the
    /// others hold, so that an opt-out stays one.
    pub(crate) fn of_stored(json: &str) -> Self {
        if let Ok(preferences) = Self::from_slice(json.as_bytes()) {
            return preferences;
        }
        let Ok(Value::Object(members)) = serde_json::from_str(json) else { return Self::default() };
        let mut known = Self::default();
        for (name, member) in members {
            let patch = serde_json::json!({name: member});
            known = known.merge_patch(&patch).unwrap_or(known);
        }
        known
    }

    /// Reads a document that is JSON already.
    pub(crate) fn from_value(document: &Value) -> Result<Self, PreferencesError> {
        let Object(preferences) =
            serde_path_to_error::deserialize(document).map_err(PreferencesError::of)?;
        Ok(preferences)
    }

    /// The document with a JSON Merge Patch (RFC 7396) applied: members are replaced, and those that are null in the
    /// patch go.
    pub(crate) fn merge_patch(&self, patch: &Value) -> Result<Self, PreferencesError> {
        let mut document =
            serde_json::to_value(self).expect("the names of all members are strings");
        json_patch::merge(&mut document, patch);
        Self::from_value(&document)
    }

    /// Language of the user.
    pub(crate) fn locale(&self) -> Option<&str> {
        self.locale.as_ref().map(|locale| locale.0.as_str())
    }

    /// Time zone of the user.
    pub(crate) fn zone(&self) -> Option<&Zone> {
        self.quiet_hours.as_ref().and_then(QuietHours::zone)
    }
}

/// A map that may be null.
fn or_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Categories with an answer; one whose answers were all taken away by patches is none.
fn categories<'de, D>(deserializer: D) -> Result<BTreeMap<Category, Answers>, D::Error>
where
    D: Deserializer<'de>,
{
    let mut categories: BTreeMap<Category, Answers> = or_empty(deserializer)?;
    categories.retain(|_, answers| !answers.is_empty());
    if categories.len() > CATEGORIES_MAX {
        let problem = format!(
            "{} categories are too many: keep at most {CATEGORIES_MAX} and answer for the rest in `channels`",
            categories.len()
        );
        return Err(serde::de::Error::custom(problem));
    }
    Ok(categories)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn full() -> Value {
        json!({
            "categories": {"marketing": {"email": false, "in_app": true}},
            "channels": {"email": true, "sms": false},
            "quiet_hours": {
                "enabled": true, "from": "22:00", "to": "07:00", "time_zone": "Europe/Berlin",
                "days": ["mon", "tue"], "channels": ["in_app", "email", "web_push"]
            },
            "digest": {"email": {
                "every": "daily", "at": "08:00", "minutes": 15, "categories": ["marketing"]
            }},
            "locale": "de-DE"
        })
    }

    fn check_refused(document: &Value, expected: &str) {
        let error = Preferences::from_value(document).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{document}\n     gave {error}\n expected {expected}");
        let sent = document.to_string();
        let error = Preferences::from_slice(sent.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{document} as text gave {error}");
    }

    #[test]
    fn documents_are_read_as_they_are_written() {
        for document in [json!({}), full(), json!({"quiet_hours": {"enabled": false}})] {
            let preferences = Preferences::from_value(&document).unwrap();
            assert_eq!(serde_json::to_value(&preferences).unwrap(), document);
            let text = document.to_string();
            assert_eq!(Preferences::from_slice(text.as_bytes()).unwrap(), preferences);
        }
        let preferences = Preferences::from_value(&full()).unwrap();
        assert_eq!(preferences.locale(), Some("de-DE"));
        assert_eq!(preferences.zone().map(Zone::as_str), Some("Europe/Berlin"));
    }

    #[test]
    fn nothing_is_written_in_one_way() {
        let empty = Preferences::default();
        let nulls = json!({"categories": null, "channels": null, "quiet_hours": null,
            "digest": null, "locale": null});
        for document in [json!({}), nulls, json!({"categories": {"marketing": {}}})] {
            assert_eq!(Preferences::from_value(&document).unwrap(), empty, "{document}");
        }
        assert_eq!(serde_json::to_value(&empty).unwrap(), json!({}));
        let locale = json!({"locale": "DE-latn-de"});
        let locale = Preferences::from_value(&locale).unwrap();
        assert_eq!(locale.locale(), Some("de-Latn-DE"));
    }

    #[test]
    fn errors_name_the_member_and_what_is_right() {
        let cases = [
            (json!([]), "preferences: invalid type: sequence, expected an object"),
            (
                json!([{}, {}, null, {}, null]),
                "preferences: invalid type: sequence, expected an ob",
            ),
            (json!({"chanels": {}}), "chanels: unknown field `chanels`, expected one of `cat"),
            (json!({"channels": []}), "channels: invalid type: sequence, expected a map"),
            (json!({"channels": {"email": "no"}}), "channels.email: invalid type: string"),
            (json!({"channels": {"fax": true}}), "channels.fax: \"fax\" is no delivery channel: u"),
            (json!({"categories": {"A b": {}}}), "categories.A b: \"A b\" is no category: use 1"),
            (json!({"categories": {"a": {"email": null}}}), "categories.a.email: invalid type: n"),
            (json!({"quiet_hours": {"from": "22:00"}}), "quiet_hours: `from` stands alone: give"),
            (
                json!({"quiet_hours": {"from": "8 pm"}}),
                "quiet_hours.from: \"8 pm\" is no time of day: use HH:MM",
            ),
            (
                json!({"quiet_hours": {"from": "08:00", "to": "08:00"}}),
                "quiet_hours: `from` and `to` are both 08:00 on all days, which never ends: make",
            ),
            (
                json!({"quiet_hours": {"time_zone": "Berlin"}}),
                "quiet_hours.time_zone: \"Berlin\" is no time zone: use an IANA name",
            ),
            (
                json!({"quiet_hours": {"from": "22:00", "to": "07:00", "days": ["mon", "noday"]}}),
                "quiet_hours.days[1]: unknown variant `noday`, expected one of `mon`, `tue`",
            ),
            (
                json!({"quiet_hours": {"channels": ["fax"]}}),
                "quiet_hours.channels[0]: \"fax\" is no delivery channel: use",
            ),
            (json!({"digest": {"email": {}}}), "digest.email: `every` is missing: set it to"),
            (
                json!({"digest": {"email": {"every": "window", "minutes": 1441}}}),
                "digest.email.minutes: 1441 is no number of minutes: use a whole number from 1 to",
            ),
            (json!({"locale": "german_"}), "locale: \"german_\" is no locale: use a language tag"),
            (json!({"locale": format!("de-{}", "x-abcdefgh-".repeat(9))}), "locale: \"de-x-abc"),
        ];
        for (document, expected) in cases {
            check_refused(&document, expected);
        }
    }

    #[test]
    fn text_that_is_not_json_is_told_apart() {
        for text in ["", "{", "{}}", "{} {}", "{\"channels\": {\"email\": tru}}"] {
            let error = Preferences::from_slice(text.as_bytes()).unwrap_err();
            assert!(matches!(error, PreferencesError::NotJson(_)), "{text}: {error}");
            assert!(error.to_string().contains("send one JSON object"), "{error}");
        }
        let twice = Preferences::from_slice(br#"{"locale":"de","locale":"en"}"#).unwrap_err();
        assert!(twice.to_string().contains("duplicate field `locale`"), "{twice}");
    }

    #[test]
    fn errors_do_not_repeat_all_that_was_sent() {
        let long = "x".repeat(100_000);
        for document in [
            json!({long.clone(): 1}),
            json!({"channels": {"email": long}}),
            json!({"quiet_hours": {"from": "22:00", "to": "23:00", "days": [long]}}),
        ] {
            let error = Preferences::from_value(&document).unwrap_err().to_string();
            assert!(error.len() <= 2 * PROBLEM_MAX + 2, "{}", error.len());
        }
    }

    #[test]
    fn there_are_at_most_so_many_categories() {
        let document = |count: usize| {
            let categories = (0..count).map(|n| (format!("c{n}"), json!({"email": true})));
            json!({"categories": categories.collect::<serde_json::Map<_, _>>()})
        };
        let most = Preferences::from_value(&document(CATEGORIES_MAX)).unwrap();
        check_refused(&document(65), "categories: 65 categories are too many: keep at most 64");
        let patch = json!({"categories": {"one_more": {"sms": true}}});
        assert!(most.merge_patch(&patch).is_err());
        // One goes and one comes.
        let patch = json!({"categories": {"c0": {"email": null}, "one_more": {"sms": true}}});
        assert!(most.merge_patch(&patch).is_ok());
    }

    fn check_merged(patch: &Value, expected: &Value) {
        let merged = Preferences::from_value(&full()).unwrap().merge_patch(patch).unwrap();
        assert_eq!(&serde_json::to_value(&merged).unwrap(), expected, "{patch}");
    }

    #[test]
    fn patches_are_merged() {
        check_merged(&json!({}), &full());
        let mut expected = full();
        expected["categories"]["marketing"] = json!({"email": true});
        expected["categories"]["security"] = json!({"sms": true});
        expected["quiet_hours"]["days"] = json!(["sun"]);
        expected["digest"] = json!({});
        expected.as_object_mut().unwrap().remove("digest");
        check_merged(
            &json!({
                "categories": {
                    "marketing": {"email": true, "in_app": null},
                    "security": {"sms": true, "email": null},
                    "system": null
                },
                "quiet_hours": {"days": ["sun"]},
                "digest": null
            }),
            &expected,
        );
        let everything = json!({"categories": null, "channels": null, "quiet_hours": null,
            "digest": null, "locale": null});
        check_merged(&everything, &json!({}));
    }

    #[test]
    fn a_patch_is_refused_for_what_comes_of_it() {
        let before = Preferences::from_value(&full()).unwrap();
        let check = |patch: Value, expected: &str| {
            let error = before.merge_patch(&patch).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{patch}: {error}");
        };
        check(json!({"quiet_hours": {"from": null}}), "quiet_hours: `to` stands alone");
        let endless = json!({"quiet_hours": {"from": "07:00", "days": null}});
        check(endless, "quiet_hours: `from` and `to` are both 07:00");
        check(json!({"digest": {"email": {"every": null}}}), "digest.email: `every` is missing");
        check(json!({"channels": 7}), "channels: invalid type: integer `7`, expected a map");
        check(json!(null), "preferences: invalid type: null");
        check(json!(["channels"]), "preferences: invalid type: sequence");
        // Whole days are allowed as long as one is left out.
        assert!(before.merge_patch(&json!({"quiet_hours": {"from": "07:00"}})).is_ok());
    }
}
