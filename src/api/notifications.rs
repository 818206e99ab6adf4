//! Notifications: sending them, inboxes, preferences.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::message::{ShardOp, ShardOutcome};
use serde_json::value::RawValue;

use super::ApiError;
use super::everywhere::{self, Question};
use super::notification_requests::{
    AnalyticsRequest, ContactsRequest, DeadLettersRequest, InboxRequest, MarkName, MarkRequest,
    NotificationsRequest, PreferencesRequest, PreviewRequest, RetryRequest, StatusRequest,
    TemplateStoreRequest, TemplatesRequest,
};
use super::notification_results::{
    AnalyticsResult, ContactsResult, CountersResult, DeadLettersResult, DeliveryEntry, DeliverySum,
    InboxResult, InboxSum, MarkedResult, NotificationReply, NotificationResult,
    NotificationsResult, PreferencesResult, PreviewResult, RetriedResult, StatusResult,
    TemplateEntry, TemplateVersionResult, TemplatesResult,
};
use crate::notify::{
    Accepted, Analytics, ContactChange, Contacts, Counters, DeadLetter, Draft, Mark,
    NotificationRequest, Notifications, NotifyError, Page, Prepared, Status, StoredTemplate, Which,
    check_ids, check_user, ids_or_all, kinds::Priority, now_ms,
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
    let (prepared, partial) = prepare(plane, request).await?;
    write(plane, prepared, partial).await
}

/// Sends several; one that is wrong leaves the others alone. They are written in their order, and wait for the store together.
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
    let prepared = join_all(requests.into_iter().map(|request| prepare(plane, request))).await;
    let written = prepared.into_iter().map(async |prepared| {
        let (prepared, partial) = prepared?;
        write(plane, prepared, partial).await
    });
    let responses = join_all(written).await.into_iter().map(|outcome| match outcome {
        Ok(result) => NotificationReply::Result(result),
        Err(error) => NotificationReply::Error(error.body()),
    });
    Ok(NotificationsResult { responses: responses.collect() })
}

async fn prepare(
    plane: &SharedPlane,
    request: NotificationRequest,
) -> Result<(Prepared, bool), ApiError> {
    let notifications = notifications(plane)?;
    let draft = request.check(notifications.limits(), now_ms()).map_err(ApiError::bad_request)?;
    let (draft, partial) =
        if draft.online { with_online(plane, draft).await? } else { (draft, false) };
    Ok((notifications.prepare(&draft).await?, partial))
}

