//! What a shard wants done by whoever drives it.

use std::time::Duration;

use crate::event::Event;
use crate::ids::{ConnectionId, ShardId};
use crate::message::{ControlMessage, ShardMessage};

/// One wish of a [`crate::Shard`], taken with `poll_output` until it answers `None`.
#[derive(Debug)]
pub enum Output {
    /// Put `message` into the mailbox of another shard; when that is full, give it back with
    /// `Shard::handle_refused`.
    Send {
        /// Never the shard itself.
        target: ShardId,
        /// What to send.
        message: ShardMessage,
    },
    /// Put into the control plane's queue; when that is full, give it back with `Shard::handle_control_refused` before the next
    /// output is taken.
    Control(ControlMessage),
    /// The bytes received so far are plain HTTP: stop receiving, give the socket with these bytes (and everything
    /// received after them, and its TLS state) to the control plane, then call `Shard::handle_closed`.
    HandOver {
        /// Connection.
        id: ConnectionId,
        /// Bytes read so far, decrypted.
        received: Vec<u8>,
    },
    /// Send what is in the outbox, shut the socket down, then call `Shard::handle_closed`. Further input is dropped.
    /// The shard bounds the time that may take and sends `Abort` when it is over.
    Close {
        /// Connection.
        id: ConnectionId,
    },
    /// Close the socket at once and call `Shard::handle_closed`.
    Abort {
        /// Connection.
        id: ConnectionId,
    },
    /// Write a log record.
    Event(Event),
    /// Misbehave, because a test asked for it (only with fault injection switched on).
    Fault(Fault),
}

/// Faults that a test may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Block the shard's thread.
    Stall(Duration),
    /// Panic outside the handling of any connection.
    PanicShard,
}
