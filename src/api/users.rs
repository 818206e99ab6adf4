//! What is done to a user's connections: `subscribe`, `unsubscribe`, `disconnect`, `revoke`, `user_status`.

use gateway_core::message::{ChannelOp, ChannelOutcome};
use gateway_core::settings::Settings;

use super::everywhere::{self, Question};
use super::requests::{DisconnectRequest, RevokeRequest, SubscriptionRequest, UserStatusRequest};
use super::results::{AffectedResult, UserStatus, UserStatusResult};
use super::{ApiError, payload};
use crate::broker::orders::{self, Affected, Order, Whom};
use crate::plane::SharedPlane;

/// Subscribes connections by the server's will.
pub(super) async fn subscribe(
    plane: &SharedPlane,
    request: SubscriptionRequest,
) -> Result<AffectedResult, ApiError> {
    let settings = plane.settings.load_full();
    let SubscriptionRequest { user, session, channel } = request;
    let whom = whom(user, session, &settings)?;
    payload::check_channel(&channel, &settings)?;
    affect(plane, &Order::Subscribe { whom, channel }).await
}

/// Unsubscribes connections.
pub(super) async fn unsubscribe(
    plane: &SharedPlane,
    request: SubscriptionRequest,
) -> Result<AffectedResult, ApiError> {
    let settings = plane.settings.load_full();
    let SubscriptionRequest { user, session, channel } = request;
    let whom = whom(user, session, &settings)?;
    payload::check_channel(&channel, &settings)?;
    affect(plane, &Order::Unsubscribe { whom, channel }).await
}

/// Ends connections.
pub(super) async fn disconnect(
    plane: &SharedPlane,
    request: DisconnectRequest,
) -> Result<AffectedResult, ApiError> {
    let settings = plane.settings.load_full();
    let DisconnectRequest { user, session, reconnect } = request;
    let whom = whom(user, session, &settings)?;
    affect(plane, &Order::Disconnect { whom, reconnect }).await
}

/// Refuses tokens from now on and ends the connections that hold one.
pub(super) async fn revoke(
    plane: &SharedPlane,
    request: RevokeRequest,
) -> Result<AffectedResult, ApiError> {
    let settings = plane.settings.load_full();
    let revocation = revocation(plane, request, &settings)?;
    let result = affect(plane, &revocation).await;
    tracing::info!(category = "security", event = "tokens_revoked", complete = result.is_ok());
    result
}

/// Online state of users on all nodes.
pub(super) async fn user_status(
    plane: &SharedPlane,
    request: UserStatusRequest,
) -> Result<UserStatusResult, ApiError> {
    let max = plane.api.load().batch_max;
    if request.users.is_empty() || request.users.len() > max {
        return Err(ApiError::bad_request(format!("`users` must hold 1 to {max} user ids")));
    }
    let settings = plane.settings.load_full();
    for user in &request.users {
        payload::check_text("users", user, &settings.limits)?;
    }
    let question = Question::UserStatus { users: request.users.clone() };
    let (own, (others, partial)) = tokio::join!(
        own_statuses(plane, request.users),
        everywhere::ask_others::<Vec<UserStatus>>(plane, &question)
    );
    let mut statuses = own?;
    for other in others {
        for (status, other) in statuses.iter_mut().zip(other) {
            status.join(&other);
        }
    }
    add_last_seen(plane, &mut statuses).await;
    Ok(UserStatusResult { statuses, partial })
}

/// Those that no node remembers any more may be in the store. Without it the answer is what the nodes know.
async fn add_last_seen(plane: &SharedPlane, statuses: &mut [UserStatus]) {
    let Some(events) = plane.events.as_ref().filter(|events| events.keeps_sessions()) else {
        return;
    };
    let unknown = |status: &UserStatus| !status.online && status.last_seen.is_none();
    let users: Vec<String> = statuses
        .iter()
        .filter(|status| unknown(status))
        .map(|status| status.user.clone())
        .collect();
    if users.is_empty() {
        return;
    }
    // On the heap: it is large, seldom needed, and would be a part of every call of the server API.
    let Ok(seen) = Box::pin(events.last_seen(&users)).await else { return };
    let unknown = statuses.iter_mut().filter(|status| unknown(status));
    for (status, seen) in unknown.zip(seen) {
        status.last_seen = seen.map(|at| (at / 1000).unsigned_abs());
    }
}

/// Online state of users on this node.
pub(super) async fn own_statuses(
    plane: &SharedPlane,
    users: Vec<String>,
) -> Result<Vec<UserStatus>, ApiError> {
    let mut pending = Vec::with_capacity(users.len());
    for user in users {
        let answer = plane.bridge.begin(&format!("user:{user}"), ChannelOp::UserStatus)?;
        pending.push((user, answer));
    }
    let mut statuses = Vec::with_capacity(pending.len());
    for (user, answer) in pending {
        let ChannelOutcome::UserStatus { connections, last_seen } = answer.wait().await? else {
            return Err(ApiError::unexpected_answer());
        };
        let last_seen = last_seen.map(|at| at.as_secs());
        statuses.push(UserStatus { user, online: connections > 0, connections, last_seen });
    }
    Ok(statuses)
}

impl UserStatus {
    fn join(&mut self, other: &Self) {
        self.connections += other.connections;
        self.online |= other.online;
        let last_seen = self.last_seen.max(other.last_seen);
        self.last_seen = last_seen.filter(|_| !self.online);
    }
}

/// Asks every shard of every node and adds up; an incomplete answer is an error, because the caller must know that a
/// connection may have been missed.
async fn affect(plane: &SharedPlane, order: &Order) -> Result<AffectedResult, ApiError> {
    let Affected { count, partial } = match &plane.broker {
        Some(broker) => broker.give(&plane.bridge, order).await,
        None => orders::carry_out(&plane.bridge, order).await,
    };
    if partial { Err(ApiError::partial()) } else { Ok(AffectedResult { affected: count }) }
}

fn whom(
    user: Option<String>,
    session: Option<String>,
    settings: &Settings,
) -> Result<Whom, ApiError> {
    match (user, session) {
        (_, Some(session)) => {
            payload::check_text("session", &session, &settings.limits)?;
            Ok(Whom::Session(session))
        }
        (Some(user), None) => {
            payload::check_text("user", &user, &settings.limits)?;
            Ok(Whom::User(user))
        }
        (None, None) => Err(ApiError::bad_request("missing field `user` (or `session`)")),
    }
}

fn revocation(
    plane: &SharedPlane,
    request: RevokeRequest,
    settings: &Settings,
) -> Result<Order, ApiError> {
    let now = plane.bridge.shards().now().unix.as_secs();
    match (request.user, request.token_id, request.issued_before, request.expires_at) {
        (Some(user), None, before, None) => {
            payload::check_text("user", &user, &settings.limits)?;
            Ok(Order::RevokeUser { user, issued_before: before.unwrap_or(now) })
        }
        (None, Some(token_id), None, Some(expires_at)) => {
            payload::check_text("token_id", &token_id, &settings.limits)?;
            Ok(Order::RevokeToken { token_id, expires_at })
        }
        (None, None, Some(issued_before), None) => Ok(Order::RevokeBefore { issued_before }),
        (None, Some(_), _, None) => Err(ApiError::bad_request(
            "`expires_at` is needed with `token_id`: until then the entry is kept",
        )),
        _ => Err(ApiError::bad_request(
            "give `user` (with or without `issued_before`), or `token_id` with `expires_at`, or `issued_before` alone",
        )),
    }
}
