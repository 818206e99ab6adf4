//! The log of events, sessions of users, and the state of webhooks: what an operator reads with GET.

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::Response;
use axum::routing::{get, post};
use gateway_core::error::{ClientError, ErrorCode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{OpenApi, ToSchema};

use super::ApiError;
use super::call::{Call, answer};
use super::error::ErrorEnvelope;
use super::notification_requests::RetryRequest;
use super::results::Reply;
use crate::config::sections::EventKind;
use crate::events::{DeadBatch, EndpointState, Event, Events, Filter, Session};
use crate::plane::SharedPlane;
use crate::store::StoreError;

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        ClientError::from(error).into()
    }
}

/// Which events to read.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    /// Only of this type.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Only of this user.
    user: Option<String>,
    /// Only of this session.
    session: Option<String>,
    /// Only in this channel.
    channel: Option<String>,
    /// Not before this, in Unix milliseconds.
    from: Option<u64>,
    /// Before this, in Unix milliseconds.
    to: Option<u64>,
    /// Only ids below this one; `next` of the page before.
    before: Option<u64>,
    /// Only ids above this one, the oldest first: to follow the log.
    after: Option<u64>,
    /// At most so many; `events.page_max` when absent or larger.
    limit: Option<u32>,
}

/// A page.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    /// `next` of the page before.
    before: Option<u64>,
    /// At most so many; `events.page_max` when absent or larger.
    limit: Option<u32>,
}

/// Events of the log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventsResult {
    /// The newest first; with `after` the oldest first.
    events: Vec<Event>,
    /// Give it as `before` (or, with `after`, as `after`) for the next page; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

/// Sessions of a user.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SessionsResult {
    /// The newest first.
    sessions: Vec<SessionEntry>,
    /// When the user was last seen, in Unix milliseconds; absent while a session is open, and for users without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<i64>,
    /// Give it as `before` for the next page; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

/// A session of a user.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SessionEntry {
    /// Public session id.
    session: String,
    /// `node.name` of its node.
    node: String,
    /// Address of the client.
    address: String,
    /// `User-Agent` of the handshake.
    user_agent: Option<String>,
    /// Unix milliseconds.
    connected_at: i64,
    /// Unix milliseconds; null while it is open.
    disconnected_at: Option<i64>,
    /// Why it has ended; `node_lost` when its node died.
    reason: Option<String>,
}

/// All webhooks.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhooksResult {
    /// By name.
    webhooks: Vec<WebhookEntry>,
}

/// Where a webhook stands.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookEntry {
    /// Its name in the configuration.
    name: String,
    /// Last id of the log that it is done with.
    last_id: i64,
    /// Newest id of the log.
    newest_id: i64,
    /// Failed attempts of the batch that comes next.
    attempts: i64,
    /// When that is tried again, in Unix milliseconds.
    due_at: Option<i64>,
    /// Why an attempt has failed last; null when the endpoint has taken everything since.
    last_error: Option<String>,
    /// Batches that were given up.
    dead: i64,
    /// What this node's breaker lets through: `closed`, `half_open` or `open`.
    #[schema(example = "closed")]
    breaker: &'static str,
}

/// Batches that a webhook has not taken.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadBatchesResult {
    /// The newest first.
    batches: Vec<DeadBatchEntry>,
    /// Give it as `before` for the next page; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

/// A batch that was given up.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadBatchEntry {
    /// Its number.
    id: i64,
    /// Id of its first event.
    first_id: i64,
    /// Id of its last event.
    last_id: i64,
    /// Events in it.
    events: i64,
    /// Why the last attempt has failed.
    error: String,
    /// Attempts that were made.
    attempts: i64,
    /// When it was given up, in Unix milliseconds.
    died_at: i64,
    /// Whether it is about to be tried again.
    retry: bool,
}

/// Dead letters that are tried again.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookRetriedResult {
    /// How many.
    retried: u64,
}

/// Paths and schemas, for the document of the server API.
#[derive(Debug, OpenApi)]
#[openapi(paths(list_events, list_sessions, list_webhooks, list_dead_batches, retry_webhook))]
pub(super) struct Paths;

