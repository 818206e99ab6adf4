//! What is handed to a sender.

use std::fmt;

use serde::Serialize;
use serde_json::value::RawValue;

use super::web_push::PushSubscription;
pub(crate) use crate::notify::kinds::Priority;
pub(crate) use crate::notify::template::Action;

/// Longest delivery id.
const DELIVERY_ID_BYTES_MAX: usize = 128;

/// Names one delivery through all its attempts, so that whoever gets it twice can tell.
///
/// Only letters, digits, `_` and `-`: it stands in headers, and a dot in it would make the signed content of a webhook
/// ambiguous.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct DeliveryId(String);

impl DeliveryId {
    /// The id, when it is one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let good = (1..=DELIVERY_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed);
        good.then(|| Self(text.to_owned()))
    }

    /// As given.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A mail whose templates are filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RenderedEmail {
    /// Subject line.
    pub subject: String,
    /// Plain text, always there.
    pub text: String,
    /// The same as HTML.
    pub html: Option<String>,
}

/// Who gets it.
#[derive(Clone)]
pub(crate) enum Target {
    /// Nobody in particular: the configured webhook.
    None,
    /// An email address without a display name.
    Email(String),
    /// A browser.
    WebPush(PushSubscription),
    /// A phone number as the operator's SMS service wants it.
    Phone(String),
}

/// One message on its way to one target.
#[derive(Clone)]
pub(crate) struct Outgoing {
    /// Stable over all attempts.
    pub delivery: DeliveryId,
    /// Id of the notification; of the newest one in a digest.
    pub notification: String,
    /// Who is notified.
    pub user: String,
    /// Name of the category.
    pub category: String,
    /// How much it presses.
    pub priority: Priority,
    /// Headline.
    pub title: String,
    /// The message itself.
    pub message: String,
    /// What may be done about it.
    pub action: Option<Action>,
    /// JSON of the publisher, passed through.
    pub metadata: Option<Box<RawValue>>,
    /// Present when the target is an email address.
    pub email: Option<RenderedEmail>,
    /// Of several messages with one key that a push service holds for a sleeping device, only the last arrives.
    pub collapse_key: Option<String>,
    /// Where it goes.
    pub target: Target,
}

/// Shows nothing that a person wrote or that reaches a person.
impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("delivery", &self.delivery.0)
            .field("category", &self.category)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::notify::senders::testing;

    #[test]
    fn delivery_ids_fit_into_every_header() {
        for good in ["a", "018f3b2e-6c1d-7a00-8000-000000000001", "Z_9", &"x".repeat(128)] {
            assert_eq!(DeliveryId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "a b", "a\r\nb", "<a>", "ä", &"x".repeat(129)] {
            assert_eq!(DeliveryId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_debug_form_shows_no_content() {
        let mut message = testing::outgoing("d1");
        message.target = Target::Email("ann@example.com".to_owned());
        let shown = format!("{message:?}");
        assert!(shown.contains("d1") && shown.contains("workflow_failed"), "{shown}");
        for hidden in [&message.title, &message.message, &message.user, "ann@example.com"] {
            assert!(!shown.contains(hidden), "{shown} shows {hidden}");
        }
    }
}
