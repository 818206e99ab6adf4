//! The control plane's client of the shards.
//!
//! A question goes into a shard's mailbox with a correlation number; the answer comes back on the control queue and
//! is matched to the waiting task here. The table of waiting questions is bounded, every wait has a deadline, and an
//! answer that comes after its deadline is counted and dropped. A full mailbox is an error of the caller, at once:
//! nothing here ever waits for room.
//!
//! Snapshots of the last gathering are kept, so that a stalled shard costs a scrape its deadline but not its series.

mod pump;
mod snapshots;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::ids::ShardId;
use gateway_core::message::{
    ChannelName, ChannelOp, ChannelOutcome, ChannelRequest, ControlMessage, Origin, ShardMessage,
    ShardOp, ShardOutcome, ShardRequest,
};
use gateway_core::time::Now;
use gateway_engine::{EngineHandle, ShardSnapshot};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub(crate) use pump::run as run_receiver;
pub(crate) use snapshots::Snapshots;

/// Between two tries to put a message into a full mailbox.
const DELIVER_INTERVAL: Duration = Duration::from_millis(5);
/// Tries.
const DELIVER_TRIES_MAX: u32 = 200;

/// What the bridge needs of the engine; a trait so that tests can stand in for it.
pub(crate) trait Shards: fmt::Debug + Send + Sync {
    /// Number of shards.
    fn count(&self) -> u16;
    /// Home shard of a channel.
    fn home_of(&self, channel: &str) -> ShardId;
    /// Puts a message into a mailbox, or gives it back when that is full.
    fn try_send(&self, shard: ShardId, message: ShardMessage) -> Result<(), ShardMessage>;
    /// Asks a shard for its counters; `false` when its mailbox is full.
    fn request_snapshot(&self, shard: ShardId, correlation: u64) -> bool;
    /// Since the shard's loop last turned.
    fn heartbeat_age(&self, shard: ShardId) -> Duration;
    /// Busy part of a shard's last second, in thousandths.
    fn load_permille(&self, shard: ShardId) -> u32;
    /// The engine's clock.
    fn now(&self) -> Now;
}

impl Shards for EngineHandle {
    fn count(&self) -> u16 {
        self.shards()
    }
    fn home_of(&self, channel: &str) -> ShardId {
        Self::home_of(self, channel)
    }
    fn try_send(&self, shard: ShardId, message: ShardMessage) -> Result<(), ShardMessage> {
        Self::try_send(self, shard, message)
    }
    fn request_snapshot(&self, shard: ShardId, correlation: u64) -> bool {
        Self::request_snapshot(self, shard, correlation)
    }
    fn heartbeat_age(&self, shard: ShardId) -> Duration {
        Self::heartbeat_age(self, shard)
    }
    fn load_permille(&self, shard: ShardId) -> u32 {
        Self::load_permille(self, shard)
    }
    fn now(&self) -> Now {
        Self::now(self)
    }
}

/// Bounds of the bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BridgeLimits {
    /// From a question to giving its answer up.
    pub request_timeout: Duration,
    /// From asking for counters to going on with those that came.
    pub snapshot_timeout: Duration,
    /// Questions that may wait for an answer at once.
    pub requests_max: usize,
}

/// Client of all shards; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Bridge {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shards: Arc<dyn Shards>,
    limits: BridgeLimits,
    next: AtomicU64,
    late: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiter>>,
    snapshots: snapshots::Store,
}

/// Who waits for an answer.
#[derive(Debug)]
enum Waiter {
    Channel(oneshot::Sender<Result<ChannelOutcome, ClientError>>),
    Shards(mpsc::Sender<(ShardId, ShardOutcome)>),
    Snapshots(mpsc::Sender<(ShardId, Box<ShardSnapshot>)>),
}

/// Place in the table of waiting questions; given up when dropped, so that a cancelled request leaves nothing behind.
#[derive(Debug)]
struct Ticket {
    bridge: Bridge,
    correlation: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.bridge.waiting().remove(&self.correlation);
    }
}

/// A question that a home shard has been sent.
#[derive(Debug)]
pub(crate) struct PendingAnswer {
    ticket: Ticket,
    receiver: oneshot::Receiver<Result<ChannelOutcome, ClientError>>,
    deadline: Instant,
}

