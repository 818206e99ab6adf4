//! One shard: its connections, its hub and the channels it is home of.
//!
//! The driver calls `handle_*` with what happened and takes wishes with [`Shard::poll_output`]; bytes to send are read
//! with [`Shard::gather`]. A shard never waits: what must not be lost when another shard's mailbox is full is kept in a
//! backlog (see [`crate::message`] for what that is).

mod ask;
mod authenticate;
mod calls;
mod close;
mod commands;
mod connect;
mod control;
mod deliver;
mod hooks;
mod input;
mod mail;
mod occur;
mod pressure;
mod replies;
mod subscribe;
mod timers;
mod transfer;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::admission::Admission;
use crate::auth::{Revocations, TokenCache};
use crate::error::Disconnect;
use crate::home::{HomeKey, Homes};
use crate::hub::Hub;
use crate::ids::{ConnectionId, ShardId};
use crate::message::ControlMessage;
use crate::metrics::{MessageKind, ShardMetrics, SlowAction};
use crate::outbox::{Class, PushResult, Spare};
use crate::output::Output;
use crate::proto::reply::ReplyHead;
use crate::random::Random;
use crate::session::{Phase, Session, Subscription};
use crate::settings::Settings;
use crate::time::Now;
use crate::timer::TimerWheel;
use crate::ws::deflate::{Deflater, Inflater};

use ask::Unasked;
use close::Moving;
use mail::Backlog;
use occur::Untold;
use pressure::Pressure;

/// Resolution and reach of the timer wheel.
const TIMER_TICK: Duration = Duration::from_millis(50);
const TIMER_SLOTS: usize = 1024;

/// Revoked users and token ids that a shard remembers.
const REVOCATIONS_MAX: usize = 100_000;

/// How long a user's revocation is remembered: longer than any sensible token lives.
const USER_REVOCATION_RETENTION: Duration = Duration::from_secs(30 * 86_400);

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

#[derive(Clone, Copy, Debug)]
enum TimerKey {
    Connection(ConnectionId),
    Home(HomeKey),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    session: Option<Box<Session>>,
}

/// The session of `id`, unless it is gone; for where other parts of the shard are borrowed too.
fn session_in(slots: &mut [Slot], id: ConnectionId) -> Option<&mut Session> {
    let slot = slots.get_mut(id.slot() as usize)?;
    if slot.generation == id.generation() { slot.session.as_deref_mut() } else { None }
}

/// An empty cache of verified tokens.
fn token_cache(settings: &Settings, hash_seed: u64) -> TokenCache {
    let entries_max = settings.limits.token_cache_entries_max as usize;
    TokenCache::new(entries_max, hash_seed, settings.auth.authenticator.rules().leeway)
}

/// The whole data plane of one shard.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    shards: u16,
    hash_seed: u64,
    settings: Arc<Settings>,
    admission: Arc<Admission>,
    /// The empty text, shared by sessions that have no user or id yet.
    nobody: Arc<str>,
    random: Random,
    metrics: ShardMetrics,
    slots: Vec<Slot>,
    free: Vec<u32>,
    hub: Hub,
    homes: Homes,
    timers: TimerWheel<TimerKey>,
    dirty: VecDeque<ConnectionId>,
    pressure: Pressure,
    /// Connections whose request head is not complete, oldest first; others among them are stale.
    heads: VecDeque<ConnectionId>,
    /// Connections with a transfer to publish.
    transferring: VecDeque<ConnectionId>,
    outputs: VecDeque<Output>,
    backlog: Vec<Backlog>,
    unasked: Unasked,
    untold: Untold,
    inflater: Inflater,
    deflater: Deflater,
    revocations: Revocations,
    token_cache: TokenCache,
    outbox_bytes: usize,
    spare_outboxes: Spare,
    large_data_bytes: usize,
    /// Time of the newest input.
    now: Now,
    /// Where clients go that this node does not keep or take.
    moving: Moving,
}

