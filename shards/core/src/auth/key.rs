//! One key that signatures are checked with, bound to one algorithm for good.
//!
//! Secrets and PEM texts are told apart here: a public key used as an HMAC secret is the oldest forgery there is, so
//! a secret that looks like PEM is refused, and so is a private key where a public one belongs.

use std::fmt;
use std::io::Cursor;

use jsonwebtoken::{Algorithm, DecodingKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{AuthError, jwk, token};

const OID_RSA: &str = "1.2.840.113549.1.1.1";
const OID_RSA_PSS: &str = "1.2.840.113549.1.1.10";
const OID_EC: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
const OID_ED25519: &str = "1.3.101.112";

/// RSA modulus sizes that the verifier takes, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Signature algorithms of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256,
    /// RSA PSS with SHA-256.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// EdDSA on Ed25519.
    EdDsa,
}

impl KeyAlgorithm {
    /// Every variant.
    pub const ALL: [Self; 7] =
        [Self::Hs256, Self::Hs384, Self::Hs512, Self::Rs256, Self::Ps256, Self::Es256, Self::EdDsa];

    /// Reads the exact JWA name; letter case counts.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }

    /// JWA name, as in a token's `alg`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Whether signer and verifier share one secret.
    pub fn is_symmetric(self) -> bool {
        self.secret_bytes_min().is_some()
    }

    /// Shortest secret: as long as the hash (RFC 7518, 3.2).
    fn secret_bytes_min(self) -> Option<usize> {
        match self {
            Self::Hs256 => Some(32),
            Self::Hs384 => Some(48),
            Self::Hs512 => Some(64),
            Self::Rs256 | Self::Ps256 | Self::Es256 | Self::EdDsa => None,
        }
    }

