//! Tokens: who a connection is and what it may do.
//!
//! Pure computation: keys and the time are arguments. The algorithm is fixed by the configured key, never by the
//! token's header. Signatures are checked by `jsonwebtoken` (aws-lc underneath, constant time); everything around
//! them is checked here, because that library's own claim checks read the clock and once took a string `exp` for
//! an absent one. Nothing of a claim is looked at before its signature holds.
//!
//! This module never fetches anything: `jku`, `x5u`, `jwk` and `x5c` headers have no effect.

mod capabilities;
mod claims;
mod grant;
mod jwk;
mod key;
mod key_set;
mod mint;
mod revocation;
mod strict_json;
mod token;
mod token_cache;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use capabilities::{Capabilities, Permission};
pub use grant::Grant;
pub use key::{KeyAlgorithm, KeyError, VerificationKey};
pub use key_set::KeySet;
pub use mint::{MintError, SigningKey, mint};
pub use revocation::{RevocationOutcome, Revocations};
pub use token_cache::TokenCache;

/// Largest leeway between clocks; a configured one above it is cut to it.
pub const LEEWAY_MAX: Duration = Duration::from_secs(60);

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

impl AuthError {
    /// Every variant in declaration order; metrics count by this index.
    pub const ALL: [Self; 16] = [
        Self::Missing,
        Self::TooLong,
        Self::Malformed,
        Self::Algorithm,
        Self::UnknownKey,
        Self::Signature,
        Self::Expired,
        Self::NotYetValid,
        Self::Issuer,
        Self::Audience,
        Self::Claims,
        Self::Revoked,
        Self::Channel,
        Self::Subject,
        Self::NoKeys,
        Self::Header,
    ];

    /// Label in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Claims => "claims",
            Self::Revoked => "revoked",
            Self::Channel => "channel",
            Self::Subject => "subject",
            Self::NoKeys => "no_keys",
            Self::Header => "header",
        }
    }
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for AuthError {}

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
    pub channels: Box<[Box<str>]>,
    /// `caps`.
    pub capabilities: Capabilities,
    /// `info`: JSON text of an object, at most 4 KiB, shown in presence.
    pub info: Option<Arc<[u8]>>,
}

/// What a verified channel token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelClaims {
    /// `channel`: the only channel the token is good for.
    pub channel: Box<str>,
    /// `sub` (or the configured user claim): the only user the token is good for; anyone when absent.
    pub user: Option<Arc<str>>,
    /// `jti`.
    pub token_id: Option<Box<str>>,
    /// `iat`, Unix time.
    pub issued_at: Option<Duration>,
    /// `exp`, Unix time: the subscription ends then.
    pub expires_at: Option<Duration>,
    /// Whether `caps` allows to publish as well.
    pub publish: bool,
    /// `info`: JSON text of an object, at most 4 KiB, shown in presence instead of the connection's.
    pub info: Option<Arc<[u8]>>,
}

/// What is asked of a token beside a good signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRules {
    /// Accepted values of `iss`; empty = not checked.
    pub issuers: Vec<Box<str>>,
    /// Accepted values of `aud`, one of which must be in the token; empty = not checked.
    pub audiences: Vec<Box<str>>,
    /// Tolerated difference between clocks, at most [`LEEWAY_MAX`].
    pub leeway: Duration,
    /// Whether a token without `exp` is refused.
    pub require_exp: bool,
    /// Longest token text, in bytes.
    pub token_bytes_max: usize,
    /// Name of the claim with the user id.
    pub user_claim: Box<str>,
}

impl Default for TokenRules {
    fn default() -> Self {
        Self {
            issuers: Vec::new(),
            audiences: Vec::new(),
            leeway: Duration::from_secs(30),
            require_exp: true,
            token_bytes_max: 8 * 1024,
            user_claim: "sub".into(),
        }
    }
}

/// Checks tokens against keys and rules. Immutable; a reload makes a new one (and empties every [`TokenCache`]).
#[derive(Debug)]
pub struct Authenticator {
    rules: TokenRules,
    keys: KeySet,
    channel_keys: Option<KeySet>,
}

impl Authenticator {
    /// Takes rules and keys; channel tokens are checked with `channel_keys` when given, else with `keys`.
    pub fn new(rules: TokenRules, keys: KeySet, channel_keys: Option<KeySet>) -> Self {
        let leeway = rules.leeway.min(LEEWAY_MAX);
        Self { rules: TokenRules { leeway, ..rules }, keys, channel_keys }
    }

    /// Checks a connection token.
    pub fn verify(&self, token: &str, now_unix: Duration) -> Result<Claims, AuthError> {
        let payload = token::open(token, self.rules.token_bytes_max, &self.keys)?;
        claims::connection(&self.rules, &payload, now_unix)
    }

    /// Checks a channel token. Whether its channel and user are the asking ones is for the caller to compare.
    pub fn verify_channel(
        &self,
        token: &str,
        now_unix: Duration,
    ) -> Result<ChannelClaims, AuthError> {
        let keys = self.channel_keys.as_ref().unwrap_or(&self.keys);
        let payload = token::open(token, self.rules.token_bytes_max, keys)?;
        claims::channel(&self.rules, &payload, now_unix)
    }

    /// The rules in force.
    pub fn rules(&self) -> &TokenRules {
        &self.rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_own_index_and_label() {
        let mut labels: Vec<_> = AuthError::ALL.iter().map(|error| error.as_str()).collect();
        for (index, error) in AuthError::ALL.into_iter().enumerate() {
            assert_eq!(error as usize, index, "{error}");
        }
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), 16);
    }

    #[test]
    fn leeway_is_bounded() {
        let rules = TokenRules { leeway: Duration::from_secs(86_400), ..TokenRules::default() };
        let authenticator = Authenticator::new(rules, KeySet::default(), None);
        assert_eq!(authenticator.rules().leeway, LEEWAY_MAX);
    }
}
