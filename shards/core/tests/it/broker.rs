//! Two nodes and a broker in memory that can be away, lose messages and lose its data.
//!
//! Must hold: one stream on both nodes; a hole in what the broker tells is filled or told; without the broker clients are let in
//! and nothing is claimed; a stream that begins anew is told to everyone who was subscribed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gateway_core::broker::{
    BrokerOp, BrokerRequest, BrokerUpdate, ChannelUpdate, MemberId, Placed, Snapshot,
};
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::message::{
    ChannelOp, ChannelOutcome, ChannelReply, ControlMessage, Epoch, Member, Origin, ShardMessage,
    ShardOp, ShardOutcome, StreamPosition,
};
use gateway_core::settings::{BrokerSettings, Namespaces, Settings};
use serde_json::{Value, json};

use crate::node::{Client, Node, settings};

pub(crate) const ROOM: &str = "chat:room";

/// Times that nodes ask the broker something before all is said.
const ROUNDS_MAX: usize = 1_000;

#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) epoch: u64,
    kept: Vec<Placed>,
    attached: BTreeSet<usize>,
    pub(crate) members: BTreeMap<MemberId, Member>,
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) streams: BTreeMap<Arc<str>, Stream>,
    /// Refuses everything and delivers nothing.
    pub(crate) away: bool,
    /// Publications are written but not told.
    pub(crate) deaf: bool,
    /// Attaches that wait for the broker's return.
    wanted: Vec<(usize, BrokerRequest)>,
    /// Pages of durable channels wait here until they are let through.
    pub(crate) held: Option<Vec<(usize, BrokerRequest)>>,
}

impl Stream {
    fn top(&self) -> StreamPosition {
        let mut epoch = *b"epoch000";
        epoch[7] = b'0' + self.epoch as u8;
        StreamPosition { offset: self.kept.len() as u64, epoch: Epoch(epoch) }
    }
}

fn durable(settings: &mut Settings) {
    let mut namespaces: Vec<_> = settings.namespaces.iter().cloned().collect();
    for namespace in namespaces.iter_mut().filter(|namespace| &*namespace.name == "chat") {
        namespace.durable = true;
    }
    settings.namespaces = Namespaces::new(namespaces);
}

impl World {
    fn new() -> Self {
        Self::with(|settings| {
            settings.broker = Some(BrokerSettings { detach_delay: Duration::from_secs(30) });
        })
    }

    /// Two nodes with a database and no broker; channels of the room's namespace are durable.
    pub(crate) fn durable() -> Self {
        Self::with(durable)
    }

    /// As [`Self::durable`], with a broker for members.
    pub(crate) fn durable_with_broker() -> Self {
        Self::with(|settings| {
            settings.broker = Some(BrokerSettings { detach_delay: Duration::from_secs(30) });
            durable(settings);
        })
    }

    fn with(change: impl Fn(&mut Settings)) -> Self {
        let node = || {
            let mut settings = settings();
            change(&mut settings);
            Node::with(2, settings)
        };
        Self {
            nodes: vec![node(), node()],
            held: None,
            streams: BTreeMap::new(),
            away: false,
            deaf: false,
            wanted: Vec::new(),
        }
    }

