//! State of one connection, from its first byte to its end.
//!
//! A session holds no buffer while nothing is half received or unsent. What happens to it is decided in the
//! `shard` modules, which also see the hub and the homes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::admission::MessageKeys;
use crate::auth::{ChannelClaims, Claims};
use crate::error::Disconnect;
use crate::hook::Verdict;
use crate::ids::{ConnectionId, SessionId};
use crate::large_data::Reassembly;
use crate::message::{ChannelName, Epoch, Publication, Publish, StreamPosition, Subscribed};
use crate::outbox::{Loss, Outbox};
use crate::proto::command::RecoverFrom;
use crate::rate::Gcra;
use crate::settings::Peer;
use crate::time::Moment;
use crate::ws::message::Decoder;

/// Where a connection stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// The request head is not complete.
    Head(Vec<u8>),
    /// A WebSocket without a token yet.
    Unauthenticated,
    /// Server-side subscriptions are on their way; input waits.
    Attaching(Box<Attaching>),
    /// Commands are taken.
    Ready,
    /// The echo endpoint of conformance runs.
    Echo,
    /// Our close frame is queued; the client's is awaited.
    Closing {
        /// When the socket is closed at the latest.
        deadline: Duration,
    },
    /// The driver has been told to close or hand over; nothing more is said.
    Gone {
        /// When a socket that cannot be flushed is cut.
        deadline: Duration,
    },
}

/// What a session waits for before its `welcome`.
#[derive(Debug)]
pub(crate) struct Attaching {
    /// `id` of the `auth` message; empty when the token came with the handshake.
    pub(crate) reply_to: Box<str>,
    /// The question to the application, until it is answered; nothing is subscribed before.
    pub(crate) asked: Option<Box<AskedConnect>>,
    /// Subscriptions still unanswered.
    pub(crate) waiting: u32,
    /// Answered ones, for the `welcome`.
    pub(crate) done: Vec<(ChannelName, Subscribed)>,
    /// Bytes received meanwhile, bounded by the message limit.
    pub(crate) deferred: Vec<u8>,
    /// What came before the `welcome`.
    pub(crate) held: Vec<Held>,
}

/// A connection that the application is asked about.
#[derive(Debug)]
pub(crate) struct AskedConnect {
    pub(crate) request: u32,
    /// Lives as long as the answer is wanted.
    pub(crate) _asker: Arc<()>,
    /// Positions of server-side subscriptions.
    pub(crate) recover: BTreeMap<String, RecoverFrom>,
}

/// What waits for the `welcome`, in order.
#[derive(Debug)]
pub(crate) enum Held {
    /// A publication and the hub's index of its channel.
    Publication(u32, Arc<Publication>),
    /// A gap that could not be repaired.
    Loss(Loss),
    /// The channel's stream has begun anew and goes on from there.
    Renewed(u32, StreamPosition),
}

/// State of a subscription on its owner shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubscriptionState {
    /// The home has been asked.
    Pending,
    /// In the hub's list of subscribers.
    Live,
}

/// One channel of a connection.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// Index of the channel in the hub, which knows its name.
    pub(crate) local: u32,
    /// Place among the channel's live subscribers.
    pub(crate) place: u32,
    pub(crate) state: SubscriptionState,
    /// Number of the request that made it.
    pub(crate) request: u32,
    /// Made by the server, by claim, namespace or API.
    pub(crate) by_server: bool,
    /// Offset at which it became live: earlier publications came with the reply, or never.
    pub(crate) live_from: u64,
    /// The channel token that allowed it.
    pub(crate) token: Option<Box<SubscriptionToken>>,
}

/// What is remembered of a channel token.
#[derive(Debug)]
pub(crate) struct SubscriptionToken {
    pub(crate) token_id: Option<Box<str>>,
    pub(crate) issued_at: Option<Duration>,
    /// Monotonic.
    pub(crate) expires_at: Option<Duration>,
    pub(crate) may_publish: bool,
}

impl Subscription {
    /// Monotonic end of the channel token that allowed it.
    pub(crate) fn expires_at(&self) -> Option<Duration> {
        self.token.as_ref()?.expires_at
    }
}

/// Large data of one connection, both ways of its way through the gateway.
#[derive(Debug, Default)]
pub(crate) struct LargeData {
    /// Transfers whose chunks are still coming.
    pub(crate) reassembly: Reassembly,
    /// Complete transfers whose chunks are being published, one transfer after the other.
    pub(crate) transfers: VecDeque<Transfer>,
}

impl LargeData {
    pub(crate) fn is_empty(&self) -> bool {
        self.reassembly.is_empty() && self.transfers.is_empty()
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.reassembly.bytes() + self.transfers.iter().map(Transfer::bytes).sum::<usize>()
    }
}

/// A received transfer on its way to the subscribers of a channel.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) channel: ChannelName,
    pub(crate) data_id: Box<str>,
    pub(crate) checksum: Box<str>,
    /// `id` of the last chunk's message.
    pub(crate) reply_to: Box<str>,
    pub(crate) total_size: usize,
    pub(crate) total_chunks: u32,
    /// Decoded chunks that are not published yet.
    pub(crate) chunks: VecDeque<Bytes>,
}

/// A command that waits for a home's answer.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) request: u32,
    /// `id` of the command.
    pub(crate) reply_to: Box<str>,
    pub(crate) kind: PendingKind,
    /// What is done when the application allows it.
    pub(crate) asked: Option<Box<Asked>>,
}

