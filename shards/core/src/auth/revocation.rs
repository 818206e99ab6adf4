//! Tokens that are refused although signature and time are right. Each shard owns one [`Revocations`]; the control
//! plane sends every revocation to every shard.
//!
//! Bounded: at the bound the entry that would be forgotten soonest makes room, and the caller is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::LEEWAY_MAX;
use crate::message::Revocation;

type Map<V> = HashMap<Arc<str>, V, foldhash::quality::FixedState>;

/// What came of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum RevocationOutcome {
    /// In force.
    Stored,
    /// In force, but the table was full and an older one was forgotten before its time.
    StoredByForgetting,
    /// Nothing to do: the table has no room at all, or every token it is about has expired.
    Ignored,
}

#[derive(Clone, Copy, Debug)]
struct UserEntry {
    issued_before: Duration,
    forget_at: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    User(Arc<str>),
    Token(Arc<str>),
}

/// Revoked users, token ids and the "issued before" line of one shard.
#[derive(Debug)]
pub struct Revocations {
    entries_max: usize,
    user_retention: Duration,
    issued_before: Duration,
    users: Map<UserEntry>,
    tokens: Map<Duration>,
    /// Every entry of both maps by the time it may be forgotten.
    by_end: BTreeSet<(Duration, Subject)>,
}

impl Revocations {
    /// An empty table for `entries_max` users and token ids together. A user's entry is kept for `user_retention`
    /// from the time it was made: at least the longest life of a token.
    pub fn new(entries_max: usize, user_retention: Duration) -> Self {
        Self {
            entries_max,
            user_retention,
            issued_before: Duration::ZERO,
            users: Map::default(),
            tokens: Map::default(),
            by_end: BTreeSet::new(),
        }
    }

    /// Puts a revocation into force.
    pub fn apply(&mut self, revocation: Revocation, now_unix: Duration) -> RevocationOutcome {
        match revocation {
            Revocation::IssuedBefore(time) => {
                self.issued_before = self.issued_before.max(time);
                RevocationOutcome::Stored
            }
            Revocation::User { user, issued_before } => {
                let forget_at = now_unix.max(issued_before).saturating_add(self.user_retention);
                self.add_user(user, UserEntry { issued_before, forget_at }, now_unix)
            }
            Revocation::TokenId { token_id, expires_at } => {
                // A token lives past its expiry by the leeway, so its entry must as well.
                let forget_at = expires_at.saturating_add(LEEWAY_MAX);
                if forget_at <= now_unix {
                    return RevocationOutcome::Ignored;
                }
                self.add_token(token_id.into(), forget_at, now_unix)
            }
        }
    }

    /// Whether a token of this user, id and issue time is refused. Against "issued before" a token that does not say
    /// when it was issued loses.
    pub fn is_revoked(
        &self,
        user: &str,
        token_id: Option<&str>,
        issued_at: Option<Duration>,
    ) -> bool {
        let before = |line: Duration| issued_at.is_none_or(|issued_at| issued_at < line);
        (!self.issued_before.is_zero() && before(self.issued_before))
            || self.users.get(user).is_some_and(|entry| before(entry.issued_before))
            || token_id.is_some_and(|id| self.tokens.contains_key(id))
    }

    /// Forgets what no living token can match any more.
    pub fn expire(&mut self, now_unix: Duration) {
        while self.by_end.first().is_some_and(|(end, _)| *end <= now_unix) {
            self.forget_first();
        }
    }

    /// Revoked users and token ids together.
    pub fn len(&self) -> usize {
        self.by_end.len()
    }

    /// Whether nothing is revoked at all.
    pub fn is_empty(&self) -> bool {
        self.by_end.is_empty() && self.issued_before.is_zero()
    }

    fn add_user(
        &mut self,
        user: Arc<str>,
        entry: UserEntry,
        now_unix: Duration,
    ) -> RevocationOutcome {
        let mut entry = entry;
        if let Some(old) = self.users.remove(&user) {
            self.by_end.remove(&(old.forget_at, Subject::User(Arc::clone(&user))));
            entry.issued_before = entry.issued_before.max(old.issued_before);
            entry.forget_at = entry.forget_at.max(old.forget_at);
        }
        let outcome = self.make_room(now_unix);
        if outcome != RevocationOutcome::Ignored {
            self.by_end.insert((entry.forget_at, Subject::User(Arc::clone(&user))));
            self.users.insert(user, entry);
        }
        outcome
    }

    fn add_token(
        &mut self,
        token_id: Arc<str>,
        forget_at: Duration,
        now_unix: Duration,
    ) -> RevocationOutcome {
        let mut forget_at = forget_at;
        if let Some(old) = self.tokens.remove(&token_id) {
            self.by_end.remove(&(old, Subject::Token(Arc::clone(&token_id))));
            forget_at = forget_at.max(old);
        }
        let outcome = self.make_room(now_unix);
        if outcome != RevocationOutcome::Ignored {
            self.by_end.insert((forget_at, Subject::Token(Arc::clone(&token_id))));
            self.tokens.insert(token_id, forget_at);
        }
        outcome
    }

