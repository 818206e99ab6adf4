//! What goes wrong for a client, by who must act.
//!
//! [`ClientError`] is answered in a reply and the connection goes on; [`Disconnect`] ends the connection, and the
//! range of its close code tells the client whether to come back.

use std::time::Duration;

/// Error code of a reply, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Not valid JSON, not the envelope, a wrong type, or a missing field.
    InvalidMessageFormat,
    /// Frame, message, payload or chunk above its limit.
    MessageTooLarge,
    /// Token missing, malformed, badly signed or not meant for this gateway.
    AuthenticationFailed,
    /// The token's `exp` has passed.
    TokenExpired,
    /// Neither the namespace nor the token allows it.
    PermissionDenied,
    /// Unknown namespace, type, channel option switched off, or unknown object.
    NotFound,
    /// A count limit (subscriptions, requests in flight, transfers) is reached.
    LimitExceeded,
    /// Too many messages in a time; carries `retry_after`.
    RateLimitExceeded,
    /// The connection holds this subscription already.
    AlreadySubscribed,
    /// The asked position is not in the history any more, or belongs to another epoch.
    UnrecoverablePosition,
    /// A part of the gateway is overloaded or away; try again.
    Unavailable,
    /// No answer in time.
    ConnectionTimeout,
    /// A fault of the gateway.
    SystemError,
    /// The application refused, or answered with an error of its own.
    ApplicationError,
}

impl ErrorCode {
    /// Every variant, for documentation and metrics.
    pub const ALL: [Self; 14] = [
        Self::InvalidMessageFormat,
        Self::MessageTooLarge,
        Self::AuthenticationFailed,
        Self::TokenExpired,
        Self::PermissionDenied,
        Self::NotFound,
        Self::LimitExceeded,
        Self::RateLimitExceeded,
        Self::AlreadySubscribed,
        Self::UnrecoverablePosition,
        Self::Unavailable,
        Self::ConnectionTimeout,
        Self::SystemError,
        Self::ApplicationError,
    ];

    /// Name in `error_code` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidMessageFormat => "INVALID_MESSAGE_FORMAT",
            Self::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Self::AuthenticationFailed => "AUTHENTICATION_FAILED",
            Self::TokenExpired => "TOKEN_EXPIRED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::RateLimitExceeded => "RATE_LIMIT_EXCEEDED",
            Self::AlreadySubscribed => "ALREADY_SUBSCRIBED",
            Self::UnrecoverablePosition => "UNRECOVERABLE_POSITION",
            Self::Unavailable => "UNAVAILABLE",
            Self::ConnectionTimeout => "CONNECTION_TIMEOUT",
            Self::SystemError => "SYSTEM_ERROR",
            Self::ApplicationError => "APPLICATION_ERROR",
        }
    }

    /// Number in the HTTP API's `{"error":{"code":..}}`.
    pub fn api_code(self) -> u16 {
        match self {
            Self::SystemError => 100,
            Self::AuthenticationFailed => 101,
            Self::NotFound => 102,
            Self::PermissionDenied | Self::ApplicationError => 103,
            Self::AlreadySubscribed => 105,
            Self::LimitExceeded => 106,
            Self::InvalidMessageFormat | Self::MessageTooLarge => 107,
            Self::Unavailable | Self::ConnectionTimeout => 108,
            Self::TokenExpired => 109,
            Self::RateLimitExceeded => 111,
            Self::UnrecoverablePosition => 112,
        }
    }

    /// Whether the same request may succeed later without any change.
    pub fn is_temporary(self) -> bool {
        matches!(
            self,
            Self::RateLimitExceeded
                | Self::Unavailable
                | Self::ConnectionTimeout
                | Self::SystemError
        )
    }
}

/// An error that is answered in a reply; the connection goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    /// What kind of error.
    pub code: ErrorCode,
    /// What is wrong and what would mend it; never holds a token or payload.
    pub message: String,
    /// When the same request may be tried again.
    pub retry_after: Option<Duration>,
    /// The application's own code, with [`ErrorCode::ApplicationError`].
    pub application_code: Option<u32>,
}

impl ClientError {
    /// An error without a retry time.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None, application_code: None }
    }

    /// The application says no, with a code and a text of its own.
    pub fn of_application(code: u32, message: impl Into<String>) -> Self {
        let application_code = Some(code);
        Self { application_code, ..Self::new(ErrorCode::ApplicationError, message) }
    }

    /// A part of this node is overloaded; the client may try again.
    pub fn overloaded() -> Self {
        Self::new(ErrorCode::Unavailable, "a queue of this node is full; try again")
    }
}

