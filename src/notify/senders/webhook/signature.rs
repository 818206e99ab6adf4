//! Signatures of webhook requests: HMAC-SHA256 over id, time and body, and how a receiver checks them.

#[cfg(test)]
use std::time::Duration;

#[cfg(test)]
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
#[cfg(test)]
use reqwest::header::HeaderMap;

use crate::config::Secret;

/// Header with the id of the delivery.
pub(crate) const ID: &str = "webhook-id";
/// Header with the time of the attempt in Unix seconds.
pub(crate) const TIMESTAMP: &str = "webhook-timestamp";
/// Header with the signatures, separated by spaces.
pub(crate) const SIGNATURE: &str = "webhook-signature";

const SECRET_PREFIX: &str = "whsec_";
/// Symmetric signatures; there are other versions, which a receiver skips.
const VERSION_PREFIX: &str = "v1,";

/// A key that requests are signed with.
#[derive(Clone, Debug)]
pub(crate) struct SigningSecret(Secret<hmac::Key>);

impl SigningSecret {
    /// `whsec_` and the base64 form of 24 to 64 bytes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let key = STANDARD.decode(text.strip_prefix(SECRET_PREFIX)?).ok()?;
        (24..=64)
            .contains(&key.len())
            .then(|| Self(Secret::new(hmac::Key::new(hmac::HMAC_SHA256, &key))))
    }

    /// One signature as it stands in the header.
    pub(crate) fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let tag = self.tag(id, &seconds.to_string(), body);
        format!("{VERSION_PREFIX}{}", STANDARD.encode(tag))
    }

    fn tag(&self, id: &str, seconds: &str, body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(self.0.expose());
        for part in [id.as_bytes(), b".", seconds.as_bytes(), b".", body] {
            context.update(part);
        }
        context.sign()
    }
}

/// A request that is not to be trusted.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VerifyError {
    /// A header is absent, there twice, or malformed.
    #[error("the header {0} is missing or malformed; refuse the request")]
    Header(&'static str),
    /// Too long ago, or in the future: a copy of an earlier request, or a clock that is wrong.
    #[error("the request is not from now; refuse it, and check the clocks when it is genuine")]
    Time,
    /// Signed with another secret, or changed on the way.
    #[error("no signature fits; refuse the request, and compare the secrets of both sides")]
    Signature,
}

/// What a receiver does with a request before it looks at the body: one of the signatures must be made with one of the
/// secrets, and the time must be within `tolerance` of `now_unix`.
///
/// # Errors
/// The request is not to be trusted.
#[cfg(test)]
pub(crate) fn verify(
    secrets: &[SigningSecret],
    headers: &HeaderMap,
    body: &[u8],
    now_unix: Duration,
    tolerance: Duration,
) -> Result<(), VerifyError> {
    let id = single(headers, ID)?;
    let seconds = single(headers, TIMESTAMP)?;
    let signatures = single(headers, SIGNATURE)?;
    if id.contains('.') {
        return Err(VerifyError::Header(ID));
    }
    let sent =
        seconds.parse().map(Duration::from_secs).map_err(|_| VerifyError::Header(TIMESTAMP))?;
    if now_unix.abs_diff(sent) > tolerance {
        return Err(VerifyError::Time);
    }
    let given: Vec<Vec<u8>> = signatures
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix(VERSION_PREFIX)?).ok())
        .collect();
    let fits = secrets.iter().any(|secret| {
        let tag = secret.tag(id, seconds, body);
        given.iter().any(|given| verify_slices_are_equal(tag.as_ref(), given).is_ok())
    });
    if fits { Ok(()) } else { Err(VerifyError::Signature) }
}

