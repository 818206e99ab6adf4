//! Recent publications of one channel.
//!
//! Owns a queue in offset order, bounded by number and by age, and knows from which position on it holds everything:
//! that is what decides whether a client can be given exactly what it missed.
//!
//! Invariant: every publication with an offset above `covered` and up to `top` is kept. Removal takes the oldest
//! only. A publication that was ordered but not kept ([`History::skip`]) moves both to its offset: it can still be
//! paged around, but no position before it is covered any more.
//!
//! It knows nothing of epochs: the owner compares them before asking, and starts with [`History::new`] when offsets
//! begin anew. An empty history holds no heap.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{HistoryQuery, Publication};

/// Publication with the monotonic time at which it is to be forgotten.
type Entry = (Duration, Arc<Publication>);

/// What a publication takes on the heap beside its frames: itself, and how many own and observe it.
const PUBLICATION_BYTES: usize = size_of::<Publication>() + 2 * size_of::<usize>();
/// A queue with room for so many times more than it holds gives it back.
const ROOM_MAX: usize = 4;

/// What a history holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Publications.
    pub publications: usize,
    /// Bytes that they take on the heap, with the queue itself.
    pub bytes: usize,
}

/// Ring of publications.
#[derive(Debug, Default)]
pub struct History {
    entries: VecDeque<Entry>,
    /// Of the publications, without the queue.
    bytes: usize,
    /// Offset of the newest publication, kept or not.
    top: u64,
    /// Everything after this offset is kept.
    covered: u64,
}