/// Why the gateway ends a connection. The close code and whether the client should reconnect follow from it.
///
/// Codes 4000-4499 ask the client to reconnect, 4500-4999 tell it not to; standard RFC 6455 codes stand for
/// violations of the WebSocket protocol itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disconnect {
    /// The client closed first; its own code is echoed.
    ByClient,
    /// The socket ended without a close frame. Never sent; logs and metrics only.
    ConnectionLost,
    /// RFC 6455 violation.
    ProtocolError,
    /// A text message or close reason that is no UTF-8.
    InvalidUtf8,
    /// Frame or message above its limit.
    MessageTooLarge,
    /// Binary frame on a text protocol.
    UnsupportedData,
    /// A fault of the gateway (a caught panic).
    Internal,
    /// The node drains.
    Shutdown,
    /// The client reads too slowly.
    Slow,
    /// The token ran out and was not refreshed.
    Expired,
    /// Nothing came for the idle timeout.
    Idle,
    /// A ping was not answered in time.
    NoPong,
    /// An operator or the API asked the client to reconnect.
    ForceReconnect,
    /// No token within the authentication deadline.
    AuthTimeout,
    /// Too many rate-limit violations.
    RateLimited,
    /// Positions cannot be kept in step (an internal queue overflowed for a connect).
    Unavailable,
    /// The token is not acceptable.
    InvalidToken,
    /// The token, user or issue time is revoked.
    Revoked,
    /// Too many connections of this user or address.
    ConnectionLimit,
    /// Too many malformed messages.
    BadMessages,
    /// An operator or the API ended the connection for good.
    ForceNoReconnect,
    /// The application refused the connection.
    Refused,
}

impl Disconnect {
    /// Every variant, for metrics and documentation.
    pub const ALL: [Self; 22] = [
        Self::ByClient,
        Self::ConnectionLost,
        Self::ProtocolError,
        Self::InvalidUtf8,
        Self::MessageTooLarge,
        Self::UnsupportedData,
        Self::Internal,
        Self::Shutdown,
        Self::Slow,
        Self::Expired,
        Self::Idle,
        Self::NoPong,
        Self::ForceReconnect,
        Self::AuthTimeout,
        Self::RateLimited,
        Self::Unavailable,
        Self::InvalidToken,
        Self::Revoked,
        Self::ConnectionLimit,
        Self::BadMessages,
        Self::ForceNoReconnect,
        Self::Refused,
    ];

    /// Close code, reason as a stable snake_case word.
    fn row(self) -> (u16, &'static str) {
        match self {
            Self::ByClient => (1000, "closed_by_client"),
            Self::ConnectionLost => (1006, "connection_lost"),
            Self::ProtocolError => (1002, "protocol_error"),
            Self::UnsupportedData => (1003, "unsupported_data"),
            Self::InvalidUtf8 => (1007, "invalid_utf8"),
            Self::MessageTooLarge => (1009, "message_too_large"),
            Self::Internal => (4000, "internal_error"),
            Self::Shutdown => (4001, "shutdown"),
            Self::Slow => (4002, "slow_consumer"),
            Self::Expired => (4003, "token_expired"),
            Self::Idle => (4004, "idle_timeout"),
            Self::NoPong => (4005, "no_pong"),
            Self::ForceReconnect => (4006, "force_reconnect"),
            Self::AuthTimeout => (4007, "authentication_timeout"),
            Self::RateLimited => (4008, "rate_limited"),
            Self::Unavailable => (4009, "unavailable"),
            Self::InvalidToken => (4500, "invalid_token"),
            Self::Revoked => (4501, "revoked"),
            Self::ConnectionLimit => (4502, "connection_limit"),
            Self::BadMessages => (4503, "too_many_bad_messages"),
            Self::ForceNoReconnect => (4504, "force_no_reconnect"),
            Self::Refused => (4505, "refused"),
        }
    }

    /// Code of the close frame.
    pub fn close_code(self) -> u16 {
        self.row().0
    }

    /// Reason of the close frame, of logs and of metric labels.
    pub fn reason(self) -> &'static str {
        self.row().1
    }

    /// Whether a client should connect again by itself.
    pub fn should_reconnect(self) -> bool {
        (4000..4500).contains(&self.close_code())
    }
}