/// A command that the application is asked about.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Lives as long as the answer is wanted.
    pub(crate) _asker: Arc<()>,
    pub(crate) command: AskedCommand,
}

/// What the command was, in full.
#[derive(Debug)]
pub(crate) enum AskedCommand {
    Subscribe {
        channel: ChannelName,
        recover: Option<StreamPosition>,
        token: Option<ChannelClaims>,
    },
    /// Publications of a connection in a channel leave in the order in which they came, so one that has its answer may
    /// wait for an older one.
    Publish {
        channel: ChannelName,
        publish: Publish,
        verdict: Option<Verdict>,
    },
    Rpc,
}

/// What the waiting command was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PendingKind {
    Subscribe,
    /// Part of the attach; answered together by `welcome`.
    Attach,
    /// Asked by the API; the client is told by a push.
    SubscribeByServer,
    /// A position to recover for a subscription that is live already.
    Recover,
    Publish,
    /// A chunk of a transfer.
    Chunk,
    Presence,
    PresenceStats,
    History,
    /// The control plane answers.
    Call,
    /// The application answers.
    Hook,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: ConnectionId,
    pub(crate) peer: Peer,
    pub(crate) phase: Phase,
    /// A message that has come in part; whole ones leave nothing here.
    pub(crate) decoder: Option<Box<Decoder>>,
    pub(crate) outbox: Outbox,
    /// Whether the connection is in the dirty list.
    pub(crate) dirty: bool,
    /// Bytes that the last flush left in the outbox.
    pub(crate) flush_left: usize,
    /// Whether the node's session count includes this one.
    pub(crate) websocket_counted: bool,
    /// Whether compressed frames may be sent.
    pub(crate) deflate: bool,
    /// Whether compressed frames may come.
    pub(crate) inflate: bool,
    /// Whether the user's connection count includes this one.
    pub(crate) user_counted: bool,
    /// Whether the control plane was told that it is connected.
    pub(crate) told: bool,
    /// Why the session ends, once that is known.
    pub(crate) ending: Option<Disconnect>,
    pub(crate) opened_at: Moment,
    pub(crate) last_input: Moment,
    /// Earliest wheel entry that is on its way.
    pub(crate) timer_at: Option<Moment>,
    pub(crate) next_ping_at: Moment,
    pub(crate) ping_sent_at: Option<Moment>,
    pub(crate) drain_at: Option<Moment>,
    pub(crate) claims: Option<Arc<Claims>>,
    pub(crate) user: Arc<str>,
    pub(crate) public_id: SessionId,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) next_request: u32,
    pub(crate) serial: u64,
    pub(crate) rate: Gcra,
    pub(crate) rate_violations: u32,
    pub(crate) bad_messages: u32,
    pub(crate) message_keys: MessageKeys,
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    pub(crate) large_data: Option<Box<LargeData>>,
    pub(crate) user_agent: Option<Box<str>>,
}

impl Transfer {
    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
}

impl Session {
    /// Whether `welcome` has been sent and no end is decided.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    /// Whether it has become a WebSocket session that counts as connected.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.public_id.is_some()
    }

    /// The subscription to the channel with this index in the hub.
    pub(crate) fn subscription(&self, local: u32) -> Option<&Subscription> {
        self.subscriptions.iter().find(|subscription| subscription.local == local)
    }

    pub(crate) fn subscription_mut(&mut self, local: u32) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|subscription| subscription.local == local)
    }

    /// The oldest of the complete transfers.
    pub(crate) fn transfer_mut(&mut self) -> Option<&mut Transfer> {
        self.large_data.as_mut()?.transfers.front_mut()
    }

    /// Ends the oldest of the complete transfers.
    pub(crate) fn pop_transfer(&mut self) -> Option<Transfer> {
        let transfer = self.large_data.as_mut()?.transfers.pop_front();
        self.forget_large_data();
        transfer
    }

    /// Gives the memory for large data back when there is none.
    pub(crate) fn forget_large_data(&mut self) {
        if self.large_data.as_ref().is_some_and(|data| data.is_empty()) {
            self.large_data = None;
        }
    }

    /// A number for a request.
    pub(crate) fn next_request(&mut self) -> u32 {
        // 0 stands for what nobody asked.
        self.next_request = self.next_request.wrapping_add(1).max(1);
        self.next_request
    }

    /// Remembers a command and gives it a number.
    pub(crate) fn expect_reply(&mut self, reply_to: &str, kind: PendingKind) -> u32 {
        let request = self.next_request();
        self.pending.push(Pending { request, reply_to: reply_to.into(), kind, asked: None });
        request
    }

    pub(crate) fn take_pending(&mut self, request: u32) -> Option<Pending> {
        let index = self.pending.iter().position(|pending| pending.request == request)?;
        let pending = self.pending.swap_remove(index);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
        Some(pending)
    }

    /// Text `id` for the next reply or push to this session alone.
    pub(crate) fn next_id(&mut self) -> String {
        self.serial += 1;
        crate::proto::reply::serial_id(self.serial)
    }
}

/// Position told by a client, as text and number, in our form.
pub(crate) fn recover_position(from: &RecoverFrom) -> StreamPosition {
    let epoch = if from.epoch.is_empty() {
        Epoch::ANY
    } else {
        Epoch::parse(&from.epoch).unwrap_or(Epoch::NONE)
    };
    StreamPosition { offset: from.offset, epoch }
}

// There is one of these per connection, or a few: what they grow by, every idle connection pays.
const _: () = assert!(size_of::<Session>() <= 304);
const _: () = assert!(size_of::<Subscription>() <= 32);
