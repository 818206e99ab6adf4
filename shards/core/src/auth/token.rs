//! A token's outside: three parts, header, key selection, signature.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;

use super::strict_json::Members;
use super::{AuthError, KeyAlgorithm, KeySet};

/// Header parameters that change how the rest of the token must be read. This gateway implements none of them, so
/// a token with one is refused even where the standard would let them be ignored.
const REFUSED_PARAMETERS: [&str; 9] =
    ["crit", "zip", "enc", "b64", "iv", "tag", "p2s", "p2c", "epk"];
/// Longest `kid`, in bytes.
pub(super) const KEY_ID_BYTES_MAX: usize = 256;

struct Parts<'a> {
    /// Header and payload with the dot between them: what the signature covers.
    signed: &'a str,
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
}

struct Header {
    algorithm: KeyAlgorithm,
    key_id: Option<Box<str>>,
}

/// Checks the signature of `token` and answers its decoded payload.
pub(super) fn open(token: &str, bytes_max: usize, keys: &KeySet) -> Result<Vec<u8>, AuthError> {
    if token.is_empty() {
        return Err(AuthError::Missing);
    }
    if token.len() > bytes_max {
        return Err(AuthError::TooLong);
    }
    if keys.is_empty() {
        return Err(AuthError::NoKeys);
    }
    let parts = split(token)?;
    let header = read_header(&decode(parts.header)?)?;
    if parts.signature.is_empty() {
        return Err(AuthError::Signature);
    }
    let mut outcome = Err(AuthError::Signature);
    for key in keys.select(header.algorithm, header.key_id.as_deref())? {
        outcome = key.verify(parts.signed.as_bytes(), parts.signature);
        if outcome.is_ok() {
            break;
        }
    }
    outcome?;
    decode(parts.payload)
}

/// Reads the verification result; a signature that is no base64url is malformed, everything else is a bad signature.
pub(super) fn signature_outcome(
    result: jsonwebtoken::errors::Result<bool>,
) -> Result<(), AuthError> {
    match result {
        Ok(true) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::Base64(_)) => Err(AuthError::Malformed),
        Ok(false) | Err(_) => Err(AuthError::Signature),
    }
}

fn split(token: &str) -> Result<Parts<'_>, AuthError> {
    if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(AuthError::Malformed);
    }
    let mut dots = token.match_indices('.').map(|(at, _)| at);
    let (Some(first), Some(second), None) = (dots.next(), dots.next(), dots.next()) else {
        return Err(AuthError::Malformed);
    };
    let parts = Parts {
        signed: &token[..second],
        header: &token[..first],
        payload: &token[first + 1..second],
        signature: &token[second + 1..],
    };
    if parts.header.is_empty() || parts.payload.is_empty() {
        return Err(AuthError::Malformed);
    }
    Ok(parts)
}

/// base64url without padding, in its only canonical form.
fn decode(part: &str) -> Result<Vec<u8>, AuthError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| AuthError::Malformed)
}

fn read_header(bytes: &[u8]) -> Result<Header, AuthError> {
    let members = Members::parse(bytes).map_err(|_| AuthError::Malformed)?;
    if REFUSED_PARAMETERS.iter().any(|name| members.get(name).is_some()) {
        return Err(AuthError::Header);
    }
    let text = |json: &str| serde_json::from_str::<Box<str>>(json).ok();
    let algorithm = members
        .get("alg")
        .and_then(text)
        .and_then(|name| KeyAlgorithm::parse(&name))
        .ok_or(AuthError::Algorithm)?;
    let key_id = match members.get("kid") {
        None => None,
        Some(json) => Some(text(json).ok_or(AuthError::Malformed)?),
    };
    if key_id.as_ref().is_some_and(|id| id.len() > KEY_ID_BYTES_MAX) {
        return Err(AuthError::UnknownKey);
    }
    Ok(Header { algorithm, key_id })
}