    /// Until nobody has anything to say.
    pub(crate) fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut requests = Vec::new();
            for (index, node) in self.nodes.iter_mut().enumerate() {
                node.settle();
                for message in std::mem::take(&mut node.control) {
                    match message {
                        ControlMessage::Broker(request) => requests.push((index, request)),
                        other => node.control.push(other),
                    }
                }
            }
            if requests.is_empty() {
                return;
            }
            for (index, request) in requests {
                self.handle(index, request);
            }
        }
        panic!("the broker is asked without end");
    }

    pub(crate) fn come_back(&mut self) {
        self.away = false;
        for (index, request) in std::mem::take(&mut self.wanted) {
            self.handle(index, request);
        }
        self.settle();
    }

    pub(crate) fn tell(&mut self, node: usize, channel: &Arc<str>, update: ChannelUpdate) {
        let node = &mut self.nodes[node];
        let home = node.home(channel).index();
        let update = BrokerUpdate::Channel(Arc::clone(channel), update);
        node.mail[home].push_back(ShardMessage::Broker(Box::new(update)));
    }

    /// A server of the broker goes away, or comes back.
    fn reach(&mut self, server: u16, reachable: bool) {
        for mail in self.nodes.iter_mut().flat_map(|node| &mut node.mail) {
            let update = BrokerUpdate::Reachable { server, reachable };
            mail.push_back(ShardMessage::Broker(Box::new(update)));
        }
        self.settle();
    }

    /// Whether presence, its counts, and both of the server API say that they may be incomplete.
    pub(crate) fn partial(&mut self, node: usize, client: Client) -> bool {
        let mut said = Vec::new();
        for kind in ["presence", "presence_stats"] {
            let reply = self.call(node, client, kind, json!({"channel": ROOM}));
            assert_eq!(reply["type"], kind, "{reply}");
            said.push(is_partial(&reply));
        }
        for op in [ChannelOp::Presence, ChannelOp::PresenceStats] {
            said.push(match self.nodes[node].api(ROOM, op) {
                Ok(
                    ChannelOutcome::Presence { partial, .. }
                    | ChannelOutcome::PresenceStats { partial, .. },
                ) => partial,
                other => panic!("{other:?}"),
            });
        }
        assert!(said.iter().all(|one| *one == said[0]), "{said:?}");
        said[0]
    }

    fn answer(
        &mut self,
        node: usize,
        channel: &Arc<str>,
        origin: Origin,
        outcome: Result<ChannelOutcome, ClientError>,
    ) {
        let Origin::Connection { id, .. } = origin else { panic!("{origin:?}") };
        let reply = ChannelReply { origin, channel: Arc::clone(channel), outcome };
        let shard = id.shard().index();
        self.nodes[node].mail[shard].push_back(ShardMessage::Reply(Box::new(reply)));
    }

    /// Lets the pages through that were held.
    pub(crate) fn release(&mut self) {
        for (index, request) in self.held.take().unwrap_or_default() {
            self.handle(index, request);
        }
        self.settle();
    }

    fn handle(&mut self, node: usize, request: BrokerRequest) {
        if let (Some(held), BrokerOp::Page { .. }) = (&mut self.held, &request.op) {
            return held.push((node, request));
        }
        let channel = Arc::clone(&request.channel);
        if self.away {
            match request.op {
                BrokerOp::Publish { origin, .. } => {
                    let error = ClientError::new(ErrorCode::Unavailable, "away");
                    self.answer(node, &channel, origin, Err(error));
                }
                BrokerOp::Attach(_) | BrokerOp::Sync(..) => {
                    self.wanted.push((node, request));
                    self.tell(node, &channel, ChannelUpdate::Unlinked);
                }
                BrokerOp::Page { ticket, .. } => {
                    let error = ClientError::new(ErrorCode::Unavailable, "away");
                    self.tell(node, &channel, ChannelUpdate::Page(ticket, Err(error)));
                }
                _ => {}
            }
            return;
        }
        let stream = self.streams.entry(Arc::clone(&channel)).or_default();
        match request.op {
            BrokerOp::Attach(scope) | BrokerOp::Sync(_, scope) => {
                stream.attached.insert(node);
                let from = match request.op {
                    BrokerOp::Sync(known, _) if known.epoch == stream.top().epoch => known.offset,
                    _ => 0,
                };
                let from = from.max(stream.top().offset.saturating_sub(scope.history_size.into()));
                let others = stream.members.iter().filter(|(id, _)| id.node != node as u64 + 1);
                let snapshot = Snapshot {
                    top: stream.top(),
                    publications: stream.kept[from as usize..].to_vec(),
                    server: 0,
                    members: Some(others.map(|(id, member)| (*id, member.clone())).collect()),
                };
                self.tell(node, &channel, ChannelUpdate::Snapshot(Box::new(snapshot)));
            }
            BrokerOp::Detach => {
                stream.attached.remove(&node);
            }
            BrokerOp::Publish { origin, publish, .. } => {
                let position = StreamPosition { offset: stream.top().offset + 1, ..stream.top() };
                let unix = self.nodes[node].now.unix;
                let placed = Placed { position, unix, publish: Arc::new(*publish), sender: None };
                stream.kept.push(placed.clone());
                let attached = stream.attached.clone();
                let deaf = self.deaf;
                for other in attached.into_iter().filter(|_| !deaf) {
                    self.tell(other, &channel, ChannelUpdate::Published(placed.clone()));
                }
                self.answer(node, &channel, origin, Ok(ChannelOutcome::Published(position)));
            }
            BrokerOp::Page { ticket, query } => {
                let from = query.since.map_or(0, |since| since.offset as usize);
                let kept = stream.kept.iter().skip(from).take(query.limit as usize);
                let page = (stream.top(), kept.cloned().collect());
                self.tell(node, &channel, ChannelUpdate::Page(ticket, Ok(page)));
            }
            BrokerOp::Forget { .. } => {}
            op @ (BrokerOp::Joined { .. } | BrokerOp::Left { .. } | BrokerOp::Members(_)) => {
                self.handle_members(node, &channel, op);
            }
            BrokerOp::HistoryRemove { .. } => unreachable!("no test asks for it"),
        }
    }

    fn handle_members(&mut self, node: usize, channel: &Arc<str>, op: BrokerOp) {
        let Some(stream) = self.streams.get_mut(channel) else { return };
        let own = |connection| MemberId { node: node as u64 + 1, connection };
        let update = match op {
            BrokerOp::Joined { id, member } => {
                stream.members.insert(own(id), member.clone());
                ChannelUpdate::Joined(own(id), member)
            }
            BrokerOp::Left { id } => {
                stream.members.remove(&own(id));
                ChannelUpdate::Left(own(id))
            }
            BrokerOp::Members(members) => {
                stream.members.retain(|id, _| id.node != node as u64 + 1);
                let members: Vec<_> = members
                    .into_iter()
                    .map(|(connection, member)| (own(connection), member))
                    .collect();
                stream.members.extend(members.iter().cloned());
                ChannelUpdate::Members(node as u64 + 1, members)
            }
            other => panic!("{other:?}"),
        };
        let other = 1 - node;
        if stream.attached.contains(&other) && !self.deaf {
            self.tell(other, channel, update);
        }
    }

    /// What the client was told to have lost of the room.
    pub(crate) fn lost(&mut self, node: usize, client: Client) -> Value {
        let messages = self.nodes[node].take_all(client);
        let is_it = |message: &&Value| message["type"] == "lost" && message["channel"] == ROOM;
        let lost = messages.iter().find(is_it).unwrap_or_else(|| panic!("{messages:?}"));
        lost["data"].clone()
    }

    pub(crate) fn call(&mut self, node: usize, client: Client, kind: &str, data: Value) -> Value {
        let request = json!({"type": kind, "id": "q", "data": data});
        self.nodes[node].send(client, &request);
        self.settle();
        let inbox = self.nodes[node].take_all(client);
        let (mut replies, rest): (Vec<_>, Vec<_>) =
            inbox.into_iter().partition(|message| message["reply_to"] == "q");
        self.nodes[node].clients[client].inbox.extend(rest);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies.remove(0)
    }

    /// A client of `node` that is subscribed to the room; `recover` as in the protocol.
    pub(crate) fn subscriber(
        &mut self,
        node: usize,
        user: &str,
        recover: Value,
    ) -> (Client, Value) {
        let token = self.nodes[node].token(user, json!({}));
        let client = self.nodes[node].upgrade(0, &format!("/ws?token={token}"), "");
        self.settle();
        self.nodes[node].take(client, "welcome");
        let mut data = json!({"channel": ROOM});
        if !recover.is_null() {
            data["recover"] = recover;
        }
        let reply = self.call(node, client, "subscribe", data);
        assert_eq!(reply["type"], "subscribed", "{reply}");
        (client, reply["data"].clone())
    }

    pub(crate) fn publish(&mut self, node: usize, client: Client, n: u64) -> Value {
        self.call(node, client, "publish", json!({"channel": ROOM, "data": {"n": n}}))
    }

    pub(crate) fn numbers(&mut self, node: usize, client: Client) -> Vec<u64> {
        let messages = self.nodes[node].take_all(client);
        messages.iter().filter_map(|message| message["data"]["n"].as_u64()).collect()
    }
}

