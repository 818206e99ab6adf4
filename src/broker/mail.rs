//! Updates on their way into the mailboxes of the shards.
//!
//! A full mailbox is never waited for by whoever sends: the message waits here, in order, and is offered again. What
//! waits is bounded: publications above the bound are given up, and their channel is told `Behind` when there is room,
//! so that its home asks for what is missing. Answers and snapshots are always kept; their number is bounded by what was asked.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway_core::broker::{BrokerUpdate, ChannelUpdate};
use gateway_core::ids::ShardId;
use gateway_core::message::{ChannelName, ChannelReply, ControlMessage, Origin, ShardMessage};
use tokio::sync::Notify;

use crate::bridge::Bridge;

/// Between two offers to a full mailbox.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<ShardMessage>,
    behind: HashSet<ChannelName>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Mail {
    bridge: Bridge,
    queues: Vec<Mutex<Queue>>,
    waiting_max: usize,
    waits: Notify,
    given_up: AtomicU64,
}

impl Mail {
    pub(crate) fn new(bridge: Bridge, waiting_max: usize) -> Self {
        let queues = bridge.shard_ids().map(|_| Mutex::default()).collect();
        Self { bridge, queues, waiting_max, waits: Notify::new(), given_up: AtomicU64::new(0) }
    }

    /// Publications that were given up because too much waited.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Tells the home of a channel.
    pub(crate) fn tell(&self, channel: &ChannelName, update: ChannelUpdate) {
        let home = self.bridge.shards().home_of(channel);
        let update = BrokerUpdate::Channel(ChannelName::clone(channel), update);
        self.send(home, ShardMessage::Broker(Box::new(update)));
    }

    /// Tells every shard.
    pub(crate) fn tell_all(&self, update: impl Fn() -> BrokerUpdate) {
        for shard in self.bridge.shard_ids() {
            self.send(shard, ShardMessage::Broker(Box::new(update())));
        }
    }

    /// Answers whoever asked.
    pub(crate) fn reply(&self, reply: ChannelReply) {
        match reply.origin {
            Origin::Control(correlation) => {
                let outcome = reply.outcome;
                self.bridge.handle_message(ControlMessage::Channel { correlation, outcome });
            }
            Origin::Connection { id, .. } => {
                self.send(id.shard(), ShardMessage::Reply(Box::new(reply)));
            }
            Origin::Hub(shard) => self.send(shard, ShardMessage::Reply(Box::new(reply))),
        }
    }

    fn send(&self, shard: ShardId, message: ShardMessage) {
        let Some(mut queue) = self.queue(shard) else { return };
        let message = if queue.waiting.is_empty() {
            match self.bridge.shards().try_send(shard, message) {
                Ok(()) => return,
                Err(message) => message,
            }
        } else {
            message
        };
        match publication_of(&message) {
            Some(channel) if queue.waiting.len() >= self.waiting_max => {
                queue.behind.insert(ChannelName::clone(channel));
                self.given_up.fetch_add(1, Ordering::Relaxed);
            }
            _ => queue.waiting.push_back(message),
        }
        drop(queue);
        self.waits.notify_one();
    }

    fn queue(&self, shard: ShardId) -> Option<MutexGuard<'_, Queue>> {
        // A queue is only changed by whole operations, so a panic elsewhere leaves it sound.
        Some(self.queues.get(shard.index())?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Offers what waits until the future is dropped.
    pub(crate) async fn run(&self) {
        loop {
            self.waits.notified().await;
            while self.offer() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }

    /// Whether anything is left.
    fn offer(&self) -> bool {
        let mut left = false;
        for shard in self.bridge.shard_ids() {
            let Some(mut queue) = self.queue(shard) else { continue };
            while let Some(message) = queue.waiting.pop_front() {
                if let Err(message) = self.bridge.shards().try_send(shard, message) {
                    queue.waiting.push_front(message);
                    break;
                }
            }
            if queue.waiting.is_empty() {
                let behind = std::mem::take(&mut queue.behind);
                queue.waiting.extend(behind.into_iter().map(|channel| {
                    let update = BrokerUpdate::Channel(channel, ChannelUpdate::Behind);
                    ShardMessage::Broker(Box::new(update))
                }));
            }
            left |= !queue.waiting.is_empty();
        }
        left
    }
}

fn publication_of(message: &ShardMessage) -> Option<&ChannelName> {
    let ShardMessage::Broker(update) = message else { return None };
    match &**update {
        BrokerUpdate::Channel(channel, ChannelUpdate::Published(_)) => Some(channel),
        _ => None,
    }
}
