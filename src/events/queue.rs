//! What waits to be written: events in their order, and channels whose occupancy on this node is not in the database.
//!
//! Events are bounded in number and bytes; what finds no room is refused. Of a channel only the state counts, so one that comes
//! and goes before it is written leaves no trace, and there are never more of them than channels that are watched here or have
//! a row. The last quarter of the room is kept from those kinds that strangers can cause at any rate.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gateway_core::message::ChannelName;
use tokio::sync::Notify;

use super::entry::Entry;
use crate::config::sections::EventKind;

/// A channel of this node.
#[derive(Clone, Copy, Debug)]
struct Watch {
    watched: bool,
    /// As it is in the database, or will be with the batch under way.
    recorded: bool,
    /// Whether it is in the list of changes.
    listed: bool,
    /// Unix milliseconds of the newest change.
    at: i64,
}

/// A channel whose row is to be made or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Occupancy {
    pub channel: ChannelName,
    pub watched: bool,
    pub at: i64,
}

/// What one transaction writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub entries: Vec<Entry>,
    pub channels: Vec<Occupancy>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.channels.is_empty()
    }

    /// Each of its parts alone.
    pub(super) fn split(self) -> impl Iterator<Item = Self> {
        let entries =
            self.entries.into_iter().map(|entry| Self { entries: vec![entry], ..Self::default() });
        let channels = self
            .channels
            .into_iter()
            .map(|channel| Self { channels: vec![channel], ..Self::default() });
        entries.chain(channels)
    }
}

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<Entry>,
    bytes: usize,
    channels: HashMap<ChannelName, Watch>,
    changed: VecDeque<ChannelName>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    waiting_max: usize,
    bytes_max: usize,
    more: Notify,
}

