//! Members of one channel, kept by its home shard: every subscribed connection with its user, those of other nodes
//! included.
//!
//! A user with several connections is one user and several clients.

use std::sync::Arc;

use foldhash::quality::FixedState;
use hashbrown::HashMap;
use indexmap::IndexMap;
use smallvec::SmallVec;

use crate::broker::MemberId;
use crate::message::Member;
use crate::time::Moment;

/// With more members than this a channel has tables; with fewer a list is smaller and as fast.
const FEW_MEMBERS: usize = 8;

/// Presence of one channel.
#[derive(Debug, Default)]
pub struct Presence {
    members: Members,
    joined: u32,
    left: u32,
    /// When the coalesced statistics are due.
    pub(crate) flush_at: Option<Moment>,
}

#[derive(Debug)]
enum Members {
    /// Most user channels have one member, so that is what costs nothing beside.
    Few(SmallVec<[(MemberId, Member); 1]>),
    Many(Box<Tables>),
}

#[derive(Debug)]
struct Tables {
    members: IndexMap<MemberId, Member, FixedState>,
    /// Connections by user.
    users: HashMap<Arc<str>, u32, FixedState>,
}

impl Presence {
    /// Adds a connection and answers whether it is new; `seed` keys the hashes.
    pub fn join(&mut self, id: MemberId, member: &Member, seed: u64) -> bool {
        let joined = self.members.insert(id, member, seed);
        self.joined += u32::from(joined);
        joined
    }

    /// Removes a connection and answers who it was.
    pub fn leave(&mut self, id: MemberId) -> Option<Member> {
        let member = self.members.remove(id)?;
        self.left += 1;
        Some(member)
    }

    /// Connections.
    pub fn clients(&self) -> u32 {
        match &self.members {
            Members::Few(members) => members.len() as u32,
            Members::Many(tables) => tables.members.len() as u32,
        }
    }

    /// Connections of this node.
    pub fn own_clients(&self) -> u32 {
        let own = match &self.members {
            Members::Few(members) => members.iter().filter(|(id, _)| id.is_own()).count(),
            Members::Many(tables) => tables.members.keys().filter(|id| id.is_own()).count(),
        };
        own as u32
    }

    /// Distinct users.
    pub fn users(&self) -> u32 {
        match &self.members {
            Members::Few(members) => {
                let is_first = |index: usize, user: &Arc<str>| {
                    !members[..index].iter().any(|(_, earlier)| earlier.user == *user)
                };
                let firsts = members.iter().enumerate();
                firsts.filter(|(index, (_, member))| is_first(*index, &member.user)).count() as u32
            }
            Members::Many(tables) => tables.users.len() as u32,
        }
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.clients() == 0
    }

    /// At most `limit` members.
    pub fn list(&self, limit: usize) -> Vec<(MemberId, Member)> {
        match &self.members {
            Members::Few(members) => members.iter().take(limit).cloned().collect(),
            Members::Many(tables) => {
                let members = tables.members.iter().take(limit);
                members.map(|(id, member)| (*id, member.clone())).collect()
            }
        }
    }

    /// Connections that `wanted` says yes to.
    pub fn select(&self, wanted: impl Fn(MemberId) -> bool) -> Vec<(MemberId, Member)> {
        let mut selected = self.list(usize::MAX);
        selected.retain(|(id, _)| wanted(*id));
        selected
    }

    /// Joins and leaves since the last call.
    pub fn take_changes(&mut self) -> (u32, u32) {
        (std::mem::take(&mut self.joined), std::mem::take(&mut self.left))
    }
}

impl Default for Members {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl Members {
    fn insert(&mut self, id: MemberId, member: &Member, seed: u64) -> bool {
        match self {
            Self::Few(members) if members.iter().any(|(known, _)| *known == id) => false,
            Self::Few(members) if members.len() < FEW_MEMBERS => {
                members.push((id, member.clone()));
                true
            }
            Self::Few(members) => {
                let mut tables = Box::new(Tables::new(seed));
                for (id, member) in members.drain(..) {
                    tables.insert(id, &member);
                }
                let inserted = tables.insert(id, member);
                *self = Self::Many(tables);
                inserted
            }
            Self::Many(tables) => tables.insert(id, member),
        }
    }

    fn remove(&mut self, id: MemberId) -> Option<Member> {
        match self {
            Self::Few(members) => {
                let index = members.iter().position(|(known, _)| *known == id)?;
                Some(members.swap_remove(index).1)
            }
            Self::Many(tables) => tables.remove(id),
        }
    }
}

impl Tables {
    fn new(seed: u64) -> Self {
        Self {
            members: IndexMap::with_hasher(FixedState::with_seed(seed)),
            users: HashMap::with_hasher(FixedState::with_seed(seed)),
        }
    }

    fn insert(&mut self, id: MemberId, member: &Member) -> bool {
        if self.members.contains_key(&id) {
            return false;
        }
        *self.users.entry(Arc::clone(&member.user)).or_insert(0) += 1;
        self.members.insert(id, member.clone());
        true
    }

    fn remove(&mut self, id: MemberId) -> Option<Member> {
        let member = self.members.swap_remove(&id)?;
        if let Some(count) = self.users.get_mut(&member.user) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&member.user);
            }
        }
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnectionId, SessionId, ShardId};

    fn member(user: &str) -> Member {
        Member { user: user.into(), session: SessionId::NONE, info: None }
    }

    fn ids(count: u32) -> Vec<MemberId> {
        let own = |slot| MemberId::own(ConnectionId::new(ShardId(0), slot, 0));
        (0..count).map(own).collect()
    }

    #[test]
    fn a_user_with_two_devices_counts_once() {
        let mut presence = Presence::default();
        let ids = ids(3);
        assert!(presence.join(ids[0], &member("a"), 1));
        assert!(presence.join(ids[1], &member("a"), 1));
        assert!(presence.join(ids[2], &member("b"), 1));
        assert!(!presence.join(ids[2], &member("b"), 1));
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

    #[test]
    fn connections_of_this_node_are_counted_apart() {
        let mut presence = Presence::default();
        let ids = ids(2 * FEW_MEMBERS as u32);
        for (count, id) in ids.iter().enumerate() {
            let node = if count % 2 == 0 { MemberId::OWN } else { 7 };
            assert!(presence.join(MemberId { node, ..*id }, &member("a"), 1));
            assert_eq!(presence.clients() as usize, count + 1);
            assert_eq!(presence.own_clients() as usize, count / 2 + 1);
        }
    }

    /// The list and the tables answer alike, whatever the number of members.
    #[test]
    fn a_growing_channel_keeps_its_members() {
        let mut presence = Presence::default();
        let ids = ids(3 * FEW_MEMBERS as u32);
        for (count, id) in ids.iter().enumerate() {
            assert!(presence.join(*id, &member(&format!("user {}", count / 2)), 1));
            assert!(!presence.join(*id, &member("another"), 1));
            assert_eq!(presence.clients() as usize, count + 1);
            assert_eq!(presence.users() as usize, count / 2 + 1);
        }
        let mut listed: Vec<_> = presence.list(usize::MAX).into_iter().map(|(id, _)| id).collect();
        listed.sort_unstable();
        assert_eq!(listed, ids);
        for (gone, id) in ids.iter().enumerate() {
            assert_eq!(
                presence.leave(*id).map(|m| m.user),
                Some(format!("user {}", gone / 2).into())
            );
            assert_eq!(presence.users() as usize, (ids.len() - gone - 1).div_ceil(2));
        }
        assert!(presence.is_empty());
    }
}
