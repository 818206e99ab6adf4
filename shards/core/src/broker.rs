//! What homes and the broker between nodes say to each other.
//!
//! With a broker the home of a channel on each node keeps a copy of the channel's stream: it is attached while the node
//! has subscribers, answers them from the copy, and hands every publish on. The broker gives it its place and tells it
//! to every attached home, the own one included, in the order of the stream.
//!
//! The driver of the control plane owes a home: for every `Attach` and `Sync` a `Snapshot`, as soon as there can be one,
//! unless a `Detach` comes before it; `Unlinked` when that takes long; every publication that the broker tells it, or
//! `Behind` instead; an answer to the origin of every `Publish` and `HistoryRemove`.
//!
//! The stream of a durable channel is in the database. It is asked for in the same words; a home then keeps a copy of the
//! newest publications only and asks for a `Page` of what came before them.

use std::sync::Arc;
use std::time::Duration;

use crate::error::ClientError;
use crate::ids::ConnectionId;
use crate::message::{ChannelName, HistoryQuery, Member, Origin, Publish, StreamPosition};

/// From a home to the broker.
#[derive(Debug)]
pub struct BrokerRequest {
    /// Channel.
    pub channel: ChannelName,
    /// Whether the channel's stream is in the database.
    pub durable: bool,
    /// What is asked.
    pub op: BrokerOp,
}

/// Operations of a broker.
#[derive(Debug)]
pub enum BrokerOp {
    /// Tell the home every publication from now on, and first a snapshot.
    Attach(Scope),
    /// The copy has a hole behind this position: a snapshot is wanted.
    Sync(StreamPosition, Scope),
    /// Read publications of a durable channel.
    Page {
        /// Number for the answer.
        ticket: u32,
        /// Which ones.
        query: HistoryQuery,
    },
    /// Nobody on this node is interested any more.
    Detach,
    /// Give the publication its place and tell it to every attached home.
    Publish {
        /// Who gets the answer.
        origin: Origin,
        /// What is published.
        publish: Box<Publish>,
        /// For how long it is kept.
        retention: Retention,
    },
    /// Forget all publications of the channel but not its position.
    HistoryRemove {
        /// Who gets the answer.
        origin: Origin,
    },
    /// A connection of this node is a member now.
    Joined {
        /// Connection.
        id: ConnectionId,
        /// Who it is.
        member: Member,
    },
    /// A connection of this node is no member any more.
    Left {
        /// Connection.
        id: ConnectionId,
    },
    /// All members that this node has.
    Members(Vec<(ConnectionId, Member)>),
    /// A node that had members is gone: nobody else takes them out.
    Forget {
        /// Its number.
        node: u64,
    },
}

/// What a home wants in snapshots of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Publications kept at most; 0 = the channel keeps none.
    pub history_size: u32,
    /// For how long they are kept.
    pub history_ttl: Duration,
    /// Whether members are wanted.
    pub members: bool,
}

/// How long a publication is kept by the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Publications that the channel keeps at most; 0 = this one is not kept.
    pub size: u32,
    /// For how long the channel's publications are kept.
    pub ttl: Duration,
}

/// A publication with the place that the broker gave it.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Place in the stream; offset 0 = outside of it.
    pub position: StreamPosition,
    /// Unix time at which its node took it.
    pub unix: Duration,
    /// What was published.
    pub publish: Arc<Publish>,
    /// The publishing connection, when it is one of this node that wants no copy.
    pub sender: Option<ConnectionId>,
}

/// A connection of any node in a channel's presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId {
    /// Which node; [`MemberId::OWN`] for this one.
    pub node: u64,
    /// The connection on its node.
    pub connection: ConnectionId,
}

impl MemberId {
    /// The node itself.
    pub const OWN: u64 = 0;

    /// A connection of this node.
    pub fn own(connection: ConnectionId) -> Self {
        Self { node: Self::OWN, connection }
    }

    /// Whether it is a connection of this node.
    pub fn is_own(self) -> bool {
        self.node == Self::OWN
    }
}

/// From the broker to a home, or to all homes of a shard when there is no channel.
#[derive(Debug)]
pub enum BrokerUpdate {
    /// Of one channel.
    Channel(ChannelName, ChannelUpdate),
    /// A node is gone, and its members with it.
    NodeLeft(u64),
    /// The broker may not know the members of this node any more: they are to be told anew.
    TellMembers,
    /// A server of the broker cannot be reached, or can be reached again.
    Reachable {
        /// Its number, as in [`Snapshot::server`].
        server: u16,
        /// Whether it can.
        reachable: bool,
    },
}

/// What the broker tells of one channel.
#[derive(Debug)]
pub enum ChannelUpdate {
    /// A publication; those of one channel come in the order of its stream.
    Published(Placed),
    /// All publications up to this position were removed.
    Removed(StreamPosition),
    /// Where the stream stands.
    Snapshot(Box<Snapshot>),
    /// Something could not be told: a snapshot must be asked for.
    Behind,
    /// Answer to a `Page`: the position when it was read and what was asked for, in the order asked.
    Page(u32, Result<(StreamPosition, Vec<Placed>), ClientError>),
    /// The broker cannot be reached; the snapshot comes when it can.
    Unlinked,
    /// A connection of another node has become a member.
    Joined(MemberId, Member),
    /// A connection of another node is no member any more.
    Left(MemberId),
    /// All members that another node has.
    Members(u64, Vec<(MemberId, Member)>),
    /// The broker may not know the members of this node any more: they are to be told anew.
    TellMembers,
}

/// State of a channel at the broker.
#[derive(Debug)]
pub struct Snapshot {
    /// Newest position.
    pub top: StreamPosition,
    /// What is kept, oldest first; may be left out up to the position that was named in `Sync`.
    pub publications: Vec<Placed>,
    /// Number of the server that knows the members.
    pub server: u16,
    /// Members of other nodes, when they were wanted and could be had.
    pub members: Option<Vec<(MemberId, Member)>>,
}
