//! Client calls: commands that the control plane answers, because what they are about lives in the store.
//!
//! A call leaves its shard through the queue to the control plane and comes back through the mailbox of the connection's
//! shard. The control plane owes an answer to every call with a request number, in time; what the queue refuses is answered
//! by the shard itself.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::ClientError;
use crate::ids::ConnectionId;

/// What a client wants of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Nothing: a signed-in user's session has become ready, and may have missed something.
    Arrived,
    /// A page of the inbox, or its counters only.
    Notifications,
    /// Notifications were shown.
    Seen,
    /// Notifications were read.
    Read,
    /// Notifications have arrived on a device.
    Ack,
    /// Notifications leave the inbox.
    Archive,
    /// The user's preferences: read, or changed and read.
    Preferences,
    /// The browser's subscription to push messages: made, ended, or how to make one.
    PushSubscription,
}

/// A command on its way to the control plane.
#[derive(Clone, Debug)]
pub struct ClientCall {
    /// Who asked.
    pub connection: ConnectionId,
    /// The session's own number of the request; [`ClientCall::UNASKED`] when the client has asked nothing.
    pub request: u32,
    /// The connection's user; never empty.
    pub user: Arc<str>,
    /// What is asked.
    pub kind: CallKind,
    /// JSON text of the command's `data`, an object.
    pub data: Bytes,
}

impl ClientCall {
    /// Request number of a call that no command made.
    pub const UNASKED: u32 = 0;
}

/// A message to one client: the first of an answer is the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientMessage {
    /// Envelope type.
    pub kind: &'static str,
    /// JSON text of `data`.
    pub data: Bytes,
}

/// What the control plane says to one connection.
#[derive(Clone, Debug)]
pub struct CallAnswer {
    /// Connection.
    pub connection: ConnectionId,
    /// Number of the call that is answered.
    pub request: u32,
    /// The reply and further messages, or why there is none.
    pub outcome: Result<Vec<ClientMessage>, ClientError>,
}
