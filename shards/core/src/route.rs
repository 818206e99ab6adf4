//! Which shard is the home of a channel.

use std::hash::BuildHasher;

use foldhash::quality::FixedState;

use crate::ids::ShardId;

/// Home shard of `channel` on a node with `shards` shards. Every shard and the control plane agree because
/// `hash_seed` is drawn once per process.
pub fn home_shard(channel: &str, shards: u16, hash_seed: u64) -> ShardId {
    let hash = FixedState::with_seed(hash_seed).hash_one(channel);
    // Multiply-shift maps the upper bits evenly onto any number of shards.
    ShardId(((u128::from(hash) * u128::from(shards.max(1))) >> 64) as u16)
}

/// Hash of a publisher's key within one process; never 0, which stands for "no key".
pub fn keyed_hash(key: &str, hash_seed: u64) -> u64 {
    FixedState::with_seed(hash_seed).hash_one(key).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_spread_evenly() {
        let mut counts = [0u32; 3];
        for n in 0..30_000 {
            counts[home_shard(&format!("chat:room-{n}"), 3, 7).index()] += 1;
        }
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
    }
}
