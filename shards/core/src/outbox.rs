//! Bounded unsent bytes of one connection.
//!
//! Owns what waits to be sent, in the order it will be sent, and decides what gives way when a slow client lets it
//! fill up. An empty outbox is eight bytes and no heap.
//!
//! Invariants: publications never lift the unsent bytes above the bound; control items (replies, pings, close) are
//! never dropped and pass the bound only up to a hard one; publications of one channel keep their order; the item
//! whose first bytes are with the socket is never moved or removed; every dropped publication is told by a loss
//! marker that stands where it would have been sent. There is at most one more marker per channel than publications
//! of it, so markers are bounded too; they count as bytes once they are encoded.
//!
//! It does not encode anything and does not know frames.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;

use crate::settings::{Priority, SlowPolicy};

/// What an item is, which decides who may pass it and whether it may be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Reply, ping, close or an encoded loss: never dropped, never passed.
    Control,
    /// A publication with a position.
    Publication {
        /// Local index of the channel.
        channel: u32,
        /// Key for `keep_latest`.
        key_hash: u64,
        /// Place in the channel's stream.
        offset: u64,
        /// What gives way when it does not fit.
        policy: SlowPolicy,
        /// Urgency.
        priority: Priority,
        /// Monotonic time at which the gateway took it.
        accepted_at: Duration,
    },
}

impl Class {
    fn is_of(&self, local: u32) -> bool {
        matches!(self, Self::Publication { channel, .. } if *channel == local)
    }
}

/// What came of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushResult {
    /// Queued, and nothing had to give way.
    Queued,
    /// Something was dropped to make room.
    Dropped {
        /// Publications dropped for their age, the new item included when `item_dropped`.
        oldest: u32,
        /// Publications dropped because a newer one of their key is queued.
        superseded: u32,
        /// Whether the new item itself was dropped; otherwise it is queued.
        item_dropped: bool,
    },
    /// It does not fit, and nothing changed: the connection must be closed as slow.
    Overflow,
}

/// Publications of one channel that were dropped one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Local index of the channel.
    pub channel: u32,
    /// Offset of the first one.
    pub from_offset: u64,
    /// Offset of the last one.
    pub to_offset: u64,
    /// How many; fewer than the offsets between when some were not meant for this connection.
    pub count: u32,
}

/// Unsent bytes of one connection.
#[derive(Debug, Default)]
pub struct Outbox(Option<Box<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    items: VecDeque<Item>,
    /// Unsent bytes of all items.
    bytes: usize,
    /// Bytes of the first item that are with the socket.
    sent: usize,
    /// Markers that are not encoded.
    losses: u32,
    /// Whether a key may be queued more than once in a `KeepLatest` channel.
    repeated_keys: bool,
}

/// Memory of outboxes that were emptied, for those that are filled next: while a shard is busy, the same few hundred
/// bytes go round. Bounded in number and in size, so that an idle shard keeps little.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "an outbox is eight bytes because what it has is boxed")]
pub struct Spare(Vec<Box<Inner>>);

/// Outboxes that a shard keeps the memory of.
const SPARE_MAX: usize = 1024;
/// An outbox that had to hold more items gives its memory back.
const SPARE_ITEMS_MAX: usize = 16;

#[derive(Debug)]
enum Item {
    Data { bytes: Bytes, class: Class },
    Lost { loss: Loss, encoded: Option<Bytes> },
}

/// Loss markers are sent as control items.
const CONTROL: Class = Class::Control;

