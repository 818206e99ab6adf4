//! Counters that all shards of a node share: connections and message rates by node, user and address.
//!
//! Only atomics, no lock, memory fixed at 2 MiB plus 1 MiB for each of the two message rates once it is limited, and 128 KiB
//! when rates of users are shared between nodes. The
//! counts by user and address are count-min sketches: a key has one cell in each of four rows and its estimate is
//! the smallest of them. Keyed by a seeded hash, so that a client cannot choose its neighbours.
//!
//! Invariants: an estimate is never below the truth, so no limit is passed unseen; every increment is undone by
//! exactly one decrement. Concurrent callers on different shards may together pass a per-user or per-address limit by
//! at most one event per shard. The node's own count and the handshake rate are exact.
//!
//! What it costs is that a key may look busier than it is. With `n` keys of one connection each, a cell holds on
//! average `n / 65,536` connections of others, and all four rows of a key must hold `k` of them to add `k` to its
//! estimate:
//!
//! | keys | `k` >= 1 | `k` >= 2 | `k` >= 3 | `k` >= 5 |
//! |---|---|---|---|---|
//! | 10,000 | 4.0e-4 | 1.2e-8 | 9e-14 | below 1e-20 |
//! | 100,000 | 0.38 | 0.041 | 1.6e-3 | 1.6e-7 |
//!
//! So a limit of ten connections refuses a user who holds five with odds of 1.6e-7 at 100,000 users; limits below
//! four are trustworthy up to some 10,000 users per node. For the rates what counts are only keys that use up their
//! rate: with 1,000 of them, another key finds all four of its cells used up with odds of 8e-7.
//!
//! Anonymous connections (empty user id) are counted by address and node only.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::FixedState;

use crate::metrics::{RateScope, RefusalReason};
use crate::rate::AtomicGcra;
use crate::settings::{Limits, Rate};

/// Independent cells per key.
const ROWS: usize = 4;
/// Bits of a key's hash that each row uses.
const ROW_BITS: usize = 16;
/// Cells per row of a counting sketch.
const COUNT_WIDTH: usize = 1 << ROW_BITS;
/// Cells per row of a rate sketch.
const RATE_WIDTH: usize = 1 << (ROW_BITS - 1);

/// Sockets that may be open at once: the connections, and some that are plain HTTP or not yet upgraded.
fn sockets_max(connections_max: u64) -> u64 {
    connections_max.saturating_add(connections_max / 8 + 16)
}

/// Hashes under which a connection's messages are counted; made once per session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageKeys {
    /// 0 for anonymous.
    user: u64,
    address: u64,
}

/// Shared counters of a node.
pub struct Admission {
    users_hash: FixedState,
    addresses_hash: FixedState,
    connections: AtomicU64,
    sessions: AtomicU64,
    draining: AtomicBool,
    handshakes: AtomicGcra,
    user_connections: CountSketch,
    address_connections: CountSketch,
    user_messages: RateSketch,
    address_messages: RateSketch,
    /// Messages of users since they were last told to other nodes; one row, because only the busiest are told.
    reported: OnceLock<Box<[AtomicU32]>>,
}

impl Admission {
    /// All zero. `hash_seed` is drawn once per process.
    pub fn new(hash_seed: u64) -> Self {
        Self {
            users_hash: FixedState::with_seed(hash_seed),
            addresses_hash: FixedState::with_seed(
                hash_seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15,
            ),
            connections: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            handshakes: AtomicGcra::new(),
            user_connections: CountSketch::new(),
            address_connections: CountSketch::new(),
            user_messages: RateSketch::default(),
            address_messages: RateSketch::default(),
            reported: OnceLock::new(),
        }
    }

    /// Counts a new connection. On success [`Self::disconnect`] must follow exactly once. Draining does not refuse
    /// it, and there is some room above `connections_max`: health checks still come in. Whoever upgrades a connection
    /// compares [`Self::connections`] with the limit itself.
    ///
    /// # Errors
    /// Which limit it would pass; nothing but the handshake rate is counted then.
    pub fn try_connect(
        &self,
        now: Duration,
        address: IpAddr,
        limits: &Limits,
    ) -> Result<(), RefusalReason> {
        self.try_count(now, (address, limits.connections_per_address_max), limits)
    }

    /// As [`Self::try_connect`], for the connection of a proxy: its address is that of many clients and has no limit.
    ///
    /// # Errors
    /// Which limit of the node it would pass.
    pub fn try_connect_proxy(
        &self,
        now: Duration,
        address: IpAddr,
        limits: &Limits,
    ) -> Result<(), RefusalReason> {
        self.try_count(now, (address, 0), limits)
    }

