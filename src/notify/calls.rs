//! Commands of clients about notifications, from a shard and back.
//!
//! Every call with a number is answered, with an error when the store does not answer in time, so that no command of a client
//! waits for ever. How many are carried out at once is bounded by the queue of the writer and the connections of the store.

use std::sync::Arc;

use bytes::Bytes;
use gateway_core::call::{CallAnswer, CallKind, ClientCall, ClientMessage};
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::message::ShardMessage;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::arrivals::Arrival;
use super::{ContactChange, Mark, Notifications, Page, Which, check_ids, ids_or_all, reads};
use crate::plane::SharedPlane;

/// Items in a page when the client names no number.
const PAGE_DEFAULT: u32 = 50;
#[derive(Debug, Default, Deserialize)]
struct PageData {
    limit: Option<u32>,
    before: Option<i64>,
    after: Option<i64>,
    unread: Option<bool>,
    archived: Option<bool>,
    category: Option<String>,
}

#[derive(Debug, Deserialize)]
struct MarkData {
    ids: Option<Vec<String>>,
    #[serde(default)]
    all: bool,
    up_to: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct PreferencesData {
    patch: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct PushData {
    subscription: Option<Value>,
    removed: Option<String>,
}

/// Takes a call of a client; its answer goes back to the shard later.
pub(crate) fn handle(notifications: &Arc<Notifications>, plane: &SharedPlane, call: ClientCall) {
    if call.kind == CallKind::Arrived {
        let arrival = Arrival { connection: call.connection, user: call.user };
        // A client whose arrival finds no room asks for itself.
        let _full = notifications.arrivals.try_send(arrival);
        return;
    }
    let (notifications, plane) = (Arc::clone(notifications), Arc::clone(plane));
    tokio::spawn(async move {
        let bytes_max = reads::bytes_at_once(plane.settings.load().limits.message_bytes_max);
        let outcome = notifications.answer(&call, bytes_max).await.map(|message| vec![message]);
        let (connection, request) = (call.connection, call.request);
        deliver(&plane, CallAnswer { connection, request, outcome }).await;
    });
}

/// Puts an answer into the mailbox of the connection's shard.
pub(super) async fn deliver(plane: &SharedPlane, answer: CallAnswer) {
    let shard = answer.connection.shard();
    plane.bridge.deliver(shard, ShardMessage::Called(Box::new(answer))).await;
}

fn read<T: DeserializeOwned>(data: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(data).map_err(|error| invalid(format!("`data`: {error}")))
}

fn invalid(problem: String) -> ClientError {
    ClientError::new(ErrorCode::InvalidMessageFormat, problem)
}

impl Notifications {
    async fn answer(
        &self,
        call: &ClientCall,
        bytes_max: usize,
    ) -> Result<ClientMessage, ClientError> {
        let mark = match call.kind {
            CallKind::Seen => Mark::Seen,
            CallKind::Read => Mark::Read,
            CallKind::Ack => Mark::Acked,
            CallKind::Archive => Mark::Archived,
            CallKind::Preferences => {
                let PreferencesData { patch } = read(&call.data)?;
                let (own, defaults) = self.preferences(&call.user, patch.as_ref()).await?;
                let data = json!({"preferences": own, "defaults": defaults});
                return Ok(ClientMessage { kind: "preferences", data: data.to_string().into() });
            }
            CallKind::PushSubscription => {
                let data = self.push_subscription(&call.user, read(&call.data)?).await?;
                return Ok(ClientMessage { kind: "push_subscription", data });
            }
            CallKind::Notifications | CallKind::Arrived => {
                let wanted = self.page_of(read(&call.data)?, bytes_max);
                let page = self.page(&call.user, &wanted).await?;
                return Ok(ClientMessage { kind: "notifications", data: page.to_json().into() });
            }
        };
        let which = self.which(read(&call.data)?)?;
        let mut data = match &which {
            Which::Ids(ids) => json!({"state": mark.as_str(), "ids": ids}),
            Which::UpTo(_) => json!({"state": mark.as_str(), "all": true}),
        };
        let up_to = match which {
            Which::UpTo(up_to) => up_to,
            Which::Ids(_) => None,
        };
        let (_, counters) = self.mark(&call.user, mark, which).await?;
        if data.get("all").is_some() {
            data["up_to"] = up_to.unwrap_or(counters.last_seq).min(counters.last_seq).into();
        }
        counters.put_into(&mut data);
        Ok(ClientMessage { kind: "notification_update", data: data.to_string().into() })
    }

    async fn push_subscription(&self, user: &str, data: PushData) -> Result<Bytes, ClientError> {
        let Some(public_key) = self.channels.public_key() else {
            let message = "this node sends no push messages to browsers (web_push.private_key)";
            return Err(ClientError::new(ErrorCode::NotFound, message));
        };
        let change = ContactChange {
            web_push: data.subscription,
            web_push_removed: data.removed,
            ..ContactChange::default()
        };
        let contacts = self.contacts(user, change).await?;
        let answer = json!({"public_key": public_key, "browsers": contacts.browsers});
        Ok(answer.to_string().into())
    }

    fn page_of(&self, data: PageData, bytes_max: usize) -> Page {
        Page {
            limit: data.limit.unwrap_or(PAGE_DEFAULT).min(self.limits.page_max),
            before: data.before,
            after: data.after,
            unread: data.unread.unwrap_or_default(),
            archived: data.archived.unwrap_or_default(),
            category: data.category,
            bytes_max,
        }
    }

    fn which(&self, data: MarkData) -> Result<Which, ClientError> {
        let Some(ids) = ids_or_all(data.ids, data.all).map_err(invalid)? else {
            return Ok(Which::UpTo(data.up_to));
        };
        check_ids(&ids, self.limits.page_max as usize).map_err(invalid)?;
        Ok(Which::Ids(ids))
    }
}