    fn make_room(&mut self, now_unix: Duration) -> RevocationOutcome {
        if self.entries_max == 0 {
            return RevocationOutcome::Ignored;
        }
        if self.by_end.len() < self.entries_max {
            return RevocationOutcome::Stored;
        }
        self.expire(now_unix);
        if self.by_end.len() < self.entries_max {
            return RevocationOutcome::Stored;
        }
        self.forget_first();
        RevocationOutcome::StoredByForgetting
    }

    fn forget_first(&mut self) {
        match self.by_end.pop_first() {
            Some((_, Subject::User(user))) => drop(self.users.remove(&user)),
            Some((_, Subject::Token(id))) => drop(self.tokens.remove(&id)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn user(name: &str, issued_before: u64) -> Revocation {
        Revocation::User { user: name.into(), issued_before: at(issued_before) }
    }

    fn token(id: &str, expires_at: u64) -> Revocation {
        Revocation::TokenId { token_id: id.into(), expires_at: at(expires_at) }
    }

    #[test]
    fn by_user_and_issue_time() {
        let mut table = Revocations::new(10, HOUR);
        assert_eq!(table.apply(user("ann", 100), at(100)), RevocationOutcome::Stored);
        assert!(table.is_revoked("ann", None, Some(at(99))));
        assert!(table.is_revoked("ann", None, None));
        assert!(!table.is_revoked("ann", None, Some(at(100))));
        assert!(!table.is_revoked("bob", None, Some(at(1))));
        assert_eq!(table.apply(user("ann", 50), at(101)), RevocationOutcome::Stored);
        assert!(
            table.is_revoked("ann", None, Some(at(99))),
            "an earlier line must not undo a later"
        );
        table.expire(at(100 + 3_599));
        assert_eq!(table.len(), 1);
        table.expire(at(101 + 3_600));
        assert!(table.is_empty());
    }

    #[test]
    fn by_token_id_until_its_end_and_the_leeway() {
        let mut table = Revocations::new(10, HOUR);
        assert_eq!(table.apply(token("t1", 200), at(100)), RevocationOutcome::Stored);
        assert!(table.is_revoked("ann", Some("t1"), Some(at(99))));
        assert!(!table.is_revoked("ann", Some("t2"), Some(at(99))));
        table.expire(at(259));
        assert!(table.is_revoked("ann", Some("t1"), None));
        table.expire(at(260));
        assert!(!table.is_revoked("ann", Some("t1"), None));
        assert_eq!(table.apply(token("t1", 200), at(300)), RevocationOutcome::Ignored);
    }

    #[test]
    fn issued_before_hits_everyone_and_only_rises() {
        let mut table = Revocations::new(0, HOUR);
        assert_eq!(
            table.apply(Revocation::IssuedBefore(at(500)), at(1)),
            RevocationOutcome::Stored
        );
        assert_eq!(
            table.apply(Revocation::IssuedBefore(at(400)), at(1)),
            RevocationOutcome::Stored
        );
        assert!(table.is_revoked("ann", None, Some(at(499))));
        assert!(!table.is_revoked("ann", None, Some(at(500))));
        table.expire(at(1_000_000));
        assert!(table.is_revoked("ann", None, Some(at(499))));
    }

    #[test]
    fn at_the_bound_the_soonest_ending_goes() {
        let mut table = Revocations::new(2, HOUR);
        assert_eq!(table.apply(token("long", 9_000), at(1)), RevocationOutcome::Stored);
        assert_eq!(table.apply(token("short", 100), at(1)), RevocationOutcome::Stored);
        assert_eq!(table.apply(user("ann", 1), at(1)), RevocationOutcome::StoredByForgetting);
        assert!(!table.is_revoked("bob", Some("short"), None));
        assert!(table.is_revoked("bob", Some("long"), None));
        assert!(table.is_revoked("ann", None, None));
        // What has run out makes room without loss.
        assert_eq!(table.apply(token("next", 9_000), at(3_700)), RevocationOutcome::Stored);
        assert_eq!(table.len(), 2);
        assert_eq!(
            Revocations::new(0, HOUR).apply(user("a", 1), at(1)),
            RevocationOutcome::Ignored
        );
    }

    #[test]
    fn the_same_again_takes_no_room() {
        let mut table = Revocations::new(1, HOUR);
        for _ in 0..3 {
            assert_eq!(table.apply(token("t", 500), at(1)), RevocationOutcome::Stored);
        }
        assert_eq!(table.len(), 1);
    }
}