#[cfg(test)]
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, VerifyError> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(VerifyError::Header(name));
    };
    value.to_str().map_err(|_| VerifyError::Header(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    const NOW: u64 = 1_764_000_000;
    const TOLERANCE: Duration = Duration::from_mins(5);
    const BODY: &[u8] = br#"{"type":"notification.webhook"}"#;

    fn secret(byte: u8) -> SigningSecret {
        SigningSecret::parse(&format!("whsec_{}", STANDARD.encode([byte; 32]))).unwrap()
    }

    fn signed(secrets: &[SigningSecret]) -> HeaderMap {
        let signatures: Vec<String> =
            secrets.iter().map(|secret| secret.sign("d1", NOW, BODY)).collect();
        let mut headers = HeaderMap::new();
        headers.insert(ID, HeaderValue::from_static("d1"));
        headers.insert(TIMESTAMP, HeaderValue::from(NOW));
        headers.insert(SIGNATURE, HeaderValue::from_str(&signatures.join(" ")).unwrap());
        headers
    }

    fn check(secrets: &[SigningSecret], headers: &HeaderMap, now: u64) -> Result<(), VerifyError> {
        verify(secrets, headers, BODY, Duration::from_secs(now), TOLERANCE)
    }

    #[test]
    fn the_example_of_the_specification_fits() {
        let secret = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(
            secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn any_pair_of_old_and_new_secrets_fits() {
        let headers = signed(&[secret(1), secret(2)]);
        for receiver in [&[secret(1)][..], &[secret(2)], &[secret(3), secret(2)]] {
            assert_eq!(check(receiver, &headers, NOW), Ok(()));
        }
        assert_eq!(check(&[secret(3)], &headers, NOW), Err(VerifyError::Signature));
        assert_eq!(check(&[], &headers, NOW), Err(VerifyError::Signature));
    }

    #[test]
    fn a_copy_is_refused_outside_the_window() {
        let headers = signed(&[secret(1)]);
        for near in [NOW - 300, NOW + 300] {
            assert_eq!(check(&[secret(1)], &headers, near), Ok(()));
        }
        for far in [NOW - 301, NOW + 301] {
            assert_eq!(check(&[secret(1)], &headers, far), Err(VerifyError::Time));
        }
    }

    #[test]
    fn whatever_is_changed_no_longer_fits() {
        let good = signed(&[secret(1)]);
        let body = verify(&[secret(1)], &good, b"{}", Duration::from_secs(NOW), TOLERANCE);
        assert_eq!(body, Err(VerifyError::Signature));
        let mut headers = good.clone();
        headers.insert(ID, HeaderValue::from_static("d2"));
        assert_eq!(check(&[secret(1)], &headers, NOW), Err(VerifyError::Signature));
        let mut headers = good.clone();
        headers.insert(TIMESTAMP, HeaderValue::from(NOW + 1));
        assert_eq!(check(&[secret(1)], &headers, NOW), Err(VerifyError::Signature));
        for signature in ["v1,", "v1,AAAA", "v2,AAAA", "x"] {
            let mut headers = good.clone();
            headers.insert(SIGNATURE, HeaderValue::from_static(signature));
            assert_eq!(check(&[secret(1)], &headers, NOW), Err(VerifyError::Signature));
        }
    }

    #[test]
    fn every_header_is_there_once() {
        for name in [ID, TIMESTAMP, SIGNATURE] {
            let mut headers = signed(&[secret(1)]);
            headers.append(name, HeaderValue::from_static("0"));
            assert_eq!(check(&[secret(1)], &headers, NOW), Err(VerifyError::Header(name)));
            headers.remove(name);
            assert_eq!(check(&[secret(1)], &headers, NOW), Err(VerifyError::Header(name)));
        }
        // The same signed content, cut in other places.
        let mut headers = signed(&[secret(1)]);
        headers.insert(ID, HeaderValue::from_static("d1.1"));
        assert_eq!(check(&[secret(1)], &headers, NOW), Err(VerifyError::Header(ID)));
    }

    #[test]
    fn secrets_have_one_form_and_are_not_shown() {
        let encoded = |bytes: usize| STANDARD.encode(vec![7; bytes]);
        for (text, good) in [
            (format!("whsec_{}", encoded(24)), true),
            (format!("whsec_{}", encoded(64)), true),
            (format!("whsec_{}", encoded(23)), false),
            (format!("whsec_{}", encoded(65)), false),
            (encoded(32), false),
            ("whsec_?".to_owned(), false),
        ] {
            assert_eq!(SigningSecret::parse(&text).is_some(), good, "{text}");
        }
        assert_eq!(format!("{:?}", secret(1)), "SigningSecret([redacted])");
    }
}
