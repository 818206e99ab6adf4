//! The configured ways out: one sender per delivery channel, each behind a breaker; browsers behind one per push service.

use std::time::{Duration, Instant};

use super::breakers::Breakers;
use super::kinds::DeliveryChannel;
use super::senders::{
    HttpSettings, Outgoing, SendError, Sender, SetupError, SmtpCredentials, SmtpSecurity,
    SmtpSender, SmtpSettings, VapidKeys, WebPushSender, WebPushSettings, WebhookSender,
    WebhookSettings,
};
use crate::breaker::{BreakerLimits, BreakerState, Change};
use crate::config::Config;
use crate::config::sections::MailSecurity;

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 4096;
/// How long an unused connection to a mail server is kept.
const MAIL_IDLE_MAX: Duration = Duration::from_secs(60);

/// Makes the sender of a way out, when it is switched on.
type MakeSender = fn(&Config) -> Result<Option<Sender>, SetupError>;

/// All ways out, with the key that switches them on.
const WAYS: [(DeliveryChannel, &str, MakeSender); 3] = [
    (DeliveryChannel::Email, "email.host", email),
    (DeliveryChannel::WebPush, "web_push.private_key", web_push),
    (DeliveryChannel::Webhook, "webhook.url", webhook),
];

/// What is wrong with ways out that are switched on, by the key that does it.
pub(super) fn check(config: &Config) -> Vec<(&'static str, SetupError)> {
    let wrong = |(_, key, sender): (_, _, MakeSender)| Some((key, sender(config).err()?));
    WAYS.into_iter().filter_map(wrong).collect()
}

/// A way out and what stands in front of it.
#[derive(Debug)]
struct Channel {
    kind: DeliveryChannel,
    sender: Sender,
    breakers: Breakers,
}

/// All configured ways out.
#[derive(Debug)]
pub(crate) struct Channels {
    all: Vec<Channel>,
    sms: bool,
    browsers_insecure: bool,
    public_key: Option<String>,
    retry_after: Duration,
}

/// How an attempt went.
#[derive(Debug)]
pub(super) enum Attempt {
    /// It was handed over.
    Sent,
    /// It was not.
    Failed(SendError),
    /// The breaker is open, so nothing was tried; worth another look after this time.
    LeftAlone(Duration),
    /// There is no such way out any more.
    Unknown,
}

impl Channels {
    /// What the configuration switches on.
    pub(super) fn new(config: &Config) -> Result<Self, SetupError> {
        let delivery = &config.delivery;
        let limits =
            BreakerLimits { failures: delivery.breaker_failures, open: delivery.breaker_open };
        let mut all = Vec::new();
        let mut public_key = None;
        for (kind, _, sender) in WAYS {
            let Some(sender) = sender(config)? else { continue };
            if let Sender::WebPush(sender) = &sender {
                public_key = Some(sender.public_key().to_owned());
            }
            all.push(Channel { kind, sender, breakers: Breakers::new(limits) });
        }
        Ok(Self {
            all,
            sms: config.webhook.sms,
            browsers_insecure: config.web_push.allow_insecure,
            public_key,
            retry_after: delivery.breaker_open,
        })
    }

    /// Whether there is a way out for `kind`.
    pub(super) fn has(&self, kind: DeliveryChannel) -> bool {
        kind == DeliveryChannel::InApp || self.find(kind).is_some()
    }

    /// Those that are there, besides the inbox.
    pub(super) fn kinds(&self) -> impl Iterator<Item = DeliveryChannel> {
        DeliveryChannel::ALL.into_iter().filter(|kind| self.find(*kind).is_some())
    }

    /// Text messages leave through the webhook.
    fn find(&self, kind: DeliveryChannel) -> Option<&Channel> {
        let carrier = match kind {
            DeliveryChannel::Sms if self.sms => DeliveryChannel::Webhook,
            other => other,
        };
        self.all.iter().find(|channel| channel.kind == carrier)
    }

    /// Whether anything but inboxes is switched on.
    pub(super) fn any(&self) -> bool {
        !self.all.is_empty()
    }

    /// Whether push services may be anywhere.
    pub(super) fn allows_insecure_browsers(&self) -> bool {
        self.browsers_insecure
    }

