//! Updates on their way into the mailboxes of the shards.
//!
//! A full mailbox is never waited for by whoever sends: the message waits here, in order, and is offered again. What
//! waits is bounded: publications and news of members above the bound are given up, and their channel is told `Behind` when there
//! is room, so that its home asks for what is missing; of removals the newest is told as well. Answers and snapshots are
//! always kept; their number is bounded by what was asked.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway_core::broker::{BrokerUpdate, ChannelUpdate};
use gateway_core::ids::ShardId;
use gateway_core::message::{
    ChannelName, ChannelReply, ControlMessage, Origin, ShardMessage, StreamPosition,
};
use tokio::sync::Notify;

use crate::bridge::Bridge;

/// Between two offers to a full mailbox.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<ShardMessage>,
    /// Channels of which something was given up, and up to where they were removed by that.
    behind: HashMap<ChannelName, Option<StreamPosition>>,
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

    /// Publications and news of members that were given up because too much waited.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Tells the home of a channel. `false` when that was given up, so that the home will ask.
    pub(crate) fn tell(&self, channel: &ChannelName, update: ChannelUpdate) -> bool {
        let home = self.bridge.shards().home_of(channel);
        let update = BrokerUpdate::Channel(ChannelName::clone(channel), update);
        self.send(home, ShardMessage::Broker(Box::new(update)))
    }

    /// Tells every shard.
    pub(crate) fn tell_all(&self, update: impl Fn() -> BrokerUpdate) {
        for shard in self.bridge.shard_ids() {
            let _always_kept = self.send(shard, ShardMessage::Broker(Box::new(update())));
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
                let _always_kept = self.send(id.shard(), ShardMessage::Reply(Box::new(reply)));
            }
            Origin::Hub(shard) => {
                let _always_kept = self.send(shard, ShardMessage::Reply(Box::new(reply)));
            }
        }
    }

    fn send(&self, shard: ShardId, message: ShardMessage) -> bool {
        let Some(mut queue) = self.queue(shard) else { return true };
        let message = if queue.waiting.is_empty() {
            match self.bridge.shards().try_send(shard, message) {
                Ok(()) => return true,
                Err(message) => message,
            }
        } else {
            message
        };
        let is_full = queue.waiting.len() >= self.waiting_max;
        let given_up = repairable(&message).filter(|_| is_full);
        let is_kept = given_up.is_none();
        if let Some((channel, removed)) = given_up {
            let behind = queue.behind.entry(ChannelName::clone(channel)).or_default();
            *behind = removed.or(*behind);
            self.given_up.fetch_add(1, Ordering::Relaxed);
        } else {
            queue.waiting.push_back(message);
        }
        drop(queue);
        self.waits.notify_one();
        is_kept
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
                for (channel, removed) in std::mem::take(&mut queue.behind) {
                    let removal = removed.map(ChannelUpdate::Removed);
                    for update in removal.into_iter().chain([ChannelUpdate::Behind]) {
                        let update = BrokerUpdate::Channel(ChannelName::clone(&channel), update);
                        queue.waiting.push_back(ShardMessage::Broker(Box::new(update)));
                    }
                }
            }
            left |= !queue.waiting.is_empty();
        }
        left
    }
}