/// Whether a reply says that it may be incomplete; one that is not says nothing.
fn is_partial(reply: &Value) -> bool {
    let partial = &reply["data"]["partial"];
    assert!(partial.is_null() || partial == true, "{reply}");
    partial == true
}

#[test]
fn publications_reach_both_nodes_in_one_order() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    let (b, _) = world.subscriber(1, "b", Value::Null);
    for n in 1..=6 {
        let (node, client) = if n % 2 == 0 { (0, a) } else { (1, b) };
        assert_eq!(world.publish(node, client, n)["data"]["offset"], n);
    }
    assert_eq!(world.numbers(0, a), [1, 2, 3, 4, 5, 6]);
    assert_eq!(world.numbers(1, b), [1, 2, 3, 4, 5, 6]);
    let stats = world.call(1, b, "presence_stats", json!({"channel": ROOM}));
    assert_eq!(stats["data"]["clients"], 2);
    world.nodes[0].drop_socket(a);
    world.settle();
    assert_eq!(world.nodes[1].take(b, "leave")["data"]["user_id"], "a");
}

#[test]
fn what_the_broker_did_not_tell_is_filled_from_its_history() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    let (b, _) = world.subscriber(1, "b", Value::Null);
    world.publish(0, a, 1);
    world.deaf = true;
    world.publish(0, a, 2);
    world.publish(0, a, 3);
    world.deaf = false;
    world.publish(0, a, 4);
    assert_eq!(world.numbers(1, b), [1, 2, 3, 4]);
    // A quiet channel is found by the broker's own check.
    world.deaf = true;
    world.publish(0, a, 5);
    world.deaf = false;
    world.tell(1, &Arc::from(ROOM), ChannelUpdate::Behind);
    world.settle();
    assert_eq!(world.numbers(1, b), [5]);
}