impl History {
    /// The history of a stream without publications.
    pub const fn new() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, top: 0, covered: 0 }
    }

    /// Publications kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What it holds and takes.
    pub fn held(&self) -> Held {
        let queue = self.entries.capacity() * size_of::<Entry>();
        Held { publications: self.entries.len(), bytes: self.bytes + queue }
    }

    /// Whether everything after `offset` is kept.
    pub fn covers(&self, offset: u64) -> bool {
        (self.covered..=self.top).contains(&offset)
    }

    /// Whether [`Self::page`] gives all that the stream has of what was asked for: nothing is missing where the page begins,
    /// and it is not short because older publications are gone.
    pub fn has_all(&self, query: &HistoryQuery, limit_max: u32) -> bool {
        let limit = query.limit.min(limit_max) as usize;
        match query.since {
            Some(since) if !query.reverse => since.offset >= self.covered,
            since => {
                let end = since.filter(|_| query.reverse).map(|since| since.offset);
                self.covered == 0 || self.index_before(end) >= limit
            }
        }
    }

    /// When the oldest one expires (monotonic).
    pub fn next_expiry(&self) -> Option<Duration> {
        self.entries.front().map(|(expires, _)| *expires)
    }

    /// Keeps `publication` until `expires` (monotonic) and forgets the oldest above `size_max`. Answers how many were
    /// forgotten, itself included when `size_max` is 0.
    ///
    /// # Panics
    /// When its offset is not above that of the newest one kept: the owner is the channel's only writer.
    pub fn append(
        &mut self,
        publication: Arc<Publication>,
        expires: Duration,
        size_max: u32,
    ) -> usize {
        let offset = publication.position.offset;
        assert!(self.is_empty() || offset > self.top, "offset {offset} after {}", self.top);
        if offset != self.top.saturating_add(1) {
            // Something before it was never shown to this history.
            self.covered = offset.saturating_sub(1);
        }
        self.top = offset;
        self.bytes += size(&publication);
        self.entries.push_back((expires, publication));
        self.forget_while(|history| history.len() > size_max as usize)
    }

    /// A publication with this offset was delivered and is not kept.
    pub fn skip(&mut self, offset: u64) {
        self.top = offset;
        self.covered = offset;
    }

    /// The stream has come to `offset`, by publications that were never shown to this history.
    pub fn skip_to(&mut self, offset: u64) {
        if offset > self.top {
            self.skip(offset);
        }
    }

    /// Forgets what has expired at `now`; answers how many publications that were. One that was given a shorter time
    /// than an older one is kept as long as that.
    pub fn expire(&mut self, now: Duration) -> usize {
        self.forget_while(|history| history.next_expiry().is_some_and(|expires| expires <= now))
    }

    /// The first `limit` publications after `offset`, oldest first. `None` when not everything after it is kept, or
    /// when the stream has not come that far.
    pub fn since(&self, offset: u64, limit: usize) -> Option<Vec<Arc<Publication>>> {
        if !self.covers(offset) {
            return None;
        }
        let start = self.index_after(offset);
        Some(self.entries.range(start..).take(limit).map(|(_, kept)| Arc::clone(kept)).collect())
    }

    /// One page in the order asked, at most `limit_max` publications. What is not kept is left out; the caller has
    /// compared the epoch of `query.since`.
    pub fn page(&self, query: &HistoryQuery, limit_max: u32) -> Vec<Arc<Publication>> {
        let limit = query.limit.min(limit_max) as usize;
        let clone = |(_, kept): &Entry| Arc::clone(kept);
        if query.reverse {
            let end = self.index_before(query.since.map(|since| since.offset));
            self.entries.range(..end).rev().take(limit).map(clone).collect()
        } else {
            let start = query.since.map_or(0, |since| self.index_after(since.offset));
            self.entries.range(start..).take(limit).map(clone).collect()
        }
    }

    /// Offset of the oldest publication kept.
    pub fn first_offset(&self) -> Option<u64> {
        self.entries.front().map(|(_, kept)| kept.position.offset)
    }

    /// Forgets every publication with an offset up to `offset`; answers how many that were.
    pub fn remove_through(&mut self, offset: u64) -> usize {
        self.forget_while(|history| history.first_offset().is_some_and(|first| first <= offset))
    }

    /// Forgets every publication but not the position; answers how many that were.
    pub fn clear(&mut self) -> usize {
        let forgotten = self.len();
        *self = Self { top: self.top, covered: self.top, ..Self::new() };
        forgotten
    }

    /// Index of the first publication with a larger offset.
    fn index_after(&self, offset: u64) -> usize {
        self.entries.partition_point(|(_, kept)| kept.position.offset <= offset)
    }

    /// Index behind the last publication with a smaller offset; without one, behind the newest.
    fn index_before(&self, offset: Option<u64>) -> usize {
        offset.map_or(self.entries.len(), |offset| {
            offset.checked_sub(1).map_or(0, |before| self.index_after(before))
        })
    }

    /// Forgets the oldest as long as `wanted` says so; answers how many that were.
    fn forget_while(&mut self, wanted: impl Fn(&Self) -> bool) -> usize {
        let mut forgotten = 0;
        while wanted(self)
            && let Some((_, oldest)) = self.entries.pop_front()
        {
            self.covered = self.covered.max(oldest.position.offset);
            self.bytes -= size(&oldest);
            forgotten += 1;
        }
        if forgotten > 0 {
            give_room_back(&mut self.entries);
        }
        forgotten
    }
}

/// Shrinks a queue that has far more room than it needs, so that it costs a move now and then.
pub(crate) fn give_room_back<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > ROOM_MAX * queue.len() {
        queue.shrink_to(2 * queue.len());
    }
}