impl Shard {
    /// An empty shard.
    pub fn new(init: ShardInit) -> Self {
        let settings = init.settings;
        Self {
            id: init.id,
            shards: init.shards,
            hash_seed: init.hash_seed,
            admission: init.admission,
            random: Random::new(init.seed),
            metrics: ShardMetrics::new(),
            slots: Vec::new(),
            free: Vec::new(),
            hub: Hub::new(init.hash_seed),
            homes: Homes::new(init.hash_seed),
            timers: TimerWheel::new(TIMER_TICK, TIMER_SLOTS),
            dirty: VecDeque::new(),
            pressure: Pressure::default(),
            heads: VecDeque::new(),
            transferring: VecDeque::new(),
            outputs: VecDeque::new(),
            backlog: (0..init.shards).map(|_| Backlog::default()).collect(),
            unasked: Unasked::default(),
            untold: Untold::default(),
            inflater: Inflater::new(),
            deflater: Deflater::new(settings.websocket.compression_level),
            revocations: Revocations::new(REVOCATIONS_MAX, USER_REVOCATION_RETENTION),
            token_cache: token_cache(&settings, init.hash_seed),
            outbox_bytes: 0,
            spare_outboxes: Spare::default(),
            large_data_bytes: 0,
            now: Now { mono: Duration::ZERO, unix: Duration::ZERO },
            moving: Moving::new(init.id),
            nobody: "".into(),
            settings,
        }
    }

    fn session(&self, id: ConnectionId) -> Option<&Session> {
        let slot = self.slots.get(id.slot() as usize)?;
        if slot.generation != id.generation() {
            return None;
        }
        slot.session.as_deref()
    }

    fn session_mut(&mut self, id: ConnectionId) -> Option<&mut Session> {
        session_in(&mut self.slots, id)
    }

    /// The connection's subscription to `channel`.
    fn subscription(&self, id: ConnectionId, channel: &str) -> Option<&Subscription> {
        self.session(id)?.subscription(self.hub.find(channel)?)
    }

    fn session_ids(&self) -> Vec<ConnectionId> {
        self.slots.iter().filter_map(|slot| slot.session.as_ref()).map(|s| s.id).collect()
    }

    /// Takes the next connection whose outbox has something to send; each is given once until new bytes are added.
    pub fn next_dirty(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.dirty.pop_front() {
            let Some(session) = self.session_mut(id) else { continue };
            session.dirty = false;
            session.flush_left = session.outbox.len_bytes();
            if session.outbox.has_losses() {
                self.encode_losses(id);
            }
            return Some(id);
        }
        self.pressure.relieve(self.outbox_bytes);
        None
    }

    /// Whether so much waits in dirty outboxes that they should be flushed before more input is handled.
    pub fn wants_flush(&self) -> bool {
        self.pressure.is_high()
    }

    /// Fills `slices` with the head of the connection's outbox, in order; answers how many were filled.
    pub fn gather<'a>(&'a self, id: ConnectionId, slices: &mut [IoSlice<'a>]) -> usize {
        self.session(id).map_or(0, |session| session.outbox.gather(slices))
    }

    /// Unsent bytes of the connection.
    pub fn unsent_bytes(&self, id: ConnectionId) -> usize {
        self.session(id).map_or(0, |session| session.outbox.len_bytes())
    }

    /// The first `bytes` bytes of the outbox are with the socket (or the TLS layer).
    pub fn handle_sent(&mut self, now: Now, id: ConnectionId, bytes: usize) {
        let Some(slot) = self.slots.get_mut(id.slot() as usize) else { return };
        if slot.generation != id.generation() {
            return;
        }
        let Some(session) = slot.session.as_deref_mut() else { return };
        let before = session.outbox.len_bytes();
        let metrics = &mut self.metrics;
        session.outbox.advance(bytes, &mut self.spare_outboxes, |class| {
            if let Class::Publication { accepted_at, .. } = class {
                metrics.delivered(now.mono.saturating_sub(*accepted_at));
            }
        });
        session.flush_left = session.outbox.len_bytes();
        let sent = before - session.flush_left;
        self.outbox_bytes -= sent;
    }