    pub(super) fn jwa(self) -> Algorithm {
        match self {
            Self::Hs256 => Algorithm::HS256,
            Self::Hs384 => Algorithm::HS384,
            Self::Hs512 => Algorithm::HS512,
            Self::Rs256 => Algorithm::RS256,
            Self::Ps256 => Algorithm::PS256,
            Self::Es256 => Algorithm::ES256,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a key cannot be used; says what to do, never what is in the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Too short to resist guessing.
    #[error(
        "the secret has {bytes} bytes, {algorithm} needs at least {bytes_min}; make one with `openssl rand -hex 32` (HS384, HS512: 64)"
    )]
    SecretTooShort {
        /// Algorithm.
        algorithm: KeyAlgorithm,
        /// Bytes given.
        bytes: usize,
        /// Bytes needed.
        bytes_min: usize,
    },
    /// A PEM text as an HMAC secret.
    #[error(
        "the secret is a PEM text; a key pair's public key is no secret: give it as a PEM key with RS256, PS256, ES256 or EdDSA"
    )]
    SecretIsPem,
    /// A private key where a public one belongs.
    #[error(
        "this is a private key; the gateway needs only the public one: `openssl pkey -in KEY -pubout`"
    )]
    PrivateKey,
    /// The algorithm does not go with this form of key.
    #[error("{algorithm} does not go with {form}")]
    WrongForm {
        /// Algorithm.
        algorithm: KeyAlgorithm,
        /// What was given.
        form: &'static str,
    },
    /// No key in it.
    #[error("no usable public key in PEM form: {0}")]
    Pem(&'static str),
    /// Key of another kind than the algorithm's.
    #[error("{algorithm} needs {needed}")]
    WrongKind {
        /// Algorithm.
        algorithm: KeyAlgorithm,
        /// Kind of key it needs.
        needed: &'static str,
    },
    /// RSA modulus out of bounds.
    #[error("the RSA modulus has {0} bits; 2048 to 8192 are accepted")]
    RsaSize(usize),
    /// Not a JSON Web Key that can be used.
    #[error("JSON Web Key: {0}")]
    Jwk(&'static str),
    /// Not a JSON Web Key Set.
    #[error("JSON Web Key Set: {0}")]
    Jwks(&'static str),
    /// Document above its limit.
    #[error("the key set has {bytes} bytes; at most {bytes_max} are read")]
    TooLarge {
        /// Bytes given.
        bytes: usize,
        /// Limit.
        bytes_max: usize,
    },
}

/// A key that tokens are checked with. Its `Debug` shows id and algorithm only.
#[derive(Clone)]
pub struct VerificationKey {
    /// `kid` of the tokens it is for; any when absent.
    pub id: Option<Box<str>>,
    /// The only algorithm it is used with.
    pub algorithm: KeyAlgorithm,
    key: DecodingKey,
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl VerificationKey {
    /// A shared secret for an HMAC algorithm.
    pub fn from_secret(algorithm: KeyAlgorithm, secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(algorithm, secret)?;
        Ok(Self { id: None, algorithm, key: DecodingKey::from_secret(secret) })
    }

    /// The first block of a PEM text: `PUBLIC KEY`, `RSA PUBLIC KEY` or `CERTIFICATE`. Of a certificate only the key
    /// is taken; its validity, names and issuer are not looked at.
    pub fn from_pem(algorithm: KeyAlgorithm, pem: &[u8]) -> Result<Self, KeyError> {
        if algorithm.is_symmetric() {
            return Err(KeyError::WrongForm { algorithm, form: "a PEM key" });
        }
        let (block, _) =
            Pem::read(Cursor::new(pem)).map_err(|_| KeyError::Pem("not a PEM text"))?;
        match block.label.as_str() {
            label if label.contains("PRIVATE KEY") => Err(KeyError::PrivateKey),
            "PUBLIC KEY" => {
                let (_, info) = SubjectPublicKeyInfo::from_der(&block.contents)
                    .map_err(|_| KeyError::Pem("damaged PUBLIC KEY block"))?;
                Self::from_key_info(algorithm, &info)
            }
            "CERTIFICATE" => {
                let (_, certificate) = X509Certificate::from_der(&block.contents)
                    .map_err(|_| KeyError::Pem("damaged CERTIFICATE block"))?;
                Self::from_key_info(algorithm, certificate.public_key())
            }
            "RSA PUBLIC KEY" => {
                let (_, key) = RSAPublicKey::from_der(&block.contents)
                    .map_err(|_| KeyError::Pem("damaged RSA PUBLIC KEY block"))?;
                Self::from_rsa(algorithm, key.modulus, key.exponent)
            }
            _ => Err(KeyError::Pem(
                "the first block is no PUBLIC KEY, RSA PUBLIC KEY or CERTIFICATE",
            )),
        }
    }

    /// One JSON Web Key. Without `alg`, an RSA key is for RS256, an EC key for ES256, an OKP key for EdDSA and a
    /// symmetric one for HS256. `allow_symmetric` belongs off for keys that came over a network.
    pub fn from_jwk(json: &str, allow_symmetric: bool) -> Result<Self, KeyError> {
        jwk::read(json, allow_symmetric)
    }

    /// The same key for tokens with this `kid`.
    #[must_use]
    pub fn with_id(self, id: Option<Box<str>>) -> Self {
        Self { id, ..self }
    }

    pub(super) fn from_rsa(
        algorithm: KeyAlgorithm,
        modulus: &[u8],
        exponent: &[u8],
    ) -> Result<Self, KeyError> {
        if !matches!(algorithm, KeyAlgorithm::Rs256 | KeyAlgorithm::Ps256) {
            return Err(wrong_kind(algorithm));
        }
        let modulus = without_leading_zeros(modulus);
        let exponent = without_leading_zeros(exponent);
        let bits =
            modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            return Err(KeyError::RsaSize(bits));
        }
        let key = DecodingKey::from_rsa_raw_components(modulus, exponent);
        Ok(Self { id: None, algorithm, key })
    }

    /// `point` is the uncompressed form: 4, x, y.
    pub(super) fn from_p256(algorithm: KeyAlgorithm, point: &[u8]) -> Result<Self, KeyError> {
        if algorithm != KeyAlgorithm::Es256 || point.len() != 65 || point[0] != 4 {
            return Err(wrong_kind(algorithm));
        }
        Ok(Self { id: None, algorithm, key: DecodingKey::from_ec_der(point) })
    }

    pub(super) fn from_ed25519(algorithm: KeyAlgorithm, point: &[u8]) -> Result<Self, KeyError> {
        if algorithm != KeyAlgorithm::EdDsa || point.len() != 32 {
            return Err(wrong_kind(algorithm));
        }
        Ok(Self { id: None, algorithm, key: DecodingKey::from_ed_der(point) })
    }

    /// Checks a signature, given in base64url, in constant time.
    pub(super) fn verify(&self, signed: &[u8], signature: &str) -> Result<(), AuthError> {
        token::signature_outcome(jsonwebtoken::crypto::verify(
            signature,
            signed,
            &self.key,
            self.algorithm.jwa(),
        ))
    }

    fn from_key_info(
        algorithm: KeyAlgorithm,
        info: &SubjectPublicKeyInfo<'_>,
    ) -> Result<Self, KeyError> {
        let bytes = &*info.subject_public_key.data;
        match info.algorithm.algorithm.to_id_string().as_str() {
            // A key that says "PSS only" must not be used for anything else.
            OID_RSA_PSS if algorithm != KeyAlgorithm::Ps256 => Err(wrong_kind(algorithm)),
            OID_RSA | OID_RSA_PSS => {
                let (_, key) =
                    RSAPublicKey::from_der(bytes).map_err(|_| KeyError::Pem("damaged RSA key"))?;
                Self::from_rsa(algorithm, key.modulus, key.exponent)
            }
            OID_EC => {
                let parameters = info.algorithm.parameters.as_ref();
                let curve = parameters.and_then(|any| any.as_oid().ok());
                if curve.is_none_or(|oid| oid.to_id_string() != OID_P256) {
                    return Err(wrong_kind(algorithm));
                }
                Self::from_p256(algorithm, bytes)
            }
            OID_ED25519 => Self::from_ed25519(algorithm, bytes),
            _ => Err(wrong_kind(algorithm)),
        }
    }
}

/// Checks a secret's form and length.
pub(super) fn check_secret(algorithm: KeyAlgorithm, secret: &[u8]) -> Result<(), KeyError> {
    let Some(bytes_min) = algorithm.secret_bytes_min() else {
        return Err(KeyError::WrongForm { algorithm, form: "a secret" });
    };
    if secret.windows(11).any(|window| window == b"-----BEGIN ") {
        return Err(KeyError::SecretIsPem);
    }
    if secret.len() < bytes_min {
        return Err(KeyError::SecretTooShort { algorithm, bytes: secret.len(), bytes_min });
    }
    Ok(())
}

fn wrong_kind(algorithm: KeyAlgorithm) -> KeyError {
    let needed = match algorithm {
        KeyAlgorithm::Hs256 | KeyAlgorithm::Hs384 | KeyAlgorithm::Hs512 => "a shared secret",
        KeyAlgorithm::Rs256 => "an RSA key",
        KeyAlgorithm::Ps256 => "an RSA or RSA-PSS key",
        KeyAlgorithm::Es256 => "an EC key on the curve P-256, uncompressed",
        KeyAlgorithm::EdDsa => "an Ed25519 key",
    };
    KeyError::WrongKind { algorithm, needed }
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    &bytes[zeros..]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact() {
        for algorithm in KeyAlgorithm::ALL {
            assert_eq!(KeyAlgorithm::parse(algorithm.as_str()), Some(algorithm));
        }
        for name in ["none", "None", "hs256", "HS256 ", "EDDSA", "RS384", "ES384", ""] {
            assert_eq!(KeyAlgorithm::parse(name), None, "{name}");
        }
    }

    #[test]
    fn secrets_have_the_length_of_the_hash() {
        for (algorithm, bytes_min) in
            [(KeyAlgorithm::Hs256, 32), (KeyAlgorithm::Hs384, 48), (KeyAlgorithm::Hs512, 64)]
        {
            assert!(VerificationKey::from_secret(algorithm, &vec![7; bytes_min]).is_ok());
            assert_eq!(
                VerificationKey::from_secret(algorithm, &vec![7; bytes_min - 1]).unwrap_err(),
                KeyError::SecretTooShort { algorithm, bytes: bytes_min - 1, bytes_min }
            );
        }
        assert!(matches!(
            VerificationKey::from_secret(KeyAlgorithm::Rs256, &[7; 64]),
            Err(KeyError::WrongForm { .. })
        ));
    }

    #[test]
    fn a_pem_text_is_no_secret_and_a_private_key_no_public_one() {
        let public = b"-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n";
        assert_eq!(
            VerificationKey::from_secret(KeyAlgorithm::Hs256, public).unwrap_err(),
            KeyError::SecretIsPem
        );
        let private = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(
            VerificationKey::from_pem(KeyAlgorithm::Es256, private).unwrap_err(),
            KeyError::PrivateKey
        );
        assert!(matches!(
            VerificationKey::from_pem(KeyAlgorithm::Es256, public),
            Err(KeyError::Pem(_))
        ));
        assert!(matches!(
            VerificationKey::from_pem(KeyAlgorithm::Hs256, public),
            Err(KeyError::WrongForm { .. })
        ));
        assert!(VerificationKey::from_pem(KeyAlgorithm::Es256, b"").is_err());
    }

    #[test]
    fn debug_shows_no_key_material() {
        let key = VerificationKey::from_secret(KeyAlgorithm::Hs256, &[b'S'; 32]).unwrap();
        let text = format!("{:?}", key.with_id(Some("main".into())));
        assert!(text.contains("main") && text.contains("Hs256"), "{text}");
        assert!(!text.contains("SSSS") && !text.contains("83, 83"), "{text}");
    }
}
