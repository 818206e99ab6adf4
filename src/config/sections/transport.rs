//! The node, where it listens and how its shards run.

use std::net::SocketAddr;
use std::time::Duration;

use gateway_core::proxies::Network;

use crate::config::key::section;
use crate::config::sections::{Balance, Environment, HashBy, Size};
use crate::config::value::Kind;

section! {
    /// What this node is.
    "node" => NodeSection {
        /// Name of the node in `welcome`, in the API and in logs. Unset: the host name.
        name: String = Kind::Text(64), Restart;
        /// Kind of deployment; sets the defaults of the table "Defaults by environment".
        environment: Environment = Environment::KIND, Restart;
        /// Size tier; sets the defaults of the table "Defaults by size".
        size: Size = Size::KIND, Restart;
    }
}

section! {
    /// Where the node listens.
    "listen" => ListenSection {
        /// Addresses of the public listeners; every shard listens on each of them (SO_REUSEPORT).
        public: Vec<SocketAddr> = Kind::List(&Kind::Address, 1, 16), Restart;
        /// Address of the internal listener. When set, the server API, `/metrics` and `/health/detailed` are served
        /// there only. Unset: on the public listeners.
        internal: Option<SocketAddr> = Kind::Address, Restart;
        /// Address where HAProxy's `agent-check` is answered: weight by load, and drain. Unset: nowhere.
        agent: Option<SocketAddr> = Kind::Address, Restart;
        /// Proxies and balancers in front of the node, addresses or networks. The last address in `X-Forwarded-For` that is none of
        /// theirs is the client's; of anybody else the header is not read.
        proxies: Vec<Network> = Kind::List(&Kind::Network, 0, 64), Live;
        /// Connections the kernel may queue for accept, per listener; the kernel caps it at `net.core.somaxconn`.
        backlog: u32 = Kind::Count(1, 65_535), Restart;
    }
}

section! {
    /// The shards: one pinned executor per CPU core.
    "engine" => EngineSection {
        /// Number of shards; 0 = one per usable core.
        shards: u16 = Kind::Count(0, 256), Restart;
        /// CPU numbers to pin the shards to, in order of the shards. Empty: the usable cores in order.
        cpus: Vec<u16> = Kind::List(&Kind::Count(0, 1_023), 0, 256), Restart;
        /// How accepted sockets are spread over the shards.
        balance: Balance = Balance::KIND, Restart;
        /// What `balance = "hash"` hashes.
        hash_by: HashBy = HashBy::KIND, Restart;
        /// Share of each shard under `balance = "weighted_round_robin"`, one number per shard.
        weights: Vec<u32> = Kind::List(&Kind::Count(1, 1_000), 0, 256), Restart;
        /// Messages a shard's mailbox holds. A full mailbox refuses and counts, nothing waits. Above 65,536 the value
        /// has no further effect: a mailbox is allocated whole, and one that is longer only adds delay.
        mailbox_messages_max: u32 = Kind::Count(64, 1_000_000), Restart;
        /// Events the queue from the shards to the control plane holds.
        control_messages_max: usize = Kind::Count(64, 1_000_000), Restart;
        /// Receive buffers of a shard, shared by all its connections.
        receive_buffers: u16 = Kind::PowerOfTwo(16, 32_768), Restart;
        /// Size of one receive buffer.
        receive_buffer_bytes: usize = Kind::Size(1 << 10, 64 << 10), Restart;
        /// Bytes one connection may bring in during one turn before its receive is paused until the next turn.
        receive_turn_bytes_max: usize = Kind::Size(4 << 10, 16 << 20), Restart;
        /// Completion entries of a shard's ring.
        ring_completions: u32 = Kind::PowerOfTwo(1_024, 65_536), Restart;
        /// From a close frame to closing the socket of a peer that does not answer it.
        close_timeout: Duration = Kind::Duration(100, 60_000), Restart;
        /// How long accepting rests after the process ran out of file descriptors.
        accept_pause: Duration = Kind::Duration(10, 10_000), Restart;
        /// A turn of a shard longer than this is counted and logged as a stall.
        stall_threshold: Duration = Kind::Duration(1, 10_000), Restart;
        /// A shard that has not turned for this long aborts the process, so that the supervisor restarts it.
        watchdog_timeout: Duration = Kind::Duration(1_000, 300_000), Restart;
    }
}

/// Most messages of one mailbox, whatever the tier's queue is.
const MAILBOX_MESSAGES_CAP: u32 = 65_536;

impl EngineSection {
    /// Capacity of the mailbox of one shard.
    pub fn mailbox_messages(&self) -> usize {
        self.mailbox_messages_max.min(MAILBOX_MESSAGES_CAP) as usize
    }
}