/// All of them.
pub(super) fn methods() -> Router<SharedPlane> {
    Router::new()
        .route("/api/v1/events", get(list_events))
        .route("/api/v1/users/{id}/sessions", get(list_sessions))
        .route("/api/v1/webhooks", get(list_webhooks))
        .route("/api/v1/webhooks/{name}/dead", get(list_dead_batches))
        .route("/api/v1/webhooks/{name}/dead/retry", post(retry_webhook))
}

fn events(plane: &SharedPlane) -> Result<&Arc<Events>, ApiError> {
    plane.events.as_ref().ok_or_else(|| {
        let message =
            "nothing is recorded on this node (events.record, events.sessions, [[webhooks]])";
        ApiError::new(ErrorCode::NotFound, message)
    })
}

fn endpoint<'a>(plane: &'a SharedPlane, name: &str) -> Result<&'a Arc<Events>, ApiError> {
    let events = events(plane)?;
    if events.endpoint(name).is_none() {
        return Err(ApiError::new(ErrorCode::NotFound, "no such webhook is configured"));
    }
    Ok(events)
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    query.map(|Query(query)| query).map_err(|error| ApiError::bad_request(error.body_text()))
}

fn path(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    path.map(|Path(path)| path).map_err(|error| ApiError::bad_request(error.body_text()))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Events of the log, in pages.
#[utoipa::path(
    get, path = "/api/v1/events", params(EventsQuery),
    responses(
        (status = 200, description = "The result, or `{\"error\":{..}}`", body = Reply<EventsResult>),
        (status = 401, description = "No valid API key", body = ErrorEnvelope),
    ),
    security(("api_key" = [])),
)]
async fn list_events(
    State(plane): State<SharedPlane>,
    given: Result<Query<EventsQuery>, QueryRejection>,
) -> Response<Body> {
    answer(find_events(&plane, given).await)
}

async fn find_events(
    plane: &SharedPlane,
    given: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<EventsResult, ApiError> {
    let given = query(given)?;
    let events = events(plane)?;
    let kind = given.kind.as_deref().map(|name| {
        EventKind::parse(name).ok_or_else(|| {
            let names = EventKind::NAMES.join(", ");
            ApiError::bad_request(format!("`type` is one of {names}"))
        })
    });
    let limit = given.limit.unwrap_or(u32::MAX).clamp(1, events.page_max());
    let filter = Filter {
        kind: kind.transpose()?,
        user: given.user,
        session: given.session,
        channel: given.channel,
        from: given.from.map(number),
        to: given.to.map(number),
        before: given.before.map(number),
        after: given.after.map(number),
        limit,
    };
    let found = events.find(&filter).await?;
    let next = found.last().filter(|_| found.len() == limit as usize).map(|event| event.id);
    Ok(EventsResult { events: found, next })
}

/// Sessions of a user, in pages. Needs `events.sessions`.
#[utoipa::path(
    get, path = "/api/v1/users/{id}/sessions", params(("id" = String, Path, description = "User id"), PageQuery),
    responses(
        (status = 200, description = "The result, or `{\"error\":{..}}`", body = Reply<SessionsResult>),
        (status = 401, description = "No valid API key", body = ErrorEnvelope),
    ),
    security(("api_key" = [])),
)]
async fn list_sessions(
    State(plane): State<SharedPlane>,
    user: Result<Path<String>, PathRejection>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> Response<Body> {
    answer(find_sessions(&plane, user, page).await)
}

async fn find_sessions(
    plane: &SharedPlane,
    user: Result<Path<String>, PathRejection>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> Result<SessionsResult, ApiError> {
    let (user, page) = (path(user)?, query(page)?);
    let events = events(plane)?;
    if !events.keeps_sessions() {
        let message = "sessions are not kept (events.sessions)";
        return Err(ApiError::new(ErrorCode::NotFound, message));
    }
    let limit = page.limit.unwrap_or(u32::MAX).clamp(1, events.page_max());
    let before = page.before.map_or(i64::MAX, number);
    let (found, seen) = events.sessions(&user, before, limit).await?;
    let next = found.last().filter(|_| found.len() >= limit as usize).map(|last| last.connected_at);
    let sessions = found.into_iter().map(|session| {
        let Session { id, node, address, user_agent, connected_at, disconnected_at, reason } =
            session;
        SessionEntry {
            session: id,
            node,
            address,
            user_agent,
            connected_at,
            disconnected_at,
            reason,
        }
    });
    Ok(SessionsResult { sessions: sessions.collect(), last_seen: seen, next })
}

/// Webhooks and where they stand.
#[utoipa::path(
    get, path = "/api/v1/webhooks",
    responses(
        (status = 200, description = "The result, or `{\"error\":{..}}`", body = Reply<WebhooksResult>),
        (status = 401, description = "No valid API key", body = ErrorEnvelope),
    ),
    security(("api_key" = [])),
)]
async fn list_webhooks(State(plane): State<SharedPlane>) -> Response<Body> {
    answer(find_webhooks(&plane).await)
}

