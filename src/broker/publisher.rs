//! Writes to Redis: publishes, removals and members, in the order in which they came.
//!
//! Whatever waits is taken together: one script call carries up to `redis.batch_max` operations, and a few calls are under
//! way at once on one connection, so their order is kept. A single operation is sent at once. What waits is bounded, has a
//! deadline, and is always answered. An operation that the keys of its channel make impossible fails alone. When the server
//! does not know the scripts nothing was done: then the calls under way are awaited, the scripts are loaded, and those calls
//! are made again in their order.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::types::Value;
use futures_util::stream::{FuturesUnordered, StreamExt};
use gateway_core::broker::ChannelUpdate;
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::message::{
    ChannelName, ChannelOutcome, ChannelReply, Epoch, Origin, StreamPosition,
};
use gateway_core::occurrence::PlacedMessage;
use tokio::sync::Notify;

use super::scripts::{Script, ScriptError};
use super::{Common, position};
use crate::logging::LogSampler;
use crate::redis::has_done_nothing;

/// Script calls under way at once: enough to keep the connection busy while answers are on their way.
const CALLS_MAX: usize = 8;
/// Before members that Redis refused are told to it again.
const REFUSED_INTERVAL: Duration = Duration::from_secs(5);
/// Log lines about refused operations in a second.
const REFUSALS_LOGGED: u32 = 1;
/// What one call carries, about; a larger one would hold up the others that Redis serves.
const BATCH_BYTES: usize = 4 << 20;

/// One operation.
#[derive(Debug)]
pub(super) struct Write {
    pub channel: ChannelName,
    pub kind: WriteKind,
    pub payload: Bytes,
    pub at: Instant,
    /// What the application is told when it has its place.
    pub told: Option<Box<PlacedMessage>>,
}

#[derive(Debug)]
pub(super) enum WriteKind {
    Publish {
        origin: Origin,
        size: u32,
        ttl: Duration,
        key: Option<Box<str>>,
    },
    PublishOutside {
        origin: Origin,
    },
    /// Tell the nodes what the payload says; nobody waits for it.
    Tell,
    Remove {
        origin: Origin,
    },
    Joined {
        field: String,
        member: Vec<u8>,
    },
    Left {
        field: String,
    },
    /// First part of the fields of a node that is gone.
    Forget {
        first: String,
    },
    /// First part of the fields, and all members.
    Members {
        first: String,
        members: Vec<(String, Vec<u8>)>,
    },
}

impl Write {
    fn origin(&self) -> Option<Origin> {
        match self.kind {
            WriteKind::Publish { origin, .. }
            | WriteKind::PublishOutside { origin }
            | WriteKind::Remove { origin } => Some(origin),
            _ => None,
        }
    }

    /// Bytes that it holds, about.
    fn weight(&self) -> usize {
        let more = match &self.kind {
            WriteKind::Joined { field, member } => field.len() + member.len(),
            WriteKind::Members { members, .. } => {
                members.iter().map(|(field, member)| field.len() + member.len()).sum()
            }
            _ => 0,
        };
        let told = self.told.as_ref().map_or(0, |told| told.data.len());
        size_of::<Self>() + self.channel.len() + self.payload.len() + more + told
    }
}

/// Bounds of the writer.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteLimits {
    pub waiting_max: usize,
    /// Of those that wait and those that are under way.
    pub waiting_bytes_max: usize,
    pub batch_max: usize,
    /// A Redis Cluster takes keys of one channel at a time.
    pub one_channel: bool,
    pub deadline: Duration,
    /// Life of the metadata and members of a channel that nobody touches.
    pub position_ttl: Duration,
    pub idempotency_ttl: Duration,
    /// Whether what is not kept reaches the subscribers of this node without Redis.
    pub fan_out_locally: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Publisher {
    common: Common,
    limits: WriteLimits,
    waiting: Mutex<VecDeque<Write>>,
    /// Bytes of what waits or is under way.
    waiting_bytes: AtomicUsize,
    more: Notify,
    /// Channels whose members Redis may not know, and from when on they are told again.
    owed: Mutex<HashMap<ChannelName, Instant>>,
    refusals: LogSampler,
    written: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    local: AtomicU64,
    calls: AtomicU64,
}

/// A call that has ended.
type Done = (Vec<Write>, Result<Value, ScriptError>);
type Call<'a> = Pin<Box<dyn Future<Output = Done> + Send + 'a>>;