impl Outbox {
    /// An empty outbox.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether there is nothing to send and no loss to tell.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Unsent bytes.
    pub fn len_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |inner| inner.bytes)
    }

    /// Whether [`Self::encode_losses`] has something to do.
    pub fn has_losses(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.losses > 0)
    }

    /// Takes memory from `spare` for what will be queued next, when there is some and the outbox has none.
    #[inline]
    pub fn prepare(&mut self, spare: &mut Spare) {
        if self.0.is_none() {
            self.0 = spare.0.pop();
        }
    }

    /// Gives the memory of an empty outbox to `spare`, or back to the system.
    fn give_back(&mut self, spare: &mut Spare) {
        let Some(mut inner) = self.0.take_if(|inner| inner.items.is_empty()) else { return };
        if spare.0.len() < SPARE_MAX && inner.items.capacity() <= SPARE_ITEMS_MAX {
            let items = std::mem::take(&mut inner.items);
            *inner = Inner { items, ..Inner::default() };
            spare.0.push(inner);
        }
    }

    /// Queues an item. A control item goes the way of [`Self::push_control`] with twice `bytes_max`.
    pub fn push(&mut self, bytes: Bytes, class: Class, bytes_max: usize) -> PushResult {
        let Class::Publication { policy, .. } = class else {
            return self.push_control(bytes, bytes_max.saturating_mul(2));
        };
        let inner = self.0.get_or_insert_default();
        let result = if inner.fits(bytes.len(), bytes_max) {
            inner.repeated_keys |= policy == SlowPolicy::KeepLatest;
            inner.insert(Item::Data { bytes, class });
            PushResult::Queued
        } else {
            inner.push_full(bytes, class, bytes_max)
        };
        self.free_if_empty();
        result
    }

    /// Queues a reply, ping or close behind everything queued; unsent bytes may grow to `hard_max`.
    pub fn push_control(&mut self, bytes: Bytes, hard_max: usize) -> PushResult {
        if self.len_bytes().saturating_add(bytes.len()) > hard_max {
            self.free_if_empty();
            return PushResult::Overflow;
        }
        let inner = self.0.get_or_insert_default();
        inner.bytes += bytes.len();
        inner.items.push_back(Item::Data { bytes, class: Class::Control });
        PushResult::Queued
    }

    /// Encodes every loss marker in place; call it before [`Self::gather`]. A marker that grows before its first byte
    /// is sent is encoded again, so a client that does not read costs one marker per hole and not one per loss.
    pub fn encode_losses(&mut self, mut encode: impl FnMut(&Loss) -> Bytes) {
        let Some(inner) = self.0.as_mut().filter(|inner| inner.losses > 0) else { return };
        for item in &mut inner.items {
            if let Item::Lost { loss, encoded: encoded @ None } = item {
                let bytes = encode(loss);
                inner.bytes += bytes.len();
                *encoded = Some(bytes);
            }
        }
        inner.losses = 0;
    }

    /// Fills `slices` with unsent bytes in order, at most up to the first marker that is not encoded; answers how
    /// many were filled.
    pub fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let Some(inner) = &self.0 else { return 0 };
        let mut skip = inner.sent;
        let mut filled = 0;
        for item in &inner.items {
            let Some(bytes) = item.bytes() else { break };
            let Some(slice) = slices.get_mut(filled) else { break };
            let unsent = &bytes[std::mem::take(&mut skip)..];
            if !unsent.is_empty() {
                *slice = IoSlice::new(unsent);
                filled += 1;
            }
        }
        filled
    }

    /// The first `bytes` gathered bytes are with the socket. Removes the items that are so completely and calls
    /// `on_sent` for each; the memory of an outbox that is empty then goes to `spare`.
    ///
    /// # Panics
    /// When `bytes` is more than was there to send.
    pub fn advance(&mut self, bytes: usize, spare: &mut Spare, on_sent: impl FnMut(&Class)) {
        self.take_sent(bytes, on_sent);
        self.give_back(spare);
    }

    fn take_sent(&mut self, bytes: usize, mut on_sent: impl FnMut(&Class)) {
        let Some(inner) = &mut self.0 else {
            assert!(bytes == 0, "nothing was there to send");
            return;
        };
        assert!(bytes <= inner.bytes, "more sent than there was");
        inner.bytes -= bytes;
        inner.sent += bytes;
        while let Some(length) = inner.items.front().and_then(Item::bytes).map(Bytes::len) {
            if length > inner.sent {
                break;
            }
            inner.sent -= length;
            match inner.items.pop_front() {
                Some(Item::Data { class, .. }) => on_sent(&class),
                _ => on_sent(&CONTROL),
            }
        }
    }

    /// The local index of `channel` will stand for another channel: what is queued of this one is sent as it is, and
    /// never counted among the other's publications or losses. Every loss must be encoded.
    pub fn retire(&mut self, channel: u32) {
        let Some(inner) = &mut self.0 else { return };
        for item in &mut inner.items {
            match item {
                Item::Data { class, .. } if class.is_of(channel) => *class = Class::Control,
                Item::Lost { loss, encoded } if loss.channel == channel => {
                    if let Some(bytes) = encoded.take() {
                        *item = Item::Data { bytes, class: Class::Control };
                    }
                }
                _ => {}
            }
        }
    }

    /// Forgets everything; answers how many unsent bytes that were.
    pub fn clear(&mut self) -> usize {
        self.0.take().map_or(0, |inner| inner.bytes)
    }

    fn free_if_empty(&mut self) {
        if self.0.as_ref().is_some_and(|inner| inner.items.is_empty()) {
            self.0 = None;
        }
    }
}

