//! Making tokens: for development (`archmesh token`) and tests. A gateway in service never signs.

use std::fmt;

use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;

use super::key::check_secret;
use super::{KeyAlgorithm, KeyError};

/// Why no token came out.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The secret cannot be used.
    #[error(transparent)]
    Secret(#[from] KeyError),
    /// The private key cannot be used.
    #[error(
        "no private key for {algorithm} in PKCS#8 PEM form; convert one with `openssl pkcs8 -topk8 -nocrypt -in KEY`"
    )]
    PrivateKey {
        /// Algorithm.
        algorithm: KeyAlgorithm,
        /// What the reader said.
        source: jsonwebtoken::errors::Error,
    },
    /// The claims cannot be written or signed.
    #[error("the token cannot be signed: {0}")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// A key that tokens are signed with. Its `Debug` shows id and algorithm only.
#[derive(Clone)]
pub struct SigningKey {
    /// Written to the header's `kid`.
    pub id: Option<Box<str>>,
    /// Written to the header's `alg`.
    pub algorithm: KeyAlgorithm,
    key: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A shared secret for an HMAC algorithm; the same bounds as for checking.
    pub fn from_secret(algorithm: KeyAlgorithm, secret: &[u8]) -> Result<Self, MintError> {
        check_secret(algorithm, secret)?;
        Ok(Self { id: None, algorithm, key: EncodingKey::from_secret(secret) })
    }

    /// A private key in PKCS#8 PEM form (RSA: PKCS#1 too).
    pub fn from_pem(algorithm: KeyAlgorithm, pem: &[u8]) -> Result<Self, MintError> {
        let key = match algorithm {
            KeyAlgorithm::Rs256 | KeyAlgorithm::Ps256 => EncodingKey::from_rsa_pem(pem),
            KeyAlgorithm::Es256 => EncodingKey::from_ec_pem(pem),
            KeyAlgorithm::EdDsa => EncodingKey::from_ed_pem(pem),
            KeyAlgorithm::Hs256 | KeyAlgorithm::Hs384 | KeyAlgorithm::Hs512 => {
                return Err(KeyError::WrongForm { algorithm, form: "a PEM key" }.into());
            }
        };
        let key = key.map_err(|source| MintError::PrivateKey { algorithm, source })?;
        Ok(Self { id: None, algorithm, key })
    }

    /// The same key, written with this `kid`.
    #[must_use]
    pub fn with_id(self, id: Option<Box<str>>) -> Self {
        Self { id, ..self }
    }
}

/// Signs `claims`, anything that serializes to a JSON object, as they are: nothing is added or checked.
pub fn mint<T: Serialize>(key: &SigningKey, claims: &T) -> Result<String, MintError> {
    let mut header = Header::new(key.algorithm.jwa());
    header.kid = key.id.as_deref().map(str::to_owned);
    jsonwebtoken::encode(&header, claims, &key.key).map_err(MintError::Sign)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_signing_key() {
        assert!(SigningKey::from_secret(KeyAlgorithm::Hs256, b"short").is_err());
        assert!(SigningKey::from_secret(KeyAlgorithm::EdDsa, &[7; 64]).is_err());
        assert!(SigningKey::from_pem(KeyAlgorithm::Hs256, b"").is_err());
        let error = SigningKey::from_pem(KeyAlgorithm::Es256, b"no pem").unwrap_err();
        assert!(error.to_string().contains("openssl pkcs8"), "{error}");
    }

    #[test]
    fn debug_shows_no_key_material() {
        let key = SigningKey::from_secret(KeyAlgorithm::Hs256, &[b'S'; 32]).unwrap();
        assert!(!format!("{key:?}").contains("83, 83"));
    }
}
