//! The ways a notification leaves the gateway, behind one interface.
//!
//! Owns: one attempt at handing one message to a mail server, a webhook or a push service, and what its outcome means.
//! Not: when to try again, which address to give up, what is remembered. Every attempt ends within the deadline of its
//! sender and may be dropped at any point. Errors hold codes and names of hosts, never addresses, keys or texts of a
//! message, so they may be logged and stored as they are.

mod addresses;
mod backoff;
mod error;
mod message;
mod outbound;
mod smtp;
mod web_push;
mod webhook;

#[cfg(test)]
mod testing;

use std::time::Duration;

pub(crate) use backoff::retry_delay;
pub(crate) use error::{Answer, SendError, SetupError};
pub(crate) use message::{DeliveryId, Outgoing, RenderedEmail, Target};
pub(crate) use outbound::HttpSettings;
pub(crate) use smtp::{SmtpCredentials, SmtpSecurity, SmtpSender, SmtpSettings};
pub(crate) use web_push::{PushSubscription, VapidKeys, WebPushSender, WebPushSettings};
pub(crate) use webhook::signature::{self, SigningSecret};
pub(crate) use webhook::{WebhookSender, WebhookSettings};

/// What a successful attempt is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The answer that took the message over.
    pub answer: Answer,
}

/// One configured way out. Cheap to share by reference; it owns its connections.
#[derive(Debug)]
pub(crate) enum Sender {
    /// Mail over SMTP.
    Smtp(Box<SmtpSender>),
    /// A signed request to a webhook. Text messages go this way too.
    Webhook(Box<WebhookSender>),
    /// A push service of a browser.
    WebPush(Box<WebPushSender>),
}

impl Sender {
    /// Makes one attempt. `now_unix` is the time since the Unix epoch.
    ///
    /// # Errors
    /// The message was not taken over, or nobody knows whether it was; see [`SendError::is_retryable`].
    ///
    /// # Cancel safety
    /// A dropped attempt may have been taken over. Its connection is closed and never used for another message.
    pub(crate) async fn send(
        &self,
        message: &Outgoing,
        now_unix: Duration,
    ) -> Result<Sent, SendError> {
        match self {
            Self::Smtp(sender) => sender.send(message, now_unix).await,
            Self::Webhook(sender) => sender.send(message, now_unix).await,
            Self::WebPush(sender) => sender.send(message, now_unix).await,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn senders(service: &testing::Service) -> [Sender; 3] {
        let http = testing::http_settings();
        let (public, private) = VapidKeys::generate().unwrap();
        let web_push = WebPushSettings {
            vapid: VapidKeys::parse(&public, &private).unwrap(),
            contact: "mailto:ops@example.com".to_owned(),
            ttl: Duration::from_hours(1),
            http: http.clone(),
        };
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
        let url = Secret::new(service.url.clone());
        let webhook = WebhookSettings { url, secrets: vec![Secret::new(secret)], http };
        let smtp = SmtpSettings {
            host: "localhost".to_owned(),
            port: 1,
            security: SmtpSecurity::None,
            credentials: None,
            from: "gateway@example.com".to_owned(),
            reply_to: None,
            hello_name: None,
            ca_file: None,
            unsubscribe_url: None,
            deadline: testing::LONG,
            connections_max: 1,
            idle_max: testing::LONG,
        };
        [
            Sender::WebPush(Box::new(WebPushSender::new(web_push).unwrap())),
            Sender::Smtp(Box::new(SmtpSender::new(smtp).unwrap())),
            Sender::Webhook(Box::new(WebhookSender::new(webhook).unwrap())),
        ]
    }

    #[tokio::test]
    async fn one_interface_reaches_every_sender() {
        let service = testing::Service::start().await;
        let message = testing::outgoing("d1");
        let mut outcomes = Vec::new();
        for sender in &senders(&service) {
            let sent = sender.send(&message, testing::NOW).await;
            outcomes
                .push(sent.map_or_else(|error| error.to_string(), |sent| sent.answer.to_string()));
        }
        assert_eq!(
            outcomes,
            [
                "the message cannot be sent this way: a push service takes subscriptions only",
                "the message cannot be sent this way: a mail needs an email address",
                "HTTP 200",
            ]
        );
    }
}
