//! JSON Web Keys (RFC 7517), read strictly: a key that is not plainly meant for checking signatures is refused.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::token::KEY_ID_BYTES_MAX;
use super::{KeyAlgorithm, KeyError, VerificationKey};

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<Box<str>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
    /// Private part of RSA, EC and OKP keys; its content is never kept.
    d: Option<IgnoredAny>,
}

/// Reads one key.
pub(super) fn read(json: &str, allow_symmetric: bool) -> Result<VerificationKey, KeyError> {
    let jwk: Jwk = serde_json::from_str(json).map_err(|_| {
        KeyError::Jwk("not a JSON object with a `kty` and members of the right types")
    })?;
    if jwk.d.is_some() {
        return Err(KeyError::PrivateKey);
    }
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return Err(KeyError::Jwk("`use` is not `sig`"));
    }
    if jwk.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
        return Err(KeyError::Jwk("`key_ops` does not allow `verify`"));
    }
    if jwk.kid.as_ref().is_some_and(|id| id.is_empty() || id.len() > KEY_ID_BYTES_MAX) {
        return Err(KeyError::Jwk("`kid` is empty or longer than 256 bytes"));
    }
    let key = match jwk.kty.as_str() {
        "RSA" => rsa(&jwk)?,
        "EC" => p256(&jwk)?,
        "OKP" => ed25519(&jwk)?,
        "oct" if allow_symmetric => symmetric(&jwk)?,
        "oct" => return Err(KeyError::Jwk("a symmetric key is not accepted from this source")),
        _ => return Err(KeyError::Jwk("`kty` is not RSA, EC, OKP or oct")),
    };
    Ok(key.with_id(jwk.kid))
}

fn rsa(jwk: &Jwk) -> Result<VerificationKey, KeyError> {
    let algorithm = match jwk.alg.as_deref() {
        None | Some("RS256") => KeyAlgorithm::Rs256,
        Some("PS256") => KeyAlgorithm::Ps256,
        Some(_) => return Err(KeyError::Jwk("`alg` of an RSA key is not RS256 or PS256")),
    };
    VerificationKey::from_rsa(algorithm, &bytes(jwk.n.as_ref())?, &bytes(jwk.e.as_ref())?)
}

fn p256(jwk: &Jwk) -> Result<VerificationKey, KeyError> {
    if jwk.crv.as_deref() != Some("P-256") || !matches!(jwk.alg.as_deref(), None | Some("ES256")) {
        return Err(KeyError::Jwk("an EC key is accepted on P-256 with ES256 only"));
    }
    let mut point = vec![4];
    for coordinate in [&jwk.x, &jwk.y] {
        let coordinate = bytes(coordinate.as_ref())?;
        if coordinate.len() != 32 {
            return Err(KeyError::Jwk("a coordinate on P-256 has 32 bytes"));
        }
        point.extend_from_slice(&coordinate);
    }
    VerificationKey::from_p256(KeyAlgorithm::Es256, &point)
}

fn ed25519(jwk: &Jwk) -> Result<VerificationKey, KeyError> {
    if jwk.crv.as_deref() != Some("Ed25519")
        || !matches!(jwk.alg.as_deref(), None | Some("EdDSA" | "Ed25519"))
    {
        return Err(KeyError::Jwk("an OKP key is accepted on Ed25519 with EdDSA only"));
    }
    VerificationKey::from_ed25519(KeyAlgorithm::EdDsa, &bytes(jwk.x.as_ref())?)
}

fn symmetric(jwk: &Jwk) -> Result<VerificationKey, KeyError> {
    let algorithm = match jwk.alg.as_deref() {
        None => KeyAlgorithm::Hs256,
        Some(name) => KeyAlgorithm::parse(name)
            .filter(|algorithm| algorithm.is_symmetric())
            .ok_or(KeyError::Jwk("`alg` of a symmetric key is not HS256, HS384 or HS512"))?,
    };
    VerificationKey::from_secret(algorithm, &bytes(jwk.k.as_ref())?)
}

fn bytes(text: Option<&String>) -> Result<Vec<u8>, KeyError> {
    let text = text.ok_or(KeyError::Jwk("a member of the key's numbers is missing"))?;
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| KeyError::Jwk("a member is not base64url without padding"))
}
