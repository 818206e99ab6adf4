//! Members of one channel, kept by its home shard: every subscribed connection with its user.
//!
//! A user with several connections is one user and several clients.

use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::FixedState;
use hashbrown::HashMap;
use indexmap::IndexMap;

use crate::ids::ConnectionId;
use crate::message::Member;

/// What joining or leaving changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it was there already, or was not there.
    None,
    /// The connection is new (or gone).
    Connection,
}

/// Presence of one channel.
#[derive(Debug)]
pub struct Presence {
    members: IndexMap<ConnectionId, Member, FixedState>,
    users: HashMap<Arc<str>, u32, FixedState>,
    joined: u32,
    left: u32,
    /// When the coalesced statistics are due.
    pub flush_at: Option<Duration>,
}

impl Presence {
    /// Nobody; `seed` keys the hashes.
    pub fn new(seed: u64) -> Self {
        Self {
            members: IndexMap::with_hasher(FixedState::with_seed(seed)),
            users: HashMap::with_hasher(FixedState::with_seed(seed)),
            joined: 0,
            left: 0,
            flush_at: None,
        }
    }

    /// Adds a connection; a second time changes nothing.
    pub fn join(&mut self, id: ConnectionId, member: &Member) -> Change {
        if self.members.contains_key(&id) {
            return Change::None;
        }
        *self.users.entry(Arc::clone(&member.user)).or_insert(0) += 1;
        self.members.insert(id, member.clone());
        self.joined += 1;
        Change::Connection
    }

    /// Removes a connection and answers who it was.
    pub fn leave(&mut self, id: ConnectionId) -> Option<Member> {
        let member = self.members.swap_remove(&id)?;
        if let Some(count) = self.users.get_mut(&member.user) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&member.user);
            }
        }
        self.left += 1;
        Some(member)
    }

    /// Connections.
    pub fn clients(&self) -> u32 {
        self.members.len() as u32
    }

    /// Distinct users.
    pub fn users(&self) -> u32 {
        self.users.len() as u32
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// At most `limit` members.
    pub fn list(&self, limit: usize) -> Vec<(ConnectionId, Member)> {
        self.members.iter().take(limit).map(|(id, member)| (*id, member.clone())).collect()
    }

    /// Joins and leaves since the last call.
    pub fn take_changes(&mut self) -> (u32, u32) {
        (std::mem::take(&mut self.joined), std::mem::take(&mut self.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;

    fn member(user: &str) -> Member {
        Member { user: user.into(), session: "s".into(), info: None }
    }

    #[test]
    fn a_user_with_two_devices_counts_once() {
        let mut presence = Presence::new(1);
        let ids: Vec<_> = (0..3).map(|n| ConnectionId::new(ShardId(0), n, 0)).collect();
        assert_eq!(presence.join(ids[0], &member("a")), Change::Connection);
        assert_eq!(presence.join(ids[1], &member("a")), Change::Connection);
        assert_eq!(presence.join(ids[2], &member("b")), Change::Connection);
        assert_eq!(presence.join(ids[2], &member("b")), Change::None);
        assert_eq!((presence.clients(), presence.users()), (3, 2));
        assert_eq!(presence.leave(ids[0]).map(|m| m.user), Some("a".into()));
        assert_eq!((presence.clients(), presence.users()), (2, 2));
        assert!(presence.leave(ids[0]).is_none());
        presence.leave(ids[1]);
        presence.leave(ids[2]);
        assert!(presence.is_empty());
        assert_eq!(presence.users(), 0);
        assert_eq!(presence.take_changes(), (3, 3));
    }
}