/// Somebody goes and somebody comes unheard, and nothing is published.
#[test]
fn members_that_were_not_told_come_with_the_next_snapshot() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    let (b, _) = world.subscriber(1, "b", Value::Null);
    world.deaf = true;
    world.nodes[0].drop_socket(a);
    world.settle();
    world.subscriber(0, "c", Value::Null);
    world.deaf = false;
    world.tell(1, &Arc::from(ROOM), ChannelUpdate::Behind);
    world.settle();
    assert_eq!(world.nodes[1].take(b, "leave")["data"]["user_id"], "a");
    assert_eq!(world.nodes[1].take(b, "join")["data"]["user_id"], "c");
    let stats = world.call(1, b, "presence_stats", json!({"channel": ROOM}));
    assert_eq!(stats["data"]["clients"], 2);
}

#[test]
fn a_client_recovers_on_the_other_node_even_when_its_copy_is_behind() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    let (_, _) = world.subscriber(1, "b", Value::Null);
    let first = world.publish(0, a, 1)["data"].clone();
    world.deaf = true;
    let second = world.publish(0, a, 2)["data"].clone();
    world.publish(0, a, 3);
    world.deaf = false;
    // The copy of node 1 stands at 1, the client comes from 2.
    let (_, reply) = world.subscriber(1, "c", second);
    assert_eq!((&reply["recovered"], &reply["offset"]), (&json!(true), &json!(3)));
    assert_eq!(reply["messages"].as_array().unwrap().len(), 1);
    let (_, reply) = world.subscriber(1, "d", first);
    assert_eq!(reply["messages"].as_array().unwrap().len(), 2);
}

