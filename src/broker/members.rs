//! Members of other nodes that are read while others come and go: the answer and the news travel on two connections, so news
//! that came first may be newer than the answer. They are noted meanwhile and carried out on the answer; one that was in it
//! already changes nothing.

use std::collections::HashMap;

use gateway_core::broker::{ChannelUpdate, MemberId};
use gateway_core::message::Member;

/// Members that may be noted during one reading; after more it is done again.
const NOTED_MAX: usize = 4096;

/// Members of other nodes.
pub(crate) type Members = Vec<(MemberId, Member)>;

#[derive(Debug)]
enum Change {
    Joined(MemberId, Member),
    Left(MemberId),
    /// All that this node has.
    Are(u64, Members),
}

/// News of members, in order.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    noted: Vec<Change>,
    members: usize,
}

impl Changes {
    /// Notes what `update` says about members.
    pub(crate) fn note(&mut self, update: &ChannelUpdate) {
        let (change, members) = match update {
            ChannelUpdate::Joined(id, member) => (Change::Joined(*id, member.clone()), 1),
            ChannelUpdate::Left(id) => (Change::Left(*id), 1),
            ChannelUpdate::Members(node, members) => {
                (Change::Are(*node, members.clone()), members.len().max(1))
            }
            _ => return,
        };
        self.members = self.members.saturating_add(members);
        if self.members <= NOTED_MAX {
            self.noted.push(change);
        }
    }

    /// Brings `members` up to date; `None` when more has changed than was noted.
    pub(crate) fn carry_out(self, members: Members) -> Option<Members> {
        if self.members > NOTED_MAX {
            return None;
        }
        if self.noted.is_empty() {
            return Some(members);
        }
        let mut members: HashMap<MemberId, Member> = members.into_iter().collect();
        for change in self.noted {
            match change {
                Change::Joined(id, member) => {
                    members.insert(id, member);
                }
                Change::Left(id) => {
                    members.remove(&id);
                }
                Change::Are(node, its) => {
                    members.retain(|id, _| id.node != node);
                    members.extend(its);
                }
            }
        }
        Some(members.into_iter().collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gateway_core::ids::{ConnectionId, SessionId, ShardId};

    use super::*;

    fn id(node: u64, slot: u32) -> MemberId {
        MemberId { node, connection: ConnectionId::new(ShardId(0), slot, 1) }
    }

    fn member(user: &str) -> Member {
        Member { user: user.into(), session: SessionId::NONE, info: None }
    }

    fn names(members: Members) -> Vec<String> {
        let mut names: Vec<String> =
            members.into_iter().map(|(_, member)| member.user.to_string()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn news_count_more_than_the_answer() {
        let mut changes = Changes::default();
        changes.note(&ChannelUpdate::Left(id(1, 1)));
        changes.note(&ChannelUpdate::Joined(id(1, 2), member("b")));
        changes.note(&ChannelUpdate::Members(2, vec![(id(2, 9), member("z"))]));
        changes.note(&ChannelUpdate::Behind);
        let read = vec![(id(1, 1), member("a")), (id(1, 3), member("c")), (id(2, 1), member("d"))];
        assert_eq!(names(changes.carry_out(read).unwrap()), ["b", "c", "z"]);
    }

    #[test]
    fn the_last_news_of_somebody_counts() {
        let mut changes = Changes::default();
        for _ in 0..2 {
            changes.note(&ChannelUpdate::Joined(id(1, 1), member("a")));
            changes.note(&ChannelUpdate::Left(id(1, 1)));
        }
        changes.note(&ChannelUpdate::Joined(id(1, 2), member("b")));
        assert_eq!(names(changes.carry_out(Vec::new()).unwrap()), ["b"]);
    }

    #[test]
    fn too_many_news_are_read_instead() {
        let mut changes = Changes::default();
        for slot in 0..=u32::try_from(NOTED_MAX).unwrap() {
            changes.note(&ChannelUpdate::Left(id(1, slot)));
        }
        assert_eq!(changes.noted.len(), NOTED_MAX);
        assert_eq!(changes.carry_out(Vec::new()), None);
    }
}
