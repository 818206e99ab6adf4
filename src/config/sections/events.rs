//! The log of events, and the webhooks that are fed from it.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::key::{choice, section};
use crate::config::secret::Secret;
use crate::config::value::{Kind, Value};

choice! {
    /// Kinds of events.
    EventKind {
        /// A session is ready.
        Connected = "connected",
        /// A session has ended.
        Disconnected = "disconnected",
        /// A token was refused.
        AuthenticationFailed = "authentication_failed",
        /// A channel has its first subscriber in the cluster.
        ChannelOccupied = "channel_occupied",
        /// A channel has no subscriber in the cluster any more.
        ChannelVacated = "channel_vacated",
        /// A client has published in a namespace with `webhook_messages`.
        Message = "message",
        /// Tokens were revoked.
        Revoked = "revoked",
        /// A call of the server API that changes something, or a reload.
        AdminAction = "admin_action",
    }
}

impl EventKind {
    /// Every kind, in order of its names.
    pub const ALL: [Self; 8] = [
        Self::Connected,
        Self::Disconnected,
        Self::AuthenticationFailed,
        Self::ChannelOccupied,
        Self::ChannelVacated,
        Self::Message,
        Self::Revoked,
        Self::AdminAction,
    ];
}

section! {
    /// The log of events in the store. It is on when something is recorded: kinds of `events.record`, kinds that a webhook
    /// wants, or sessions. It must be the same on all nodes of a cluster. See docs/events.md.
    "events" => EventsSection {
        /// Kinds that are recorded, besides those that webhooks want: `connected`, `disconnected`, `authentication_failed`,
        /// `channel_occupied`, `channel_vacated`, `message`, `revoked`, `admin_action`.
        record: Vec<EventKind> = Kind::List(&EventKind::KIND, 0, 8), Restart;
        /// Beginnings of the names of channels whose `channel_occupied` and `channel_vacated` are recorded; `*` is every channel.
        /// Each such channel with a subscriber is a row per node.
        channels: Vec<String> = Kind::List(&Kind::Text(1_024), 0, 1_000), Restart;
        /// Whether sessions of users are kept, and when each user was last seen.
        sessions: bool = Kind::Bool, Restart;
        /// How long events, ended sessions and dead letters of webhooks are kept.
        retention: Duration = Kind::Duration(1_000, 3_650 * 86_400_000), Restart;
        /// Events, sessions or dead letters in one answer of the API.
        page_max: u32 = Kind::Count(1, 10_000), Restart;
        /// Events of this node that may wait to be written; more are dropped and counted. The last quarter is kept for others
        /// than messages and refused tokens.
        waiting_max: u32 = Kind::Count(16, 10_000_000), Restart;
        /// What they may hold.
        waiting_bytes_max: usize = Kind::Size(1 << 20, 16 << 30), Restart;
        /// Events of a shard that may wait until the control plane takes them; more are dropped and counted.
        shard_waiting_max: u32 = Kind::Count(16, 10_000_000), Restart;
        /// What they may hold.
        shard_waiting_bytes_max: usize = Kind::Size(1 << 20, 16 << 30), Restart;
        /// Events that one transaction carries at most.
        batch_max: u32 = Kind::Count(1, 10_000), Restart;
        /// How long a node may give no sign of life in the database until its sessions and channels are ended by others.
        node_ttl: Duration = Kind::Duration(400, 3_600_000), Restart;
        /// Refused tokens of this node that are recorded per second; the others are counted with the next one. 0 = all.
        refusals_per_second: u32 = Kind::Count(0, 1_000_000), Restart;
        /// How long a node that stops tries to write what waits.
        flush_timeout: Duration = Kind::Duration(0, 60_000), Restart;
    }
}

section! {
    /// An endpoint of the application that is told of events, in their order and at least once. Written as `[[webhooks]]` with a
    /// `name`. A new one begins with the next event.
    "webhooks.*" => EventWebhookSection {
        /// URL that gets a POST with a batch of events.
        url: Option<Secret<String>> = Kind::Secret, Restart;
        /// Secrets that sign it (`whsec_` and base64), one to four; several while they are changed.
        secrets: Vec<Secret<String>> = Kind::List(&Kind::Secret, 0, 4), Restart;
        /// Kinds that it gets.
        events: Vec<EventKind> = Kind::List(&EventKind::KIND, 0, 8), Restart;
        /// Beginnings of the names of channels whose events it gets; none = all. Events without a channel come anyway.
        channels: Vec<String> = Kind::List(&Kind::Text(1_024), 0, 1_000), Restart;
        /// Events of one request.
        batch_max: u32 = Kind::Count(1, 10_000), Restart;
        /// Bytes of the events of one request; one event always fits.
        batch_bytes_max: usize = Kind::Size(1 << 10, 64 << 20), Restart;
        /// For one attempt.
        timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// Attempts, the first one included; then the batch is a dead letter and the next one is sent.
        attempts_max: u32 = Kind::Count(1, 1_000), Restart;
        /// Longest delay before the second attempt; it doubles from there.
        retry_base: Duration = Kind::Duration(10, 3_600_000), Restart;
        /// Longest delay between two attempts.
        retry_max: Duration = Kind::Duration(10, 7 * 86_400_000), Restart;
        /// Failures in a row after which the endpoint is left alone for a while; that counts as no attempt.
        breaker_failures: u32 = Kind::Count(1, 1_000), Restart;
        /// How long it is left alone before it is tried again.
        breaker_open: Duration = Kind::Duration(50, 3_600_000), Restart;
        /// File of CA certificates that are trusted beside those of the system.
        ca_path: Option<PathBuf> = Kind::File, Restart;
        /// Whether the URL may be plain `http` and lead to a private address. For tests and closed networks.
        allow_insecure: bool = Kind::Bool, Restart;
    }
}

impl EventWebhookSection {
    /// What fields that the configuration does not give fall back to.
    pub fn defaults() -> Vec<(&'static str, Value)> {
        let seconds = |seconds| Value::Duration(Duration::from_secs(seconds));
        vec![
            ("secrets", Value::List(Vec::new())),
            ("events", Value::List(Vec::new())),
            ("channels", Value::List(Vec::new())),
            ("batch_max", Value::Count(100)),
            ("batch_bytes_max", Value::Size(1 << 20)),
            ("timeout", seconds(10)),
            // With the delays below some eight hours, fifteen at most.
            ("attempts_max", Value::Count(20)),
            ("retry_base", seconds(1)),
            ("retry_max", seconds(3_600)),
            ("breaker_failures", Value::Count(5)),
            ("breaker_open", seconds(10)),
            ("allow_insecure", Value::Bool(false)),
        ]
    }
}
