//! A node in a test: shards, their mailboxes, virtual time, and clients that speak WebSocket into it.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use gateway_core::admission::Admission;
use gateway_core::auth::{KeyAlgorithm, KeySet, SigningKey, VerificationKey, mint};
use gateway_core::event::Event;
use gateway_core::ids::{ConnectionId, ShardId};
use gateway_core::message::{
    ChannelOp, ChannelOutcome, ChannelRequest, ControlMessage, Origin, ShardMessage, ShardOp,
    ShardOutcome, ShardRequest,
};
use gateway_core::metrics::ShardMetrics;
use gateway_core::route::home_shard;
use gateway_core::settings::*;
use gateway_core::time::Now;
use gateway_core::ws::deflate::Inflater;
use gateway_core::ws::frame::{self, Header, Opcode};
use gateway_core::{Output, Shard, ShardInit};
use serde_json::{Value, json};

pub const SECRET: &[u8] = b"a secret of the tests, 32 bytes or more";
const UNIX_START: Duration = Duration::from_secs(1_800_000_000);
const HASH_SEED: u64 = 42;

/// Index of a client in its node.
pub type Client = usize;

#[derive(Debug, Default)]
pub struct ClientState {
    pub id: Option<ConnectionId>,
    /// JSON messages received and not yet taken.
    pub inbox: VecDeque<Value>,
    /// Pings received.
    pub pings: usize,
    /// Payloads of the pongs received.
    pub pongs: Vec<Vec<u8>>,
    /// Compressed messages received.
    pub compressed: usize,
    /// Speaks to the echo endpoint, whose messages are its own.
    pub echo: bool,
    /// Close code received.
    pub close_code: Option<u16>,
    /// Whether the socket is gone.
    pub closed: bool,
    /// Takes nothing from the socket.
    pub stalled: bool,
    /// Answers pings.
    pub silent: bool,
    /// The HTTP head of the answer.
    pub head: String,
    raw: Vec<u8>,
}

pub struct Node {
    pub shards: Vec<Shard>,
    pub mail: Vec<VecDeque<ShardMessage>>,
    pub mailbox_max: usize,
    pub now: Now,
    pub clients: Vec<ClientState>,
    pub events: Vec<Event>,
    pub control: Vec<ControlMessage>,
    pub admission: Arc<Admission>,
    by_id: BTreeMap<ConnectionId, Client>,
    correlation: u64,
}

/// Settings with nothing in the way of a test.
pub fn settings() -> Settings {
    let keys = vec![VerificationKey::from_secret(KeyAlgorithm::Hs256, SECRET).unwrap()];
    let mut namespaces = Namespaces::built_in();
    namespaces.push(Namespace {
        subscribe: Access::SignedIn,
        publish: Access::SignedIn,
        presence: true,
        join_leave: true,
        join_leave_members_max: 3,
        history_size: 50,
        history_ttl: Duration::from_secs(600),
        history_access: true,
        recovery: true,
        ..Namespace::closed("chat")
    });
    namespaces.push(Namespace {
        subscribe: Access::SignedIn,
        publish: Access::SignedIn,
        ..Namespace::closed("live")
    });
    let mut settings = Settings::for_tests(KeySet::from(keys));
    settings.namespaces = Namespaces::new(namespaces);
    settings.websocket.origins = AllowedOrigins::List(vec!["https://app.example.com".into()]);
    settings.websocket.compression = true;
    settings
}

impl Node {
    pub fn new(shards: u16) -> Self {
        Self::with(shards, settings())
    }

    pub fn with(shards: u16, settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let admission = Arc::new(Admission::new(HASH_SEED));
        let make = |index| {
            Shard::new(ShardInit {
                id: ShardId(index),
                shards,
                hash_seed: HASH_SEED,
                seed: [index as u8 + 1; 32],
                settings: Arc::clone(&settings),
                admission: Arc::clone(&admission),
            })
        };
        Self {
            shards: (0..shards).map(make).collect(),
            mail: (0..shards).map(|_| VecDeque::new()).collect(),
            mailbox_max: 1024,
            now: Now { mono: Duration::from_secs(1), unix: UNIX_START },
            clients: Vec::new(),
            events: Vec::new(),
            control: Vec::new(),
            admission,
            by_id: BTreeMap::new(),
            correlation: 0,
        }
    }

    pub fn home(&self, channel: &str) -> ShardId {
        home_shard(channel, self.shards.len() as u16, HASH_SEED)
    }

