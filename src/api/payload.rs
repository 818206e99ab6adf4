//! Checks of the parts of a publication that the gateway does not otherwise look at.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gateway_core::error::ErrorCode;
use gateway_core::settings::{Limits, Settings};
use serde_json::value::RawValue;

use super::ApiError;

/// Longest envelope type.
const TYPE_BYTES_MAX: usize = 64;

/// Types whose meaning is part of the protocol; a publication must not look like one of them.
const RESERVED_TYPES: &[&str] = &[
    "auth",
    "refresh",
    "refreshed",
    "welcome",
    "ping",
    "pong",
    "subscribe",
    "subscribed",
    "unsubscribe",
    "unsubscribed",
    "publish",
    "published",
    "presence",
    "presence_stats",
    "history",
    "join",
    "leave",
    "disconnect",
    "lost",
    "large_data_received",
];

/// JSON text of the payload, from `data` or `b64data`; exactly one of them must be given.
pub(super) fn json(
    data: Option<Box<RawValue>>,
    b64data: Option<&str>,
    limits: &Limits,
) -> Result<Bytes, ApiError> {
    let bytes = match (data, b64data) {
        (Some(data), None) => Bytes::from(Box::<str>::from(data).into_string().into_bytes()),
        (None, Some(encoded)) => decoded_json(encoded)?,
        (None, None) => return Err(ApiError::bad_request("missing field `data`")),
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request("give either `data` or `b64data`, not both"));
        }
    };
    if bytes.len() > limits.message_bytes_max {
        let message =
            format!("`data` is larger than {} bytes; see `large_data`", limits.message_bytes_max);
        return Err(ApiError::new(ErrorCode::MessageTooLarge, message));
    }
    if is_deeper_than(&bytes, limits.json_depth_max) {
        return Err(ApiError::bad_request(format!(
            "`data` is nested deeper than {}",
            limits.json_depth_max
        )));
    }
    Ok(bytes)
}

fn decoded_json(encoded: &str) -> Result<Bytes, ApiError> {
    let decoded =
        STANDARD.decode(encoded).map_err(|_| ApiError::bad_request("`b64data` is not base64"))?;
    if serde_json::from_slice::<&RawValue>(&decoded).is_err() {
        return Err(ApiError::bad_request(
            "`b64data` does not hold JSON; the protocol carries JSON payloads only",
        ));
    }
    Ok(Bytes::from(decoded))
}

/// Whether valid JSON text has objects and arrays inside each other deeper than `max`.
pub(super) fn is_deeper_than(json: &[u8], max: u32) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0u32, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Checks a channel name against its bounds and the configured namespaces.
pub(super) fn check_channel(channel: &str, settings: &Settings) -> Result<(), ApiError> {
    let max = settings.limits.channel_name_bytes_max;
    if channel.is_empty() {
        return Err(ApiError::bad_request("`channel` is empty"));
    }
    if channel.len() > max {
        return Err(ApiError::bad_request(format!("`channel` is longer than {max} bytes")));
    }
    if channel.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(ApiError::bad_request("`channel` holds white space or a control character"));
    }
    if settings.namespaces.find(channel).is_none() {
        return Err(ApiError::unknown_namespace(channel));
    }
    Ok(())
}

/// Checks an envelope type that a publisher chose.
pub(super) fn check_type(kind: &str) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if kind.is_empty() || kind.len() > TYPE_BYTES_MAX || !kind.chars().all(plain) {
        let message =
            format!("`type` must be 1 to {TYPE_BYTES_MAX} letters, digits, `_`, `-` or `.`");
        return Err(ApiError::bad_request(message));
    }
    if RESERVED_TYPES.contains(&kind) {
        return Err(ApiError::bad_request(format!("type `{kind}` belongs to the protocol")));
    }
    Ok(())
}

/// Checks a short text that is kept in memory (keys, ids).
pub(super) fn check_text(field: &str, text: &str, limits: &Limits) -> Result<(), ApiError> {
    let max = limits.channel_name_bytes_max;
    if text.is_empty() || text.len() > max {
        return Err(ApiError::bad_request(format!("`{field}` must be 1 to {max} bytes long")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, depth: u32) {
        assert!(!is_deeper_than(json.as_bytes(), depth), "{json} is not deeper than {depth}");
        if depth > 0 {
            assert!(
                is_deeper_than(json.as_bytes(), depth - 1),
                "{json} is deeper than {}",
                depth - 1
            );
        }
    }

    #[test]
    fn depth_counts_only_what_is_open() {
        check("1", 0);
        check("{}", 1);
        check(r#"{"a":[{"b":1}],"c":{}}"#, 3);
        check(r#"["[[[[", "\"[[["]"#, 1);
        check("[[],[],[]]", 2);
    }

    #[test]
    fn types_of_the_protocol_are_reserved() {
        assert!(check_type("workflow_update").is_ok());
        assert!(check_type("welcome").is_err());
        assert!(check_type("").is_err());
        assert!(check_type("with space").is_err());
        assert!(check_type(&"x".repeat(65)).is_err());
    }
}
