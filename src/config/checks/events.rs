//! Rules about the log of events and its webhooks.

use super::Checker;
use crate::config::sections::{EventKind, EventWebhookSection};

impl Checker<'_> {
    pub(super) fn events(&mut self) {
        let config = self.config;
        let occupancy = [EventKind::ChannelOccupied, EventKind::ChannelVacated];
        self.require(
            !config.events.channels.is_empty() || !occupancy.iter().any(|kind| config.records(*kind)),
            &["events.channels", "events.record"],
            "names no channel, but channel_occupied or channel_vacated is recorded or wanted by a webhook",
            "list the beginnings of channel names that matter to the application, such as \"chat:\"",
        );
        for (name, namespace) in &config.namespaces {
            self.require(
                !namespace.webhook_messages || config.records(EventKind::Message),
                &[&format!("namespaces.{name}.webhook_messages"), "events.record"],
                "has an effect only when `message` is recorded or wanted by a webhook",
                "add \"message\" to the events of a webhook, or to events.record",
            );
        }
        for (name, webhook) in &config.webhooks {
            self.webhook(name, webhook);
        }
    }

    fn webhook(&mut self, name: &str, webhook: &EventWebhookSection) {
        let key = |field: &str| format!("webhooks.{name}.{field}");
        self.require(
            webhook.url.is_some(),
            &[&key("url")],
            "is not set",
            "give the URL of the application that takes the events",
        );
        self.require(
            !webhook.secrets.is_empty(),
            &[&key("secrets")],
            "holds no secret, so the application could not tell the gateway from others",
            "give one: whsec_ and the base64 form of 24 to 64 random bytes",
        );
        self.require(
            !webhook.events.is_empty(),
            &[&key("events")],
            "names no kind of event",
            "list what the application wants to know, such as connected and disconnected",
        );
        self.require(
            webhook.retry_base <= webhook.retry_max,
            &[&key("retry_base"), &key("retry_max")],
            "is longer than retry_max",
            "lower it, or raise retry_max",
        );
    }
}