impl Inner {
    fn fits(&self, length: usize, bytes_max: usize) -> bool {
        self.bytes.saturating_add(length) <= bytes_max
    }

    /// Queues a publication that does not fit, by the policy of its channel.
    fn push_full(&mut self, bytes: Bytes, class: Class, bytes_max: usize) -> PushResult {
        let Class::Publication { channel, key_hash, offset, policy, .. } = class else {
            return PushResult::Overflow;
        };
        if policy == SlowPolicy::Disconnect {
            return PushResult::Overflow;
        }
        let (mut oldest, mut superseded) = (0, 0);
        // What could never fit drives nothing out.
        let fits_alone = bytes.len() <= bytes_max;
        if fits_alone && policy == SlowPolicy::KeepLatest {
            superseded += self.supersede_key(channel, key_hash);
            if !self.fits(bytes.len(), bytes_max) {
                superseded += self.supersede_all();
            }
        }
        if fits_alone {
            oldest += self.drop_oldest(bytes.len(), bytes_max, policy, Some(channel));
            oldest += self.drop_oldest(bytes.len(), bytes_max, policy, None);
        }
        let item_dropped = !self.fits(bytes.len(), bytes_max);
        if item_dropped {
            oldest += 1;
            let at = self.insert_at(&class);
            let loss = Loss { channel, from_offset: offset, to_offset: offset, count: 1 };
            self.items.insert(at, Item::Lost { loss, encoded: None });
            self.losses += 1;
            self.merge_around(at, channel);
        } else {
            self.insert(Item::Data { bytes, class });
        }
        PushResult::Dropped { oldest, superseded, item_dropped }
    }

    fn insert(&mut self, item: Item) {
        let Item::Data { bytes, class } = &item else { return };
        self.bytes += bytes.len();
        let at = self.insert_at(class);
        self.items.insert(at, item);
    }

    /// Where an item of `class` belongs: the end, or for an urgent publication in front of the less urgent ones of
    /// other channels at the end. Markers of other channels are passed like publications of the lowest priority,
    /// because their place matters to their own channel only.
    fn insert_at(&self, class: &Class) -> usize {
        let mut at = self.items.len();
        let Class::Publication { channel, priority, .. } = class else { return at };
        if *priority < Priority::High {
            return at;
        }
        while at > self.movable_from() {
            let passes = match &self.items[at - 1] {
                Item::Data { class: Class::Control, .. } => false,
                Item::Data {
                    class: Class::Publication { channel: other, priority: than, .. },
                    ..
                } => other != channel && than < priority,
                Item::Lost { loss, .. } => loss.channel != *channel,
            };
            if !passes {
                break;
            }
            at -= 1;
        }
        at
    }

    /// First item of which no byte is with the socket.
    fn movable_from(&self) -> usize {
        usize::from(self.sent > 0)
    }

    /// Drops every queued publication of `(channel, key_hash)`; a newer one is about to be queued.
    fn supersede_key(&mut self, channel: u32, key_hash: u64) -> u32 {
        let mut dropped = 0;
        for at in (self.movable_from()..self.items.len()).rev() {
            if self.items[at].keep_latest_key() == Some((channel, key_hash)) {
                self.lose(at);
                dropped += 1;
            }
        }
        dropped
    }

