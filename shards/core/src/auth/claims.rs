//! A token's inside: the claims of a payload whose signature holds.
//!
//! A claim of a wrong type is never taken for an absent one.

use std::sync::Arc;
use std::time::Duration;

use super::capabilities::{Capabilities, allows_publish};
use super::strict_json::{Members, compact};
use super::{AuthError, ChannelClaims, Claims, TokenRules};

/// Longest user id, token id and channel name, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Most entries of the `channels` claim.
const CHANNELS_MAX: usize = 128;
/// Longest `info`, in bytes of compact JSON.
const INFO_BYTES_MAX: usize = 4 * 1024;
/// Latest point in time that is believed: the end of the year 9999. An issuer that writes milliseconds lands beyond
/// it, and would otherwise hand out tokens that never end.
const UNIX_SECONDS_MAX: f64 = 253_402_300_799.0;

/// Claims that both kinds of token share.
struct Registered {
    token_id: Option<Box<str>>,
    issued_at: Option<Duration>,
    expires_at: Option<Duration>,
}

/// Reads the payload of a connection token.
pub(super) fn connection(
    rules: &TokenRules,
    payload: &[u8],
    now_unix: Duration,
) -> Result<Claims, AuthError> {
    let members = Members::parse(payload).map_err(|_| AuthError::Malformed)?;
    if members.get("channel").is_some() {
        // A channel token: made to be shown for one channel, it must not open a connection.
        return Err(AuthError::Channel);
    }
    let registered = registered(rules, &members, now_unix)?;
    let user = members.get(&rules.user_claim).ok_or(AuthError::Claims).and_then(user_id)?;
    Ok(Claims {
        user,
        token_id: registered.token_id,
        issued_at: registered.issued_at,
        expires_at: registered.expires_at,
        channels: members.get("channels").map_or(Ok(Box::default()), channel_names)?,
        capabilities: members
            .get("caps")
            .map_or(Ok(Capabilities::default()), Capabilities::parse)?,
        info: members.get("info").map(info).transpose()?,
    })
}

/// Reads the payload of a channel token.
pub(super) fn channel(
    rules: &TokenRules,
    payload: &[u8],
    now_unix: Duration,
) -> Result<ChannelClaims, AuthError> {
    let members = Members::parse(payload).map_err(|_| AuthError::Malformed)?;
    let registered = registered(rules, &members, now_unix)?;
    let channel = members.get("channel").ok_or(AuthError::Claims).and_then(string)?;
    if !is_channel_name(&channel) {
        return Err(AuthError::Claims);
    }
    Ok(ChannelClaims {
        channel,
        user: members.get(&rules.user_claim).map(user_id).transpose()?,
        token_id: registered.token_id,
        issued_at: registered.issued_at,
        expires_at: registered.expires_at,
        publish: members.get("caps").map_or(Ok(false), allows_publish)?,
        info: members.get("info").map(info).transpose()?,
    })
}

/// Whether a text may name a channel: 1 to 255 bytes without control characters.
pub(super) fn is_channel_name(text: &str) -> bool {
    is_name(text)
}

/// Checks issuer, audience and times. Expiry comes last: the client is told of it, and must not be told "expired" of
/// a token that would not be accepted anyway.
fn registered(
    rules: &TokenRules,
    members: &Members<'_>,
    now_unix: Duration,
) -> Result<Registered, AuthError> {
    check_issuer(rules, members)?;
    check_audience(rules, members)?;
    let not_before = members.get("nbf").map(unix_time).transpose()?;
    let issued_at = members.get("iat").map(unix_time).transpose()?;
    let expires_at = members.get("exp").map(unix_time).transpose()?;
    let token_id = members.get("jti").map(string).transpose()?;
    if token_id.as_deref().is_some_and(|id| !is_name(id)) {
        return Err(AuthError::Claims);
    }
    if expires_at.is_none() && rules.require_exp {
        return Err(AuthError::Claims);
    }
    let latest_start = not_before.max(issued_at);
    if latest_start.is_some_and(|start| start > now_unix + rules.leeway) {
        return Err(AuthError::NotYetValid);
    }
    if expires_at.is_some_and(|end| end + rules.leeway <= now_unix) {
        return Err(AuthError::Expired);
    }
    Ok(Registered { token_id, issued_at, expires_at })
}

fn check_issuer(rules: &TokenRules, members: &Members<'_>) -> Result<(), AuthError> {
    let issuer = members.get("iss").map(string).transpose()?;
    if rules.issuers.is_empty() || issuer.is_some_and(|issuer| rules.issuers.contains(&issuer)) {
        Ok(())
    } else {
        Err(AuthError::Issuer)
    }
}

fn check_audience(rules: &TokenRules, members: &Members<'_>) -> Result<(), AuthError> {
    let audiences = match members.get("aud") {
        None => Vec::new(),
        Some(json) if json.starts_with('[') => strings(json)?,
        Some(json) => vec![string(json)?],
    };
    if rules.audiences.is_empty()
        || audiences.iter().any(|audience| rules.audiences.contains(audience))
    {
        Ok(())
    } else {
        Err(AuthError::Audience)
    }
}

fn string(json: &str) -> Result<Box<str>, AuthError> {
    serde_json::from_str(json).map_err(|_| AuthError::Claims)
}

fn strings(json: &str) -> Result<Vec<Box<str>>, AuthError> {
    serde_json::from_str(json).map_err(|_| AuthError::Claims)
}

/// A NumericDate: a JSON number, whole or not, from 1970 to 9999.
pub(super) fn unix_time(json: &str) -> Result<Duration, AuthError> {
    if !json.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(AuthError::Claims);
    }
    let seconds: f64 = json.parse().map_err(|_| AuthError::Claims)?;
    if !(0.0..=UNIX_SECONDS_MAX).contains(&seconds) {
        return Err(AuthError::Claims);
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| AuthError::Claims)
}

pub(super) fn user_id(json: &str) -> Result<Arc<str>, AuthError> {
    let id = string(json)?;
    if is_name(&id) { Ok(id.into()) } else { Err(AuthError::Claims) }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

/// The `channels` claim; a channel named twice counts once.
pub(super) fn channel_names(json: &str) -> Result<Box<[Box<str>]>, AuthError> {
    let names = strings(json)?;
    if names.len() > CHANNELS_MAX || !names.iter().all(|name| is_channel_name(name)) {
        return Err(AuthError::Claims);
    }
    let mut unique: Vec<Box<str>> = Vec::with_capacity(names.len());
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    Ok(unique.into())
}

pub(super) fn info(json: &str) -> Result<Arc<[u8]>, AuthError> {
    if !json.starts_with('{') {
        return Err(AuthError::Claims);
    }
    let text = compact(json);
    if text.len() > INFO_BYTES_MAX { Err(AuthError::Claims) } else { Ok(text.into()) }
}
