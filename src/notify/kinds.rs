//! The words of a notification: its category, its priority, and the delivery channels that it can take.
//!
//! A category is a checked name, so that deployments can have their own; priorities and delivery channels are closed
//! sets. All three are read and written as text, in JSON as values and as names of members alike.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{Error, Visitor};

/// Bytes of the longest name of a category.
pub(crate) const CATEGORY_BYTES_MAX: usize = 64;

/// Characters of refused text that an error repeats.
const SHOWN_MAX: usize = 40;

/// A word that is not one of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KindError {
    /// Not in the closed set.
    #[error("{0:?} is no delivery channel: use in_app, email, web_push, webhook or sms")]
    DeliveryChannel(String),
    /// Not in the closed set.
    #[error("{0:?} is no priority: use low, normal (or medium), high or critical")]
    Priority(String),
    /// Empty, too long, or with a character that names do not have.
    #[error("{0:?} is no category: use 1 to 64 of the characters a-z, 0-9, _, . and -")]
    Category(String),
}

/// Refused text as an error repeats it: its beginning, because it is somebody else's and of any length.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// Reads `T` from a JSON string; `expected` names what the string should have been.
pub(super) struct TextVisitor<T> {
    expected: &'static str,
    kind: PhantomData<T>,
}

impl<T> TextVisitor<T> {
    /// A visitor for one value.
    pub(super) fn new(expected: &'static str) -> Self {
        Self { expected, kind: PhantomData }
    }
}

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// Serde for types that have `FromStr` and `Display`.
macro_rules! serde_as_text {
    ($type:ty, $expected:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(TextVisitor::new($expected))
            }
        }
    };
}
pub(super) use serde_as_text;

/// How a notification reaches a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DeliveryChannel {
    /// In the open pages of the user, through the gateway itself.
    InApp,
    /// Mail.
    Email,
    /// Push message of a browser.
    WebPush,
    /// HTTP request to an address of the user.
    Webhook,
    /// Text message.
    Sms,
}

impl DeliveryChannel {
    /// All there are.
    pub(crate) const ALL: [Self; 5] =
        [Self::InApp, Self::Email, Self::WebPush, Self::Webhook, Self::Sms];

    /// Name in documents, logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::InApp => "in_app",
            Self::Email => "email",
            Self::WebPush => "web_push",
            Self::Webhook => "webhook",
            Self::Sms => "sms",
        }
    }
}

impl fmt::Display for DeliveryChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DeliveryChannel {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| KindError::DeliveryChannel(shown(text)))
    }
}

serde_as_text!(DeliveryChannel, "a delivery channel such as email");

/// How urgent a notification is; the later ones are more urgent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Priority {
    /// Can wait.
    Low,
    /// As most are.
    #[default]
    Normal,
    /// Before the others.
    High,
    /// At once, whatever the hour.
    Critical,
}

impl Priority {
    /// All there are, the least urgent first.
    pub(crate) const ALL: [Self; 4] = [Self::Low, Self::Normal, Self::High, Self::Critical];

    /// 0 for low to 3 for critical: its place in [`Self::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The same as the store has it.
    pub(crate) const fn number(self) -> i64 {
        self as i64
    }

    /// Reads what the store has.
    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.number() == number)
    }

    /// Name in documents, logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `medium` is read as `normal`.
impl FromStr for Priority {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        if text == "medium" {
            return Ok(Self::Normal);
        }
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| KindError::Priority(shown(text)))
    }
}

serde_as_text!(Priority, "a priority such as normal");

/// What a notification is about: a name that preferences can be set for. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Category(Arc<str>);

impl Category {
    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Maps by category are asked with text too.
impl Borrow<str> for Category {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for Category {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        if !is_name(text, CATEGORY_BYTES_MAX) {
            return Err(KindError::Category(shown(text)));
        }
        Ok(Self(Arc::from(text)))
    }
}

/// Whether `name` is 1 to `bytes_max` of `a-z`, `0-9`, `_`, `.` and `-`.
pub(super) fn is_name(name: &str, bytes_max: usize) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte);
    (1..=bytes_max).contains(&name.len()) && name.bytes().all(allowed)
}

serde_as_text!(Category, "the name of a category such as workflow_failed");

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for channel in DeliveryChannel::ALL {
            assert_eq!(channel.as_str().parse(), Ok(channel));
            assert_eq!(channel.to_string(), channel.as_str());
            let json = serde_json::to_string(&channel).unwrap();
            assert_eq!(json, format!("\"{channel}\""));
            assert_eq!(serde_json::from_str::<DeliveryChannel>(&json).unwrap(), channel);
        }
        for priority in Priority::ALL {
            assert_eq!(priority.as_str().parse(), Ok(priority));
            let json = serde_json::to_string(&priority).unwrap();
            assert_eq!(json, format!("\"{priority}\""));
            assert_eq!(serde_json::from_str::<Priority>(&json).unwrap(), priority);
        }
        for name in ["workflow_update", "user_action", "marketing", "a.b-c_9"] {
            let category: Category = name.parse().unwrap();
            assert_eq!((category.as_str(), category.to_string().as_str()), (name, name));
        }
    }

    #[test]
    fn priorities_are_ordered_and_medium_is_normal() {
        assert!(Priority::ALL.is_sorted());
        assert!(Priority::High < Priority::Critical);
        assert_eq!("medium".parse(), Ok(Priority::Normal));
        assert_eq!(serde_json::from_str::<Priority>("\"medium\"").unwrap(), Priority::default());
    }

    #[test]
    fn names_of_categories_are_checked() {
        let longest = "a".repeat(CATEGORY_BYTES_MAX);
        for name in ["a", "billing.invoice-2_x", "0", longest.as_str()] {
            assert_eq!(name.parse::<Category>().unwrap().as_str(), name);
        }
        let too_long = "a".repeat(CATEGORY_BYTES_MAX + 1);
        for name in ["", "Marketing", "a b", "ü", "a/b", "a\n", too_long.as_str()] {
            assert!(name.parse::<Category>().is_err(), "{name} was accepted");
        }
    }

    #[test]
    fn errors_name_what_is_right_and_repeat_little() {
        let error = "fax".parse::<DeliveryChannel>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"fax\" is no delivery channel: use in_app, email, web_push, webhook or sms"
        );
        let error = "Urgent".parse::<Priority>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"Urgent\" is no priority: use low, normal (or medium), high or critical"
        );
        let error = "A".repeat(10_000).parse::<Category>().unwrap_err().to_string();
        assert!(error.len() < 150, "{error}");
        let error = serde_json::from_str::<Category>("7").unwrap_err().to_string();
        assert!(error.contains("expected the name of a category"), "{error}");
        assert!("Email".parse::<DeliveryChannel>().is_err(), "names have one case");
    }

    #[test]
    fn they_are_names_of_members() {
        let json = r#"{"email":{"b":1},"sms":{}}"#;
        let map: BTreeMap<DeliveryChannel, BTreeMap<Category, u8>> =
            serde_json::from_str(json).unwrap();
        assert_eq!(map[&DeliveryChannel::Email].get("b"), Some(&1));
        assert_eq!(serde_json::to_string(&map).unwrap(), json);
    }
}
