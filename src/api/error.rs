//! Errors of the server API and their two forms on the wire.
//!
//! By default an error is status 200 with `{"error":{"code":..,"message":..}}`, as clients of this API family expect;
//! with the header `X-Error-Mode: transport` the same body comes with an HTTP status that says the kind.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use gateway_core::error::{ClientError, ErrorCode};
use serde::Serialize;
use utoipa::ToSchema;

/// An error that is answered to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    kind: ErrorCode,
    message: String,
    retry_after: Option<Duration>,
}

/// An error as on the wire.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// Number of the error.
    pub code: u16,
    /// What is wrong and what would mend it.
    pub message: String,
    /// Whether the same request may succeed later.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub temporary: bool,
}

/// `{"error": ..}`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorEnvelope {
    /// The error.
    pub error: ErrorBody,
}

impl ApiError {
    /// An error of a kind.
    pub(crate) fn new(kind: ErrorCode, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// The request itself is wrong.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidMessageFormat, message)
    }

    /// The channel's namespace is not configured.
    pub(crate) fn unknown_namespace(channel: &str) -> Self {
        let name = channel.split_once(':').map_or(channel, |(name, _)| name);
        Self::new(ErrorCode::NotFound, format!("unknown namespace `{name}`"))
    }

    /// Not every shard answered, so the result would be wrong.
    pub(crate) fn partial() -> Self {
        Self::new(ErrorCode::Unavailable, "not every shard answered in time; try again")
    }

    /// A shard answered something else than was asked: a fault of the gateway.
    pub(crate) fn unexpected_answer() -> Self {
        Self::new(ErrorCode::SystemError, "a shard gave an unexpected answer")
    }

    /// Form inside of `{"error": ..}`.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody {
            code: self.kind.api_code(),
            message: self.message.clone(),
            temporary: self.kind.is_temporary(),
        }
    }

    /// HTTP status in transport mode.
    pub(crate) fn status(&self) -> StatusCode {
        match self.kind {
            ErrorCode::InvalidMessageFormat => StatusCode::BAD_REQUEST,
            ErrorCode::AuthenticationFailed | ErrorCode::TokenExpired => StatusCode::UNAUTHORIZED,
            ErrorCode::PermissionDenied | ErrorCode::ApplicationError => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::AlreadySubscribed => StatusCode::CONFLICT,
            ErrorCode::MessageTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::UnrecoverablePosition => StatusCode::RANGE_NOT_SATISFIABLE,
            ErrorCode::LimitExceeded | ErrorCode::RateLimitExceeded => {
                StatusCode::TOO_MANY_REQUESTS
            }
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::ConnectionTimeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::SystemError => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        Self { kind: error.code, message: error.message, retry_after: error.retry_after }
    }
}

/// Status that the response gets in transport mode; carried as a response extension.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransportStatus(pub StatusCode);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = axum::Json(ErrorEnvelope { error: self.body() }).into_response();
        response.extensions_mut().insert(TransportStatus(self.status()));
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