    /// A channel of `namespace` whose home is `shard`.
    pub fn channel_on(&self, namespace: &str, shard: u16) -> String {
        (0..).map(|n| format!("{namespace}:{n}")).find(|name| self.home(name).0 == shard).unwrap()
    }

    pub fn token(&self, user: &str, extra: Value) -> String {
        let mut claims = json!({
            "sub": user,
            "iat": self.now.unix.as_secs(),
            "exp": self.now.unix.as_secs() + 3600,
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            claims[key] = value.clone();
        }
        mint(&SigningKey::from_secret(KeyAlgorithm::Hs256, SECRET).unwrap(), &claims).unwrap()
    }

    /// Opens a socket on `shard` without sending anything.
    pub fn dial(&mut self, shard: u16) -> Client {
        let peer = Peer { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 1, tls: false };
        let id = self.shards[usize::from(shard)].open(self.now, peer).expect("admitted");
        self.clients.push(ClientState { id: Some(id), ..ClientState::default() });
        self.by_id.insert(id, self.clients.len() - 1);
        self.clients.len() - 1
    }

    /// Opens a WebSocket whose request target is `target`, with more header lines.
    pub fn upgrade(&mut self, shard: u16, target: &str, headers: &str) -> Client {
        let client = self.dial(shard);
        self.clients[client].echo = target.starts_with("/echo");
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        );
        self.send_raw(client, request.as_bytes());
        client
    }

    /// A connected, welcomed client of `user`.
    pub fn connect(&mut self, shard: u16, user: &str) -> Client {
        let token = self.token(user, json!({}));
        let client = self.upgrade(shard, &format!("/ws?token={token}"), "");
        self.settle();
        let welcome = self.take(client, "welcome");
        assert_eq!(welcome["data"]["user_id"], user);
        client
    }

    pub fn send_raw(&mut self, client: Client, bytes: &[u8]) {
        let Some(id) = self.clients[client].id else { return };
        let mut bytes = bytes.to_vec();
        self.shards[id.shard().index()].handle_bytes(self.now, id, &mut bytes);
        self.relieve(id.shard().index());
    }

    pub fn send(&mut self, client: Client, message: &Value) {
        let mut out = Vec::new();
        frame::encode_masked(&mut out, Opcode::Text, message.to_string().as_bytes(), [1, 2, 3, 4]);
        self.send_raw(client, &out);
    }

    /// Sends a command and takes its answer.
    pub fn call(&mut self, client: Client, kind: &str, data: Value) -> Value {
        self.correlation += 1;
        let id = format!("c{}", self.correlation);
        let command = json!({"type": kind, "id": id, "data": data});
        self.send(client, &command);
        self.settle();
        let inbox = &mut self.clients[client].inbox;
        let at = inbox.iter().position(|m| m["reply_to"] == id.as_str());
        let at = at.unwrap_or_else(|| panic!("no answer to {kind}; inbox {inbox:?}"));
        let reply = inbox.remove(at).unwrap();
        if reply["data"]["error_code"] != "INVALID_MESSAGE_FORMAT" {
            crate::schema::check_command(&command);
        }
        reply
    }

    pub fn subscribe(&mut self, client: Client, channel: &str) -> Value {
        let reply = self.call(client, "subscribe", json!({"channel": channel}));
        assert_eq!(reply["type"], "subscribed", "{reply}");
        reply
    }

    pub fn publish(&mut self, client: Client, channel: &str, data: Value) -> Value {
        let reply = self.call(client, "publish", json!({"channel": channel, "data": data}));
        assert_eq!(reply["type"], "published", "{reply}");
        reply
    }

    /// Takes the next message, which must be of `kind`.
    pub fn take(&mut self, client: Client, kind: &str) -> Value {
        let state = &mut self.clients[client];
        let message = state.inbox.pop_front();
        let message = message.unwrap_or_else(|| panic!("nothing came; {state:?}"));
        assert_eq!(message["type"], kind, "{message}");
        message
    }

    /// Takes everything that has come.
    pub fn take_all(&mut self, client: Client) -> Vec<Value> {
        self.clients[client].inbox.drain(..).collect()
    }

    /// The socket ends without a close frame.
    pub fn drop_socket(&mut self, client: Client) {
        if let Some(id) = self.clients[client].id.take() {
            self.by_id.remove(&id);
            self.clients[client].closed = true;
            self.shards[id.shard().index()].handle_closed(self.now, id);
        }
    }

