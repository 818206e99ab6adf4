//! Questions to the application: may this client do that?
//!
//! A question leaves its shard through the queue to the control plane, which asks the application, and comes back through
//! the mailbox of the connection's shard. Only the command that asks waits. The control plane owes an answer to every
//! question in time; what the queue refuses is answered by the shard itself.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::auth::Grant;
use crate::error::ClientError;
use crate::ids::{ConnectionId, SessionId};
use crate::message::ChannelName;

/// Which hooks are on, beside those that namespaces switch on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookSettings {
    /// Asked for every connection.
    pub connect: ConnectHook,
    /// Whether clients may call the application.
    pub rpc: bool,
}

/// When the application is asked about a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectHook {
    /// Never.
    #[default]
    Off,
    /// When its token is verified, or when it may be anonymous.
    WithToken,
    /// At once: the token is the application's own, and this gateway does not look at it.
    InsteadOfToken,
}

/// Kinds of questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookKind {
    /// May the client connect?
    Connect,
    /// May it subscribe?
    Subscribe,
    /// May it publish?
    Publish,
    /// What does the application answer?
    Rpc,
}

impl HookKind {
    /// Every kind; metrics and lanes count by this index.
    pub const ALL: [Self; 4] = [Self::Connect, Self::Subscribe, Self::Publish, Self::Rpc];

    /// Name in the configuration, in questions, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::Rpc => "rpc",
        }
    }
}

/// A question on its way to the application.
#[derive(Clone, Debug)]
pub struct HookQuestion {
    /// Who asked.
    pub connection: ConnectionId,
    /// The session's own number of the question.
    pub request: u32,
    /// Gone as soon as nobody waits for the answer any more.
    pub asker: Weak<()>,
    /// What the application is told about the client.
    pub client: HookClient,
    /// What is asked.
    pub ask: HookAsk,
}

/// A client as the application sees it.
#[derive(Clone, Debug)]
pub struct HookClient {
    /// Public session id.
    pub session: SessionId,
    /// User id; empty for anonymous, and while the application has not named one.
    pub user: Arc<str>,
    /// Address of the client.
    pub address: IpAddr,
    /// `User-Agent` of the handshake, cut to 128 bytes.
    pub user_agent: Option<Box<str>>,
    /// JSON text of the token's `info`, or of what the application gave instead.
    pub info: Option<Arc<[u8]>>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum HookAsk {
    /// May the client connect?
    Connect {
        /// The application's own token, with [`ConnectHook::InsteadOfToken`]; empty when the client gave none.
        token: Option<Box<str>>,
    },
    /// May it subscribe?
    Subscribe {
        /// Channel.
        channel: ChannelName,
    },
    /// May it publish?
    Publish {
        /// Channel.
        channel: ChannelName,
        /// Envelope type; empty means `message`.
        kind: Box<str>,
        /// JSON text of the payload.
        data: Bytes,
    },
    /// What does the application answer?
    Rpc {
        /// Name of the method.
        method: Box<str>,
        /// JSON text of the arguments.
        data: Bytes,
    },
}

impl HookAsk {
    /// Its kind.
    pub fn kind(&self) -> HookKind {
        match self {
            Self::Connect { .. } => HookKind::Connect,
            Self::Subscribe { .. } => HookKind::Subscribe,
            Self::Publish { .. } => HookKind::Publish,
            Self::Rpc { .. } => HookKind::Rpc,
        }
    }

    /// Bytes of the payload that waits with the question.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Connect { token } => token.as_ref().map_or(0, |token| token.len()),
            Self::Subscribe { channel } => channel.len(),
            Self::Publish { data, .. } | Self::Rpc { data, .. } => data.len(),
        }
    }
}

impl HookQuestion {
    /// Whether somebody still waits for the answer.
    pub fn is_wanted(&self) -> bool {
        self.asker.strong_count() > 0
    }
}

/// What came of a question.
#[derive(Clone, Debug)]
pub struct HookAnswer {
    /// Connection.
    pub connection: ConnectionId,
    /// Number of the question.
    pub request: u32,
    /// The answer.
    pub verdict: Verdict,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allow,
    /// Yes, and this is what the connection gets (`connect`).
    Grant(Box<Grant>),
    /// Yes, with this JSON text as the payload (`publish`).
    Replace(Bytes),
    /// JSON text of the result (`rpc`).
    Result(Bytes),
    /// No: what the client is told.
    Refuse(ClientError),
    /// The application could not be asked: what the client is told.
    Fail(ClientError),
}