impl Publisher {
    pub(super) fn new(common: Common, limits: WriteLimits) -> Self {
        Self {
            common,
            limits,
            waiting: Mutex::default(),
            waiting_bytes: AtomicUsize::new(0),
            more: Notify::new(),
            owed: Mutex::default(),
            refusals: LogSampler::new(REFUSALS_LOGGED),
            written: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            local: AtomicU64::new(0),
            calls: AtomicU64::new(0),
        }
    }

    /// Operations carried out, failed, refused because too many waited, and publications that reached this node only;
    /// calls that carried them.
    pub(super) fn counts(&self) -> ([u64; 4], u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let writes = [&self.written, &self.failed, &self.refused, &self.local].map(load);
        (writes, load(&self.calls))
    }

    /// Operations that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.queue().len()
    }

    /// Bytes of what waits or is under way.
    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Write>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an operation, or answers that there is no room.
    pub(super) fn push(&self, write: Write) {
        let weight = write.weight();
        let mut queue = self.queue();
        // One alone passes, however large it is. They grow under the lock only.
        let bytes = self.waiting_bytes.load(Ordering::Relaxed);
        let is_full = bytes > 0 && bytes.saturating_add(weight) > self.limits.waiting_bytes_max;
        if is_full || queue.len() >= self.limits.waiting_max {
            drop(queue);
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.fail(
                write,
                "too many publications wait for Redis (redis.writes_waiting_max, \
                 redis.writes_waiting_bytes_max); try again",
            );
            return;
        }
        self.waiting_bytes.fetch_add(weight, Ordering::Relaxed);
        queue.push_back(write);
        drop(queue);
        self.more.notify_one();
    }

    /// Writes until the future is dropped.
    pub(super) async fn run(&self) {
        let mut calls: FuturesUnordered<Call<'_>> = FuturesUnordered::new();
        let mut again: VecDeque<Vec<Write>> = VecDeque::new();
        loop {
            while again.is_empty()
                && calls.len() < CALLS_MAX
                && let Some(batch) = self.next_batch()
            {
                let mut call: Call<'_> = Box::pin(self.call(batch));
                // The first poll sends it, so that calls leave in order.
                match poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await {
                    Poll::Ready(done) => again.extend(self.finish(done)),
                    Poll::Pending => calls.push(call),
                }
            }
            if calls.is_empty() && !again.is_empty() {
                self.load_and_repeat(&mut again).await;
                continue;
            }
            tokio::select! {
                Some(done) = calls.next() => again.extend(self.finish(done)),
                () = self.more.notified(), if again.is_empty() && calls.len() < CALLS_MAX => {}
            }
        }
    }

    /// Makes calls again that the server did not know the script of.
    async fn load_and_repeat(&self, again: &mut VecDeque<Vec<Write>>) {
        let loaded = self.common.scripts.load(&self.common.redis).await;
        if let Err(error) = &loaded {
            tracing::debug!(category = "error", event = "redis_scripts_not_loaded", %error);
        }
        while let Some(batch) = again.pop_front() {
            let done = match &loaded {
                Ok(()) => self.call(batch).await,
                Err(_) => (batch, Err(ScriptError::NotLoaded)),
            };
            let (batch, answer) = done;
            match answer {
                Ok(answer) => self.conclude(batch, &answer),
                Err(error) => self.fail_all(batch, &error),
            }
        }
    }

    /// What waits, in order, as far as one call may carry it. What has waited too long is answered.
    pub(super) fn next_batch(&self) -> Option<Vec<Write>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut late = Vec::new();
        {
            let mut queue = self.queue();
            while batch.len() < self.limits.batch_max
                && bytes < BATCH_BYTES
                && let Some(write) = queue.pop_front()
            {
                if write.at.elapsed() >= self.limits.deadline {
                    late.push(write);
                    continue;
                }
                if batch.first().is_some_and(|first| !self.goes_with(first, &write)) {
                    queue.push_front(write);
                    break;
                }
                bytes += write.weight();
                batch.push(write);
            }
        }
        self.release(&late);
        for write in late {
            self.fail_unsent(write);
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// They hold nothing any more.
    fn release(&self, writes: &[Write]) {
        let bytes = writes.iter().map(Write::weight).sum();
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether one call may carry both: `write` and what is `first` in it.
    fn goes_with(&self, first: &Write, write: &Write) -> bool {
        let alone = |write: &Write| matches!(write.kind, WriteKind::Members { .. });
        let together = !self.limits.one_channel || first.channel == write.channel;
        together && !alone(first) && !alone(write)
    }

    async fn call(&self, batch: Vec<Write>) -> Done {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let (script, keys, arguments) = match &batch[..] {
            [write @ Write { kind: WriteKind::Members { .. }, .. }] => {
                let (keys, arguments) = self.members_parts(write);
                (Script::Members, keys, arguments)
            }
            writes => {
                let mut keys = Vec::with_capacity(3 * writes.len());
                let mut arguments = vec![
                    super::new_epoch().into(),
                    millis(self.limits.position_ttl),
                    millis(super::unix_now()),
                ];
                for write in writes {
                    self.add_parts(write, &mut keys, &mut arguments);
                }
                (Script::Write, keys, arguments)
            }
        };
        let answer = self.common.scripts.call(&self.common.redis, script, (keys, arguments)).await;
        (batch, answer)
    }

    /// Keys and arguments in the order of `lua/write.lua`.
    fn add_parts(&self, write: &Write, keys: &mut Vec<String>, arguments: &mut Vec<Value>) {
        let names = self.common.names.keys(&write.channel);
        keys.extend([names.meta, names.stream]);
        let payload = Value::Bytes(write.payload.clone());
        match &write.kind {
            WriteKind::Publish { size, ttl, key, .. } => {
                let size = if ttl.is_zero() { 0 } else { *size };
                let mut key_ttl = Duration::ZERO;
                if let Some(key) = key {
                    key_ttl = self.limits.idempotency_ttl;
                    if !key_ttl.is_zero() {
                        keys.push(self.common.names.idempotency_key(&write.channel, key));
                    }
                }
                arguments.extend([kind("p"), payload, text(size), millis(*ttl), millis(key_ttl)]);
            }
            WriteKind::PublishOutside { .. } => arguments.extend([kind("s"), payload]),
            WriteKind::Remove { .. } => arguments.extend([kind("r"), payload]),
            WriteKind::Tell => arguments.extend([kind("t"), payload]),
            WriteKind::Joined { field, member } => {
                keys.push(names.members);
                let member = Value::Bytes(member.clone().into());
                arguments.extend([kind("j"), payload, field.as_str().into(), member]);
            }
            WriteKind::Left { field } => {
                keys.push(names.members);
                arguments.extend([kind("l"), payload, field.as_str().into()]);
            }
            WriteKind::Forget { first } => {
                keys.push(names.members);
                arguments.extend([kind("f"), payload, first.as_str().into()]);
            }
            WriteKind::Members { .. } => unreachable!("it is called alone"),
        }
    }

    fn members_parts(&self, write: &Write) -> (Vec<String>, Vec<Value>) {
        let WriteKind::Members { first, members } = &write.kind else { return Default::default() };
        let mut arguments = vec![
            self.common.names.topic(&write.channel).into(),
            Value::Bytes(write.payload.clone()),
            first.as_str().into(),
            millis(self.limits.position_ttl),
        ];
        for (field, member) in members {
            arguments.push(field.as_str().into());
            arguments.push(Value::Bytes(member.clone().into()));
        }
        (vec![self.common.names.keys(&write.channel).members], arguments)
    }

    /// Answers what a call has come to; gives it back when it is to be made again.
    fn finish(&self, (batch, answer): Done) -> Option<Vec<Write>> {
        match answer {
            Ok(answer) => self.conclude(batch, &answer),
            Err(ScriptError::NotLoaded) => return Some(batch),
            Err(error) => self.fail_all(batch, &error),
        }
        None
    }

    /// A call was made; each operation has its own outcome.
    fn conclude(&self, batch: Vec<Write>, answer: &Value) {
        self.release(&batch);
        let positions = match answer {
            Value::Array(positions) => &positions[..],
            _ => &[],
        };
        for (index, mut write) in batch.into_iter().enumerate() {
            let position = positions.get(index).and_then(Value::as_str);
            let position = position.as_deref();
            if let Some(said) = position.and_then(|text| text.strip_prefix('!')) {
                if has_done_nothing(said) {
                    self.fail_unsent(write);
                } else {
                    self.refuse(write, &said);
                }
                continue;
            }
            self.written.fetch_add(1, Ordering::Relaxed);
            let Some(origin) = write.origin() else { continue };
            // It had this place before, and was told then.
            let (position, is_new) = match position.and_then(|text| text.strip_prefix('=')) {
                Some(earlier) => (Some(earlier), false),
                None => (position, true),
            };
            let outcome = match position.and_then(position::read) {
                Some(position) => {
                    if is_new {
                        self.tell_placed(&mut write, position);
                    }
                    Ok(outcome_of(&write.kind, position))
                }
                None => Err(unavailable("Redis answered something else than a position")),
            };
            self.common.mail.reply(ChannelReply { origin, channel: write.channel, outcome });
        }
        self.tell_owed();
    }

    /// Homes whose members Redis may not know tell them again.
    pub(super) fn tell_owed(&self) {
        let now = Instant::now();
        let mut due = Vec::new();
        self.owed().retain(|channel, from| {
            let is_due = *from <= now;
            due.extend(is_due.then(|| ChannelName::clone(channel)));
            !is_due
        });
        for channel in due {
            self.common.mail.tell(&channel, ChannelUpdate::TellMembers);
        }
    }

    fn fail_all(&self, batch: Vec<Write>, error: &ScriptError) {
        self.release(&batch);
        tracing::debug!(category = "error", event = "redis_write_failed", writes = batch.len(), %error);
        let (undone, refused) = match error {
            ScriptError::NotLoaded => (true, false),
            ScriptError::Redis(error) => (error.is_undone(), error.is_refusal()),
        };
        for write in batch {
            if refused {
                self.refuse(write, error);
                continue;
            }
            if undone {
                self.fail_unsent(write);
                continue;
            }
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.fail(
                write,
                "Redis cannot be reached, or did not answer in time: it is not known whether it was \
                 published; try again, with the same idempotency_key",
            );
        }
    }

    /// The keys of the channel make it impossible, so nothing was done, and trying again at once would not help.
    fn refuse(&self, write: Write, error: &dyn Display) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.refusals.pass(Instant::now()) {
            tracing::warn!(
                category = "error", event = "redis_write_refused", channel = %write.channel, %error, left_out,
                mend = "another program uses keys of this channel in the same Redis; delete them, or change redis.prefix"
            );
        }
        let message = "Redis refuses what it has under the keys of this channel: nothing was published; \
                       the gateway's log says why";
        self.fail_from(write, message, Instant::now() + REFUSED_INTERVAL);
    }

    /// Redis has certainly not got it.
    fn fail_unsent(&self, mut write: Write) {
        if !self.deliver_here(&mut write) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.fail(
                write,
                "Redis cannot be reached, or takes no writes: nothing was published; try again",
            );
        }
    }

    /// What nobody keeps needs no place in the stream: it still reaches the subscribers of this node, outside of the stream.
    /// With an idempotency key it could reach them twice.
    fn deliver_here(&self, write: &mut Write) -> bool {
        let origin = match write.kind {
            WriteKind::Publish { origin, size: 0, key: None, .. }
            | WriteKind::PublishOutside { origin }
                if self.limits.fan_out_locally =>
            {
                origin
            }
            _ => return false,
        };
        let position = StreamPosition { offset: 0, epoch: Epoch::NONE };
        let Some(placed) = self.common.nodes.placed(position, write.payload.clone()) else {
            return false;
        };
        self.local.fetch_add(1, Ordering::Relaxed);
        self.common.mail.tell(&write.channel, ChannelUpdate::Published(placed));
        self.tell_placed(write, position);
        let channel = ChannelName::clone(&write.channel);
        let outcome = Ok(ChannelOutcome::Published(position));
        self.common.mail.reply(ChannelReply { origin, channel, outcome });
        true
    }

    fn tell_placed(&self, write: &mut Write, position: StreamPosition) {
        if let (Some(mut message), Some(events)) = (write.told.take(), &self.common.events) {
            message.position = position;
            events.note_message(*message);
        }
    }

    fn fail(&self, write: Write, message: &'static str) {
        self.fail_from(write, message, Instant::now());
    }

    /// Answers that it failed. Members are told again from `again` on.
    fn fail_from(&self, write: Write, message: &'static str, again: Instant) {
        match write.origin() {
            Some(origin) => {
                let outcome = Err(unavailable(message));
                self.common.mail.reply(ChannelReply { origin, channel: write.channel, outcome });
            }
            // Whoever reads those fields next takes them out.
            None if matches!(write.kind, WriteKind::Forget { .. } | WriteKind::Tell) => {}
            None => {
                self.owed().insert(write.channel, again);
            }
        }
    }

    fn owed(&self) -> MutexGuard<'_, HashMap<ChannelName, Instant>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn outcome_of(kind: &WriteKind, position: StreamPosition) -> ChannelOutcome {
    match kind {
        WriteKind::Remove { .. } => ChannelOutcome::HistoryRemoved(position),
        _ => ChannelOutcome::Published(position),
    }
}

fn unavailable(message: &'static str) -> ClientError {
    ClientError::new(ErrorCode::Unavailable, message)
}

fn kind(letter: &'static str) -> Value {
    Value::from_static_str(letter)
}

fn text(number: u32) -> Value {
    number.to_string().into()
}

fn millis(duration: Duration) -> Value {
    duration.as_millis().to_string().into()
}
