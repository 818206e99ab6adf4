//! What users get who have just connected: what no device of theirs has confirmed, and the counters.
//!
//! Clients that come back together (a node has died, a deployment) are looked up together: one statement reads the counters of
//! all of them. Items are read for as many users at a time as have a bounded number of them, so that a crowd with full inboxes
//! takes no more memory than a small one.

use std::collections::BTreeMap;
use std::sync::Arc;

use gateway_core::call::{CallAnswer, ClientCall, ClientMessage};
use gateway_core::ids::ConnectionId;
use serde_json::json;
use tokio::sync::mpsc;

use super::{Counters, Notifications, calls, now_ms, reads};
use crate::plane::SharedPlane;
use crate::store::StoreError;

/// Users whose counters are read together.
const BATCH: usize = 512;
/// Items that are read together, but all of one user are.
const ITEMS_MAX: u64 = 512;

/// A user's session has become ready.
#[derive(Debug)]
pub(super) struct Arrival {
    pub connection: ConnectionId,
    pub user: Arc<str>,
}

/// Messages to a user.
type Messages = BTreeMap<String, Vec<ClientMessage>>;

/// Users with their counters.
type Inboxes = [(String, Counters)];

/// Looks arrivals up until the future is dropped.
pub(super) async fn run(
    notifications: Arc<Notifications>,
    plane: SharedPlane,
    mut arrived: mpsc::Receiver<Arrival>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while arrived.recv_many(&mut batch, BATCH).await > 0 {
        let bytes_max = reads::bytes_at_once(plane.settings.load().limits.message_bytes_max);
        let mut users: BTreeMap<Arc<str>, Vec<ConnectionId>> = BTreeMap::new();
        for Arrival { connection, user } in batch.drain(..) {
            users.entry(user).or_default().push(connection);
        }
        // Without a store there is nothing to tell; the client asks when it wants to know.
        let inboxes = notifications.inboxes(&users).await.unwrap_or_default();
        for part in parts(&inboxes, notifications.limits.missed_max) {
            let found = notifications.missed(part, bytes_max).await.unwrap_or_default();
            for (user, messages) in found {
                for connection in users.get(&*user).into_iter().flatten() {
                    let answer = CallAnswer {
                        connection: *connection,
                        request: ClientCall::UNASKED,
                        outcome: Ok(messages.clone()),
                    };
                    calls::deliver(&plane, answer).await;
                }
            }
        }
    }
}

/// Items that are read for a user, at most.
fn items_of(counters: &Counters, missed_max: u32) -> u64 {
    u64::try_from(counters.unacked).unwrap_or(0).min(missed_max.into())
}

/// Users whose items are read together: as many as have [`ITEMS_MAX`], and one at least.
fn parts(mut inboxes: &Inboxes, missed_max: u32) -> Vec<&Inboxes> {
    let mut parts = Vec::new();
    while !inboxes.is_empty() {
        let mut items = 0;
        let fits = inboxes.iter().take_while(|(_, counters)| {
            items += items_of(counters, missed_max);
            items <= ITEMS_MAX
        });
        let (part, rest) = inboxes.split_at(fits.count().max(1));
        parts.push(part);
        inboxes = rest;
    }
    parts
}

impl Notifications {
    async fn inboxes(
        &self,
        users: &BTreeMap<Arc<str>, Vec<ConnectionId>>,
    ) -> Result<Vec<(String, Counters)>, StoreError> {
        let users: Vec<&str> = users.keys().map(|user| &**user).collect();
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let counters = reads::counters(&mut transaction, &users).await?;
            transaction.commit().await?;
            Ok(counters)
        };
        self.store.run(read).await
    }

    /// The newest items and the numbers. What does not fit into `bytes_max` the client finds in its inbox.
    async fn missed(&self, inboxes: &Inboxes, bytes_max: usize) -> Result<Messages, StoreError> {
        let max = self.limits.missed_max;
        let with_items = inboxes.iter().filter(|(_, counters)| items_of(counters, max) > 0);
        let with_items: Vec<&str> = with_items.map(|(user, _)| user.as_str()).collect();
        let items = if with_items.is_empty() {
            Vec::new()
        } else {
            let read = async {
                let mut transaction = self.store.begin_read().await?;
                let items = reads::unacked(&mut transaction, &with_items, max, now_ms()).await?;
                transaction.commit().await?;
                Ok(items)
            };
            self.store.run(read).await?
        };
        let mut of_users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (user, item) in items {
            of_users.entry(user).or_default().push(item);
        }
        let mut messages = Messages::new();
        for (user, mut items) in of_users {
            let kept = reads::fitting(items.iter().rev(), bytes_max);
            let newest = items.split_off(items.len() - kept).into_iter();
            let message = |item: String| ClientMessage { kind: "notification", data: item.into() };
            messages.insert(user, newest.map(message).collect());
        }
        for (user, counters) in inboxes {
            let data = json!(counters).to_string().into();
            let message = ClientMessage { kind: "notification_update", data };
            messages.entry(user.clone()).or_default().push(message);
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_read_in_parts() {
        let crowd = |unacked: &[i64]| -> Vec<(String, Counters)> {
            let counters = |unacked| Counters { unacked, ..Counters::default() };
            unacked.iter().map(|unacked| (String::new(), counters(*unacked))).collect()
        };
        let sizes = |unacked: &[i64], missed_max| -> Vec<usize> {
            parts(&crowd(unacked), missed_max).into_iter().map(<[_]>::len).collect()
        };
        assert_eq!(sizes(&[], 50), [0; 0]);
        assert_eq!(sizes(&[0; 512], 50), [512], "nobody has any");
        assert_eq!(sizes(&[1; 512], 50), [512]);
        assert_eq!(sizes(&[9_000; 21], 50), [10, 10, 1], "no more than missed_max count");
        assert_eq!(sizes(&[9_000; 3], 1_000), [1, 1, 1], "one at least");
        assert_eq!(sizes(&[9_000; 512], 0), [512]);
        assert_eq!(sizes(&[-1, 512, 1], 1_000), [2, 1]);
    }
}