    /// An operation of the server API on a channel.
    pub fn api(
        &mut self,
        channel: &str,
        op: ChannelOp,
    ) -> Result<ChannelOutcome, gateway_core::error::ClientError> {
        self.correlation += 1;
        let origin = Origin::Control(self.correlation);
        let request = ChannelRequest { origin, channel: channel.into(), op };
        let home = self.home(channel).index();
        self.shards[home].handle_message(self.now, ShardMessage::Request(Box::new(request)));
        self.settle();
        let wanted = self.correlation;
        let at = self.control.iter().position(
            |m| matches!(m, ControlMessage::Channel { correlation, .. } if *correlation == wanted),
        );
        match self.control.remove(at.expect("answered")) {
            ControlMessage::Channel { outcome, .. } => outcome,
            ControlMessage::Shard { .. }
            | ControlMessage::Broker(_)
            | ControlMessage::BusyUser(_)
            | ControlMessage::Call(_)
            | ControlMessage::Occurred(_)
            | ControlMessage::Hook(_) => unreachable!(),
        }
    }

    /// Asks every shard.
    pub fn ask_all(&mut self, op: impl Fn() -> ShardOp) -> Vec<ShardOutcome> {
        self.correlation += 1;
        for shard in &mut self.shards {
            let request = ShardRequest { correlation: self.correlation, op: op() };
            shard.handle_message(self.now, ShardMessage::Control(Box::new(request)));
        }
        self.settle();
        self.control
            .drain(..)
            .filter_map(|m| match m {
                ControlMessage::Shard { outcome, .. } => Some(outcome),
                ControlMessage::Channel { .. }
                | ControlMessage::Broker(_)
                | ControlMessage::BusyUser(_)
                | ControlMessage::Call(_)
                | ControlMessage::Occurred(_)
                | ControlMessage::Hook(_) => None,
            })
            .collect()
    }

    pub fn advance(&mut self, by: Duration) {
        let end = self.now.mono + by;
        loop {
            let next = self.shards.iter().filter_map(Shard::next_deadline).min();
            let Some(at) = next.filter(|at| *at <= end) else {
                self.set_time(end);
                return;
            };
            // The wheel's answer is a lower bound; a tick is always enough to make progress.
            let at = at.max(self.now.mono) + Duration::from_millis(50);
            self.set_time(at.min(end));
            if self.now.mono >= end {
                return;
            }
        }
    }

    fn set_time(&mut self, mono: Duration) {
        let by = mono.saturating_sub(self.now.mono);
        self.now = Now { mono, unix: self.now.unix + by };
        for shard in &mut self.shards {
            shard.handle_deadline(self.now);
        }
        self.settle();
    }

    /// Runs turns until nothing moves any more.
    pub fn settle(&mut self) {
        let mut turns = 0;
        while self.turn(usize::MAX) {
            turns += 1;
            assert!(turns < 100_000, "the shards never come to rest");
        }
    }

    /// One turn of every shard, taking at most `budget` messages from each mailbox.
    pub fn turn(&mut self, budget: usize) -> bool {
        let mut moved = false;
        for index in 0..self.shards.len() {
            for _ in 0..budget {
                let Some(message) = self.mail[index].pop_front() else { break };
                self.shards[index].handle_message(self.now, message);
                self.relieve(index);
                moved = true;
            }
            self.shards[index].retry_backlog(self.now);
            while let Some(output) = self.shards[index].poll_output() {
                moved |= self.carry_out(index, output);
            }
            moved |= self.flush(index);
        }
        moved
    }

    /// Flushes at once when the shard asks for it, as its driver does.
    pub fn relieve(&mut self, index: usize) {
        if self.shards[index].wants_flush() {
            self.flush(index);
        }
    }

    fn carry_out(&mut self, index: usize, output: Output) -> bool {
        match output {
            Output::Send { target, message } => {
                assert_ne!(target.index(), index, "a message to oneself");
                if self.mail[target.index()].len() >= self.mailbox_max {
                    self.shards[index].handle_refused(self.now, target, message);
                    return false;
                }
                self.mail[target.index()].push_back(message);
            }
            Output::Control(message) => self.control.push(message),
            Output::Event(event) => self.events.push(event),
            Output::HandOver { id, received } => {
                let client = self.by_id[&id];
                self.clients[client].head = format!("handed over {} bytes", received.len());
                self.end(index, id);
            }
            Output::Close { id } => {
                if self.by_id.get(&id).is_some_and(|c| self.clients[*c].stalled) {
                    return false;
                }
                self.flush(index);
                self.end(index, id);
            }
            Output::Abort { id } => self.end(index, id),
            Output::Fault(_) => {}
        }
        true
    }

