//! What an engine is started with: plain values, checked by [`EngineConfig::check`] before anything is opened.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::EngineError;

/// Where one shard runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardPlacement {
    /// CPU the shard's thread is pinned to; not pinned when absent.
    pub cpu: Option<usize>,
    /// Share of new connections under [`Balance::WeightedRoundRobin`], 0-1,000; 0 = none.
    pub weight: u32,
}

/// One address that every shard listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Address; port 0 takes a free port, the same one on every shard.
    pub address: SocketAddr,
}

/// Which shard serves a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The one the kernel gave it to (`SO_REUSEPORT`).
    Kernel,
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest connections.
    LeastConnections,
    /// The one that was busy for the smallest part of the last second.
    LeastLoad,
    /// By hash, so that the same client comes to the same shard.
    Hash {
        /// By the user id in the token, as far as it can be read from the first bytes; otherwise by address.
        by_user: bool,
    },
    /// Any.
    Random,
    /// In turn, in proportion to [`ShardPlacement::weight`].
    WeightedRoundRobin,
}

/// Everything an engine needs to know.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// One entry per shard, 1-256.
    pub shards: Vec<ShardPlacement>,
    /// Addresses to listen on, at least one.
    pub listeners: Vec<ListenerConfig>,
    /// TLS on every listener when present.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Connections the kernel keeps for a listener until they are accepted, at least 1.
    pub backlog: i32,
    /// Which shard serves a new connection.
    pub balance: Balance,
    /// Messages a shard's mailbox holds, at least 16.
    pub mailbox_messages_max: usize,
    /// Events the queue to the control plane holds, at least 16.
    pub control_messages_max: usize,
    /// Receive buffers of a shard: a power of two, 2-32,768.
    pub receive_buffers: u16,
    /// Bytes of one receive buffer, 64-1,048,576.
    pub receive_buffer_bytes: usize,
    /// Bytes one connection may receive in one turn before its receive is paused until the next, at least 1.
    pub receive_budget_bytes: usize,
    /// Completion queue entries of a shard's ring, 64-65,536; rounded up to a power of two.
    pub completion_entries: u32,
    /// How long accepting rests when file descriptors or memory are exhausted.
    pub accept_pause: Duration,
    /// A turn that takes longer is a stall: counted and logged.
    pub stall_threshold: Duration,
    /// Log records of one kind per second and shard; the others are counted. 0 = unlimited.
    pub log_records_per_second: u32,
    /// Zero of `Now::mono` on every shard and on the control plane.
    pub started: Instant,
    /// Seed of the shards' random streams.
    pub seed: [u8; 32],
    /// Seed of the keyed hashes that all shards agree on.
    pub hash_seed: u64,
}

impl EngineConfig {
    /// Refuses values outside the documented bounds.
    ///
    /// # Errors
    /// [`EngineError::Config`] with the name of the value and its bounds.
    pub fn check(&self) -> Result<(), EngineError> {
        let rule = |holds: bool, what: &'static str| {
            if holds { Ok(()) } else { Err(EngineError::Config(what)) }
        };
        let shards_max = usize::from(gateway_core::home::SHARDS_MAX);
        rule((1..=shards_max).contains(&self.shards.len()), "shards: 1-256 are needed")?;
        rule(!self.listeners.is_empty(), "listeners: at least one address is needed")?;
        rule(self.listeners.len() <= 64, "listeners: at most 64 addresses")?;
        rule(self.backlog >= 1, "backlog: at least 1")?;
        rule(self.mailbox_messages_max >= 16, "mailbox_messages_max: at least 16")?;
        rule(self.control_messages_max >= 16, "control_messages_max: at least 16")?;
        rule(
            self.receive_buffers.is_power_of_two() && (2..=32_768).contains(&self.receive_buffers),
            "receive_buffers: a power of two, 2-32,768",
        )?;
        rule(
            (64..=1 << 20).contains(&self.receive_buffer_bytes),
            "receive_buffer_bytes: 64-1,048,576",
        )?;
        rule(self.receive_budget_bytes >= 1, "receive_budget_bytes: at least 1")?;
        rule((64..=65_536).contains(&self.completion_entries), "completion_entries: 64-65,536")?;
        rule(self.shards.iter().all(|shard| shard.weight <= 1000), "weight: 0-1,000")?;
        rule(
            self.balance != Balance::WeightedRoundRobin
                || self.shards.iter().any(|shard| shard.weight > 0),
            "weight: at least one shard needs a weight above 0",
        )
    }
}
