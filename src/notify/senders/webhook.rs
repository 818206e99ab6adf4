//! Signed requests to a webhook, in the style of the Standard Webhooks specification.
//!
//! Text messages go the same way, to a service of the operator that knows how to send them. `webhook-id` is the same
//! for every attempt at a delivery, so a receiver that keeps ids sees each delivery once.

pub(crate) mod signature;

use std::time::Duration;

use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;
use serde_json::value::RawValue;

use signature::SigningSecret;
#[cfg(test)]
use signature::verify;

use super::Sent;
use super::error::{SendError, SendErrorKind, SetupError};
use super::message::{Action, DeliveryId, Outgoing, Priority, Target};
use super::outbound::{HttpSettings, Outbound, check_scheme, header};
use crate::config::Secret;

/// Statuses that say that the receiver is no longer there.
const GONE: &[u16] = &[410];
/// Most secrets at a time: the new one, the old one, and room.
const SECRETS_MAX: usize = 4;

/// How a webhook is called.
#[derive(Clone, Debug)]
pub(crate) struct WebhookSettings {
    /// Where to. Secret, because paths of webhooks often hold a token.
    pub url: Secret<String>,
    /// `whsec_` and base64, one to four; every request is signed with all of them.
    pub secrets: Vec<Secret<String>>,
    /// Bounds and rights.
    pub http: HttpSettings,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct WebhookSender {
    url: Secret<Url>,
    secrets: Vec<SigningSecret>,
    outbound: Outbound,
}

/// Body of a request.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    /// Of this attempt, in Unix milliseconds.
    timestamp: u64,
    data: EventData<'a>,
}

#[derive(Serialize)]
struct EventData<'a> {
    id: &'a DeliveryId,
    notification_id: &'a str,
    user_id: &'a str,
    category: &'a str,
    priority: Priority,
    title: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a Action>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phone: Option<&'a str>,
}

impl WebhookSender {
    /// Checks URL and secrets and makes the client.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn new(settings: WebhookSettings) -> Result<Self, SetupError> {
        let refused = |problem| SetupError::Setting { setting: "the webhook", problem };
        let url = Url::parse(settings.url.expose())
            .map_err(|_| refused("has no URL such as https://example.com/hooks/notifications"))?;
        check_scheme(&url, settings.http.allow_http).map_err(|_| {
            refused("needs an https URL without user and password; or allow plain http explicitly")
        })?;
        if !(1..=SECRETS_MAX).contains(&settings.secrets.len()) {
            return Err(refused("needs one to four signing secrets"));
        }
        let secrets = settings
            .secrets
            .iter()
            .map(|secret| SigningSecret::parse(secret.expose()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                refused("has a secret that is not whsec_ and the base64 form of 24 to 64 bytes")
            })?;
        let outbound = Outbound::new(settings.http)?;
        Ok(Self { url: Secret::new(url), secrets, outbound })
    }

    /// Makes one attempt.
    pub(super) async fn send(
        &self,
        message: &Outgoing,
        now_unix: Duration,
    ) -> Result<Sent, SendError> {
        self.post(message.delivery.as_str(), body(message, now_unix)?, now_unix).await
    }

    /// Signs a JSON body and makes one attempt. `id` is printable ASCII without dots, and the same for every attempt.
    ///
    /// # Errors
    /// As for [`super::Sender::send`].
    pub(crate) async fn post(
        &self,
        id: &str,
        body: Vec<u8>,
        now_unix: Duration,
    ) -> Result<Sent, SendError> {
        let headers = self.headers(id, &body, now_unix);
        let reply = self.outbound.post(self.url.expose(), headers, body, now_unix).await?;
        reply.outcome(GONE)
    }

    fn headers(&self, id: &str, body: &[u8], now_unix: Duration) -> HeaderMap {
        let seconds = now_unix.as_secs();
        let signatures: Vec<String> =
            self.secrets.iter().map(|secret| secret.sign(id, seconds, body)).collect();
        let value = |text: &str| {
            HeaderValue::from_str(text).expect("ids and signatures are printable ASCII")
        };
        HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header(signature::ID), value(id)),
            (header(signature::TIMESTAMP), HeaderValue::from(seconds)),
            (header(signature::SIGNATURE), value(&signatures.join(" "))),
        ])
    }
}

fn body(message: &Outgoing, now_unix: Duration) -> Result<Vec<u8>, SendError> {
    let (kind, phone) = match &message.target {
        Target::None => ("notification.webhook", None),
        Target::Phone(phone) => ("notification.sms", Some(phone.as_str())),
        Target::Email(_) | Target::WebPush(_) => {
            return Err(SendErrorKind::Unfit("a webhook takes no email address or browser").into());
        }
    };
    let event = Event {
        kind,
        timestamp: now_unix.as_millis() as u64,
        data: EventData {
            id: &message.delivery,
            notification_id: &message.notification,
            user_id: &message.user,
            category: &message.category,
            priority: message.priority,
            title: &message.title,
            message: &message.message,
            action: message.action.as_ref(),
            metadata: message.metadata.as_deref(),
            phone,
        },
    };
    serde_json::to_vec(&event).map_err(|_| SendErrorKind::Unfit("it has no JSON form").into())
}

#[cfg(test)]
mod tests;
