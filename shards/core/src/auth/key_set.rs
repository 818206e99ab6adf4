//! The keys a token may be signed with, and which of them are tried.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{AuthError, KeyAlgorithm, KeyError, VerificationKey};

/// Most keys tried for one token: bounds what a token without `kid` can cost.
const TRIES_MAX: usize = 16;
/// Most keys taken from one JWKS document.
const JWKS_KEYS_MAX: usize = 128;

/// Keys in configured order, shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Arc<[VerificationKey]>,
}

#[derive(Deserialize)]
struct Jwks<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

impl From<Vec<VerificationKey>> for KeySet {
    fn from(keys: Vec<VerificationKey>) -> Self {
        Self { keys: keys.into() }
    }
}

impl KeySet {
    /// Reads a JSON Web Key Set. Keys that are no signature keys of a supported kind are left out; the second value
    /// says why, one text each (`key 2: ...`), without key material.
    pub fn from_jwks(
        json: &str,
        bytes_max: usize,
        allow_symmetric: bool,
    ) -> Result<(Self, Vec<String>), KeyError> {
        if json.len() > bytes_max {
            return Err(KeyError::TooLarge { bytes: json.len(), bytes_max });
        }
        let document: Jwks<'_> = serde_json::from_str(json)
            .map_err(|_| KeyError::Jwks("not a JSON object with an array `keys`"))?;
        let mut keys = Vec::new();
        let mut skipped = Vec::new();
        for (index, jwk) in document.keys.iter().enumerate() {
            if keys.len() == JWKS_KEYS_MAX {
                skipped.push(format!("key {index} and all after it: over {JWKS_KEYS_MAX} keys"));
                break;
            }
            match VerificationKey::from_jwk(jwk.get(), allow_symmetric) {
                Ok(key) => keys.push(key),
                Err(error) => skipped.push(format!("key {index}: {error}")),
            }
        }
        Ok((keys.into(), skipped))
    }

    /// The keys of both sets, these first.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        Self { keys: self.keys.iter().chain(&*other.keys).cloned().collect() }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys in order.
    pub fn iter(&self) -> impl Iterator<Item = &VerificationKey> {
        self.keys.iter()
    }

    /// The keys to try. A `kid` counts among the keys of the header's algorithm as soon as one of them has an id;
    /// without either, every key of the algorithm is tried, [`TRIES_MAX`] at most.
    pub(super) fn select(
        &self,
        algorithm: KeyAlgorithm,
        key_id: Option<&str>,
    ) -> Result<impl Iterator<Item = &VerificationKey>, AuthError> {
        let of_algorithm = || self.keys.iter().filter(move |key| key.algorithm == algorithm);
        if of_algorithm().next().is_none() {
            return Err(AuthError::Algorithm);
        }
        let wanted = key_id.filter(|_| of_algorithm().any(|key| key.id.is_some()));
        if wanted.is_some() && !of_algorithm().any(|key| key.id.as_deref() == wanted) {
            return Err(AuthError::UnknownKey);
        }
        Ok(of_algorithm()
            .filter(move |key| wanted.is_none() || key.id.as_deref() == wanted)
            .take(TRIES_MAX))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECRET: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE";

    fn secret(id: Option<&str>) -> VerificationKey {
        VerificationKey::from_secret(KeyAlgorithm::Hs256, &[7; 32])
            .unwrap()
            .with_id(id.map(Into::into))
    }

    fn selected(keys: Vec<VerificationKey>, key_id: Option<&str>) -> Result<usize, AuthError> {
        KeySet::from(keys).select(KeyAlgorithm::Hs256, key_id).map(Iterator::count)
    }

    #[test]
    fn selection_by_id() {
        assert_eq!(selected(vec![secret(None), secret(None)], None), Ok(2));
        assert_eq!(selected(vec![secret(None), secret(None)], Some("a")), Ok(2));
        assert_eq!(selected(vec![secret(Some("a")), secret(Some("b"))], Some("b")), Ok(1));
        assert_eq!(selected(vec![secret(Some("a")), secret(Some("b"))], None), Ok(2));
        let error = selected(vec![secret(Some("a")), secret(None)], Some("c"));
        assert_eq!(error, Err(AuthError::UnknownKey));
        assert_eq!(selected(vec![secret(None); 40], None), Ok(TRIES_MAX));
        let set = KeySet::from(vec![secret(Some("a"))]);
        assert!(matches!(
            set.select(KeyAlgorithm::Rs256, Some("a")).map(Iterator::count),
            Err(AuthError::Algorithm)
        ));
    }

    #[test]
    fn a_key_set_takes_only_signature_keys() {
        let json = format!(
            r#"{{"keys":[
                {{"kty":"oct","k":"{SECRET}","kid":"good"}},
                {{"kty":"oct","k":"{SECRET}","use":"enc"}},
                {{"kty":"oct","k":"{SECRET}","key_ops":["sign"]}},
                {{"kty":"oct","k":"c2hvcnQ"}},
                {{"kty":"oct","k":"{SECRET}","k":"{SECRET}"}},
                {{"kty":"oct","k":"{SECRET}","alg":"RS256"}},
                {{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}},
                {{"kty":"OKP","crv":"X25519","x":"AA"}},
                {{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}},
                {{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}},
                {{"kty":"RSA","n":"AQAB","e":"AQAB"}},
                {{"kty":"RSA","e":"AQAB"}},
                {{"kty":"new"}}, 7
            ]}}"#
        );
        let (set, skipped) = KeySet::from_jwks(&json, json.len(), true).unwrap();
        assert_eq!(set.len(), 1, "{skipped:?}");
        assert_eq!(set.iter().next().unwrap().id.as_deref(), Some("good"));
        assert_eq!(skipped.len(), 13, "{skipped:?}");
        let (set, _) = KeySet::from_jwks(&json, json.len(), false).unwrap();
        assert!(set.is_empty(), "a symmetric key must not come over a network");
    }

    #[test]
    fn a_key_set_is_bounded() {
        let json = r#"{"keys":[]}"#;
        assert!(KeySet::from_jwks(json, json.len(), true).unwrap().0.is_empty());
        assert!(matches!(
            KeySet::from_jwks(json, json.len() - 1, true),
            Err(KeyError::TooLarge { .. })
        ));
        for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#, "<html>"] {
            assert!(
                matches!(KeySet::from_jwks(text, 1024, true), Err(KeyError::Jwks(_))),
                "{text}"
            );
        }
        let key = format!(r#"{{"kty":"oct","k":"{SECRET}"}}"#);
        let json = format!(r#"{{"keys":[{}]}}"#, vec![key; JWKS_KEYS_MAX + 5].join(","));
        let (set, skipped) = KeySet::from_jwks(&json, json.len(), true).unwrap();
        assert_eq!((set.len(), skipped.len()), (JWKS_KEYS_MAX, 1));
    }

    #[test]
    fn merge_keeps_order() {
        let first = KeySet::from(vec![secret(Some("a"))]);
        let merged = first.merge(&KeySet::from(vec![secret(Some("b"))]));
        let ids: Vec<_> = merged.iter().map(|key| key.id.as_deref().unwrap()).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}
