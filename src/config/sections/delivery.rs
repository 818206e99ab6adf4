//! The ways by which notifications leave the gateway.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::key::section;
use crate::config::secret::Secret;
use crate::config::sections::MailSecurity;
use crate::config::value::Kind;

section! {
    /// Deliveries: what does not go into an inbox but to a mail server, a browser's push service or a webhook.
    "delivery" => DeliverySection {
        /// Deliveries of each delivery channel that this node holds at once; the others wait in the store.
        jobs_max: u32 = Kind::Count(16, 100_000), Restart;
        /// Workers of each delivery channel that are kept when there is nothing to do.
        workers_min: u32 = Kind::Count(1, 1_024), Restart;
        /// Workers of each delivery channel at most: its deliveries that are under way at once. None takes those of another.
        workers_max: u32 = Kind::Count(1, 1_024), Restart;
        /// For one attempt.
        timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// How long after `delivery.timeout` the deliveries of a node that died are tried again. A node that lives renews
        /// its claims; a database that is away for longer makes some deliveries leave twice.
        lease_slack: Duration = Kind::Duration(500, 3_600_000), Restart;
        /// Attempts, the first one included; then the delivery is a dead letter.
        attempts_max: u32 = Kind::Count(1, 1_000), Restart;
        /// Longest delay before the second attempt; it doubles from there.
        retry_base: Duration = Kind::Duration(10, 3_600_000), Restart;
        /// Longest delay between two attempts.
        retry_max: Duration = Kind::Duration(10, 7 * 86_400_000), Restart;
        /// Failures in a row after which a delivery channel, or one push service, is left alone for a while.
        breaker_failures: u32 = Kind::Count(1, 1_000), Restart;
        /// How long it is left alone before it is tried again.
        breaker_open: Duration = Kind::Duration(50, 3_600_000), Restart;
        /// File of CA certificates that are trusted beside those of the system.
        ca_path: Option<PathBuf> = Kind::File, Restart;
    }
}

section! {
    /// Mail. It is on when `email.host` is set.
    "email" => EmailSection {
        /// Mail server that takes the mails.
        host: Option<String> = Kind::Text(253), Restart;
        /// Its port.
        port: u16 = Kind::Count(1, 65_535), Restart;
        /// `tls` from the first byte, `starttls`, or `none`.
        security: MailSecurity = MailSecurity::KIND, Restart;
        /// Name for the login.
        user: Option<String> = Kind::Text(255), Restart;
        /// Password for the login.
        password: Option<Secret<String>> = Kind::Secret, Restart;
        /// Sender of the mails: an address, or `Name <address>`.
        from: Option<String> = Kind::Text(512), Restart;
        /// Where answers go; to `email.from` when unset.
        reply_to: Option<String> = Kind::Text(512), Restart;
        /// URL where users unsubscribe, for the header `List-Unsubscribe`.
        unsubscribe_url: Option<String> = Kind::Url, Restart;
        /// Connections to the mail server.
        connections_max: u32 = Kind::Count(1, 256), Restart;
    }
}

section! {
    /// Web Push. It is on when `web_push.private_key` is set; `archmesh vapid` makes a key pair.
    "web_push" => WebPushSection {
        /// VAPID public key, base64url.
        public_key: Option<String> = Kind::Text(256), Restart;
        /// VAPID private key, base64url.
        private_key: Option<Secret<String>> = Kind::Secret, Restart;
        /// How a push service reaches you: `mailto:` or `https:`.
        contact: Option<String> = Kind::Text(512), Restart;
        /// How long a push service keeps a message for a device that is away.
        ttl: Duration = Kind::Duration(0, 28 * 86_400_000), Restart;
        /// Whether push services may be plain `http` and at private addresses. Users choose these URLs: with it they can make the
        /// gateway call addresses inside. For tests and closed networks.
        allow_insecure: bool = Kind::Bool, Restart;
    }
}

section! {
    /// Webhook that gets notifications, and text messages to be sent. It is on when `webhook.url` is set.
    "webhook" => WebhookSection {
        /// URL that gets a POST for each of them.
        url: Option<Secret<String>> = Kind::Secret, Restart;
        /// Secrets that sign it (`whsec_` and base64); several while they are changed.
        secrets: Vec<Secret<String>> = Kind::List(&Kind::Secret, 0, 4), Restart;
        /// Whether it carries text messages as well (`sms`).
        sms: bool = Kind::Bool, Restart;
        /// Whether the URL may be plain `http` and at a private address. It is yours, not your users'.
        allow_insecure: bool = Kind::Bool, Restart;
    }
}
