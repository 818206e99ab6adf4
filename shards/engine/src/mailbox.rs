//! What reaches one shard from other threads: a bounded queue, a few latest-value slots, and one wake-up.
//!
//! Invariants: FIFO per sender; a sender never waits; a sleeping shard is always woken, because the sender looks at
//! `parked` after it pushed and the shard looks at the queue after it set `parked`, with a full fence on both sides.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use gateway_core::message::ShardMessage;
use gateway_core::settings::Peer;
use gateway_core::time::Now;

use crate::ring::EventFd;

/// Snapshot requests that wait at one shard.
const SNAPSHOT_REQUESTS_MAX: usize = 16;

/// An eventfd that is written only when its owner sleeps.
#[derive(Debug)]
pub(crate) struct Bell {
    parked: CachePadded<AtomicBool>,
    eventfd: EventFd,
}

impl Bell {
    /// Nobody sleeps.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { parked: CachePadded::new(AtomicBool::new(false)), eventfd: EventFd::new()? })
    }

    /// Owner: from now on, `ring` writes. Look at the queue once more after this and before sleeping.
    pub(crate) fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Owner: awake again.
    pub(crate) fn unpark(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Sender, after it pushed: wakes the owner when it sleeps. Answers whether it had to.
    pub(crate) fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        if !self.parked.load(Ordering::Relaxed) || !self.parked.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.strike();
        true
    }

    /// Makes the eventfd readable whether the owner sleeps or not.
    pub(crate) fn strike(&self) {
        self.eventfd.add_one();
    }

    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

/// A socket on its way to the shard that will serve it. Nothing has been read from it.
#[derive(Debug)]
pub(crate) struct PlacedSocket {
    pub(crate) socket: TcpStream,
    pub(crate) peer: Peer,
}

/// Element of a mailbox.
#[derive(Debug)]
pub(crate) enum Mail {
    Message(ShardMessage),
    Socket(PlacedSocket),
}

/// What other threads may read of a shard. Written by the shard, except `connections` and `placed`, which whoever
/// places a socket adds to, so that a burst does not go to one shard.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Sockets on the shard or on their way to it.
    pub(crate) connections: AtomicU64,
    /// Busy part of the last second, per mille.
    pub(crate) load: AtomicU32,
    /// Sockets placed since `load` was written.
    pub(crate) placed: AtomicU32,
    /// `Now::mono` of the last turn, in nanoseconds.
    pub(crate) heartbeat: AtomicU64,
}

impl Board {
    /// Shows that the shard lives.
    pub(crate) fn beat(&self, now: Now) {
        let nanos = u64::try_from(now.mono.as_nanos()).unwrap_or(u64::MAX);
        self.heartbeat.store(nanos, Ordering::Relaxed);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(crate) queue: ArrayQueue<Mail>,
    pub(crate) bell: Bell,
    pub(crate) board: CachePadded<Board>,
    /// Correlations of wanted snapshots.
    pub(crate) snapshots: ArrayQueue<u64>,
    /// The newest TLS configuration that the shard has not taken yet.
    pub(crate) tls: ArrayQueue<Arc<rustls::ServerConfig>>,
    pub(crate) stop_accepting: AtomicBool,
    pub(crate) shutdown: AtomicBool,
}

impl Mailbox {
    pub(crate) fn new(messages_max: usize) -> io::Result<Self> {
        Ok(Self {
            queue: ArrayQueue::new(messages_max),
            bell: Bell::new()?,
            board: CachePadded::new(Board::default()),
            snapshots: ArrayQueue::new(SNAPSHOT_REQUESTS_MAX),
            tls: ArrayQueue::new(1),
            stop_accepting: AtomicBool::new(false),
            shutdown: AtomicBool::new(false),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use gateway_core::ids::ShardId;

    use super::*;
    use crate::ring::{Ring, RingSizes};

    #[test]
    fn bell_is_written_only_for_a_sleeper() {
        let bell = Bell::new().unwrap();
        assert!(!bell.ring());
        bell.park();
        assert!(bell.ring());
        assert!(!bell.ring(), "one write per sleep");
        assert_eq!(bell.eventfd().take().unwrap(), 1);
    }

    fn push(queue: &ArrayQueue<(ShardId, u64)>, item: (ShardId, u64)) {
        while queue.push(item).is_err() {
            thread::yield_now();
        }
    }

    /// Two senders against one receiver that sleeps in a ring that watches the eventfd: a lost wake-up would hang.
    #[test]
    fn no_wakeup_is_lost_and_senders_keep_their_order() {
        const EACH: u64 = 50_000;
        let queue = ArrayQueue::<(ShardId, u64)>::new(64);
        let bell = Bell::new().unwrap();
        thread::scope(|scope| {
            for sender in 0..2 {
                let (queue, bell) = (&queue, &bell);
                scope.spawn(move || {
                    for number in 0..EACH {
                        push(queue, (ShardId(sender), number));
                        bell.ring();
                    }
                });
            }
            let sizes = RingSizes { completion_entries: 64, buffers: 2, buffer_bytes: 64 };
            let mut ring = Ring::new(sizes).unwrap();
            ring.watch(bell.as_fd());
            let (mut next, mut completions) = ([0; 2], Vec::new());
            while next != [EACH; 2] {
                bell.park();
                if queue.is_empty() {
                    ring.sleep().unwrap();
                    ring.take_completions(&mut completions);
                    let _ = bell.eventfd().take();
                    if completions.iter().any(|completion| !completion.more) {
                        ring.watch(bell.as_fd());
                    }
                }
                bell.unpark();
                while let Some((sender, number)) = queue.pop() {
                    assert_eq!(number, next[sender.index()]);
                    next[sender.index()] += 1;
                }
            }
        });
    }
}
