//! The key pair that the gateway shows push services, and the token signed with it (RFC 8292).

use std::fmt;
use std::time::Duration;

use aws_lc_rs::encoding::{AsBigEndian as _, EcPrivateKeyBin};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING as ALGORITHM, EcdsaKeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::config::Secret;
use crate::notify::senders::error::SetupError;

/// How long a token is good for; push services take no more than 24 hours.
const TOKEN_LIFETIME: Duration = Duration::from_hours(12);

/// A P-256 key pair, read from the form that `npx web-push generate-vapid-keys` prints.
pub(crate) struct VapidKeys {
    public_key: String,
    signing: EncodingKey,
}

/// Shows the public half.
impl fmt::Debug for VapidKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VapidKeys").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    exp: u64,
    sub: &'a str,
}

impl VapidKeys {
    /// Reads both halves in base64url: the uncompressed point and the 32 bytes of the private key.
    ///
    /// # Errors
    /// One is malformed, or they do not belong together.
    pub(crate) fn parse(
        public_key: &str,
        private_key: &Secret<String>,
    ) -> Result<Self, SetupError> {
        let refused = |problem| SetupError::Setting { setting: "the VAPID key pair", problem };
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
        let public = decode(public_key).filter(|key| key.len() == 65).ok_or_else(|| {
            refused("has a public key that is not the base64url form of 65 bytes")
        })?;
        let private =
            decode(private_key.expose()).filter(|key| key.len() == 32).ok_or_else(|| {
                refused("has a private key that is not the base64url form of 32 bytes")
            })?;
        EcdsaKeyPair::from_private_key_and_public_key(&ALGORITHM, &private, &public)
            .ok()
            .and_then(|pair| Self::from_pair(&pair))
            .ok_or_else(|| refused("has halves that do not belong together; generate a new pair"))
    }

    fn from_pair(pair: &EcdsaKeyPair) -> Option<Self> {
        let signing = EncodingKey::from_ec_der(pair.to_pkcs8v1().ok()?.as_ref());
        Some(Self { public_key: URL_SAFE_NO_PAD.encode(pair.public_key()), signing })
    }

    /// A new pair: the public and the private half in base64url. Nothing when the system has no random numbers.
    pub(crate) fn generate() -> Option<(String, Secret<String>)> {
        let pair = EcdsaKeyPair::generate(&ALGORITHM).ok()?;
        let private: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().ok()?;
        let public = URL_SAFE_NO_PAD.encode(pair.public_key());
        Some((public, Secret::new(URL_SAFE_NO_PAD.encode(private.as_ref()))))
    }

    /// The public half in base64url.
    pub(crate) fn public_key(&self) -> &str {
        &self.public_key
    }

    /// Value of the `Authorization` header for a push service.
    pub(super) fn authorization(
        &self,
        origin: &str,
        contact: &str,
        now_unix: Duration,
    ) -> Option<String> {
        let exp = (now_unix + TOKEN_LIFETIME).as_secs();
        let claims = Claims { aud: origin, exp, sub: contact };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.signing);
        Some(format!("vapid t={}, k={}", token.ok()?, self.public_key))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    // Printed by `npx web-push generate-vapid-keys`; they are used for nothing else.
    const PUBLIC: &str =
        "BAYO4bsNZJv6U0u7EjR_zDQEO2izSH_5JiGGC-qxv0Gbo74KD7LtZOZhCK8a-qUq_QDzA1XmCjRQ2MCZuF872c8";
    const PRIVATE: &str = "04nUoMqcU4bGhUQ9t5TxvAqXMyqr-52wJxQDWm9y3Xk";

    fn parse(public: &str, private: &str) -> Result<VapidKeys, SetupError> {
        VapidKeys::parse(public, &Secret::new(private.to_owned()))
    }

    #[test]
    fn keys_of_the_usual_tool_are_read() {
        let keys = parse(PUBLIC, PRIVATE).unwrap();
        assert_eq!(keys.public_key(), PUBLIC);
        assert!(!format!("{keys:?}").contains(PRIVATE));
    }

    #[test]
    fn a_generated_pair_is_new_and_reads_back() {
        let (public, private) = VapidKeys::generate().unwrap();
        assert_eq!((public.len(), private.expose().len()), (87, 43));
        assert_eq!(VapidKeys::parse(&public, &private).unwrap().public_key(), public);
        assert_ne!(VapidKeys::generate().unwrap().0, public);
    }

    #[test]
    fn halves_that_do_not_fit_are_refused_by_name() {
        let (other, _) = VapidKeys::generate().unwrap();
        for (public, private, problem) in [
            ("", PRIVATE, "public key"),
            (&PUBLIC[1..], PRIVATE, "public key"),
            (PUBLIC, "", "private key"),
            (PUBLIC, PUBLIC, "private key"),
            (&other, PRIVATE, "do not belong together"),
        ] {
            let error = parse(public, private).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
            assert!(!error.contains(PRIVATE), "{error}");
        }
    }

    #[test]
    fn tokens_name_the_service_and_end_within_a_day() {
        let keys = parse(PUBLIC, PRIVATE).unwrap();
        let now = Duration::from_hours(490_000);
        let text = keys.authorization("https://push.example", "mailto:a@b.example", now).unwrap();
        let token = text.strip_prefix("vapid t=").unwrap().split(", k=").next().unwrap();
        let claims = token.split('.').nth(1).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(
            claims,
            serde_json::json!({
                "aud": "https://push.example",
                "exp": 1_764_000_000 + 43_200,
                "sub": "mailto:a@b.example",
            })
        );
    }
}
