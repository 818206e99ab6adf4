//! The bounded queue from all shards to the control plane, with its wake-up.
//!
//! Shards never wait: a full queue gives the event back and the shard counts it. The control plane is the only
//! consumer.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use gateway_core::ids::ShardId;
use gateway_core::message::ControlMessage;
use gateway_core::settings::Peer;

use crate::mailbox::Bell;
use crate::metrics::ShardSnapshot;

/// A connection that turned out to be plain HTTP. The control plane owns it from here on.
pub struct HttpConnection {
    /// Non-blocking socket.
    pub socket: OwnedFd,
    /// Its other end.
    pub peer: Peer,
    /// Decrypted bytes that were read already: at least one request head.
    pub received: Vec<u8>,
    /// TLS state, handshake done, when the socket carries TLS.
    pub tls: Option<Box<rustls::ServerConnection>>,
}

impl fmt::Debug for HttpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes may hold a token.
        f.debug_struct("HttpConnection")
            .field("peer", &self.peer)
            .field("received_bytes", &self.received.len())
            .finish_non_exhaustive()
    }
}

/// Something a shard tells the control plane.
#[derive(Debug)]
pub enum ControlEvent {
    /// From the core.
    Core(ControlMessage),
    /// A request that is no WebSocket upgrade.
    Http(HttpConnection),
    /// Answer to `EngineHandle::request_snapshot`.
    Snapshot {
        /// Number of the request.
        correlation: u64,
        /// Which shard.
        shard: ShardId,
        /// Its counters.
        snapshot: Box<ShardSnapshot>,
    },
}

#[derive(Debug)]
struct Queue {
    events: ArrayQueue<ControlEvent>,
    bell: Bell,
}

/// A shard's end.
#[derive(Debug)]
pub(crate) struct ControlSender {
    queue: Arc<Queue>,
    pushed: bool,
}

impl ControlSender {
    /// Gives the event back when the queue is full. The control plane is woken by the next `ring`.
    pub(crate) fn try_send(&mut self, event: ControlEvent) -> Result<(), ControlEvent> {
        self.queue.events.push(event)?;
        self.pushed = true;
        Ok(())
    }

    /// Wakes the control plane when it sleeps and something was sent since the last call.
    pub(crate) fn ring(&mut self) {
        if std::mem::take(&mut self.pushed) {
            self.queue.bell.ring();
        }
    }
}

impl Clone for ControlSender {
    fn clone(&self) -> Self {
        Self { queue: Arc::clone(&self.queue), pushed: false }
    }
}

/// The control plane's end: one consumer.
///
/// The descriptor is a non-blocking eventfd. It becomes readable when there is something to drain. With tokio:
/// `let mut guard = async_fd.readable().await?; guard.clear_ready();` and then [`Self::drain`], in this order, so that
/// a wake-up that comes meanwhile is not cleared away.
#[derive(Debug)]
pub struct ControlReceiver {
    queue: Arc<Queue>,
}

pub(crate) fn control_queue(
    events_max: usize,
) -> std::io::Result<(ControlSender, ControlReceiver)> {
    let queue = Arc::new(Queue { events: ArrayQueue::new(events_max), bell: Bell::new()? });
    queue.bell.park();
    Ok((ControlSender { queue: Arc::clone(&queue), pushed: false }, ControlReceiver { queue }))
}

impl AsRawFd for ControlReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.queue.bell.as_fd().as_raw_fd()
    }
}

impl ControlReceiver {
    /// Takes at most `max` events. When the iterator is dropped before the queue was seen empty, the descriptor is
    /// made readable again, so nothing is forgotten; when it was seen empty, shards ring from then on.
    pub fn drain(&mut self, max: usize) -> Drain<'_> {
        self.queue.bell.unpark();
        // Not readable (nothing rang) is as good as read.
        let _ = self.queue.bell.eventfd().take();
        Drain { queue: &self.queue, left: max, parked: false }
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.queue.events.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.queue.events.is_empty()
    }
}

/// See [`ControlReceiver::drain`].
#[derive(Debug)]
pub struct Drain<'a> {
    queue: &'a Queue,
    left: usize,
    parked: bool,
}

impl Iterator for Drain<'_> {
    type Item = ControlEvent;

    fn next(&mut self) -> Option<ControlEvent> {
        if self.left == 0 || self.parked {
            return None;
        }
        let event = self.queue.events.pop().or_else(|| {
            self.queue.bell.park();
            // A shard that pushed before it could see `parked` did not ring.
            let event = self.queue.events.pop();
            if event.is_some() {
                self.queue.bell.unpark();
            } else {
                self.parked = true;
            }
            event
        });
        self.left -= usize::from(event.is_some());
        event
    }
}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        if !self.parked {
            self.queue.bell.park();
            if !self.queue.events.is_empty() {
                self.queue.bell.strike();
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn snapshot_request(correlation: u64) -> ControlEvent {
        let outcome = gateway_core::message::ShardOutcome::Affected(0);
        let shard = ShardId(0);
        ControlEvent::Core(ControlMessage::Shard { correlation, shard, outcome })
    }

    fn readable(receiver: &ControlReceiver) -> bool {
        receiver.queue.bell.eventfd().take().is_ok()
    }

    #[test]
    fn full_queue_gives_the_event_back() {
        let (mut sender, mut receiver) = control_queue(2).unwrap();
        sender.try_send(snapshot_request(1)).unwrap();
        sender.try_send(snapshot_request(2)).unwrap();
        assert!(sender.try_send(snapshot_request(3)).is_err());
        assert_eq!(receiver.drain(10).count(), 2);
    }

    #[test]
    fn partial_drain_leaves_the_descriptor_readable() {
        let (mut sender, mut receiver) = control_queue(8).unwrap();
        for number in 0..3 {
            sender.try_send(snapshot_request(number)).unwrap();
        }
        sender.ring();
        assert_eq!(receiver.drain(2).count(), 2);
        assert!(readable(&receiver));
        assert_eq!(receiver.drain(2).count(), 1);
        assert!(!readable(&receiver));
        sender.try_send(snapshot_request(9)).unwrap();
        sender.ring();
        assert!(readable(&receiver));
    }
}