    fn try_count(
        &self,
        now: Duration,
        (address, address_max): (IpAddr, u32),
        limits: &Limits,
    ) -> Result<(), RefusalReason> {
        if self.handshakes.check(now, limits.handshakes).is_err() {
            return Err(RefusalReason::HandshakeRate);
        }
        let sockets_max = sockets_max(limits.connections_max);
        let one_more = |open| (open < sockets_max).then_some(open + 1);
        self.connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map_err(|_| RefusalReason::NodeFull)?;
        let key = self.address_key(address);
        if !self.address_connections.try_add(key, address_max) {
            release(&self.connections);
            return Err(RefusalReason::AddressLimit);
        }
        Ok(())
    }

    /// Counts a connection that takes the place of another, which is about to end, although the node is full. Its address
    /// may have `address_max` connections; 0 = any number.
    ///
    /// # Errors
    /// When its address has as many connections as allowed.
    pub fn connect_instead(&self, address: IpAddr, address_max: u32) -> Result<(), RefusalReason> {
        let key = self.address_key(address);
        if !self.address_connections.try_add(key, address_max) {
            return Err(RefusalReason::AddressLimit);
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The connection that was counted for the proxy `from` is the client `to`'s. On success [`Self::disconnect`] is to be
    /// called with `to`.
    ///
    /// # Errors
    /// When the client's address has as many connections as allowed; nothing has changed then.
    pub fn readdress(
        &self,
        from: IpAddr,
        to: IpAddr,
        limits: &Limits,
    ) -> Result<(), RefusalReason> {
        let max = limits.connections_per_address_max;
        if !self.address_connections.try_add(self.address_key(to), max) {
            return Err(RefusalReason::AddressLimit);
        }
        self.address_connections.remove(self.address_key(from));
        Ok(())
    }

    /// Counts a connection that became a WebSocket. [`Self::release_session`] must follow exactly once.
    pub fn add_session(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    /// A WebSocket is gone.
    pub fn release_session(&self) {
        release(&self.sessions);
    }

    /// Open WebSockets of the node.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// A connection that [`Self::try_connect`] let in is gone.
    pub fn disconnect(&self, address: IpAddr) {
        release(&self.connections);
        self.address_connections.remove(self.address_key(address));
    }

    /// Counts a connection of `user`. On success [`Self::release_user`] must follow exactly once.
    ///
    /// # Errors
    /// When the user has as many connections as allowed; nothing is counted then.
    pub fn try_user(&self, user: &str, limits: &Limits) -> Result<(), RefusalReason> {
        let key = self.user_key(user);
        if key == 0 || self.user_connections.try_add(key, limits.connections_per_user_max) {
            return Ok(());
        }
        Err(RefusalReason::UserLimit)
    }

    /// A connection that [`Self::try_user`] let in is gone.
    pub fn release_user(&self, user: &str) {
        let key = self.user_key(user);
        if key != 0 {
            self.user_connections.remove(key);
        }
    }

    /// The keys of a session for [`Self::check_message`].
    pub fn message_keys(&self, user: &str, address: IpAddr) -> MessageKeys {
        MessageKeys { user: self.user_key(user), address: self.address_key(address) }
    }

    /// Counts a client message against its user's and its address's rate, or against neither. Answers whether it is the one
    /// from which on its user is to be told to other nodes.
    ///
    /// # Errors
    /// Which rate is used up, and how long until a message would be allowed.
    pub fn check_message(
        &self,
        now: Duration,
        keys: &MessageKeys,
        limits: &Limits,
    ) -> Result<bool, (RateScope, Duration)> {
        let user_rate = if keys.user == 0 { Rate::UNLIMITED } else { limits.messages_per_user };
        let address_rate = limits.messages_per_address;
        let wait = self.user_messages.wait(now, keys.user, user_rate);
        if !wait.is_zero() {
            return Err((RateScope::User, wait));
        }
        let wait = self.address_messages.wait(now, keys.address, address_rate);
        if !wait.is_zero() {
            return Err((RateScope::Address, wait));
        }
        self.user_messages.advance(now, keys.user, user_rate);
        self.address_messages.advance(now, keys.address, address_rate);
        if limits.messages_shared_min == 0 || keys.user == 0 {
            return Ok(false);
        }
        let before = self.reported()[reported_cell(keys.user)].fetch_add(1, Ordering::Relaxed);
        Ok(before + 1 == limits.messages_shared_min)
    }

    /// Messages of a user since the last call, or of another one who shares the cell.
    pub fn take_reported(&self, user: &str) -> u32 {
        self.reported()[reported_cell(self.user_key(user))].swap(0, Ordering::Relaxed)
    }

    /// Begins to count the messages of all users anew.
    pub fn clear_reported(&self) {
        for cell in self.reported.get().into_iter().flatten() {
            cell.store(0, Ordering::Relaxed);
        }
    }

    /// A user's messages on other nodes count here too; see [`crate::rate::AtomicGcra::advance_by`].
    pub fn charge(&self, now: Duration, user: &str, messages: u32, limits: &Limits) {
        let key = self.user_key(user);
        if key != 0 {
            self.user_messages.advance_by(now, key, limits.messages_per_user, messages);
        }
    }

    fn reported(&self) -> &[AtomicU32] {
        self.reported.get_or_init(|| (0..RATE_WIDTH).map(|_| AtomicU32::new(0)).collect())
    }

    /// Open connections of the node.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Says whether the node drains.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether the node drains: no new session should begin.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Key of a user, 0 for anonymous.
    fn user_key(&self, user: &str) -> u64 {
        if user.is_empty() { 0 } else { non_zero_hash(&self.users_hash, user) }
    }

    /// Key of an address. An IPv6 customer has a whole /64 at least, so that is what is counted.
    fn address_key(&self, address: IpAddr) -> u64 {
        let bits = match address.to_canonical() {
            IpAddr::V4(v4) => (4_u8, u64::from(v4.to_bits())),
            IpAddr::V6(v6) => (6, (v6.to_bits() >> 64) as u64),
        };
        non_zero_hash(&self.addresses_hash, bits)
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(0)
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("connections", &self.connections())
            .field("draining", &self.is_draining())
            .finish_non_exhaustive()
    }
}

fn non_zero_hash(state: &FixedState, value: impl Hash) -> u64 {
    state.hash_one(value).max(1)
}

/// Takes one off. At zero it stays there: a counter that wrapped would refuse everyone for ever.
fn release(counter: &AtomicU64) {
    let less = |count: u64| count.checked_sub(1);
    let released = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    debug_assert!(released.is_ok(), "released more than was counted");
}

/// Cell of a user among the reported.
fn reported_cell(key: u64) -> usize {
    key as usize & (RATE_WIDTH - 1)
}

/// Cells of `key`, one per row of `width` (a power of two, at most 2^16).
fn cells(key: u64, width: usize) -> [usize; ROWS] {
    std::array::from_fn(|row| row * width + ((key >> (ROW_BITS * row)) as usize & (width - 1)))
}

/// Connections by key.
struct CountSketch(Box<[AtomicU32]>);

impl CountSketch {
    fn new() -> Self {
        Self((0..ROWS * COUNT_WIDTH).map(|_| AtomicU32::new(0)).collect())
    }

    /// Counts one, unless `max` are estimated already; 0 = unlimited, but counted for when that changes.
    fn try_add(&self, key: u64, max: u32) -> bool {
        let add = |cell: usize| self.0[cell].fetch_add(1, Ordering::Relaxed);
        let estimate = cells(key, COUNT_WIDTH).map(add).into_iter().min().unwrap_or(0);
        let allowed = max == 0 || estimate < max;
        if !allowed {
            self.remove(key);
        }
        allowed
    }

    fn remove(&self, key: u64) {
        for cell in cells(key, COUNT_WIDTH) {
            let less = |count: u32| count.checked_sub(1);
            let released = self.0[cell].fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            debug_assert!(released.is_ok(), "released more than was counted");
        }
    }
}

/// Message rates by key; allocated when the first limited message comes.
#[derive(Default)]
struct RateSketch(OnceLock<Box<[AtomicGcra]>>);

impl RateSketch {
    /// How long until an event would be allowed: the shortest wait of the rows, since other keys only add to a cell.
    fn wait(&self, now: Duration, key: u64, rate: Rate) -> Duration {
        if rate.per_second == 0 {
            return Duration::ZERO;
        }
        let waits = cells(key, RATE_WIDTH).map(|cell| self.rows()[cell].wait(now, rate));
        waits.into_iter().min().unwrap_or_default()
    }

    /// Counts an event in every row.
    fn advance(&self, now: Duration, key: u64, rate: Rate) {
        self.advance_by(now, key, rate, 1);
    }

    /// Counts several events in every row.
    fn advance_by(&self, now: Duration, key: u64, rate: Rate, events: u32) {
        if rate.per_second == 0 {
            return;
        }
        for cell in cells(key, RATE_WIDTH) {
            self.rows()[cell].advance_by(now, rate, events);
        }
    }

    fn rows(&self) -> &[AtomicGcra] {
        self.0.get_or_init(|| (0..ROWS * RATE_WIDTH).map(|_| AtomicGcra::new()).collect())
    }
}

#[cfg(test)]
mod tests;
