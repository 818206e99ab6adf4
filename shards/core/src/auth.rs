//! Tokens: who a connection is and what it may do.
//!
//! Pure computation: keys and the time are arguments. The algorithm is fixed by the configured key, never by the
//! token's header.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// Why a token was refused. The wire answer is the same for all but `Expired`; logs and metrics tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthError {
    /// No token where one is needed.
    Missing,
    /// Longer than the limit.
    TooLong,
    /// Not three base64url parts of JSON objects.
    Malformed,
    /// The header names an algorithm that no configured key has.
    Algorithm,
    /// No key with the header's `kid`.
    UnknownKey,
    /// The signature does not match.
    Signature,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is in the future.
    NotYetValid,
    /// `iss` is missing or another.
    Issuer,
    /// `aud` is missing or another.
    Audience,
    /// A claim has the wrong type or a required claim is missing.
    Claims,
    /// Revoked by user, id or issue time.
    Revoked,
    /// A channel token for another channel.
    Channel,
    /// A channel token, or a refreshed token, of another user.
    Subject,
    /// No key is configured at all.
    NoKeys,
    /// `crit`, `zip`, `enc` or another header that this gateway does not process.
    Header,
}

/// What a verified connection token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `sub`: the user id. Never empty.
    pub user: Arc<str>,
    /// `jti`.
    pub token_id: Option<Box<str>>,
    /// `iat`, Unix time.
    pub issued_at: Option<Duration>,
    /// `exp`, Unix time.
    pub expires_at: Option<Duration>,
    /// `channels`: server-side subscriptions.
    pub channels: Vec<Box<str>>,
    /// `caps`.
    pub capabilities: Capabilities,
    /// `info`: JSON text of an object, at most 4 KiB, shown in presence.
    pub info: Option<Bytes>,
}

/// Placeholder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities;

/// Placeholder.
#[derive(Debug)]
pub struct Authenticator;
