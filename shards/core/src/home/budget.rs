//! One bound for the bytes of all histories of a shard: over it, the oldest publication of any channel goes first.

use std::collections::VecDeque;

use super::HomeKey;

#[derive(Clone, Copy, Debug)]
struct Kept {
    key: HomeKey,
    offset: u64,
}

/// Order in which publications were kept, across channels.
#[derive(Debug, Default)]
pub(super) struct HistoryBudget {
    bytes: usize,
    publications: usize,
    order: VecDeque<Kept>,
    /// Entries of the order after the last compaction.
    compacted: usize,
}

impl HistoryBudget {
    /// Bytes in all histories.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Publications in all histories.
    pub(super) fn publications(&self) -> usize {
        self.publications
    }

    /// A publication was kept.
    pub(super) fn kept(&mut self, key: HomeKey, offset: u64, bytes: usize) {
        self.bytes += bytes;
        self.publications += 1;
        self.order.push_back(Kept { key, offset });
    }

    /// So many publications with so many bytes left a history.
    pub(super) fn freed(&mut self, (publications, bytes): (usize, usize)) {
        self.publications = self.publications.saturating_sub(publications);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The oldest entry, when more than `bytes_max` bytes are kept.
    pub(super) fn pop_over(&mut self, bytes_max: usize) -> Option<(HomeKey, u64)> {
        if self.bytes <= bytes_max {
            return None;
        }
        self.order.pop_front().map(|kept| (kept.key, kept.offset))
    }

    /// Forgets entries whose publication is gone, once they are the majority. `is_alive` asks the channel.
    pub(super) fn compact(&mut self, is_alive: impl Fn(HomeKey, u64) -> bool) {
        if self.order.len() > 2 * self.compacted + 4096 {
            self.order.retain(|kept| is_alive(kept.key, kept.offset));
            self.compacted = self.order.len();
        }
    }
}