async fn find_webhooks(plane: &SharedPlane) -> Result<WebhooksResult, ApiError> {
    let events = events(plane)?;
    let entry = |state: EndpointState| {
        let EndpointState { name, last_id, newest_id, attempts, due_at, last_error, dead } = state;
        let breaker = events.endpoint(&name).map_or("closed", |e| e.breaker_state().as_str());
        WebhookEntry { name, last_id, newest_id, attempts, due_at, last_error, dead, breaker }
    };
    let webhooks = events.endpoint_states().await?.into_iter().map(entry).collect();
    Ok(WebhooksResult { webhooks })
}

/// Batches that a webhook has not taken, in pages.
#[utoipa::path(
    get, path = "/api/v1/webhooks/{name}/dead",
    params(("name" = String, Path, description = "Name of the webhook"), PageQuery),
    responses(
        (status = 200, description = "The result, or `{\"error\":{..}}`", body = Reply<DeadBatchesResult>),
        (status = 401, description = "No valid API key", body = ErrorEnvelope),
    ),
    security(("api_key" = [])),
)]
async fn list_dead_batches(
    State(plane): State<SharedPlane>,
    name: Result<Path<String>, PathRejection>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> Response<Body> {
    answer(find_dead_batches(&plane, name, page).await)
}

async fn find_dead_batches(
    plane: &SharedPlane,
    name: Result<Path<String>, PathRejection>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> Result<DeadBatchesResult, ApiError> {
    let (name, page) = (path(name)?, query(page)?);
    let events = endpoint(plane, &name)?;
    let limit = page.limit.unwrap_or(u32::MAX).clamp(1, events.page_max());
    let found = events.dead_batches(&name, page.before.map_or(i64::MAX, number), limit).await?;
    let next = found.last().filter(|_| found.len() == limit as usize).map(|last| last.id);
    let batches = found.into_iter().map(|batch| {
        let DeadBatch { id, first_id, last_id, events, error, attempts, died_at, retry } = batch;
        DeadBatchEntry { id, first_id, last_id, events, error, attempts, died_at, retry }
    });
    Ok(DeadBatchesResult { batches: batches.collect(), next })
}

/// Tries given-up batches of a webhook once more, beside those that come next.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{name}/dead/retry",
    params(("name" = String, Path, description = "Name of the webhook")), request_body = RetryRequest,
    responses(
        (status = 200, description = "The result, or `{\"error\":{..}}`", body = Reply<WebhookRetriedResult>),
        (status = 401, description = "No valid API key", body = ErrorEnvelope),
    ),
    security(("api_key" = [])),
)]
async fn retry_webhook(
    State(plane): State<SharedPlane>,
    name: Result<Path<String>, PathRejection>,
    Call(request): Call<RetryRequest>,
) -> Response<Body> {
    answer(retry(&plane, name, request).await)
}

async fn retry(
    plane: &SharedPlane,
    name: Result<Path<String>, PathRejection>,
    request: RetryRequest,
) -> Result<WebhookRetriedResult, ApiError> {
    let name = path(name)?;
    let ids: Option<Vec<i64>> = match (request.ids, request.all) {
        (Some(ids), false) => Some(ids.into_iter().map(number).collect()),
        (None, true) => None,
        _ => return Err(ApiError::bad_request("give either `ids` or `\"all\":true`")),
    };
    let retried = endpoint(plane, &name)?.retry_dead(&name, ids.as_deref()).await?;
    Ok(WebhookRetriedResult { retried })
}