async fn write(
    plane: &SharedPlane,
    prepared: Prepared,
    partial: bool,
) -> Result<NotificationResult, ApiError> {
    let accepted = notifications(plane)?.send(prepared).await?;
    let Accepted { id, duplicate, delivered, held, queued, opted_out, no_address } = accepted;
    Ok(NotificationResult {
        notification_id: id,
        duplicate,
        delivered,
        held,
        queued,
        opted_out,
        no_address,
        partial,
    })
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
            users.extend(found.iter().map(ToString::to_string));
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
        bytes_max: usize::MAX,
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
    let which = match ids_or_all(request.ids, request.all).map_err(ApiError::bad_request)? {
        Some(ids) => {
            let max = notifications.limits().page_max as usize;
            check_ids(&ids, max).map_err(ApiError::bad_request)?;
            Which::Ids(ids)
        }
        None => Which::UpTo(request.up_to.map(place)),
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

/// Reads or changes a user's addresses.
pub(super) async fn contacts(
    plane: &SharedPlane,
    request: ContactsRequest,
) -> Result<ContactsResult, ApiError> {
    let notifications = notifications(plane)?;
    check_user(&request.user).map_err(ApiError::bad_request)?;
    let change = ContactChange {
        email: request.email,
        phone: request.phone,
        web_push: request.web_push,
        web_push_removed: request.web_push_removed,
    };
    let Contacts { email, phone, browsers } = notifications.contacts(&request.user, change).await?;
    Ok(ContactsResult { email, phone, browsers })
}

/// Stores a template.
pub(super) async fn store_template(
    plane: &SharedPlane,
    request: TemplateStoreRequest,
) -> Result<TemplateVersionResult, ApiError> {
    let version = notifications(plane)?.store_template(&request.document).await?;
    Ok(TemplateVersionResult { version })
}

/// Lists templates.
pub(super) async fn templates(
    plane: &SharedPlane,
    request: TemplatesRequest,
) -> Result<TemplatesResult, ApiError> {
    let stored = notifications(plane)?.list_templates(request.name.as_deref()).await?;
    let templates = stored.into_iter().map(|template| {
        let StoredTemplate { name, version, digest, document, created_at } = template;
        let document = RawValue::from_string(document)
            .map_err(|_| ApiError::new(ErrorCode::SystemError, "a stored template is no JSON"))?;
        Ok(TemplateEntry { name, version, digest, created_at, document })
    });
    Ok(TemplatesResult { templates: templates.collect::<Result<_, ApiError>>()? })
}

/// Shows what a template makes.
pub(super) async fn preview(
    plane: &SharedPlane,
    request: PreviewRequest,
) -> Result<PreviewResult, ApiError> {
    let source = match (&request.document, &request.name) {
        (Some(document), None) => Ok(document),
        (None, Some(name)) => Err((name.as_str(), request.version.map(place))),
        _ => return Err(ApiError::bad_request("give either `document` or `name`")),
    };
    let notifications = notifications(plane)?;
    let locale = request.locale.as_deref();
    let channels = notifications.preview(source, locale, &request.variables).await?;
    Ok(PreviewResult { channels })
}

/// What became of a notification.
pub(super) async fn status(
    plane: &SharedPlane,
    request: StatusRequest,
) -> Result<StatusResult, ApiError> {
    let notifications = notifications(plane)?;
    check_ids(std::slice::from_ref(&request.notification_id), 1).map_err(ApiError::bad_request)?;
    let found = notifications.status(&request.notification_id).await?;
    let Some(Status { inbox, sums, deliveries }) = found else {
        return Err(ApiError::new(ErrorCode::NotFound, "no such notification, or not any more"));
    };
    let [items, seen, read, acked, archived] = inbox;
    let sums = sums.into_iter().map(|(channel, status, count)| DeliverySum {
        channel,
        category: None,
        priority: None,
        status,
        count,
    });
    Ok(StatusResult {
        inbox: InboxSum {
            category: None,
            priority: None,
            items,
            seen,
            read,
            acked: Some(acked),
            archived,
        },
        deliveries: sums.collect(),
        listed: deliveries.into_iter().map(entry).collect(),
    })
}

fn entry(delivery: DeadLetter) -> DeliveryEntry {
    let DeadLetter { id, notification_id, user, channel, status, attempts, error, updated_at } =
        delivery;
    DeliveryEntry { id, notification_id, user, channel, status, attempts, error, updated_at }
}

/// Deliveries that were given up.
pub(super) async fn dead_letters(
    plane: &SharedPlane,
    request: DeadLettersRequest,
) -> Result<DeadLettersResult, ApiError> {
    let notifications = notifications(plane)?;
    let max = notifications.limits().page_max;
    let limit = request.limit.unwrap_or(max).min(max);
    let found = notifications.dead_letters(request.before.map(place), limit).await?;
    let next = found.last().filter(|_| found.len() == limit as usize).map(|last| last.id);
    Ok(DeadLettersResult { deliveries: found.into_iter().map(entry).collect(), next })
}

/// Tries given-up deliveries again.
pub(super) async fn retry(
    plane: &SharedPlane,
    request: RetryRequest,
) -> Result<RetriedResult, ApiError> {
    let ids = ids_or_all(request.ids, request.all).map_err(ApiError::bad_request)?;
    let ids: Option<Vec<i64>> = ids.map(|ids| ids.into_iter().map(place).collect());
    let retried = notifications(plane)?.retry_dead(ids.as_deref()).await?;
    Ok(RetriedResult { retried })
}

fn priority_name(number: i64) -> Option<&'static str> {
    Priority::from_number(number).map(Priority::as_str)
}

/// Sums over a time.
pub(super) async fn analytics(
    plane: &SharedPlane,
    request: AnalyticsRequest,
) -> Result<AnalyticsResult, ApiError> {
    let to = request.to.map_or(i64::MAX, place);
    let found = notifications(plane)?.analytics(place(request.from), to).await?;
    let Analytics { inbox, deliveries } = found;
    let inbox =
        inbox.into_iter().map(|(category, priority, [items, seen, read, archived])| InboxSum {
            category: Some(category),
            priority: priority_name(priority),
            items,
            seen,
            read,
            acked: None,
            archived,
        });
    let deliveries =
        deliveries.into_iter().map(|(channel, category, priority, status, count)| DeliverySum {
            channel,
            category: Some(category),
            priority: priority_name(priority),
            status,
            count,
        });
    Ok(AnalyticsResult { inbox: inbox.collect(), deliveries: deliveries.collect() })
}
