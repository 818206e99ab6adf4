//! Notifications: sending them, inboxes, preferences.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::message::{ShardOp, ShardOutcome};
use serde_json::value::RawValue;

use super::ApiError;
use super::everywhere::{self, Question};
use super::requests::{
    InboxRequest, MarkName, MarkRequest, NotificationsRequest, PreferencesRequest,
};
use super::results::{
    CountersResult, InboxResult, MarkedResult, NotificationReply, NotificationResult,
    NotificationsResult, PreferencesResult,
};
use crate::notify::{
    Accepted, Counters, Draft, Mark, NotificationRequest, Notifications, NotifyError, Page, Which,
    check_ids, check_user, now_ms,
};
use crate::plane::SharedPlane;

impl From<NotifyError> for ApiError {
    fn from(error: NotifyError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<Counters> for CountersResult {
    fn from(counters: Counters) -> Self {
        Self { unread: counters.unread, unseen: counters.unseen, revision: counters.revision }
    }
}

impl From<MarkName> for Mark {
    fn from(name: MarkName) -> Self {
        match name {
            MarkName::Seen => Self::Seen,
            MarkName::Read => Self::Read,
            MarkName::Acked => Self::Acked,
            MarkName::Archived => Self::Archived,
        }
    }
}

fn notifications(plane: &SharedPlane) -> Result<&Arc<Notifications>, ApiError> {
    plane.notifications.as_ref().ok_or_else(|| {
        let message = "notifications are switched off on this node (notifications.enabled)";
        ApiError::new(ErrorCode::NotFound, message)
    })
}

/// Sends one notification.
pub(super) async fn send(
    plane: &SharedPlane,
    request: NotificationRequest,
) -> Result<NotificationResult, ApiError> {
    let notifications = notifications(plane)?;
    let draft = request.check(notifications.limits(), now_ms()).map_err(ApiError::bad_request)?;
    let (draft, partial) =
        if draft.online { with_online(plane, draft).await? } else { (draft, false) };
    let accepted = notifications.send(draft).await?;
    let Accepted { id, duplicate, delivered, held, opted_out } = accepted;
    Ok(NotificationResult { notification_id: id, duplicate, delivered, held, opted_out, partial })
}

/// Sends several; one that is wrong leaves the others alone. They wait for the store together.
pub(super) async fn send_many(
    plane: &SharedPlane,
    request: NotificationsRequest,
) -> Result<NotificationsResult, ApiError> {
    let max = plane.api.load().batch_max;
    let requests = request.notifications;
    if requests.is_empty() || requests.len() > max {
        let message = format!("`notifications` must hold 1 to {max} notifications");
        return Err(ApiError::bad_request(message));
    }
    let responses = join_all(requests.into_iter().map(|request| send(plane, request))).await;
    let responses = responses.into_iter().map(|outcome| match outcome {
        Ok(result) => NotificationReply::Result(result),
        Err(error) => NotificationReply::Error(error.body()),
    });
    Ok(NotificationsResult { responses: responses.collect() })
}

/// Puts everybody who is online into the list.
async fn with_online(plane: &SharedPlane, mut draft: Draft) -> Result<(Draft, bool), ApiError> {
    let (own, (others, missing)) = tokio::join!(
        own_users(plane),
        everywhere::ask_others::<BTreeSet<String>>(plane, &Question::Users)
    );
    let (mut users, partial) = own?;
    users.extend(others.into_iter().flatten());
    let max = plane.notifications.as_ref().map_or(0, |n| n.limits().recipients_max as usize);
    if users.len() > max {
        return Err(ApiError::new(
            ErrorCode::LimitExceeded,
            format!("{} users are online, more than notifications.recipients_max", users.len()),
        ));
    }
    // A user id that has no channel cannot get a notification.
    draft.users = users.into_iter().filter(|user| check_user(user).is_ok()).collect();
    Ok((draft, partial || missing || everywhere::is_stale(plane)))
}

/// Signed-in users with a connection to this node, and whether a shard did not say.
pub(super) async fn own_users(plane: &SharedPlane) -> Result<(BTreeSet<String>, bool), ApiError> {
    let gathered = plane.bridge.ask_all(|| ShardOp::Users).await?;
    let mut users = BTreeSet::new();
    for (_, outcome) in gathered.answers {
        if let ShardOutcome::Users(found) = outcome {
            users.extend(found.iter().map(|user| user.to_string()));
        }
    }
    Ok((users, gathered.partial))
}

/// A page of an inbox.
pub(super) async fn list(
    plane: &SharedPlane,
    request: InboxRequest,
) -> Result<InboxResult, ApiError> {
    let notifications = notifications(plane)?;
    check_user(&request.user).map_err(ApiError::bad_request)?;
    let max = notifications.limits().page_max;
    let page = Page {
        limit: request.limit.unwrap_or(max).min(max),
        before: request.before.map(place),
        after: request.after.map(place),
        unread: request.unread,
        archived: request.archived,
        category: request.category,
    };
    let page = notifications.page(&request.user, &page).await?;
    let items = page.items.into_iter().map(RawValue::from_string).collect::<Result<_, _>>();
    let items =
        items.map_err(|_| ApiError::new(ErrorCode::SystemError, "a stored item is no JSON"))?;
    Ok(InboxResult { items, next: page.next, counters: page.counters.into() })
}

fn place(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// Marks items.
pub(super) async fn mark(
    plane: &SharedPlane,
    request: MarkRequest,
) -> Result<MarkedResult, ApiError> {
    let notifications = notifications(plane)?;
    check_user(&request.user).map_err(ApiError::bad_request)?;
    let which = match (request.ids, request.all) {
        (Some(ids), false) => {
            let max = notifications.limits().page_max as usize;
            check_ids(&ids, max).map_err(ApiError::bad_request)?;
            Which::Ids(ids)
        }
        (None, true) => Which::UpTo(request.up_to.map(place)),
        _ => return Err(ApiError::bad_request("give either `ids` or `\"all\":true`")),
    };
    let (changed, counters) =
        notifications.mark(&request.user, request.state.into(), which).await?;
    Ok(MarkedResult { changed, counters: counters.into() })
}

/// Reads preferences, after changing them when a patch is given.
pub(super) async fn preferences(
    plane: &SharedPlane,
    request: PreferencesRequest,
) -> Result<PreferencesResult, ApiError> {
    let notifications = notifications(plane)?;
    check_user(&request.user).map_err(ApiError::bad_request)?;
    let (own, defaults) = notifications.preferences(&request.user, request.patch.as_ref()).await?;
    Ok(PreferencesResult { preferences: own, defaults })
}
