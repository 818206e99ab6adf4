//! Which shard serves a new connection.
//!
//! Every shard decides alone, from atomics that all shards keep up to date. Whoever places a socket counts it on the
//! target at once, so that a burst is spread although the target has not taken it yet.

mod peek;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gateway_core::ids::ShardId;
use gateway_core::route::home_shard;

use crate::config::{Balance, ShardPlacement};
use crate::mesh::Mailboxes;
pub(crate) use peek::{PEEK_BYTES_MAX, user_of};

/// Turns that all shards of a node take in common.
#[derive(Debug)]
pub(crate) struct Rota {
    next: AtomicUsize,
    /// Order in which shards are chosen, by weight.
    weighted: Box<[ShardId]>,
}

impl Rota {
    pub(crate) fn new(shards: &[ShardPlacement]) -> Self {
        Self { next: AtomicUsize::new(0), weighted: smooth_order(shards) }
    }
}

/// The order of smooth weighted round robin over one full cycle: a shard of twice the weight comes twice as often and
/// as evenly spread as possible.
fn smooth_order(shards: &[ShardPlacement]) -> Box<[ShardId]> {
    let divisor = shards.iter().fold(0, |divisor, shard| gcd(divisor, shard.weight)).max(1);
    let weights: Vec<i64> = shards.iter().map(|shard| i64::from(shard.weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0; weights.len()];
    (0..total)
        .filter_map(|_| {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += weight;
            }
            let (chosen, _) = credit.iter().enumerate().rev().max_by_key(|(_, credit)| **credit)?;
            credit[chosen] -= total;
            Some(ShardId(chosen as u16))
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One shard's view of placement.
#[derive(Debug)]
pub(crate) struct Placer {
    own: ShardId,
    balance: Balance,
    rota: Arc<Rota>,
    mailboxes: Mailboxes,
    hash_seed: u64,
    /// State of a small generator; the choice need not be unpredictable.
    random: u64,
}

impl Placer {
    pub(crate) fn new(
        own: ShardId,
        balance: Balance,
        rota: Arc<Rota>,
        mailboxes: Mailboxes,
        hash_seed: u64,
    ) -> Self {
        let random = hash_seed ^ (u64::from(own.0) << 32);
        Self { own, balance, rota, mailboxes, hash_seed, random }
    }

    /// Whether the first bytes of the connection must be seen before it can be placed.
    pub(crate) fn needs_first_bytes(&self) -> bool {
        self.balance == Balance::Hash { by_user: true } && self.mailboxes.len() > 1
    }

    /// Chooses for a socket from `address`, and counts it there.
    pub(crate) fn place(&mut self, address: IpAddr) -> ShardId {
        let chosen = match self.balance {
            Balance::Kernel => self.own,
            Balance::RoundRobin => {
                let turn = self.rota.next.fetch_add(1, Ordering::Relaxed);
                ShardId((turn % self.mailboxes.len()) as u16)
            }
            Balance::WeightedRoundRobin => {
                let turn = self.rota.next.fetch_add(1, Ordering::Relaxed);
                self.rota.weighted[turn % self.rota.weighted.len()]
            }
            Balance::LeastConnections => {
                self.least(|board| board.connections.load(Ordering::Relaxed))
            }
            Balance::LeastLoad => self.least(|board| {
                let load = board.load.load(Ordering::Relaxed);
                u64::from(load) + u64::from(board.placed.load(Ordering::Relaxed))
            }),
            Balance::Random => {
                let random = u128::from(self.next_random());
                ShardId(((random * self.mailboxes.len() as u128) >> 64) as u16)
            }
            Balance::Hash { .. } => self.by_hash(&address.to_string()),
        };
        self.count(chosen)
    }

    /// Chooses for a socket of `user`, and counts it there.
    pub(crate) fn place_user(&mut self, user: &str) -> ShardId {
        let chosen = self.by_hash(user);
        self.count(chosen)
    }

    /// The chosen shard would not take the socket: this one serves it.
    pub(crate) fn keep(&mut self, refused_by: ShardId) {
        self.mailboxes[refused_by.index()].board.connections.fetch_sub(1, Ordering::Relaxed);
        self.count(self.own);
    }

    fn count(&self, chosen: ShardId) -> ShardId {
        let board = &self.mailboxes[chosen.index()].board;
        board.connections.fetch_add(1, Ordering::Relaxed);
        board.placed.fetch_add(1, Ordering::Relaxed);
        chosen
    }

    fn by_hash(&self, key: &str) -> ShardId {
        home_shard(key, self.mailboxes.len() as u16, self.hash_seed)
    }

    /// The shard with the smallest `score`; this one when it is among them.
    fn least(&self, score: impl Fn(&crate::mailbox::Board) -> u64) -> ShardId {
        let mut best = (score(&self.mailboxes[self.own.index()].board), self.own);
        for (index, mailbox) in self.mailboxes.iter().enumerate() {
            let candidate = score(&mailbox.board);
            if candidate < best.0 {
                best = (candidate, ShardId(index as u16));
            }
        }
        best.1
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::mailbox::Mailbox;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn placer(balance: Balance, weights: &[u32]) -> Placer {
        let shards: Vec<_> =
            weights.iter().map(|&weight| ShardPlacement { cpu: None, weight }).collect();
        let mailboxes: Mailboxes = weights.iter().map(|_| Mailbox::new(16).unwrap()).collect();
        Placer::new(ShardId(0), balance, Arc::new(Rota::new(&shards)), mailboxes, 7)
    }

    fn counts(placer: &mut Placer, sockets: usize) -> Vec<usize> {
        let mut counts = vec![0; placer.mailboxes.len()];
        for _ in 0..sockets {
            counts[placer.place(ADDRESS).index()] += 1;
        }
        counts
    }

    #[test]
    fn strategies_spread_as_they_say() {
        assert_eq!(counts(&mut placer(Balance::Kernel, &[1, 1]), 10), [10, 0]);
        assert_eq!(counts(&mut placer(Balance::RoundRobin, &[1, 1, 1]), 9), [3, 3, 3]);
        assert_eq!(counts(&mut placer(Balance::LeastConnections, &[1, 1, 1]), 9), [3, 3, 3]);
        assert_eq!(counts(&mut placer(Balance::LeastLoad, &[1, 1]), 10), [5, 5]);
        assert_eq!(counts(&mut placer(Balance::WeightedRoundRobin, &[200, 100, 0]), 9), [6, 3, 0]);
        let random = counts(&mut placer(Balance::Random, &[1, 1]), 1000);
        assert!(random.iter().all(|count| (400..600).contains(count)), "{random:?}");
        let hashed = counts(&mut placer(Balance::Hash { by_user: false }, &[1, 1, 1]), 9);
        assert!(hashed.contains(&9), "{hashed:?}");
    }

    #[test]
    fn least_connections_goes_to_the_emptier_shard() {
        let mut placer = placer(Balance::LeastConnections, &[1, 1]);
        placer.mailboxes[0].board.connections.store(5, Ordering::Relaxed);
        assert_eq!(counts(&mut placer, 5), [0, 5]);
    }

    #[test]
    fn least_load_goes_to_the_idler_shard() {
        let mut placer = placer(Balance::LeastLoad, &[1, 1]);
        placer.mailboxes[1].board.load.store(900, Ordering::Relaxed);
        assert_eq!(counts(&mut placer, 100), [100, 0]);
    }

    #[test]
    fn weighted_order_is_smooth() {
        let weights = [5, 1, 1].map(|weight| ShardPlacement { cpu: None, weight });
        let order: Vec<u16> = smooth_order(&weights).iter().map(|shard| shard.0).collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
    }
}