    /// What browsers subscribe with, when Web Push is switched on.
    pub(crate) fn public_key(&self) -> Option<&str> {
        self.public_key.as_deref()
    }

    /// States of the breakers.
    pub(crate) fn states(&self) -> impl Iterator<Item = (DeliveryChannel, BreakerState)> {
        self.all.iter().map(|channel| (channel.kind, channel.breakers.state()))
    }

    /// Push services that are left alone.
    pub(crate) fn open_push_services(&self) -> usize {
        let browsers = self.all.iter().filter(|channel| channel.kind == DeliveryChannel::WebPush);
        browsers.map(|channel| channel.breakers.open()).sum()
    }

    /// Makes one attempt.
    pub(super) async fn send(
        &self,
        kind: DeliveryChannel,
        message: &Outgoing,
        now_unix: Duration,
    ) -> Attempt {
        let Some(channel) = self.find(kind) else { return Attempt::Unknown };
        let breaker = channel.breakers.of(&message.target);
        if !breaker.try_enter(Instant::now()) {
            return Attempt::LeftAlone(self.retry_after);
        }
        let result = channel.sender.send(message, now_unix).await;
        // A message that is refused says nothing about the other side's health.
        let healthy = result.as_ref().err().is_none_or(|error| !error.is_outage());
        match breaker.report(Instant::now(), healthy) {
            Some(Change::Opened) => {
                let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(category = "delivery", event = "delivery_channel_lost", channel = %kind, error);
            }
            Some(Change::Closed) => {
                tracing::info!(category = "delivery", event = "delivery_channel_back", channel = %kind);
            }
            None => {}
        }
        match result {
            Ok(_) => Attempt::Sent,
            Err(error) => Attempt::Failed(error),
        }
    }
}

/// `allow_insecure` is that of the URLs which are called.
fn http(config: &Config, allow_insecure: bool) -> HttpSettings {
    let delivery = &config.delivery;
    HttpSettings {
        deadline: delivery.timeout,
        allow_http: allow_insecure,
        allow_private_addresses: allow_insecure,
        retry_after_max: delivery.retry_max,
        answer_bytes_max: ANSWER_BYTES_MAX,
        ca_file: delivery.ca_path.clone(),
    }
}

fn email(config: &Config) -> Result<Option<Sender>, SetupError> {
    let email = &config.email;
    let Some(host) = email.host.clone() else { return Ok(None) };
    let sender = SmtpSender::new(SmtpSettings {
        host,
        port: email.port,
        security: match email.security {
            MailSecurity::None => SmtpSecurity::None,
            MailSecurity::StartTls => SmtpSecurity::StartTls,
            MailSecurity::Tls => SmtpSecurity::Tls,
        },
        credentials: email
            .user
            .clone()
            .zip(email.password.clone())
            .map(|(user, password)| SmtpCredentials { user, password }),
        from: email.from.clone().unwrap_or_default(),
        reply_to: email.reply_to.clone(),
        hello_name: None,
        ca_file: config.delivery.ca_path.clone(),
        unsubscribe_url: email.unsubscribe_url.clone(),
        deadline: config.delivery.timeout,
        connections_max: email.connections_max as usize,
        idle_max: MAIL_IDLE_MAX,
    })?;
    Ok(Some(Sender::Smtp(Box::new(sender))))
}

fn web_push(config: &Config) -> Result<Option<Sender>, SetupError> {
    let section = &config.web_push;
    let Some(private_key) = &section.private_key else { return Ok(None) };
    let public_key = section.public_key.as_deref().unwrap_or_default();
    let sender = WebPushSender::new(WebPushSettings {
        vapid: VapidKeys::parse(public_key, private_key)?,
        contact: section.contact.clone().unwrap_or_default(),
        ttl: section.ttl,
        http: http(config, section.allow_insecure),
    })?;
    Ok(Some(Sender::WebPush(Box::new(sender))))
}

fn webhook(config: &Config) -> Result<Option<Sender>, SetupError> {
    let section = &config.webhook;
    let Some(url) = section.url.clone() else { return Ok(None) };
    let sender = WebhookSender::new(WebhookSettings {
        url,
        secrets: section.secrets.clone(),
        http: http(config, section.allow_insecure),
    })?;
    Ok(Some(Sender::Webhook(Box::new(sender))))
}
