//! Notifications to browsers through their push services: RFC 8030 with encryption (RFC 8291) and VAPID (RFC 8292).
//!
//! The push service learns who sends, to which subscription and how urgently, and nothing of the content.

mod encryption;
mod payload;
mod subscription;
mod vapid;

use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};

pub(crate) use subscription::PushSubscription;
pub(crate) use vapid::VapidKeys;

use super::Sent;
use super::error::{SendError, SendErrorKind, SetupError};
use super::message::{Outgoing, Priority, Target};
use super::outbound::{HttpSettings, Outbound, header};

/// Statuses that say that the subscription is dead.
const GONE: &[u16] = &[404, 410];
/// Bytes of a digest whose base64url form fills the 32 characters of a topic.
const TOPIC_DIGEST_BYTES: usize = 24;

/// How push services are called.
#[derive(Debug)]
pub(crate) struct WebPushSettings {
    /// Key pair that browsers subscribed with.
    pub vapid: VapidKeys,
    /// How a push service reaches the operator: `mailto:` or `https:`.
    pub contact: String,
    /// How long a push service keeps a message for a device that is away.
    pub ttl: Duration,
    /// Bounds and rights. Subscriptions come from outside: private addresses and plain `http` are for tests.
    pub http: HttpSettings,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct WebPushSender {
    vapid: VapidKeys,
    contact: String,
    ttl: Duration,
    outbound: Outbound,
}

impl WebPushSender {
    /// Checks the contact and makes the client.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn new(settings: WebPushSettings) -> Result<Self, SetupError> {
        let contact = settings.contact;
        let is_mail = contact.strip_prefix("mailto:").is_some_and(|rest| rest.contains('@'));
        let is_page = contact.strip_prefix("https://").is_some_and(|rest| !rest.is_empty());
        if !(is_mail || is_page) || contact.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(SetupError::Setting {
                setting: "the contact for push services",
                problem: "is not a URL such as mailto:ops@example.com or https://example.com/contact",
            });
        }
        let outbound = Outbound::new(settings.http)?;
        Ok(Self { vapid: settings.vapid, contact, ttl: settings.ttl, outbound })
    }

    /// The public key that a page passes to `pushManager.subscribe`.
    pub(crate) fn public_key(&self) -> &str {
        self.vapid.public_key()
    }

    /// Makes one attempt.
    pub(super) async fn send(
        &self,
        message: &Outgoing,
        now_unix: Duration,
    ) -> Result<Sent, SendError> {
        let Target::WebPush(subscription) = &message.target else {
            return Err(SendErrorKind::Unfit("a push service takes subscriptions only").into());
        };
        if subscription.is_expired(now_unix) {
            return Err(SendErrorKind::Expired.into());
        }
        let plaintext = payload::payload(message)
            .ok_or(SendErrorKind::Unfit("it is too long even without its text"))?;
        let body = encryption::encrypt(&plaintext, subscription)
            .ok_or(SendErrorKind::Unfit("it cannot be encrypted for this subscription"))?;
        let headers = self.headers(message, subscription, now_unix)?;
        let url = subscription.endpoint();
        self.outbound.post(url, headers, body, now_unix).await?.outcome(GONE)
    }

    fn headers(
        &self,
        message: &Outgoing,
        subscription: &PushSubscription,
        now_unix: Duration,
    ) -> Result<HeaderMap, SendErrorKind> {
        let origin = subscription.endpoint().origin().ascii_serialization();
        let mut authorization = self
            .vapid
            .authorization(&origin, &self.contact, now_unix)
            .and_then(|text| HeaderValue::from_str(&text).ok())
            .ok_or(SendErrorKind::Unfit("the VAPID token cannot be signed"))?;
        authorization.set_sensitive(true);
        let mut headers = HeaderMap::from_iter([
            (AUTHORIZATION, authorization),
            (CONTENT_ENCODING, HeaderValue::from_static("aes128gcm")),
            (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (header("ttl"), HeaderValue::from(self.ttl.as_secs())),
            (header("urgency"), HeaderValue::from_static(urgency(message.priority))),
        ]);
        // Never without being asked: some services hold only a handful of topics for a device that is away.
        if let Some(key) = &message.collapse_key {
            let topic = HeaderValue::from_str(&topic(key)).expect("base64url is printable ASCII");
            headers.insert(header("topic"), topic);
        }
        Ok(headers)
    }
}

fn urgency(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High | Priority::Critical => "high",
    }
}

/// The key in the form of a topic: 32 characters of the base64url alphabet.
fn topic(collapse_key: &str) -> String {
    let digest = digest::digest(&digest::SHA256, collapse_key.as_bytes());
    URL_SAFE_NO_PAD.encode(&digest.as_ref()[..TOPIC_DIGEST_BYTES])
}

#[cfg(test)]
mod tests;
