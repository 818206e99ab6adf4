//! A part of the local level behind one lock: ranking, and tables that do not outgrow what was paid for them.
//!
//! The policy is that of `quick_cache`: CLOCK-Pro with the ghost queue of S3-FIFO. It evicts inside the insertion that
//! needs the room, so the budget holds at every moment and no background task owns memory.
//!
//! The crate never shrinks its slab. When large entries take the place of many small ones, the cells of those would
//! stay, and nobody would count them. So the ranking is made anew once that is too much.

use std::mem::{replace, size_of};

use quick_cache::unsync::Cache as Ranked;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

use super::store::{KeyRef, Slot, StoreKey};

/// A cell of the slab: what is stored, state and reference count, links.
const CELL_BYTES: usize = size_of::<StoreKey>() + size_of::<Slot>() + 16;
/// Slots of the hash table: a token and a control byte, at most half of them in use right after it has grown.
const TABLE_BYTES: usize = 12;
/// What an entry takes beside key and value. The slab doubles when it is full, so up to two cells belong to an entry.
pub(super) const ENTRY_BYTES: usize = 2 * CELL_BYTES + TABLE_BYTES;
/// One remembered key that was pushed out, for so many bytes of budget. Fewer save memory and cost hits.
const BYTES_PER_GHOST: usize = 2_048;
/// Part of the budget for entries that have proved themselves; the rest is for newcomers. With the crate's own 0.97,
/// what was used a moment ago makes room too early, and sessions and inboxes are mostly that.
const PROVED: f64 = 0.8;
/// This fraction of the budget may be taken by cells that are empty for good.
const IDLE_FRACTION: usize = 32;

/// What made room for others, or for a newer value of its key.
pub(super) type PushedOut = Vec<(StoreKey, Slot)>;

/// Hands it to the one who stored: it is counted and dropped outside the lock.
struct Collect;

impl Lifecycle<StoreKey, Slot> for Collect {
    type RequestState = PushedOut;

    fn on_evict(&self, state: &mut PushedOut, key: StoreKey, slot: Slot) {
        state.push((key, slot));
    }
}

struct SlotWeight;

impl Weighter<StoreKey, Slot> for SlotWeight {
    fn weight(&self, _: &StoreKey, slot: &Slot) -> u64 {
        u64::from(slot.weight)
    }
}

type Ranking = Ranked<StoreKey, Slot, SlotWeight, DefaultHashBuilder, Collect>;

/// See the module's documentation.
pub(super) struct Shard {
    ranking: Ranking,
    budget: usize,
}

impl Shard {
    /// Empty, for so many bytes.
    pub(super) fn new(budget: usize) -> Self {
        Self { ranking: ranking(budget), budget }
    }

    /// Raises the rank.
    pub(super) fn get(&self, key: KeyRef<'_>) -> Option<Slot> {
        self.ranking.get(&key).cloned()
    }

    pub(super) fn peek(&self, key: KeyRef<'_>) -> Option<Slot> {
        self.ranking.peek(&key).cloned()
    }

    pub(super) fn insert(&mut self, key: StoreKey, slot: Slot) -> PushedOut {
        let mut pushed_out = Vec::new();
        self.ranking.insert_with_lifecycle(key, slot, &mut pushed_out);
        if self.idle_bytes() > self.budget / IDLE_FRACTION {
            self.rebuild(&mut pushed_out);
        }
        pushed_out
    }

    pub(super) fn remove(&mut self, key: KeyRef<'_>) -> Option<Slot> {
        self.ranking.remove(&key).map(|(_, slot)| slot)
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&StoreKey, &Slot) -> bool) {
        self.ranking.retain(keep);
        if self.idle_bytes() > self.budget / IDLE_FRACTION {
            // Nothing is pushed out: all of it had room before.
            self.rebuild(&mut Vec::new());
        }
    }

    /// Gives it another budget. What has no room in it is pushed out.
    pub(super) fn resize(&mut self, budget: usize) -> PushedOut {
        let mut pushed_out = Vec::new();
        self.budget = budget;
        self.rebuild(&mut pushed_out);
        pushed_out
    }

    /// What the tables take beyond what entries and ghosts have paid for.
    fn idle_bytes(&self) -> usize {
        let tables = self.ranking.memory_used();
        let paid = (self.ranking.len() + ghosts(self.budget)) * ENTRY_BYTES;
        (2 * tables.entries + tables.map).saturating_sub(paid)
    }

    /// Frees the tables. What was evicted is no longer remembered, and who has proved itself is guessed.
    fn rebuild(&mut self, pushed_out: &mut PushedOut) {
        let mut old = replace(&mut self.ranking, ranking(self.budget));
        for (key, slot) in old.drain() {
            self.ranking.insert_with_lifecycle(key, slot, pushed_out);
        }
    }
}

fn ghosts(budget: usize) -> usize {
    budget / BYTES_PER_GHOST
}

fn ranking(budget: usize) -> Ranking {
    let ghosts = ghosts(budget);
    let options = OptionsBuilder::new()
        .estimated_items_capacity(ghosts)
        .ghost_allocation(1.0)
        .hot_allocation(PROVED)
        .weight_capacity((budget - ghosts * ENTRY_BYTES) as u64)
        .build()
        .expect("both capacities are set");
    Ranked::with_options(options, SlotWeight, DefaultHashBuilder::default(), Collect)
}

#[cfg(test)]
mod tests {
    use super::super::name::RegionName;
    use super::*;

    const BUDGET: usize = 1 << 20;

    fn put(shard: &mut Shard, at: usize, weight: usize) -> usize {
        let text = at.to_string();
        let key = StoreKey { region: RegionName::Contacts, text: text.as_str().into() };
        let slot = Slot { value: None, expires: 0, weight: weight as u32 };
        let pushed_out = shard.insert(key, slot).len();
        // Used once more, so that it is worth more than what is there.
        shard.get(KeyRef { region: RegionName::Contacts, text: &text });
        pushed_out
    }

    #[test]
    fn tables_of_small_entries_do_not_stay_when_large_ones_come() {
        let mut shard = Shard::new(BUDGET);
        let mut pushed_out = 0;
        for at in 0..20_000 {
            pushed_out += put(&mut shard, at, ENTRY_BYTES + 32);
        }
        assert!(shard.idle_bytes() < BUDGET / 50, "{} bytes are idle", shard.idle_bytes());
        let small = shard.ranking.memory_used().total();
        for at in 20_000..25_000 {
            pushed_out += put(&mut shard, at, 10_000);
            assert!(shard.idle_bytes() <= BUDGET / IDLE_FRACTION);
        }
        let large = shard.ranking.memory_used().total();
        assert!(shard.ranking.len() < 150, "{} entries are left", shard.ranking.len());
        assert!(large < small / 3, "the tables had {small} bytes and have {large}");
        assert_eq!(shard.ranking.len() + pushed_out, 25_000, "a rebuilding loses nothing");
    }

    #[test]
    fn tables_go_with_what_is_removed() {
        let mut shard = Shard::new(BUDGET);
        for at in 0..20_000 {
            put(&mut shard, at, ENTRY_BYTES + 32);
        }
        let kept = |key: &StoreKey| key.text.ends_with("77");
        let before = shard.ranking.iter().filter(|(key, _)| kept(key)).count();
        shard.retain(|key, _| kept(key));
        assert!(before > 10);
        assert_eq!(shard.ranking.len(), before);
        assert!(shard.ranking.memory_used().total() < BUDGET / 8);
    }
}
