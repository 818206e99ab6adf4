//! The server API: `POST /api/<method>` for backend services.
//!
//! Every method takes one strictly typed JSON object and answers `{"result":{..}}` or `{"error":{code,message}}`. A
//! payload (`data`) is checked for validity, depth and size and then passed on as it came. The API key is compared in
//! constant time and appears in no log; callers are told apart in logs by the key's configured name.

mod audit;
mod batch;
mod call;
mod connections;
mod error;
mod events;
pub(crate) mod everywhere;
mod key;
mod large_data;
mod notification_requests;
mod notification_results;
mod notifications;
mod openapi;
pub(crate) mod payload;
mod publish;
mod reads;
mod requests;
mod results;
mod users;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use gateway_core::error::ErrorCode;

use crate::http::ClientAddress;
use crate::plane::SharedPlane;
pub(crate) use error::ApiError;
use error::{ErrorBody, ErrorEnvelope, TransportStatus};
pub(crate) use key::ApiKey;

/// Header that carries the API key.
pub(crate) const KEY_HEADER: &str = "x-api-key";
/// Header that asks for HTTP status codes.
pub(crate) const ERROR_MODE_HEADER: &str = "x-error-mode";
/// The same header as clients of a well-known server send it.
const ERROR_MODE_HEADER_COMPATIBLE: &str = "x-centrifugo-error-mode";

/// Keys and bounds of the API; replaced whole by a reload.
#[derive(Debug)]
pub(crate) struct ApiPolicy {
    /// Keys that are accepted; with none every call is refused.
    pub keys: Vec<ApiKey>,
    /// Body of a request, in bytes.
    pub body_bytes_max: usize,
    /// From the complete head to the answer.
    pub timeout: Duration,
    /// Commands in a batch, channels in a broadcast, users in a status request.
    pub batch_max: usize,
    /// Calls handled at one time; more wait, within `timeout`.
    pub workers: Arc<tokio::sync::Semaphore>,
}

/// All methods, behind the API key, and the document that describes them.
pub(crate) fn router(plane: &SharedPlane) -> Router<SharedPlane> {
    call::methods()
        .merge(events::methods())
        .route_layer(from_fn_with_state(Arc::clone(plane), bound))
        .route_layer(from_fn_with_state(Arc::clone(plane), audit::record))
        .route_layer(from_fn_with_state(Arc::clone(plane), authorize))
        .route("/api/openapi.json", get(openapi::serve))
}

/// Refuses calls without a valid key, and applies the error mode that the caller asked for.
async fn authorize(
    State(plane): State<SharedPlane>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let policy = plane.api.load();
    let Some(name) = key::find(&policy.keys, request.headers()) else {
        plane.metrics.api_unauthorized.inc();
        let address = request.extensions().get::<ClientAddress>().map(|address| address.0);
        if let Some(left_out) = plane.refused_keys.pass(Instant::now()) {
            tracing::warn!(
                category = "security",
                event = "api_key_refused",
                path = request.uri().path(),
                ?address,
                left_out,
            );
        }
        return unauthorized();
    };
    request.extensions_mut().insert(name);
    let transport = [ERROR_MODE_HEADER, ERROR_MODE_HEADER_COMPATIBLE].iter().any(|header| {
        request
            .headers()
            .get(*header)
            .is_some_and(|mode| mode.as_bytes().eq_ignore_ascii_case(b"transport"))
    });
    let mut response = next.run(request).await;
    if transport && let Some(TransportStatus(status)) = response.extensions().get() {
        *response.status_mut() = *status;
    }
    response
}

/// Bounds how many calls run at one time and how long each may take.
async fn bound(State(plane): State<SharedPlane>, request: Request, next: Next) -> Response<Body> {
    let policy = plane.api.load_full();
    let work = async {
        // The semaphore is never closed; were it, the call would simply run.
        let _worker = policy.workers.acquire().await;
        next.run(request).await
    };
    tokio::time::timeout(policy.timeout, work).await.unwrap_or_else(|_| {
        let message = "the call took longer than `api.timeout`";
        ApiError::new(ErrorCode::ConnectionTimeout, message).into_response()
    })
}

fn unauthorized() -> Response<Body> {
    let message =
        "a valid API key is needed: send it as `X-API-Key`, or as `Authorization: apikey <key>`";
    let error = ErrorBody { code: 101, message: message.to_owned(), temporary: false };
    let mut response =
        (StatusCode::UNAUTHORIZED, axum::Json(ErrorEnvelope { error })).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("apikey"));
    response
}

#[cfg(test)]
mod tests;