impl PendingAnswer {
    /// Waits for the answer, at most until the deadline.
    ///
    /// # Cancel safety
    /// Dropping the future gives the question up; a publication may still have been made.
    pub(crate) async fn wait(self) -> Result<ChannelOutcome, ClientError> {
        let answer = tokio::time::timeout_at(self.deadline, self.receiver).await;
        drop(self.ticket);
        match answer {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(ClientError::new(
                ErrorCode::ConnectionTimeout,
                "the channel's shard did not answer in time",
            )),
        }
    }
}

/// Answers of a scatter-gather.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// What came in time, in order of arrival.
    pub answers: Vec<(ShardId, ShardOutcome)>,
    /// Whether the answer of at least one shard is missing.
    pub partial: bool,
}

impl Bridge {
    /// A bridge to `shards`.
    pub(crate) fn new(shards: Arc<dyn Shards>, limits: BridgeLimits) -> Self {
        let count = usize::from(shards.count());
        Self {
            inner: Arc::new(Inner {
                shards,
                limits,
                next: AtomicU64::new(1),
                late: AtomicU64::new(0),
                waiting: Mutex::new(HashMap::new()),
                snapshots: snapshots::Store::new(count),
            }),
        }
    }

    /// The engine behind the bridge.
    pub(crate) fn shards(&self) -> &dyn Shards {
        &*self.inner.shards
    }

