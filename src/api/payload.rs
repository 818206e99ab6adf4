//! Checks of the parts of a publication that the gateway does not otherwise look at.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gateway_core::error::ErrorCode;
use gateway_core::proto;
use gateway_core::settings::{Limits, Settings};
use serde_json::value::RawValue;

use super::ApiError;

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
    if proto::json::depth(&bytes) > limits.json_depth_max {
        return Err(ApiError::bad_request(format!(
            "`data` is nested deeper than {}",
            limits.json_depth_max
        )));
    }
    Ok(bytes)
}

/// Checks how much a subscriber gets besides the envelope: payload, tags and key.
pub(super) fn check_size(bytes: usize, limits: &Limits) -> Result<(), ApiError> {
    let max = limits.message_bytes_max;
    if bytes > max {
        let message = format!("`data`, `tags` and `key` together are larger than {max} bytes");
        return Err(ApiError::new(ErrorCode::MessageTooLarge, message));
    }
    Ok(())
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

/// Checks a channel name against its bounds and the configured namespaces.
pub(crate) fn check_channel(channel: &str, settings: &Settings) -> Result<(), ApiError> {
    let max = settings.limits.channel_name_bytes_max;
    if !proto::is_channel_name(channel, max) {
        return Err(ApiError::bad_request(format!(
            "`channel` is empty, longer than {max} bytes, or holds white space, a control character, `*` or `?`"
        )));
    }
    if settings.namespaces.find(channel).is_none() {
        return Err(ApiError::unknown_namespace(channel));
    }
    Ok(())
}

/// Checks an envelope type that a publisher chose.
pub(crate) fn check_type(kind: &str) -> Result<(), ApiError> {
    if proto::is_publishable_kind(kind) {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "`type` must be 1 to 64 characters of a-z, 0-9, `_`, `-`, `.` and none of the protocol's own",
    ))
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

    #[test]
    fn types_of_the_protocol_are_reserved() {
        assert!(check_type("workflow_update").is_ok());
        assert!(check_type("welcome").is_err());
        assert!(check_type("").is_err());
        assert!(check_type("with space").is_err());
        assert!(check_type(&"x".repeat(65)).is_err());
    }
}