/// Bytes that a publication takes on the heap.
fn size(publication: &Publication) -> usize {
    PUBLICATION_BYTES + publication.heap_bytes
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Epoch, StreamPosition};
    use crate::settings::Priority;

    const EPOCH: Epoch = Epoch(*b"abcdefgh");

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn publication(offset: u64) -> Arc<Publication> {
        let frame = Bytes::from(vec![b'x'; 10]);
        Arc::new(Publication {
            position: StreamPosition { offset, epoch: EPOCH },
            priority: Priority::Normal,
            key_hash: 0,
            sender: None,
            accepted_at: Duration::ZERO,
            json: frame.slice(2..),
            frame,
            deflated: offset.is_multiple_of(2).then(|| Bytes::from_static(b"abcd")),
            heap_bytes: if offset.is_multiple_of(2) { 14 } else { 10 },
        })
    }

    /// Offsets 1 to `top`, each expiring one second after the one before, `size_max` kept.
    fn filled(top: u64, size_max: u32) -> History {
        let mut history = History::new();
        for offset in 1..=top {
            history.append(publication(offset), secs(offset), size_max);
        }
        history
    }

    fn offsets(publications: &[Arc<Publication>]) -> Vec<u64> {
        publications.iter().map(|publication| publication.position.offset).collect()
    }

    fn since(history: &History, offset: u64) -> Option<Vec<u64>> {
        history.since(offset, 100).map(|publications| offsets(&publications))
    }

    /// Publications kept, and the bytes of their frames.
    fn kept(history: &History) -> (usize, usize) {
        let Held { publications, bytes } = history.held();
        let queue = history.entries.capacity() * size_of::<Entry>();
        (publications, bytes - queue - publications * PUBLICATION_BYTES)
    }

    #[test]
    fn keeps_the_newest_and_counts_bytes() {
        let mut history = filled(4, 4);
        assert_eq!(kept(&history), (4, 48));
        assert_eq!(history.append(publication(5), secs(5), 2), 3);
        assert_eq!(kept(&history), (2, 24));
        assert_eq!(history.next_expiry(), Some(secs(4)));
        assert_eq!(history.clear(), 2);
        assert_eq!(history.held(), Held::default());
    }

    #[test]
    fn room_is_given_back() {
        let mut history = filled(1000, 1000);
        assert_eq!(history.remove_through(997), 997);
        assert_eq!(kept(&history).0, 3);
        assert!(history.entries.capacity() <= ROOM_MAX * 3, "{}", history.entries.capacity());
        assert_eq!(history.remove_through(1000), 3);
        assert_eq!(history.held(), Held::default());
    }

    #[test]
    fn it_knows_what_it_has_not() {
        let has_all = |history: &History, since: Option<u64>, limit, reverse| {
            let since = since.map(|offset| StreamPosition { offset, epoch: EPOCH });
            history.has_all(&HistoryQuery { since, limit, reverse }, 100)
        };
        let whole = filled(5, 5);
        for (since, reverse) in [(None, false), (Some(0), false), (None, true), (Some(3), true)] {
            assert!(has_all(&whole, since, 50, reverse), "{since:?} {reverse}");
        }
        // 1 to 4 are gone.
        let part = filled(9, 5);
        for (since, limit, reverse, expected) in [
            (None, 5, false, true),
            (None, 6, false, false),
            (Some(4), 50, false, true),
            (Some(3), 1, false, false),
            (None, 5, true, true),
            (None, 6, true, false),
            (Some(7), 2, true, true),
            (Some(7), 3, true, false),
            (Some(0), 1, true, false),
        ] {
            assert_eq!(
                has_all(&part, since, limit, reverse),
                expected,
                "{since:?} {limit} {reverse}"
            );
        }
    }

    #[test]
    fn since_gives_everything_or_nothing() {
        let history = filled(5, 3);
        assert_eq!(since(&history, 5), Some(vec![]));
        assert_eq!(since(&history, 3), Some(vec![4, 5]));
        assert_eq!(since(&history, 2), Some(vec![3, 4, 5]));
        assert_eq!(since(&history, 1), None);
        assert_eq!(since(&history, 0), None);
        assert_eq!(since(&history, 6), None);
        assert_eq!(since(&history, u64::MAX), None);
        assert_eq!(offsets(&history.since(2, 2).unwrap_or_default()), [3, 4]);
        assert_eq!(since(&History::new(), 0), Some(vec![]));
        assert_eq!(since(&History::new(), 1), None);
    }

    #[test]
    fn what_expired_is_not_covered() {
        let mut history = filled(3, 10);
        assert_eq!(history.expire(secs(0)), 0);
        assert_eq!(history.expire(secs(1)), 1);
        assert_eq!(since(&history, 0), None);
        assert_eq!(since(&history, 1), Some(vec![2, 3]));
        assert_eq!(history.expire(secs(9)), 2);
        assert_eq!(history.entries.capacity(), 0);
        assert_eq!(since(&history, 2), None);
        assert_eq!(since(&history, 3), Some(vec![]));
    }

    #[test]
    fn a_hole_ends_coverage_but_not_paging() {
        let mut history = filled(2, 10);
        history.skip(3);
        assert_eq!(since(&history, 2), None);
        assert_eq!(since(&history, 3), Some(vec![]));
        history.append(publication(4), secs(9), 10);
        assert_eq!(since(&history, 2), None);
        assert_eq!(since(&history, 3), Some(vec![4]));
        let all = HistoryQuery { since: None, limit: 9, reverse: false };
        assert_eq!(offsets(&history.page(&all, 100)), [1, 2, 4]);
        history.append(publication(7), secs(9), 10);
        assert_eq!(since(&history, 4), None);
        assert_eq!(since(&history, 6), Some(vec![7]));
    }

    #[test]
    fn without_room_only_the_position_moves_on() {
        let mut history = History::new();
        assert_eq!(history.append(publication(1), secs(1), 0), 1);
        assert!(history.is_empty());
        assert_eq!(since(&history, 0), None);
        assert_eq!(since(&history, 1), Some(vec![]));
    }

    #[test]
    fn cleared_it_may_go_on_or_begin_anew() {
        let mut history = filled(3, 10);
        history.clear();
        assert_eq!(since(&history, 3), Some(vec![]));
        assert_eq!(since(&history, 2), None);
        history.append(publication(1), secs(1), 10);
        assert_eq!(since(&history, 0), Some(vec![1]));
    }

    #[test]
    fn pages_in_both_directions() {
        let history = filled(9, 6);
        let page = |since: Option<u64>, limit, reverse| {
            let since = since.map(|offset| StreamPosition { offset, epoch: EPOCH });
            offsets(&history.page(&HistoryQuery { since, limit, reverse }, 4))
        };
        assert_eq!(page(None, 3, false), [4, 5, 6]);
        assert_eq!(page(None, 100, false), [4, 5, 6, 7]);
        assert_eq!(page(Some(5), 3, false), [6, 7, 8]);
        assert_eq!(page(Some(0), 2, false), [4, 5]);
        assert!(page(Some(9), 2, false).is_empty());
        assert!(page(Some(u64::MAX), 2, false).is_empty());
        assert_eq!(page(None, 2, true), [9, 8]);
        assert_eq!(page(Some(6), 9, true), [5, 4]);
        assert!(page(Some(0), 9, true).is_empty());
        assert_eq!(page(Some(u64::MAX), 2, true), [9, 8]);
        assert!(page(None, 0, false).is_empty());
    }

    #[test]
    #[should_panic(expected = "offset 2 after 3")]
    fn an_old_offset_is_a_bug() {
        filled(3, 10).append(publication(2), secs(1), 10);
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_everything(
            steps in prop::collection::vec((0u8..10, 1u64..30), 1..80),
            size_max in 0u32..8,
        ) {
            let mut history = History::new();
            // (offset, expires, kept)
            let mut all: Vec<(u64, Duration, bool)> = Vec::new();
            let mut now = Duration::ZERO;
            for (kind, amount) in steps {
                let offset = all.len() as u64 + 1;
                match kind {
                    0..6 => {
                        // One ttl per channel: later ones never expire first.
                        let expires = now + secs(20);
                        history.append(publication(offset), expires, size_max);
                        all.push((offset, expires, true));
                        let kept = all.iter().filter(|(_, _, kept)| *kept).count();
                        let surplus = kept.saturating_sub(size_max as usize);
                        all.iter_mut().filter(|entry| entry.2).take(surplus).for_each(|e| e.2 = false);
                    }
                    6 => {
                        history.skip(offset);
                        all.push((offset, now, false));
                    }
                    7 => {
                        history.clear();
                        for entry in &mut all {
                            entry.2 = false;
                        }
                    }
                    _ => {
                        now += secs(amount);
                        history.expire(now);
                        all.iter_mut().filter(|entry| entry.1 <= now).for_each(|e| e.2 = false);
                    }
                }
                for position in 0..=all.len() + 1 {
                    let after = all.get(position..);
                    let expected = after
                        .filter(|after| after.iter().all(|(_, _, kept)| *kept))
                        .map(|after| after.iter().map(|entry| entry.0).collect::<Vec<_>>());
                    prop_assert_eq!(since(&history, position as u64), expected);
                }
                let held = all.iter().filter(|(_, _, kept)| *kept);
                let bytes: usize = held.clone().map(|(offset, ..)| publication(*offset).heap_bytes).sum();
                prop_assert_eq!(kept(&history), (held.count(), bytes));
            }
        }
    }
}
