//! What happened that the control plane keeps or tells an application: sessions, refused tokens, channels that somebody
//! watches, messages of clients.
//!
//! Nothing is made that [`OccurrenceSettings`] does not ask for. Whether a channel is watched is told as the state that is
//! true then, so a repetition is harmless; everything else is told once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::auth::AuthError;
use crate::error::Disconnect;
use crate::ids::SessionId;
use crate::message::{ChannelName, Publish, StreamPosition};

/// Which occurrences are made, and how many may wait.
#[derive(Clone, Debug, Default)]
pub struct OccurrenceSettings {
    /// Sessions that begin and end.
    pub sessions: bool,
    /// Refused tokens.
    pub authentication: bool,
    /// Channels whose names begin with one of these are told when they become watched or unwatched; the empty text is
    /// every channel.
    pub channels: Vec<Box<str>>,
    /// Messages of clients in namespaces with `webhook_messages`.
    pub messages: bool,
    /// Occurrences of a shard that may wait for room in the control queue; more are dropped and counted.
    pub waiting_max: usize,
    /// Bytes that they may hold.
    pub waiting_bytes_max: usize,
}

impl OccurrenceSettings {
    /// Whether it is told that the channel becomes watched or unwatched.
    pub fn watches(&self, channel: &str) -> bool {
        self.channels.iter().any(|prefix| channel.starts_with(&**prefix))
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Occurrence {
    /// Unix time.
    pub at: Duration,
    /// What.
    pub what: Happening,
}

/// Kinds of occurrences.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A session is ready.
    Connected {
        /// Public session id.
        session: SessionId,
        /// User id; empty for anonymous.
        user: Arc<str>,
        /// Address of the client.
        address: IpAddr,
        /// `User-Agent` of the handshake, cut to 128 bytes.
        user_agent: Option<Box<str>>,
    },
    /// A session that was ready has ended.
    Disconnected {
        /// Public session id.
        session: SessionId,
        /// User id; empty for anonymous.
        user: Arc<str>,
        /// Address of the client.
        address: IpAddr,
        /// Why.
        reason: Disconnect,
        /// From the open socket to its end.
        duration: Duration,
    },
    /// A token was refused.
    AuthenticationFailed {
        /// Address of the client.
        address: IpAddr,
        /// Why.
        error: AuthError,
    },
    /// Somebody on this node watches the channel now, or nobody does any more.
    Watched {
        /// Channel.
        channel: ChannelName,
        /// Which of both.
        watched: bool,
    },
    /// A client's message has its place in a channel.
    Message(Box<PlacedMessage>),
}

/// A message of a client as its channel got it.
#[derive(Clone, Debug)]
pub struct PlacedMessage {
    /// Channel.
    pub channel: ChannelName,
    /// Place; offset 0 = outside of the stream.
    pub position: StreamPosition,
    /// Envelope type; empty means `message`.
    pub kind: Box<str>,
    /// JSON text of `data`.
    pub data: Bytes,
    /// JSON text of the envelope's `sender` object.
    pub sender: Option<Bytes>,
}

impl PlacedMessage {
    /// What was published, with the place that it has got.
    pub fn new(channel: &ChannelName, publish: &Publish, position: StreamPosition) -> Self {
        Self {
            channel: Arc::clone(channel),
            position,
            kind: publish.kind.clone(),
            data: publish.data.clone(),
            sender: publish.sender.clone(),
        }
    }
}

impl Occurrence {
    /// Roughly what it takes in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let own = size_of::<Self>();
        match &self.what {
            Happening::Message(message) => {
                own + message.data.len() + message.sender.as_ref().map_or(0, Bytes::len)
            }
            Happening::Connected { user_agent, .. } => {
                own + user_agent.as_ref().map_or(0, |agent| agent.len())
            }
            _ => own,
        }
    }
}
