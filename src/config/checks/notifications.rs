//! Rules of notifications and of the ways by which they leave the gateway.

use super::Checker;
use crate::notify;

/// What an item has besides text and metadata, at most.
const ITEM_BYTES: usize = 4 << 10;

impl Checker<'_> {
    /// What would keep a node with notifications from starting, or items from reaching their users.
    pub(super) fn notifications(&mut self) {
        let config = self.config;
        if !config.notifications.enabled {
            return;
        }
        let section = &config.notifications;
        self.require(
            section.text_bytes_max + section.metadata_bytes_max + ITEM_BYTES
                <= config.limits.message_bytes_max,
            &[
                "notifications.metadata_bytes_max",
                "notifications.text_bytes_max",
                "limits.message_bytes_max",
            ],
            "and notifications.text_bytes_max allow items that are no message to a client (limits.message_bytes_max less 4KiB)",
            "lower one of them, or raise limits.message_bytes_max",
        );
        let document = section.default_preferences.as_deref().unwrap_or("{}");
        if let Err(problem) = notify::check_preferences(document) {
            self.require(
                false,
                &["notifications.default_preferences"],
                &format!("cannot be used: {problem}"),
                "docs/notifications.md has the form",
            );
        }
        self.parts_of_channels();
        for (key, problem) in notify::check_channels(config) {
            let section = key.split('.').next().unwrap_or_default();
            if !self.is_refused(section) && !self.is_refused("delivery") {
                let mend = match section {
                    "web_push" => {
                        "`archmesh vapid` prints a pair that can; or unset the key to switch Web Push off"
                    }
                    _ => {
                        "docs/notifications.md shows a working section; or unset the key to switch this delivery channel off"
                    }
                };
                self.require(false, &[key], &format!("cannot be used: {problem}"), mend);
            }
        }
    }

    /// Keys that a delivery channel needs beside the one that switches it on.
    fn parts_of_channels(&mut self) {
        let config = self.config;
        let (web_push, webhook) = (&config.web_push, &config.webhook);
        self.require(
            config.email.host.is_none() || config.email.from.is_some(),
            &["email.from", "email.host"],
            "is not set, and mail is on (email.host)",
            "set it to the sender of the mails, such as \"ArchMesh <noreply@example.com>\", or unset email.host",
        );
        self.require(
            web_push.private_key.is_none() || web_push.public_key.is_some(),
            &["web_push.public_key", "web_push.private_key"],
            "is not set, and Web Push is on (web_push.private_key)",
            "set both halves of the pair that `archmesh vapid` prints, or unset web_push.private_key",
        );
        self.require(
            web_push.private_key.is_none() || web_push.contact.is_some(),
            &["web_push.contact", "web_push.private_key"],
            "is not set, and Web Push is on (web_push.private_key)",
            "set it to where push services reach you, such as \"mailto:ops@example.com\"",
        );
        self.require(
            webhook.url.is_none() || !webhook.secrets.is_empty(),
            &["webhook.secrets", "webhook.url"],
            "is empty, and the webhook is on (webhook.url)",
            "give it a secret: `whsec_` and the output of `openssl rand -base64 32`",
        );
        self.require(
            webhook.url.is_some() || !webhook.sms,
            &["webhook.sms", "webhook.url"],
            "is on, and there is no webhook that could carry text messages",
            "set webhook.url, or webhook.sms = false",
        );
    }

    /// Whether a key of the section is refused already.
    fn is_refused(&self, section: &str) -> bool {
        let within = |key: &str| key.split('.').next() == Some(section);
        self.wrong.iter().any(|key| within(key)) || self.errors.iter().any(|e| within(&e.key))
    }
}
