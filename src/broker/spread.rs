//! Which of several independent servers keeps a channel.
//!
//! Every node must come to the same answer, whatever the order of its list and its version: the channel's hash slot, as a
//! Redis Cluster counts it, is ranked for each server by the server's name, and the highest takes it. A server more or
//! less moves only the channels that it gets or had.

use fred::util::redis_keyslot;

use crate::digest;

/// Hash slots.
const SLOTS: u16 = 16_384;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Spread {
    /// Server of each slot; empty when there is one server.
    table: Vec<usize>,
}

impl Spread {
    /// Over servers with these names.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let seeds: Vec<u64> = names.map(digest::number).collect();
        if seeds.len() < 2 {
            return Self { table: Vec::new() };
        }
        let best = |slot: u16| {
            let ranked = seeds.iter().map(|seed| mix(seed ^ mix(u64::from(slot) + 1)));
            ranked.enumerate().max_by_key(|(_, rank)| *rank).map_or(0, |(server, _)| server)
        };
        Self { table: (0..SLOTS).map(best).collect() }
    }

    /// Number of the server of a channel.
    pub(super) fn of(&self, channel: &str) -> usize {
        let slot = || usize::from(redis_keyslot(channel.as_bytes()));
        if self.table.is_empty() { 0 } else { self.table[slot()] }
    }
}

/// Spreads the bits of a number over all its places (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(names: &[&str]) -> Vec<usize> {
        let spread = Spread::new(names.iter().copied());
        let mut counts = vec![0; names.len()];
        for channel in 0..3_000 {
            counts[spread.of(&format!("chat:{channel}"))] += 1;
        }
        counts
    }

    #[test]
    fn channels_are_spread_evenly_whatever_the_order() {
        let there = counts(&["a:6379", "b:6379", "c:6379"]);
        assert!(there.iter().all(|count| (850..1_150).contains(count)), "{there:?}");
        let mut back = counts(&["c:6379", "b:6379", "a:6379"]);
        back.reverse();
        assert_eq!(there, back);
        assert_eq!(counts(&["a:6379"]), [3_000]);
    }

    #[test]
    fn a_server_more_moves_only_what_it_gets() {
        let names = ["a:6379", "b:6379", "c:6379", "d:6379"];
        let before = Spread::new(names[..3].iter().copied());
        let after = Spread::new(names.iter().copied());
        let mut moved = 0;
        for channel in 0..4_000 {
            let channel = format!("chat:{channel}");
            if after.of(&channel) == 3 {
                moved += 1;
            } else {
                assert_eq!(before.of(&channel), after.of(&channel));
            }
        }
        assert!((850..1_150).contains(&moved), "{moved}");
    }
}