    /// Every shard id.
    pub(crate) fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.inner.shards.count()).map(ShardId)
    }

    /// Questions waiting for an answer.
    pub(crate) fn requests_in_flight(&self) -> usize {
        self.waiting().len()
    }

    /// Answers that came after their deadline.
    pub(crate) fn late_answers(&self) -> u64 {
        self.inner.late.load(Ordering::Relaxed)
    }

    /// Sends a question to the home shard of `channel`. Questions of one task to one channel keep their order.
    pub(crate) fn begin(&self, channel: &str, op: ChannelOp) -> Result<PendingAnswer, ClientError> {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.enter(Waiter::Channel(sender))?;
        let channel = ChannelName::from(channel);
        let home = self.inner.shards.home_of(&channel);
        let request = ChannelRequest { origin: Origin::Control(ticket.correlation), channel, op };
        let deadline = Instant::now() + self.inner.limits.request_timeout;
        match self.inner.shards.try_send(home, ShardMessage::Request(Box::new(request))) {
            Ok(()) => Ok(PendingAnswer { ticket, receiver, deadline }),
            Err(_) => Err(ClientError::overloaded()),
        }
    }

    /// Asks the home shard of `channel` and waits for its answer.
    pub(crate) async fn request(
        &self,
        channel: &str,
        op: ChannelOp,
    ) -> Result<ChannelOutcome, ClientError> {
        self.begin(channel, op)?.wait().await
    }

    /// Asks one shard.
    pub(crate) async fn ask(
        &self,
        shard: ShardId,
        op: ShardOp,
    ) -> Result<ShardOutcome, ClientError> {
        let (sender, receiver) = mpsc::channel(1);
        let ticket = self.enter(Waiter::Shards(sender))?;
        self.control(shard, ticket.correlation, op).map_err(|_| ClientError::overloaded())?;
        let mut answers = self.collect(receiver, 1, self.inner.limits.request_timeout).await;
        drop(ticket);
        answers.pop().map(|(_, outcome)| outcome).ok_or_else(|| {
            ClientError::new(
                ErrorCode::ConnectionTimeout,
                format!("shard {shard} did not answer in time"),
            )
        })
    }

    /// Asks every shard the same and gathers what comes before the deadline.
    pub(crate) async fn ask_all(
        &self,
        make: impl Fn() -> ShardOp,
    ) -> Result<Gathered, ClientError> {
        let count = usize::from(self.inner.shards.count());
        let (sender, receiver) = mpsc::channel(count.max(1));
        let ticket = self.enter(Waiter::Shards(sender))?;
        let asked = self
            .shard_ids()
            .filter(|shard| self.control(*shard, ticket.correlation, make()).is_ok());
        let asked = asked.count();
        let answers = self.collect(receiver, asked, self.inner.limits.request_timeout).await;
        drop(ticket);
        let partial = answers.len() < count;
        Ok(Gathered { answers, partial })
    }

    /// Tells a shard something that it does not answer; gives the operation back when its mailbox is full.
    pub(crate) fn tell(&self, shard: ShardId, op: ShardOp) -> Result<(), Box<ShardOp>> {
        self.control(shard, 0, op)
    }

    /// Waits until everything that the shards have said so far has arrived, or until the deadline of requests.
    pub(crate) async fn settle(&self) {
        // A shard's messages keep their order, so its answer comes behind them.
        let ask = || ShardOp::Channels { prefix: "".into(), limit: 0 };
        let _unheard = self.ask_all(ask).await;
    }

    /// Puts a message into a mailbox that may be full for a while; gives up when the shard has stood for a second, which its
    /// clients will notice.
    pub(crate) async fn deliver(&self, shard: ShardId, mut message: ShardMessage) {
        for _ in 0..DELIVER_TRIES_MAX {
            match self.inner.shards.try_send(shard, message) {
                Ok(()) => return,
                Err(refused) => message = refused,
            }
            tokio::time::sleep(DELIVER_INTERVAL).await;
        }
    }

    /// An answer arrived from a shard.
    pub(crate) fn handle_message(&self, message: ControlMessage) {
        let in_time = match message {
            ControlMessage::Channel { correlation, outcome } => {
                match self.waiting().remove(&correlation) {
                    Some(Waiter::Channel(sender)) => sender.send(outcome).is_ok(),
                    _ => false,
                }
            }
            ControlMessage::Shard { correlation, shard, outcome } => {
                match self.waiting().get(&correlation) {
                    Some(Waiter::Shards(sender)) => sender.try_send((shard, outcome)).is_ok(),
                    _ => false,
                }
            }
            ControlMessage::Broker(_)
            | ControlMessage::BusyUser(_)
            | ControlMessage::Call(_)
            | ControlMessage::Occurred(_)
            | ControlMessage::Hook(_) => {
                unreachable!("the receiver gives it to whom it is for")
            }
        };
        self.count_late(in_time);
    }

    /// Counters arrived from a shard.
    pub(crate) fn handle_snapshot(
        &self,
        correlation: u64,
        shard: ShardId,
        snapshot: Box<ShardSnapshot>,
    ) {
        let in_time = match self.waiting().get(&correlation) {
            Some(Waiter::Snapshots(sender)) => sender.try_send((shard, snapshot)).is_ok(),
            _ => false,
        };
        self.count_late(in_time);
    }

    fn count_late(&self, in_time: bool) {
        if !in_time {
            self.inner.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn control(&self, shard: ShardId, correlation: u64, op: ShardOp) -> Result<(), Box<ShardOp>> {
        let message = ShardMessage::Control(Box::new(ShardRequest { correlation, op }));
        match self.inner.shards.try_send(shard, message) {
            Ok(()) => Ok(()),
            Err(ShardMessage::Control(request)) => Err(Box::new(request.op)),
            Err(_) => unreachable!("a refused message is given back as it was"),
        }
    }

    fn enter(&self, waiter: Waiter) -> Result<Ticket, ClientError> {
        let mut waiting = self.waiting();
        if waiting.len() >= self.inner.limits.requests_max {
            return Err(ClientError::new(
                ErrorCode::Unavailable,
                "too many requests wait for an answer; try again",
            ));
        }
        let correlation = self.inner.next.fetch_add(1, Ordering::Relaxed);
        waiting.insert(correlation, waiter);
        Ok(Ticket { bridge: self.clone(), correlation })
    }

    async fn collect<T>(
        &self,
        mut receiver: mpsc::Receiver<T>,
        expected: usize,
        timeout: Duration,
    ) -> Vec<T> {
        let deadline = Instant::now() + timeout;
        let mut answers = Vec::with_capacity(expected);
        while answers.len() < expected {
            match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) | Err(_) => break,
            }
        }
        answers
    }

    /// The table is only ever changed by whole operations, so a panic elsewhere leaves it sound.
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