    /// Drops every queued publication of which a newer one with the same key is queued.
    fn supersede_all(&mut self) -> u32 {
        if !std::mem::take(&mut self.repeated_keys) {
            return 0;
        }
        let mut newest: HashSet<(u32, u64), foldhash::fast::FixedState> = HashSet::default();
        let mut dropped = 0;
        for at in (self.movable_from()..self.items.len()).rev() {
            let Some(key) = self.items[at].keep_latest_key() else { continue };
            if !newest.insert(key) {
                self.lose(at);
                dropped += 1;
            }
        }
        dropped
    }

    /// Drops publications of `policy`, of `channel` only when given, oldest first, until `length` bytes fit.
    fn drop_oldest(
        &mut self,
        length: usize,
        bytes_max: usize,
        policy: SlowPolicy,
        channel: Option<u32>,
    ) -> u32 {
        let mut dropped = 0;
        let mut at = self.movable_from();
        while at < self.items.len() && !self.fits(length, bytes_max) {
            match &self.items[at] {
                Item::Data {
                    class: Class::Publication { channel: of, policy: its, .. }, ..
                } if *its == policy && channel.is_none_or(|channel| channel == *of) => {
                    // Whatever takes its place is a marker, or the item behind it when it joined an earlier one.
                    self.lose(at);
                    dropped += 1;
                }
                _ => at += 1,
            }
        }
        dropped
    }

    /// Replaces the publication at `at` by a marker. Nothing in front of `at` moves.
    fn lose(&mut self, at: usize) {
        let Item::Data { bytes, class: Class::Publication { channel, offset, .. } } =
            &self.items[at]
        else {
            return;
        };
        let loss = Loss { channel: *channel, from_offset: *offset, to_offset: *offset, count: 1 };
        self.bytes -= bytes.len();
        self.losses += 1;
        self.items[at] = Item::Lost { loss, encoded: None };
        self.merge_around(at, loss.channel);
    }

    /// Joins the marker at `at` with the channel's markers next to it, when no publication of the channel is between.
    fn merge_around(&mut self, at: usize, channel: u32) {
        let next = (at + 1..self.items.len()).find(|i| self.items[*i].channel() == Some(channel));
        if let Some(next) = next {
            self.merge(at, next);
        }
        let before = (self.movable_from()..at).rev();
        if let Some(before) = before.into_iter().find(|i| self.items[*i].channel() == Some(channel))
        {
            self.merge(before, at);
        }
    }

    /// Joins two neighbouring items of a channel into the earlier one, when both are markers.
    fn merge(&mut self, earlier: usize, later: usize) {
        let (Item::Lost { .. }, Item::Lost { loss: second, .. }) =
            (&self.items[earlier], &self.items[later])
        else {
            return;
        };
        let second = *second;
        if let Some(Item::Lost { encoded, .. }) = self.items.remove(later) {
            self.forget_encoding(encoded);
        }
        self.losses -= 1;
        let Item::Lost { loss, encoded } = &mut self.items[earlier] else { return };
        // A publication without a place in the stream has offset 0 and leaves the range as it is.
        if loss.from_offset == 0 {
            loss.from_offset = second.from_offset;
        }
        loss.to_offset = loss.to_offset.max(second.to_offset);
        loss.count += second.count;
        let encoded = encoded.take();
        self.forget_encoding(encoded);
    }

    /// The marker with this encoding, if any, has to be encoded again.
    fn forget_encoding(&mut self, encoded: Option<Bytes>) {
        if let Some(bytes) = encoded {
            self.bytes -= bytes.len();
            self.losses += 1;
        }
    }
}

impl Item {
    /// What is sent; `None` for a marker that is not encoded.
    fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Data { bytes, .. } => Some(bytes),
            Self::Lost { encoded, .. } => encoded.as_ref(),
        }
    }

    fn channel(&self) -> Option<u32> {
        match self {
            Self::Data { class: Class::Publication { channel, .. }, .. } => Some(*channel),
            Self::Data { class: Class::Control, .. } => None,
            Self::Lost { loss, .. } => Some(loss.channel),
        }
    }

    fn keep_latest_key(&self) -> Option<(u32, u64)> {
        match self {
            Self::Data { class: Class::Publication { channel, key_hash, policy, .. }, .. }
                if *policy == SlowPolicy::KeepLatest =>
            {
                Some((*channel, *key_hash))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
