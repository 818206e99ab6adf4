//! Verified tokens of one shard, so that a client that comes back with the same token costs no signature check.
//!
//! A hit means that a text with the same SHA-256 digest was verified before, so the cache holds no token, and a token
//! of any length costs the same memory. Times are judged anew on every hit; revocation is not judged here at all. The
//! owner empties the cache whenever keys or rules change.

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use sha2::{Digest as _, Sha256};

use super::{Claims, LEEWAY_MAX};
use crate::time::Moment;

/// SHA-256 of a token.
type Digest32 = [u8; 32];

fn digest(token: &str) -> Digest32 {
    Sha256::digest(token.as_bytes()).into()
}

#[derive(Debug)]
struct Entry {
    claims: Arc<Claims>,
    /// When it was verified: before that (the clock was set back) `nbf` may not have come yet.
    verified_at: Moment,
    /// Used since the hand last passed.
    used: bool,
}

/// Bounded map from tokens to claims; evicts by the clock algorithm, an approximate LRU.
pub struct TokenCache {
    entries_max: usize,
    leeway: Duration,
    entries: IndexMap<Digest32, Entry, foldhash::quality::FixedState>,
    /// Where the search for a victim goes on.
    hand: usize,
}

impl std::fmt::Debug for TokenCache {
    /// Shows sizes only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCache")
            .field("entries", &self.entries.len())
            .field("entries_max", &self.entries_max)
            .finish_non_exhaustive()
    }
}

impl TokenCache {
    /// An empty cache for `entries_max` tokens (0 = never keeps any), hashed with `hash_seed`; `leeway` as in the
    /// token rules.
    pub fn new(entries_max: usize, hash_seed: u64, leeway: Duration) -> Self {
        Self {
            entries_max,
            leeway: leeway.min(LEEWAY_MAX),
            entries: IndexMap::with_hasher(foldhash::quality::FixedState::with_seed(hash_seed)),
            hand: 0,
        }
    }

    /// Claims of a token that was verified before and is still within its time.
    pub fn get(&mut self, token: &str, now_unix: Duration) -> Option<Arc<Claims>> {
        let (index, _, entry) = self.entries.get_full_mut(&digest(token))?;
        let expired =
            entry.claims.expires_at.is_some_and(|end| end.saturating_add(self.leeway) <= now_unix);
        if expired || now_unix < entry.verified_at.get() {
            self.entries.swap_remove_index(index);
            return None;
        }
        entry.used = true;
        Some(Arc::clone(&entry.claims))
    }

    /// Remembers a token that has just been verified at `now_unix`.
    pub fn insert(&mut self, token: &str, claims: Arc<Claims>, now_unix: Duration) {
        if self.entries_max == 0 {
            return;
        }
        let digest = digest(token);
        if self.entries.len() >= self.entries_max && !self.entries.contains_key(&digest) {
            self.evict();
        }
        let entry = Entry { claims, verified_at: now_unix.into(), used: false };
        self.entries.insert(digest, entry);
    }

    /// Forgets everything: keys or rules have changed.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.hand = 0;
    }

    /// Remembered tokens.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Removes the next entry that was not used since the hand last passed; ends after two rounds at the latest,
    /// because the first clears every mark.
    fn evict(&mut self) {
        while !self.entries.is_empty() {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let entry = &mut self.entries[self.hand];
            if entry.used {
                entry.used = false;
                self.hand += 1;
            } else {
                self.entries.swap_remove_index(self.hand);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Capabilities;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn claims(expires_at: Option<u64>) -> Arc<Claims> {
        Arc::new(Claims {
            user: "ann".into(),
            token_id: None,
            issued_at: None,
            expires_at: expires_at.map(at),
            channels: Box::default(),
            capabilities: Capabilities::default(),
            info: None,
        })
    }

    #[test]
    fn only_the_exact_text_hits() {
        let mut cache = TokenCache::new(4, 1, at(0));
        cache.insert("a.b.c", claims(None), at(10));
        assert!(cache.get("a.b.c", at(10)).is_some());
        for other in ["a.b.d", "a.b.c ", "A.b.c", "", "a.b.cc"] {
            assert!(cache.get(other, at(10)).is_none(), "{other}");
        }
    }

    #[test]
    fn nothing_is_served_outside_its_time() {
        let mut cache = TokenCache::new(4, 1, at(5));
        cache.insert("t", claims(Some(100)), at(10));
        assert!(cache.get("t", at(104)).is_some());
        assert!(cache.get("t", at(105)).is_none());
        assert!(cache.is_empty(), "an expired entry is dropped");
        cache.insert("t", claims(Some(100)), at(50));
        assert!(cache.get("t", at(49)).is_none(), "the clock was set back");
    }

    #[test]
    fn bounded_and_keeps_what_is_used() {
        let mut cache = TokenCache::new(100, 7, at(0));
        cache.insert("hot", claims(None), at(0));
        for n in 0..10_000 {
            assert!(cache.get("hot", at(1)).is_some(), "after {n}");
            cache.insert(&format!("cold{n}"), claims(None), at(1));
            assert!(cache.len() <= 100);
        }
        cache.clear();
        assert!(cache.is_empty() && cache.get("hot", at(1)).is_none());
    }

    #[test]
    fn an_empty_bound_keeps_nothing() {
        let mut off = TokenCache::new(0, 1, at(0));
        off.insert("t", claims(None), at(0));
        assert!(off.is_empty());
    }

    #[test]
    fn debug_shows_no_token() {
        let mut cache = TokenCache::new(4, 1, at(0));
        cache.insert("secret-token", claims(None), at(0));
        assert!(!format!("{cache:?}").contains("secret-token"));
    }
}
