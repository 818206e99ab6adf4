//! How far an inbox reaches at each change of a batch.
//!
//! All new items of a batch are inserted together, before its marks. Who marks everything means what was there before the
//! request, so the marks must know which of the new items came before them.

use std::collections::{BTreeMap, HashMap};

use super::super::change::{Change, Counters, Which};
use super::insert::Item;

/// Newest places in the inboxes of users who mark everything.
#[derive(Debug, Default)]
pub(super) struct Tops<'a> {
    of_users: HashMap<&'a str, i64>,
    /// Places of new items, by user and notification.
    new: HashMap<(String, String), i64>,
}

impl<'a> Tops<'a> {
    /// Before the first change.
    pub(super) fn before(changes: &'a [Change], counters: &BTreeMap<String, Counters>) -> Self {
        let top = |user: &String| counters.get(user).map_or(0, |counters| counters.last_seq);
        let of_users = changes.iter().filter_map(|change| match change {
            Change::Mark { user, which: Which::UpTo(None), .. } => Some((user.as_str(), top(user))),
            _ => None,
        });
        Self { of_users: of_users.collect(), new: HashMap::new() }
    }

    /// Takes down which items are new.
    pub(super) fn note(&mut self, items: &[Item]) {
        for item in items.iter().filter(|item| self.of_users.contains_key(item.to.user.as_str())) {
            let key = (item.to.user.clone(), item.notification.id.clone());
            self.new.insert(key, item.seq);
        }
    }

    /// The next change is this one.
    pub(super) fn come_to(&mut self, change: &Change) {
        let Change::Send { notification, now, .. } = change else { return };
        if self.of_users.is_empty() {
            return;
        }
        for to in now {
            let Some(top) = self.of_users.get_mut(to.user.as_str()) else { continue };
            if let Some(place) = self.new.get(&(to.user.clone(), notification.id.clone())) {
                *top = *place;
            }
        }
    }

    /// The newest place in a user's inbox.
    pub(super) fn of(&self, user: &str) -> i64 {
        self.of_users.get(user).copied().unwrap_or_default()
    }
}
