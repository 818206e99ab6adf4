//! API keys: kept as digests, compared in constant time.

use axum::http::{HeaderMap, HeaderValue, header};
use sha2::{Digest, Sha256};

use super::KEY_HEADER;

/// A key that is accepted. Only its digest is kept, so that no dump of memory or log shows it.
#[derive(Clone, Debug)]
pub(crate) struct ApiKey {
    name: KeyName,
    digest: [u8; 32],
}

/// Name of the key that a call was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyName(pub std::sync::Arc<str>);

impl ApiKey {
    /// Takes the configured name and the key's text.
    pub(crate) fn new(name: &str, key: &str) -> Self {
        Self { name: KeyName(name.into()), digest: Sha256::digest(key.as_bytes()).into() }
    }
}

/// Finds the key that the request carries. Every configured key is compared, whichever matches, and the comparison of
/// digests takes the same time wherever they differ.
pub(super) fn find(keys: &[ApiKey], headers: &HeaderMap) -> Option<KeyName> {
    let given = headers
        .get(KEY_HEADER)
        .map(HeaderValue::as_bytes)
        .or_else(|| from_authorization(headers))?;
    let digest: [u8; 32] = Sha256::digest(given).into();
    let mut found = None;
    for key in keys {
        let difference = key.digest.iter().zip(&digest).fold(0u8, |acc, (a, b)| acc | (a ^ b));
        if std::hint::black_box(difference) == 0 {
            found = Some(key.name.clone());
        }
    }
    found
}

fn from_authorization(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("apikey ".len())?;
    scheme.eq_ignore_ascii_case(b"apikey ").then(|| key.trim_ascii())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn check(header: &str, value: &str, expected: Option<&str>) {
        let keys = [ApiKey::new("one", "first-key"), ApiKey::new("two", "second-key")];
        let mut headers = HeaderMap::new();
        headers
            .insert(HeaderName::try_from(header).unwrap(), HeaderValue::from_str(value).unwrap());
        let found = find(&keys, &headers).map(|name| name.0.to_string());
        assert_eq!(found.as_deref(), expected, "{header}: {value}");
    }

    #[test]
    fn keys_are_found_by_either_header() {
        check("x-api-key", "first-key", Some("one"));
        check("x-api-key", "second-key", Some("two"));
        check("authorization", "apikey second-key", Some("two"));
        check("authorization", "ApiKey  first-key", Some("one"));
        check("x-api-key", "first-keyx", None);
        check("x-api-key", "", None);
        check("authorization", "Bearer first-key", None);
        check("authorization", "apikey", None);
    }

    #[test]
    fn without_keys_nothing_is_accepted() {
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, HeaderValue::from_static(""));
        assert_eq!(find(&[], &headers), None);
    }
}
