//! Stands in for the engine in tests of the control plane.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use gateway_core::ids::ShardId;
use gateway_core::message::ShardMessage;
use gateway_core::time::Now;

use super::Shards;

/// Two mailboxes that a test reads and answers itself.
#[derive(Debug)]
pub(crate) struct TestShards {
    started: Instant,
    mailboxes: Mutex<[VecDeque<ShardMessage>; 2]>,
    snapshots: Mutex<Vec<(ShardId, u64)>>,
    /// Messages a mailbox takes.
    pub capacity: usize,
    /// Age of both heartbeats.
    pub heartbeat: Mutex<Duration>,
    /// Busy share of both shards, in thousandths.
    pub load_permille: Mutex<u32>,
}

impl TestShards {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            started: Instant::now(),
            mailboxes: Mutex::default(),
            snapshots: Mutex::default(),
            capacity,
            heartbeat: Mutex::default(),
            load_permille: Mutex::default(),
        }
    }

    /// The next message of a shard.
    pub(crate) fn take(&self, shard: u16) -> Option<ShardMessage> {
        self.mailboxes.lock().expect("no test panics with it")[usize::from(shard)].pop_front()
    }

    /// Snapshot requests so far, emptied.
    pub(crate) fn take_snapshot_requests(&self) -> Vec<(ShardId, u64)> {
        std::mem::take(&mut self.snapshots.lock().expect("no test panics with it"))
    }
}

impl Shards for TestShards {
    fn count(&self) -> u16 {
        2
    }

    /// By the parity of the name's length.
    fn home_of(&self, channel: &str) -> ShardId {
        ShardId((channel.len() % 2) as u16)
    }

    fn try_send(&self, shard: ShardId, message: ShardMessage) -> Result<(), ShardMessage> {
        let mailbox = &mut self.mailboxes.lock().expect("no test panics with it")[shard.index()];
        if mailbox.len() >= self.capacity {
            return Err(message);
        }
        mailbox.push_back(message);
        Ok(())
    }

    fn request_snapshot(&self, shard: ShardId, correlation: u64) -> bool {
        self.snapshots.lock().expect("no test panics with it").push((shard, correlation));
        true
    }

    fn heartbeat_age(&self, _: ShardId) -> Duration {
        *self.heartbeat.lock().expect("no test panics with it")
    }

    fn load_permille(&self, _: ShardId) -> u32 {
        *self.load_permille.lock().expect("no test panics with it")
    }

    fn now(&self) -> Now {
        let mono = self.started.elapsed();
        Now { mono, unix: Duration::from_secs(1_800_000_000) + mono }
    }
}
