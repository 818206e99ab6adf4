//! One shard: its connections, its hub and the channels it is home of.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::Admission;
use crate::ids::{ConnectionId, ShardId};
use crate::message::ShardMessage;
use crate::metrics::{RefusalReason, ShardMetrics};
use crate::output::Output;
use crate::settings::{Peer, Settings};
use crate::time::Now;

/// What a shard is made from.
#[derive(Debug)]
pub struct ShardInit {
    /// Which shard of the node.
    pub id: ShardId,
    /// How many shards the node has.
    pub shards: u16,
    /// Seed of every keyed hash of the node, so that all shards agree on a channel's home.
    pub hash_seed: u64,
    /// Seed of the shard's own random stream (session ids, epochs, jitter).
    pub seed: [u8; 32],
    /// Parsed configuration.
    pub settings: Arc<Settings>,
    /// Counters shared by all shards.
    pub admission: Arc<Admission>,
}

/// The whole data plane of one shard.
#[derive(Debug)]
pub struct Shard;

impl Shard {
    /// An empty shard.
    pub fn new(_init: ShardInit) -> Self {
        unimplemented!()
    }

    /// A socket was accepted. On refusal the caller closes the socket (after writing the plain HTTP answer
    /// [`RefusalReason`] stands for, when the socket is not TLS).
    pub fn open(&mut self, _now: Now, _peer: Peer) -> Result<ConnectionId, RefusalReason> {
        unimplemented!()
    }

    /// Plain (decrypted) bytes arrived. They may be changed in place (unmasking).
    pub fn handle_bytes(&mut self, _now: Now, _id: ConnectionId, _bytes: &mut [u8]) {
        unimplemented!()
    }

    /// The TLS handshake of the connection failed; the caller will close it.
    pub fn handle_tls_failure(&mut self, _now: Now, _id: ConnectionId) {
        unimplemented!()
    }

    /// The socket is gone (closed by us, by the peer, or handed over) and no completion for it is outstanding: the
    /// slot may be used again. Called exactly once per connection; an id of an earlier generation is ignored.
    pub fn handle_closed(&mut self, _now: Now, _id: ConnectionId) {
        unimplemented!()
    }

    /// A panic was caught while this connection was handled: forget what can be forgotten of it. An `Abort` output follows.
    pub fn handle_panic(&mut self, _now: Now, _id: ConnectionId) {
        unimplemented!()
    }

    /// Takes the next connection whose outbox has something to send; each is given once until new bytes are added.
    pub fn next_dirty(&mut self) -> Option<ConnectionId> {
        unimplemented!()
    }

    /// Fills `slices` with the head of the connection's outbox, in order; answers how many were filled.
    pub fn gather<'a>(&'a self, _id: ConnectionId, _slices: &mut [IoSlice<'a>]) -> usize {
        unimplemented!()
    }

    /// Unsent bytes of the connection.
    pub fn unsent_bytes(&self, _id: ConnectionId) -> usize {
        unimplemented!()
    }

    /// The first `bytes` bytes of the outbox are with the socket (or the TLS layer).
    pub fn handle_sent(&mut self, _now: Now, _id: ConnectionId, _bytes: usize) {
        unimplemented!()
    }

    /// A message from the mailbox.
    pub fn handle_message(&mut self, _now: Now, _message: ShardMessage) {
        unimplemented!()
    }

    /// `message` did not fit into the mailbox of `target`.
    pub fn handle_refused(&mut self, _now: Now, _target: ShardId, _message: ShardMessage) {
        unimplemented!()
    }

    /// Offers what was kept because of full mailboxes once more; call it once a turn before `poll_output`.
    pub fn retry_backlog(&mut self, _now: Now) {
        unimplemented!()
    }

    /// Whether anything waits for room in a mailbox: then the caller must not park for long (1 ms).
    pub fn has_backlog(&self) -> bool {
        unimplemented!()
    }

    /// When `handle_deadline` wants to be called.
    pub fn next_deadline(&self) -> Option<Duration> {
        unimplemented!()
    }

    /// Runs everything that is due.
    pub fn handle_deadline(&mut self, _now: Now) {
        unimplemented!()
    }

    /// Next wish of the shard.
    pub fn poll_output(&mut self) -> Option<Output> {
        unimplemented!()
    }

    /// Counters; gauges in it are brought up to date by this call.
    pub fn metrics(&mut self) -> &ShardMetrics {
        unimplemented!()
    }

    /// Counters for the driver to add to (drops of messages it could not deliver, TLS failures).
    pub fn metrics_mut(&mut self) -> &mut ShardMetrics {
        unimplemented!()
    }
}