#[test]
fn a_lost_stream_is_told_and_goes_on() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    let (b, _) = world.subscriber(1, "b", Value::Null);
    world.publish(0, a, 1);
    assert_eq!(world.numbers(1, b), [1]);
    let stream = world.streams.get_mut(ROOM).unwrap();
    (stream.epoch, stream.kept) = (1, Vec::new());
    stream.members.clear();
    let reply = world.publish(0, a, 2);
    assert_eq!(
        (&reply["data"]["offset"], &reply["data"]["epoch"]),
        (&json!(1), &json!("epoch001"))
    );
    for (node, client) in [(0, a), (1, b)] {
        let lost = world.lost(node, client);
        assert_eq!((&lost["reason"], &lost["epoch"]), (&json!("epoch"), &json!("epoch001")));
    }
    world.numbers(1, b);
    world.publish(1, b, 3);
    assert_eq!(world.numbers(0, a).last(), Some(&3));
    assert_eq!(world.numbers(1, b), [3]);
    // Both nodes have told the broker their members again.
    assert_eq!(world.streams[ROOM].members.len(), 2);
}

/// What was told of the stream before, and comes when the new one is known, is over.
#[test]
fn a_late_publication_of_a_lost_stream_ends() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    for n in 0..3 {
        world.publish(0, a, n);
    }
    let channel: Arc<str> = ROOM.into();
    let stream = world.streams.get_mut(ROOM).unwrap();
    let late = stream.kept.clone();
    (stream.epoch, stream.kept) = (1, Vec::new());
    world.publish(0, a, 3);
    for placed in late {
        world.tell(0, &channel, ChannelUpdate::Published(placed));
    }
    world.settle();
    assert_eq!(world.publish(0, a, 4)["data"]["offset"], 2);
    let reply = world.call(0, a, "history", json!({"channel": ROOM, "limit": 10}));
    assert_eq!(reply["data"]["offset"], 2, "{reply}");
}

#[test]
fn without_the_broker_clients_are_let_in_and_nothing_is_claimed() {
    let mut world = World::new();
    world.away = true;
    let (a, reply) = world.subscriber(0, "a", json!({"offset": 0, "epoch": ""}));
    assert_eq!(reply["recovered"], false);
    for (kind, data) in [
        ("publish", json!({"channel": ROOM, "data": {"n": 1}})),
        ("history", json!({"channel": ROOM, "limit": 1})),
    ] {
        assert_eq!(world.call(0, a, kind, data)["data"]["error_code"], "UNAVAILABLE", "{kind}");
    }
    world.come_back();
    assert_eq!(world.lost(0, a)["reason"], "epoch");
    assert_eq!(world.publish(0, a, 2)["data"]["offset"], 1);
    assert_eq!(world.numbers(0, a), [2]);
    assert_eq!(world.streams[ROOM].members.len(), 1);
}

#[test]
fn a_channel_that_nobody_watches_is_let_go_after_the_delay() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    world.publish(0, a, 1);
    world.nodes[0].drop_socket(a);
    world.settle();
    assert!(world.streams[ROOM].attached.contains(&0));
    world.nodes[0].advance(Duration::from_secs(31));
    world.settle();
    assert!(!world.streams[ROOM].attached.contains(&0));
    // It is found again, with its history.
    let (_, reply) = world.subscriber(0, "b", json!({"offset": 0, "epoch": "epoch000"}));
    assert_eq!(reply["recovered"], true, "{reply}");
}

