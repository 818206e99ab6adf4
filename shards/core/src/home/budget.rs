//! One bound for the bytes that all histories of a shard take on the heap: over it, the oldest publication of any channel goes
//! first.

use std::collections::VecDeque;

use super::HomeKey;
use crate::history::{Held, give_room_back};

#[derive(Clone, Copy, Debug)]
struct Kept {
    key: HomeKey,
    offset: u64,
}

/// Entries of the order that may be stale beside as many as are alive.
const STALE_MAX: usize = 256;

/// Order in which publications were kept, across channels.
#[derive(Debug, Default)]
pub(super) struct HistoryBudget {
    held: Held,
    order: VecDeque<Kept>,
    /// Entries of the order after the last compaction.
    compacted: usize,
}

impl HistoryBudget {
    /// Bytes that all histories take on the heap, with the order.
    pub(super) fn bytes(&self) -> usize {
        self.held.bytes + self.order.capacity() * size_of::<Kept>()
    }

    /// Publications in all histories.
    pub(super) fn publications(&self) -> usize {
        self.held.publications
    }

    /// A publication was kept.
    pub(super) fn kept(&mut self, key: HomeKey, offset: u64) {
        self.order.push_back(Kept { key, offset });
    }

    /// A history has changed.
    pub(super) fn changed(&mut self, before: Held, after: Held) {
        let Held { publications, bytes } = self.held;
        self.held = Held {
            publications: (publications + after.publications).saturating_sub(before.publications),
            bytes: (bytes + after.bytes).saturating_sub(before.bytes),
        };
    }

    /// The oldest entry, when more than `bytes_max` bytes are kept.
    pub(super) fn pop_over(&mut self, bytes_max: usize) -> Option<(HomeKey, u64)> {
        if self.bytes() <= bytes_max {
            return None;
        }
        let oldest = self.order.pop_front();
        give_room_back(&mut self.order);
        oldest.map(|kept| (kept.key, kept.offset))
    }

    /// Forgets entries whose publication is gone, once they are the majority. `is_alive` asks the channel.
    pub(super) fn compact(&mut self, is_alive: impl Fn(HomeKey, u64) -> bool) {
        if self.order.len() > 2 * self.compacted + STALE_MAX {
            self.order.retain(|kept| is_alive(kept.key, kept.offset));
            self.compacted = self.order.len();
            give_room_back(&mut self.order);
        }
    }
}
