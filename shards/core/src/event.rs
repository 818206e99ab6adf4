//! What the core tells the log: plain values, turned into `tracing` records by the engine.
//!
//! No event carries a payload or a token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::AuthError;
use crate::error::Disconnect;
use crate::ids::{ConnectionId, SessionId};

/// Something that happened, worth a log line.
#[derive(Clone, Debug)]
pub enum Event {
    /// A WebSocket session is authenticated and ready.
    Connected {
        /// Connection.
        connection: ConnectionId,
        /// Public session id.
        session: SessionId,
        /// User id; empty for anonymous.
        user: Arc<str>,
        /// Address of the client.
        address: IpAddr,
    },
    /// A WebSocket session has ended.
    Disconnected {
        /// Connection.
        connection: ConnectionId,
        /// Public session id.
        session: SessionId,
        /// User id; empty for anonymous.
        user: Arc<str>,
        /// Why.
        reason: Disconnect,
        /// How long it was open.
        duration: Duration,
    },
    /// A token was refused.
    AuthenticationFailed {
        /// Connection.
        connection: ConnectionId,
        /// Address of the client.
        address: IpAddr,
        /// Why.
        error: AuthError,
    },
    /// A request head or handshake was refused.
    HandshakeRefused {
        /// Address of the client.
        address: IpAddr,
        /// HTTP status of the answer.
        status: u16,
        /// Stable snake_case word.
        reason: &'static str,
    },
    /// A connection passed a rate limit (sampled by the engine).
    RateLimited {
        /// Connection.
        connection: ConnectionId,
        /// User id; empty for anonymous.
        user: Arc<str>,
    },
    /// Publications were dropped for a slow connection, by policy.
    SlowConsumer {
        /// Connection.
        connection: ConnectionId,
        /// User id; empty for anonymous.
        user: Arc<str>,
        /// Unsent bytes when the limit was hit.
        outbox_bytes: usize,
    },
    /// A gap between shards was found in a channel and is being repaired from its home shard.
    GapFound {
        /// Channel.
        channel: Arc<str>,
        /// First offset that did not come.
        expected: u64,
        /// Offset that came instead.
        found: u64,
    },
}