impl Queue {
    /// An empty queue with these bounds.
    pub(super) fn new(waiting_max: usize, bytes_max: usize) -> Self {
        Self { inner: Mutex::default(), waiting_max, bytes_max, more: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Only whole operations change it, so a panic elsewhere leaves it sound.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event; `false` when there is no room.
    pub(super) fn push(&self, entry: Entry) -> bool {
        let bytes = entry.bytes();
        let by_strangers =
            matches!(entry.kind, EventKind::Message | EventKind::AuthenticationFailed);
        let part = |max: usize| if by_strangers { max / 4 * 3 } else { max };
        {
            let mut inner = self.lock();
            if inner.entries.len() >= part(self.waiting_max)
                || inner.bytes + bytes > part(self.bytes_max)
            {
                return false;
            }
            inner.bytes += bytes;
            inner.entries.push_back(entry);
        }
        self.more.notify_one();
        true
    }

    /// The state of a channel on this node.
    pub(super) fn note_watched(&self, channel: &ChannelName, watched: bool, at: i64) {
        {
            let mut inner = self.lock();
            let inner = &mut *inner;
            let new = Watch { watched: false, recorded: false, listed: false, at };
            let watch = inner.channels.entry(ChannelName::clone(channel)).or_insert(new);
            (watch.watched, watch.at) = (watched, at);
            if watch.watched == watch.recorded {
                if !watch.watched && !watch.listed {
                    inner.channels.remove(channel);
                }
                return;
            }
            if watch.listed {
                return;
            }
            watch.listed = true;
            inner.changed.push_back(ChannelName::clone(channel));
        }
        self.more.notify_one();
    }

    /// Takes what one transaction carries.
    pub(super) fn take(&self, batch_max: usize) -> Batch {
        let mut inner = self.lock();
        let count = inner.entries.len().min(batch_max);
        let entries: Vec<Entry> = inner.entries.drain(..count).collect();
        inner.bytes -= entries.iter().map(Entry::bytes).sum::<usize>();
        let mut channels = Vec::new();
        while channels.len() < batch_max
            && let Some(channel) = inner.changed.pop_front()
        {
            let Some(watch) = inner.channels.get_mut(&channel) else { continue };
            watch.listed = false;
            let (watched, at) = (watch.watched, watch.at);
            let is_change = watched != watch.recorded;
            watch.recorded = watched;
            if !watched {
                inner.channels.remove(&channel);
            }
            if is_change {
                channels.push(Occupancy { channel, watched, at });
            }
        }
        Batch { entries, channels }
    }

    /// The database has rows of these channels and no others for this node.
    pub(super) fn set_recorded(&self, rows: &HashSet<String>, at: i64) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        for row in rows {
            if !inner.channels.contains_key(row.as_str()) {
                let gone = Watch { watched: false, recorded: true, listed: false, at };
                inner.channels.insert(row.as_str().into(), gone);
            }
        }
        for (channel, watch) in &mut inner.channels {
            watch.recorded = rows.contains(&**channel);
            if watch.watched != watch.recorded && !watch.listed {
                watch.listed = true;
                inner.changed.push_back(ChannelName::clone(channel));
            }
        }
        self.more.notify_one();
    }

    /// Waits until there is something to take.
    ///
    /// # Cancel safety
    /// Nothing is taken.
    pub(super) async fn wait(&self) {
        while self.is_empty() {
            self.more.notified().await;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.entries.is_empty() && inner.changed.is_empty()
    }

    /// Events and channels that wait.
    pub(super) fn waiting(&self) -> usize {
        let inner = self.lock();
        inner.entries.len() + inner.changed.len()
    }

    /// What the events hold.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Channels that are watched on this node, or have a row still.
    pub(super) fn channels(&self) -> usize {
        self.lock().channels.len()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(kind: EventKind) -> Entry {
        Entry::new(kind, &json!({}))
    }

    fn changes(queue: &Queue) -> Vec<(String, bool)> {
        let batch = queue.take(100);
        batch
            .channels
            .into_iter()
            .map(|change| (change.channel.to_string(), change.watched))
            .collect()
    }

    #[test]
    fn room_is_kept_from_what_strangers_cause() {
        let queue = Queue::new(4, 1 << 20);
        let pushed = |kind| queue.push(entry(kind));
        assert_eq!([(); 4].map(|()| pushed(EventKind::Message)), [true, true, true, false]);
        assert!(!pushed(EventKind::AuthenticationFailed));
        assert!(pushed(EventKind::Disconnected) && !pushed(EventKind::Disconnected));
        assert_eq!(queue.take(2).entries.len(), 2);
        assert_eq!((queue.waiting(), queue.bytes() > 0), (2, true));
        assert_eq!(queue.take(9).entries.len(), 2);
        assert_eq!((queue.is_empty(), queue.bytes()), (true, 0));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let queue = Queue::new(100, 1000);
        let mut large = entry(EventKind::Connected);
        large.detail = "x".repeat(700);
        assert!(queue.push(large.clone()));
        assert!(!queue.push(large));
    }

    #[test]
    fn a_channel_that_comes_and_goes_leaves_no_trace() {
        let queue = Queue::new(10, 1 << 20);
        let (a, b) = (ChannelName::from("a"), ChannelName::from("b"));
        queue.note_watched(&a, true, 1);
        queue.note_watched(&a, false, 2);
        queue.note_watched(&b, true, 3);
        assert_eq!(changes(&queue), [("b".to_owned(), true)]);
        assert_eq!((queue.channels(), queue.is_empty()), (1, true));
        queue.note_watched(&b, false, 4);
        queue.note_watched(&b, true, 5);
        assert!(changes(&queue).is_empty());
        queue.note_watched(&b, true, 6);
        assert!(queue.is_empty(), "told again");
        queue.note_watched(&b, false, 7);
        assert_eq!(changes(&queue), [("b".to_owned(), false)]);
        assert_eq!(queue.channels(), 0);
    }

    #[test]
    fn what_the_database_has_lost_is_written_again() {
        let queue = Queue::new(10, 1 << 20);
        for channel in ["a", "b"] {
            queue.note_watched(&channel.into(), true, 1);
        }
        assert_eq!(changes(&queue).len(), 2);
        queue.set_recorded(&HashSet::from(["b".to_owned(), "c".to_owned()]), 9);
        let mut again = changes(&queue);
        again.sort();
        assert_eq!(again, [("a".to_owned(), true), ("c".to_owned(), false)]);
    }
}
