//! Counters and histograms of one shard: plain fields that only their shard writes, copied out on request.
//!
//! Labels are closed enums, so the number of series is bounded by construction.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::auth::AuthError;
use crate::error::Disconnect;

/// Declares a label enum with its wire names and a counter array indexed by it.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }
        impl $name {
            /// Every variant in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// How many variants there are.
            pub const COUNT: usize = Self::ALL.len();
            /// Label value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

label! {
    /// Why a connection was refused before it became a session.
    RefusalReason {
        /// Node limit.
        NodeFull => "node_full",
        /// Address limit.
        AddressLimit => "address_limit",
        /// User limit.
        UserLimit => "user_limit",
        /// Handshakes per second.
        HandshakeRate => "handshake_rate",
        /// Draining.
        Draining => "draining",
        /// Origin not allowed.
        Origin => "origin",
        /// Malformed or oversized request head or handshake.
        BadRequest => "bad_request",
        /// Token missing or refused.
        Unauthorized => "unauthorized",
        /// No complete request head in time.
        HandshakeTimeout => "handshake_timeout",
        /// TLS handshake failed.
        Tls => "tls",
        /// Internal queue full.
        Overloaded => "overloaded",
    }
}

label! {
    /// Kind of a client message, by envelope type.
    MessageKind {
        /// `auth`.
        Auth => "auth",
        /// `refresh`.
        Refresh => "refresh",
        /// `ping`.
        Ping => "ping",
        /// `pong`.
        Pong => "pong",
        /// `subscribe`.
        Subscribe => "subscribe",
        /// `unsubscribe`.
        Unsubscribe => "unsubscribe",
        /// `publish`.
        Publish => "publish",
        /// `presence`.
        Presence => "presence",
        /// `presence_stats`.
        PresenceStats => "presence_stats",
        /// `history`.
        History => "history",
        /// `large_data`.
        LargeData => "large_data",
        /// `notifications`, and what is told about them unasked.
        Notifications => "notifications",
        /// `notification_seen`, `notification_read`, `notification_ack`, `notification_archive`.
        NotificationMark => "notification_mark",
        /// `preferences`, `push_subscription`.
        Preferences => "preferences",
        /// `rpc`.
        Rpc => "rpc",
        /// Publications to subscribers.
        Message => "message",
        /// `join`, `leave`.
        JoinLeave => "join_leave",
        /// Answers to commands.
        Reply => "reply",
        /// `error`.
        Error => "error",
        /// `welcome`, `disconnect`, `lost` and other control pushes.
        Control => "control",
        /// Echo endpoint.
        Echo => "echo",
        /// Anything else.
        Other => "other",
    }
}

label! {
    /// Why an internal message was dropped or refused.
    DropKind {
        /// `Deliver` to a full mailbox; repaired by the receiver.
        Deliver => "deliver",
        /// Join/leave to a full mailbox.
        Presence => "presence",
        /// A client's command refused because its home's mailbox is full.
        Request => "request",
        /// An answer to the control plane dropped because its queue is full; the API call times out.
        Control => "control",
        /// A hand-over refused; the connection is served where it was accepted, or closed.
        HandOver => "hand_over",
        /// Something to be kept or told, because too much waited for room in the control queue.
        Occurrence => "occurrence",
    }
}

label! {
    /// Why a publication left a history before it was removed by anyone.
    HistoryEviction {
        /// Histories of the shard held more bytes than they may.
        Budget => "budget",
        /// The channel kept as many as its namespace says.
        Size => "size",
        /// Its time was over.
        Age => "age",
    }
}

label! {
    /// Where an answer about past publications came from.
    HistoryRead {
        /// From what the shard holds.
        Held => "held",
        /// From the database: of a durable channel whose home holds only the newest, or may be behind.
        Asked => "asked",
        /// From what the shard holds, which was not all that was asked for.
        Short => "short",
    }
}

label! {
    /// What happened to a publication in a full outbox.
    SlowAction {
        /// Connection closed.
        Disconnected => "disconnected",
        /// Oldest dropped.
        DroppedOldest => "dropped_oldest",
        /// Superseded by a newer one of its key.
        Superseded => "superseded",
    }
}

label! {
    /// Which bucket was empty.
    RateScope {
        /// Connection.
        Connection => "connection",
        /// User.
        User => "user",
        /// Address.
        Address => "address",
    }
}

/// A counter per variant of a label enum.
#[derive(Clone, Debug)]
pub struct Counts<const N: usize>(pub [u64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Counts<N> {
    /// Adds one at `index` (the label's discriminant).
    #[inline]
    pub fn add(&mut self, index: usize, amount: u64) {
        self.0[index] += amount;
    }
}

/// Everything the core of one shard counts.
#[derive(Clone, Debug)]
pub struct ShardMetrics {
    /// Open WebSocket sessions (authenticated).
    pub sessions: u64,
    /// Open sockets, sessions and not yet sessions.
    pub connections: u64,
    /// WebSocket connections accepted since start.
    pub connections_total: u64,
    /// By [`RefusalReason`].
    pub refused: Counts<{ RefusalReason::COUNT }>,
    /// Ended sessions by [`Disconnect::ALL`] order.
    pub disconnected: Counts<{ Disconnect::ALL.len() }>,
    /// By [`MessageKind`].
    pub messages_in: Counts<{ MessageKind::COUNT }>,
    /// By [`MessageKind`].
    pub messages_out: Counts<{ MessageKind::COUNT }>,
    /// Payload bytes of WebSocket messages received.
    pub message_bytes_in: u64,
    /// Frame bytes put into outboxes.
    pub message_bytes_out: u64,
    /// Publications ordered by this shard as home.
    pub publications: u64,
    /// By [`DropKind`].
    pub dropped: Counts<{ DropKind::COUNT }>,
    /// By [`SlowAction`].
    pub slow: Counts<{ SlowAction::COUNT }>,
    /// By [`RateScope`].
    pub rate_limited: Counts<{ RateScope::COUNT }>,
    /// By [`AuthError::ALL`] order.
    pub auth_failures: Counts<{ AuthError::ALL.len() }>,
    /// Recoveries that gave everything missed.
    pub recoveries_ok: u64,
    /// Recoveries that could not.
    pub recoveries_failed: u64,
    /// Gaps between shards found.
    pub gaps_found: u64,
    /// Holes in what the broker told a home.
    pub broker_gaps: u64,
    /// Streams that began anew under their subscribers.
    pub epochs_changed: u64,
    /// Gaps repaired from the home shard's history.
    pub gaps_repaired: u64,
    /// Error replies.
    pub errors: u64,
    /// Caught panics.
    pub panics: u64,
    /// Revocations that were not kept, or pushed another out, because the table is full.
    pub revocations_forgotten: u64,
    /// Channels with this shard as home.
    pub channels: u64,
    /// Local subscriptions.
    pub subscriptions: u64,
    /// Unsent bytes of all outboxes.
    pub outbox_bytes: u64,
    /// Publications kept in histories.
    pub history_publications: u64,
    /// Bytes that histories take on the heap.
    pub history_bytes: u64,
    /// Bytes that they may take.
    pub history_bytes_max: u64,
    /// Publications that left histories, by [`HistoryEviction`].
    pub history_evicted: Counts<{ HistoryEviction::COUNT }>,
    /// Reads of history, by [`HistoryRead`].
    pub history_reads: Counts<{ HistoryRead::COUNT }>,
    /// Recoveries of subscribers, by [`HistoryRead`].
    pub recovery_reads: Counts<{ HistoryRead::COUNT }>,
    /// Bytes under chunked reassembly.
    pub large_data_bytes: u64,
    /// Sum of ended sessions' durations in milliseconds.
    pub session_ms_total: u64,
    /// Longest ended session in milliseconds.
    pub session_ms_max: u64,
    /// Microseconds from taking a publication to handing it to a socket.
    pub delivery_us: Histogram<u64>,
    /// Seconds that ended sessions were open.
    pub session_seconds: Histogram<u64>,
}

impl ShardMetrics {
    /// All zero. Histograms resolve two significant digits up to one minute (delivery) and 30 days (sessions).
    pub fn new() -> Self {
        let histogram = |high: u64| {
            let mut histogram =
                Histogram::new_with_bounds(1, high, 2).expect("bounds are constant and valid");
            histogram.auto(false);
            histogram
        };
        Self {
            sessions: 0,
            connections: 0,
            connections_total: 0,
            refused: Counts::default(),
            disconnected: Counts::default(),
            messages_in: Counts::default(),
            messages_out: Counts::default(),
            message_bytes_in: 0,
            message_bytes_out: 0,
            publications: 0,
            dropped: Counts::default(),
            slow: Counts::default(),
            rate_limited: Counts::default(),
            auth_failures: Counts::default(),
            recoveries_ok: 0,
            recoveries_failed: 0,
            gaps_found: 0,
            broker_gaps: 0,
            epochs_changed: 0,
            gaps_repaired: 0,
            errors: 0,
            panics: 0,
            revocations_forgotten: 0,
            channels: 0,
            subscriptions: 0,
            outbox_bytes: 0,
            history_publications: 0,
            history_bytes: 0,
            history_bytes_max: 0,
            history_evicted: Counts::default(),
            history_reads: Counts::default(),
            recovery_reads: Counts::default(),
            large_data_bytes: 0,
            session_ms_total: 0,
            session_ms_max: 0,
            delivery_us: histogram(60_000_000),
            session_seconds: histogram(30 * 86_400),
        }
    }

    /// Counts an ended session.
    pub fn session_ended(&mut self, reason: Disconnect, duration: Duration) {
        let index = Disconnect::ALL.iter().position(|d| *d == reason).unwrap_or(0);
        self.disconnected.add(index, 1);
        let ms = duration.as_millis() as u64;
        self.session_ms_total += ms;
        self.session_ms_max = self.session_ms_max.max(ms);
        self.session_seconds.saturating_record((ms / 1000).max(1));
    }

    /// Counts one delivery.
    #[inline]
    pub fn delivered(&mut self, latency: Duration) {
        self.delivery_us.saturating_record((latency.as_micros() as u64).max(1));
    }
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self::new()
    }
}