/// The channel of a message that the home asks for again when it is told `Behind`, and up to where it removes publications.
fn repairable(message: &ShardMessage) -> Option<(&ChannelName, Option<StreamPosition>)> {
    let ShardMessage::Broker(update) = message else { return None };
    let BrokerUpdate::Channel(channel, update) = &**update else { return None };
    match update {
        ChannelUpdate::Published(_)
        | ChannelUpdate::Joined(..)
        | ChannelUpdate::Left(_)
        | ChannelUpdate::Members(..) => Some((channel, None)),
        ChannelUpdate::Removed(top) => Some((channel, Some(*top))),
        ChannelUpdate::Snapshot(_)
        | ChannelUpdate::Behind
        | ChannelUpdate::Page(..)
        | ChannelUpdate::Unlinked
        | ChannelUpdate::TellMembers => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use gateway_core::broker::{MemberId, Placed, Snapshot};
    use gateway_core::ids::{ConnectionId, SessionId};
    use gateway_core::message::{Epoch, Member};

    use super::*;
    use crate::bridge::testing::TestShards;
    use crate::bridge::{BridgeLimits, Shards};

    const WAITING_MAX: usize = 2;

    /// The mailbox takes one message.
    fn mail() -> (Arc<TestShards>, Mail) {
        let shards = Arc::new(TestShards::new(1));
        let limits = BridgeLimits {
            request_timeout: Duration::from_secs(1),
            snapshot_timeout: Duration::from_secs(1),
            requests_max: 16,
        };
        let bridge = Bridge::new(Arc::clone(&shards) as Arc<dyn Shards>, limits);
        (shards, Mail::new(bridge, WAITING_MAX))
    }

    fn at(offset: u64) -> StreamPosition {
        StreamPosition { offset, epoch: Epoch(*b"abcd0123") }
    }

    fn id() -> MemberId {
        MemberId { node: 7, connection: ConnectionId::new(ShardId(0), 1, 1) }
    }

    fn published(offset: u64) -> ChannelUpdate {
        let (position, unix, sender) = (at(offset), Duration::ZERO, None);
        ChannelUpdate::Published(Placed { position, unix, publish: Arc::default(), sender })
    }

    fn joined() -> ChannelUpdate {
        let member = Member { user: "ada".into(), session: SessionId::NONE, info: None };
        ChannelUpdate::Joined(id(), member)
    }

    fn snapshot() -> ChannelUpdate {
        let snapshot = Snapshot { top: at(9), publications: Vec::new(), server: 0, members: None };
        ChannelUpdate::Snapshot(Box::new(snapshot))
    }

    /// What a shard is told, one after the other.
    fn told(shards: &TestShards, mail: &Mail) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(ShardMessage::Broker(update)) = shards.take(0) {
            mail.offer();
            let BrokerUpdate::Channel(channel, update) = *update else { panic!("{update:?}") };
            told.push(match update {
                ChannelUpdate::Published(placed) => format!("{channel} {}", placed.position.offset),
                ChannelUpdate::Removed(top) => format!("{channel} removed {}", top.offset),
                ChannelUpdate::Snapshot(_) => format!("{channel} snapshot"),
                ChannelUpdate::Behind => format!("{channel} behind"),
                other => panic!("{channel} {other:?}"),
            });
        }
        told
    }

    #[test]
    fn what_is_given_up_is_asked_for() {
        let give_ups = [
            published(4),
            joined(),
            ChannelUpdate::Left(id()),
            ChannelUpdate::Members(7, Vec::new()),
        ];
        for update in give_ups {
            let (shards, mail) = mail();
            let (room, other) = (ChannelName::from("room"), ChannelName::from("hall.2"));
            for offset in 1..=3 {
                assert!(mail.tell(&room, published(offset)));
            }
            assert!(!mail.tell(&other, update));
            // What was asked for comes, whatever waits.
            assert!(mail.tell(&room, snapshot()));
            assert_eq!(mail.given_up(), 1);
            let expected = ["room 1", "room 2", "room 3", "room snapshot", "hall.2 behind"];
            assert_eq!(told(&shards, &mail), expected);
            assert!(mail.tell(&room, published(5)), "there is room again");
        }
    }

    #[test]
    fn of_removals_the_newest_is_told() {
        let (shards, mail) = mail();
        let room = ChannelName::from("room");
        for offset in 1..=3 {
            assert!(mail.tell(&room, published(offset)));
        }
        for update in
            [ChannelUpdate::Removed(at(1)), ChannelUpdate::Removed(at(3)), published(4), joined()]
        {
            assert!(!mail.tell(&room, update));
        }
        assert_eq!(mail.given_up(), 4);
        let expected = ["room 1", "room 2", "room 3", "room removed 3", "room behind"];
        assert_eq!(told(&shards, &mail), expected);
    }
}
