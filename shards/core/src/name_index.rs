//! Where the channel with a name is in a slab, without another copy of the name.
//!
//! Keyed by a seeded hash. Owns the slab's indices only; whoever owns the slab says the name of an index.

use std::hash::BuildHasher;

use foldhash::quality::FixedState;
use hashbrown::HashTable;

/// Indices of a slab by the name of what is there.
#[derive(Debug)]
pub(crate) struct NameIndex {
    table: HashTable<u32>,
    hasher: FixedState,
}

impl NameIndex {
    /// Empty; `seed` keys the hashes.
    pub(crate) fn new(seed: u64) -> Self {
        Self { table: HashTable::new(), hasher: FixedState::with_seed(seed) }
    }

    /// Names in it.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Index of what is called `name`.
    pub(crate) fn find<'a>(&self, name: &str, name_of: impl Fn(u32) -> &'a str) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.table.find(hash, |index| name_of(*index) == name).copied()
    }

    /// Adds an index that is not in it; `name_of` knows it already.
    pub(crate) fn insert<'a>(&mut self, index: u32, name_of: impl Fn(u32) -> &'a str) {
        let hash = self.hasher.hash_one(name_of(index));
        self.table.insert_unique(hash, index, |other| self.hasher.hash_one(name_of(*other)));
    }

    /// Removes an index; `name_of` still knows it.
    pub(crate) fn remove<'a>(&mut self, index: u32, name_of: impl Fn(u32) -> &'a str) {
        let hash = self.hasher.hash_one(name_of(index));
        if let Ok(entry) = self.table.find_entry(hash, |other| *other == index) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_while_they_are_there() {
        let names: Vec<String> = (0..1000).map(|n| format!("chat:{n}")).collect();
        let name_of = |index: u32| &*names[index as usize];
        let mut index = NameIndex::new(7);
        for n in 0..1000 {
            assert_eq!(index.find(name_of(n), name_of), None);
            index.insert(n, name_of);
        }
        for n in (0..1000).step_by(2) {
            index.remove(n, name_of);
        }
        for n in 0..1000 {
            assert_eq!(index.find(name_of(n), name_of), (n % 2 == 1).then_some(n));
        }
        assert_eq!(index.len(), 500);
    }
}