    fn end(&mut self, index: usize, id: ConnectionId) {
        if let Some(client) = self.by_id.remove(&id) {
            self.clients[client].closed = true;
            self.clients[client].id = None;
            self.shards[index].handle_closed(self.now, id);
        }
    }

    fn flush(&mut self, index: usize) -> bool {
        let mut moved = false;
        while let Some(id) = self.shards[index].next_dirty() {
            let Some(&client) = self.by_id.get(&id) else { continue };
            if !self.clients[client].stalled {
                moved |= self.drain_outbox(id, client, usize::MAX) > 0;
            }
        }
        moved
    }

    /// Moves at most `limit` bytes from the outbox to the client; answers how many.
    pub fn drain_outbox(&mut self, id: ConnectionId, client: Client, limit: usize) -> usize {
        let mut total = 0;
        while total < limit {
            let shard = &mut self.shards[id.shard().index()];
            let mut slices = [IoSlice::new(&[]); 16];
            let count = shard.gather(id, &mut slices);
            let mut bytes: Vec<u8> =
                slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            bytes.truncate(limit - total);
            if bytes.is_empty() {
                break;
            }
            shard.handle_sent(self.now, id, bytes.len());
            total += bytes.len();
            self.receive(client, &bytes);
        }
        total
    }

    /// A client that was stalled reads again.
    pub fn resume(&mut self, client: Client) {
        self.clients[client].stalled = false;
        while let Some(id) = self.clients[client].id {
            // Losses are turned into messages when the outbox is next looked at, as the driver does it.
            while self.shards[id.shard().index()].next_dirty().is_some() {}
            if self.drain_outbox(id, client, usize::MAX) == 0 {
                break;
            }
        }
        self.settle();
    }

    fn receive(&mut self, client: Client, bytes: &[u8]) {
        let mut pongs = 0;
        let state = &mut self.clients[client];
        state.raw.extend_from_slice(bytes);
        if state.head.is_empty() {
            let Some(end) = state.raw.windows(4).position(|w| w == b"\r\n\r\n") else { return };
            let rest = state.raw.split_off(end + 4);
            state.head = String::from_utf8(std::mem::replace(&mut state.raw, rest)).unwrap();
            if !state.head.starts_with("HTTP/1.1 101") {
                state.head += std::str::from_utf8(&state.raw).unwrap();
                state.raw.clear();
            }
        }
        while let Some((header, header_len)) = Header::parse(&state.raw).unwrap() {
            let end = header_len + header.payload_len as usize;
            if state.raw.len() < end {
                break;
            }
            let rest = state.raw.split_off(end);
            let frame = std::mem::replace(&mut state.raw, rest);
            let payload = &frame[header_len..];
            match header.opcode {
                Opcode::Text => {
                    let mut inflated = Vec::new();
                    let mut text = payload;
                    if header.rsv1 {
                        let extensions = "Sec-WebSocket-Extensions: permessage-deflate";
                        assert!(state.head.contains(extensions), "compression was not negotiated");
                        Inflater::new().inflate(payload, &mut inflated, 16 << 20).unwrap();
                        state.compressed += 1;
                        text = &inflated;
                    }
                    let message = serde_json::from_slice(text).unwrap();
                    if !state.echo {
                        crate::schema::check_server_message(&message);
                    }
                    state.inbox.push_back(message);
                }
                Opcode::Ping => {
                    state.pings += 1;
                    pongs += usize::from(!state.silent);
                }
                Opcode::Pong => state.pongs.push(payload.to_vec()),
                Opcode::Close => {
                    state.close_code = Some(u16::from_be_bytes([payload[0], payload[1]]));
                }
                _ => {}
            }
        }
        for _ in 0..pongs {
            let mut pong = Vec::new();
            frame::encode_masked(&mut pong, Opcode::Pong, b"", [0; 4]);
            self.send_raw(client, &pong);
        }
    }

    /// Sum of one counter over all shards.
    pub fn count(&mut self, counter: impl Fn(&ShardMetrics) -> u64) -> u64 {
        self.shards.iter_mut().map(|shard| counter(shard.metrics())).sum()
    }
}
