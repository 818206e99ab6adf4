//! What users get who have just connected: what no device of theirs has confirmed, and the counters.
//!
//! Clients that come back together (a node has died, a deployment) are looked up together: one statement reads the counters of
//! all of them, a second one the items of those who have any.

use std::collections::BTreeMap;
use std::sync::Arc;

use gateway_core::call::{CallAnswer, ClientCall, ClientMessage};
use gateway_core::ids::ConnectionId;
use serde_json::json;
use tokio::sync::mpsc;

use super::{Notifications, calls, now_ms, reads};
use crate::plane::SharedPlane;
use crate::store::StoreError;

/// Users that are looked up together.
const BATCH: usize = 512;

/// A user's session has become ready.
#[derive(Debug)]
pub(super) struct Arrival {
    pub connection: ConnectionId,
    pub user: Arc<str>,
}

/// Messages to a user.
type Messages = BTreeMap<String, Vec<ClientMessage>>;

/// Looks arrivals up until the future is dropped.
pub(super) async fn run(
    notifications: Arc<Notifications>,
    plane: SharedPlane,
    mut arrived: mpsc::Receiver<Arrival>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while arrived.recv_many(&mut batch, BATCH).await > 0 {
        // Without a store there is nothing to tell; the client asks when it wants to know.
        let bytes_max = reads::bytes_at_once(plane.settings.load().limits.message_bytes_max);
        let found = notifications.missed(&batch, bytes_max).await.unwrap_or_default();
        for Arrival { connection, user } in batch.drain(..) {
            let Some(messages) = found.get(&*user) else { continue };
            let answer = CallAnswer {
                connection,
                request: ClientCall::UNASKED,
                outcome: Ok(messages.clone()),
            };
            calls::deliver(&plane, answer).await;
        }
    }
}

impl Notifications {
    /// The newest items and the numbers. What does not fit into `bytes_max` the client finds in its inbox.
    async fn missed(&self, arrivals: &[Arrival], bytes_max: usize) -> Result<Messages, StoreError> {
        let mut users: Vec<&str> = arrivals.iter().map(|arrival| &*arrival.user).collect();
        users.sort_unstable();
        users.dedup();
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let counters = reads::counters(&mut transaction, &users).await?;
            let with_items: Vec<&str> = counters
                .iter()
                .filter(|(_, counters)| counters.unacked > 0)
                .map(|(user, _)| user.as_str())
                .collect();
            let max = self.limits.missed_max;
            let items = if with_items.is_empty() || max == 0 {
                Vec::new()
            } else {
                reads::unacked(&mut transaction, &with_items, max, now_ms()).await?
            };
            transaction.commit().await?;
            Ok((counters, items))
        };
        let (counters, items) = self.store.run(read).await?;
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
        for (user, counters) in counters {
            let data = json!(counters).to_string().into();
            let message = ClientMessage { kind: "notification_update", data };
            messages.entry(user).or_default().push(message);
        }
        Ok(messages)
    }
}