    fn mark_dirty(&mut self, id: ConnectionId) {
        if let Some(session) = self.session_mut(id)
            && !session.dirty
        {
            session.dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// Queues a frame that is never dropped. A client that lets even those pile up is closed.
    fn push_control(&mut self, id: ConnectionId, frame: Bytes, kind: MessageKind) {
        let hard_max = self.settings.limits.outbox_bytes_max * 2;
        let (bytes, now) = (frame.len(), self.now.mono);
        let Some(session) = session_in(&mut self.slots, id) else { return };
        if matches!(session.phase, Phase::Gone { .. }) {
            return;
        }
        session.outbox.prepare(&mut self.spare_outboxes);
        let result = session.outbox.push_control(frame, hard_max);
        if matches!(result, PushResult::Overflow) {
            session.ending = Some(Disconnect::Slow);
            session.phase = Phase::Gone { deadline: now };
            self.metrics.slow.add(SlowAction::Disconnected as usize, 1);
            self.outputs.push_back(Output::Abort { id });
            return;
        }
        session.messages_out += 1;
        let (unsent, left) = (session.outbox.len_bytes(), session.flush_left);
        self.pressure.note(unsent, left, &self.settings.limits);
        self.outbox_bytes += bytes;
        self.metrics.messages_out.add(kind as usize, 1);
        self.metrics.message_bytes_out += bytes as u64;
        self.mark_dirty(id);
    }

    /// Queues a reply built from the head of the next id.
    fn reply(
        &mut self,
        now: Now,
        id: ConnectionId,
        reply_to: &str,
        build: impl FnOnce(&ReplyHead<'_>, &Settings) -> Bytes,
    ) {
        let Some(session) = self.session_mut(id) else { return };
        let serial = session.next_id();
        let deflate = session.deflate;
        let head = ReplyHead { reply_to, id: &serial, unix: now.unix };
        let mut frame = build(&head, &self.settings);
        if deflate && frame.len() >= self.settings.websocket.compression_bytes_min {
            let header = crate::proto::encode::header_bytes(&frame);
            if let Some(smaller) =
                crate::proto::encode::deflated_text_frame(&mut self.deflater, &frame[header..])
            {
                frame = smaller;
            }
        }
        self.push_control(id, frame, MessageKind::Reply);
    }

    /// Takes the next wish of the shard.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(request) = self.unasked.offer() {
            return Some(Output::Control(ControlMessage::Broker(request)));
        }
        loop {
            match self.outputs.pop_front()? {
                Output::Send { target, message } if self.is_backed_up(target) => {
                    self.keep_or_drop(target, message);
                }
                Output::Control(ControlMessage::Occurred(occurrence)) if self.untold.waits() => {
                    self.keep_untold(*occurrence);
                }
                Output::Control(ControlMessage::Broker(request))
                    if self.unasked.holds_back(&request) =>
                {
                    self.unasked.keep(request);
                }
                output => return Some(output),
            }
        }
    }

    /// When [`Self::handle_deadline`] wants to be called.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.timers.next_deadline()
    }

    /// Counters; gauges in it are brought up to date by this call.
    pub fn metrics(&mut self) -> &ShardMetrics {
        self.homes.measure(&mut self.metrics);
        self.metrics.history_bytes_max = self.settings.limits.history_bytes_max as u64;
        self.metrics.subscriptions = self.hub.live;
        self.metrics.outbox_bytes = self.outbox_bytes as u64;
        self.metrics.large_data_bytes = self.large_data_bytes as u64;
        &self.metrics
    }

    /// Counters for the driver to add to (drops of messages it could not deliver, TLS failures).
    pub fn metrics_mut(&mut self) -> &mut ShardMetrics {
        &mut self.metrics
    }
}
