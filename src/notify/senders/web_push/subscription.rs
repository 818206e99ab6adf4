//! A browser's push subscription, checked when it is read.
//!
//! Whoever knows the endpoint can send to the browser, so neither it nor the keys are ever shown.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::agreement::{ECDH_P256, ParsedPublicKey};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::notify::senders::outbound::check_scheme;

/// Longest subscription in bytes of JSON.
const JSON_BYTES_MAX: usize = 8 * 1024;
/// Longest endpoint.
const ENDPOINT_BYTES_MAX: usize = 2048;
const POINT_BYTES: usize = 65;
const AUTH_BYTES: usize = 16;
/// First byte of a point that is not compressed.
const UNCOMPRESSED: u8 = 4;

/// base64url; browsers leave the padding out, libraries do not always.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A subscription that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubscriptionError {
    /// Another form than that of `PushSubscription.toJSON()`.
    #[error("not a push subscription; pass on what PushSubscription.toJSON() gives")]
    Form,
    /// Larger than any browser makes it.
    #[error("the push subscription is longer than 8 KiB")]
    TooLong,
    /// No URL, or none that may be called.
    #[error("the endpoint of a push subscription must be an https URL of at most 2048 bytes")]
    Endpoint,
    /// Not a point of the curve.
    #[error(
        "keys.p256dh of a push subscription must be a P-256 public key of 65 bytes in base64url"
    )]
    PublicKey,
    /// Another length.
    #[error("keys.auth of a push subscription must be 16 bytes in base64url")]
    Auth,
}

#[derive(Deserialize, Serialize)]
struct Keys {
    p256dh: String,
    auth: String,
}

/// What a browser gives; fields that a later browser adds are ignored.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    endpoint: String,
    /// Unix milliseconds; browsers give null or a number, which may have a fraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiration_time: Option<f64>,
    keys: Keys,
}

/// See the module's documentation.
#[derive(Clone, PartialEq)]
pub(crate) struct PushSubscription {
    endpoint: Url,
    public_key: [u8; POINT_BYTES],
    auth: [u8; AUTH_BYTES],
    expiration_time: Option<f64>,
}

impl PushSubscription {
    /// Reads and checks what a browser gave. `allow_insecure` lets `http` endpoints pass, for tests.
    ///
    /// # Errors
    /// The first thing that is wrong. The text repeats nothing of the subscription.
    pub(crate) fn parse(json: &str, allow_insecure: bool) -> Result<Self, SubscriptionError> {
        if json.len() > JSON_BYTES_MAX {
            return Err(SubscriptionError::TooLong);
        }
        let json: Json = serde_json::from_str(json).map_err(|_| SubscriptionError::Form)?;
        if json.endpoint.len() > ENDPOINT_BYTES_MAX {
            return Err(SubscriptionError::Endpoint);
        }
        let endpoint = Url::parse(&json.endpoint)
            .ok()
            .filter(|url| check_scheme(url, allow_insecure).is_ok())
            .ok_or(SubscriptionError::Endpoint)?;
        let public_key = decode::<POINT_BYTES>(&json.keys.p256dh)
            .filter(is_point)
            .ok_or(SubscriptionError::PublicKey)?;
        let auth = decode(&json.keys.auth).ok_or(SubscriptionError::Auth)?;
        Ok(Self { endpoint, public_key, auth, expiration_time: json.expiration_time })
    }

    /// The form that [`Self::parse`] reads, for keeping it.
    pub(crate) fn to_json(&self) -> String {
        let json = Json {
            endpoint: self.endpoint.as_str().to_owned(),
            expiration_time: self.expiration_time,
            keys: Keys {
                p256dh: BASE64URL.encode(self.public_key).trim_end_matches('=').to_owned(),
                auth: BASE64URL.encode(self.auth).trim_end_matches('=').to_owned(),
            },
        };
        serde_json::to_string(&json).expect("strings and a finite number have a JSON form")
    }