/// What nodes answer for themselves can be added up: each connection is counted by its own node, though presence is that of
/// all nodes.
#[test]
fn every_node_counts_its_own_connections() {
    let mut world = World::new();
    let (on_a, _) = world.subscriber(0, "ada", Value::Null);
    let (on_b, _) = world.subscriber(1, "ada", Value::Null);
    let (_, _) = world.subscriber(1, "ada", Value::Null);
    let status = |world: &mut World, node: usize| match world.nodes[node]
        .api("user:ada", ChannelOp::UserStatus)
    {
        Ok(ChannelOutcome::UserStatus { connections, last_seen }) => (connections, last_seen),
        other => panic!("{other:?}"),
    };
    let members = |world: &mut World, node: usize| -> u32 {
        let prefix = || "chat:".into();
        let lists = world.nodes[node].ask_all(|| ShardOp::Channels { prefix: prefix(), limit: 10 });
        let channels = lists.into_iter().flat_map(|list| match list {
            ShardOutcome::Channels(channels) => channels,
            other => panic!("{other:?}"),
        });
        channels.map(|channel| channel.clients).sum()
    };
    let stats = world.call(0, on_a, "presence_stats", json!({"channel": ROOM}));
    assert_eq!(stats["data"]["clients"], 3);
    assert_eq!((status(&mut world, 0), status(&mut world, 1)), ((1, None), (2, None)));
    assert_eq!((members(&mut world, 0), members(&mut world, 1)), (1, 2));
    // The node remembers when its own last one left, though the user is online elsewhere.
    let left_at = world.nodes[0].now.unix;
    world.nodes[0].drop_socket(on_a);
    world.settle();
    assert_eq!((status(&mut world, 0), status(&mut world, 1)), ((0, Some(left_at)), (2, None)));
    // It is answered without the broker.
    world.away = true;
    world.nodes[1].drop_socket(on_b);
    world.settle();
    assert_eq!(status(&mut world, 1), (1, None));
    assert_eq!(status(&mut world, 0), (0, Some(left_at)));
}

#[test]
fn presence_says_while_the_server_of_its_channel_is_away() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    world.subscriber(1, "b", Value::Null);
    assert!(!world.partial(0, a));
    world.reach(1, false);
    assert!(!world.partial(0, a), "another server keeps other channels");
    world.reach(0, false);
    world.reach(1, true);
    assert!(world.partial(0, a));
    world.reach(0, true);
    assert!(!world.partial(0, a));
}

#[test]
fn what_was_never_heard_of_the_broker_is_partial() {
    let mut world = World::new();
    world.away = true;
    let (a, _) = world.subscriber(0, "a", Value::Null);
    assert!(world.partial(0, a));
    world.come_back();
    assert!(!world.partial(0, a));
}

#[test]
fn history_from_the_copy_is_partial_while_the_broker_is_away() {
    let mut world = World::new();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    let (b, _) = world.subscriber(1, "b", Value::Null);
    world.publish(0, a, 1);
    let read = |world: &mut World| {
        let reply = world.call(0, a, "history", json!({"channel": ROOM, "limit": 10}));
        assert_eq!(reply["type"], "history", "{reply}");
        (is_partial(&reply), reply["data"]["messages"].as_array().unwrap().len())
    };
    assert_eq!(read(&mut world), (false, 1));
    world.deaf = true;
    world.publish(1, b, 2);
    world.deaf = false;
    world.away = true;
    assert_eq!(read(&mut world), (true, 1));
    // The broker says only once that it is away, and nobody waits for its return.
    assert_eq!(read(&mut world), (true, 1));
    assert!(world.partial(0, a));
    let ahead = json!({"offset": 2, "epoch": "epoch000"});
    let (_, reply) = world.subscriber(0, "c", ahead);
    assert_eq!(reply["recovered"], false, "{reply}");
    world.come_back();
    assert_eq!(read(&mut world), (false, 2));
    assert!(!world.partial(0, a));
}