    /// Where the browser's push service takes messages for it.
    pub(crate) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Whether the browser itself set an end that has passed.
    pub(crate) fn is_expired(&self, now_unix: Duration) -> bool {
        self.expiration_time.is_some_and(|end| end <= now_unix.as_millis() as f64)
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    pub(super) fn auth(&self) -> &[u8] {
        &self.auth
    }
}

/// Shows the push service only.
impl fmt::Debug for PushSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.endpoint.origin().ascii_serialization();
        f.debug_struct("PushSubscription").field("origin", &origin).finish_non_exhaustive()
    }
}

fn decode<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    BASE64URL.decode(text).ok()?.try_into().ok()
}

fn is_point(bytes: &[u8; POINT_BYTES]) -> bool {
    let key = aws_lc_rs::agreement::UnparsedPublicKey::new(&ECDH_P256, bytes);
    bytes[0] == UNCOMPRESSED && ParsedPublicKey::try_from(&key).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const KEY: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

    fn good() -> Value {
        json!({
            "endpoint": "https://push.example/send/secret-path",
            "expirationTime": null,
            "keys": {"p256dh": KEY, "auth": AUTH},
        })
    }

    fn with(pointer: &str, value: Value) -> Result<PushSubscription, SubscriptionError> {
        let mut json = good();
        *json.pointer_mut(pointer).unwrap() = value;
        PushSubscription::parse(&json.to_string(), false)
    }

    #[test]
    fn what_browsers_give_is_read_and_written_back() {
        for end in [Value::Null, json!(1_764_000_000_000u64), json!(1_764_000_000_000.5)] {
            let subscription = with("/expirationTime", end).unwrap();
            let again = PushSubscription::parse(&subscription.to_json(), false).unwrap();
            assert_eq!(again.to_json(), subscription.to_json());
            assert!(again == subscription);
        }
        let padded = with("/keys/auth", json!(format!("{AUTH}==")));
        assert!(padded.is_ok());
        let without =
            json!({"endpoint": "https://a.example/", "keys": {"p256dh": KEY, "auth": AUTH}});
        assert!(PushSubscription::parse(&without.to_string(), false).is_ok());
    }

    #[test]
    fn each_part_is_checked() {
        for endpoint in [
            "",
            "push",
            "http://push.example/",
            "ftp://push.example/",
            "https://u:p@push.example/",
            &format!("https://push.example/{}", "x".repeat(2048)),
        ] {
            assert_eq!(with("/endpoint", json!(endpoint)), Err(SubscriptionError::Endpoint));
        }
        let off_curve = format!("{}A", &KEY[..KEY.len() - 2]) + "A";
        for key in ["", "AAAA", "?", &KEY[1..], off_curve.as_str(), &"A".repeat(87)] {
            assert_eq!(
                with("/keys/p256dh", json!(key)),
                Err(SubscriptionError::PublicKey),
                "{key}"
            );
        }
        for auth in ["", "AAAA", "?", KEY] {
            assert_eq!(with("/keys/auth", json!(auth)), Err(SubscriptionError::Auth));
        }
        assert_eq!(with("/keys", json!({})), Err(SubscriptionError::Form));
        assert_eq!(PushSubscription::parse("[", false), Err(SubscriptionError::Form));
        let long = " ".repeat(JSON_BYTES_MAX + 1);
        assert_eq!(PushSubscription::parse(&long, false), Err(SubscriptionError::TooLong));
    }

    #[test]
    fn plain_http_is_for_tests() {
        let mut json = good();
        json["endpoint"] = json!("http://127.0.0.1:1/x");
        assert!(PushSubscription::parse(&json.to_string(), true).is_ok());
    }

    #[test]
    fn it_ends_when_the_browser_said_so() {
        let subscription = with("/expirationTime", json!(2_000)).unwrap();
        assert!(!subscription.is_expired(Duration::from_millis(1_999)));
        assert!(subscription.is_expired(Duration::from_secs(2)));
        assert!(!with("/expirationTime", Value::Null).unwrap().is_expired(Duration::MAX));
    }

    #[test]
    fn the_debug_form_names_the_service_only() {
        let shown = format!("{:?}", with("/expirationTime", Value::Null).unwrap());
        assert!(shown.contains("https://push.example"), "{shown}");
        assert!(!shown.contains("secret-path") && !shown.contains(&AUTH[..8]), "{shown}");
    }
}
