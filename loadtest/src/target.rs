//! Where the load goes and who it claims to be: addresses and tokens.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway_core::auth::{KeyAlgorithm, MintError, SigningKey, mint};
use serde_json::{Map, Value, json};

/// Life of the tokens.
const TOKEN_LIFETIME: Duration = Duration::from_secs(86_400);

/// A `ws://` or `http://` address, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// First address that the name resolves to.
    pub(crate) address: SocketAddr,
    /// `Host` header.
    pub(crate) host: String,
    /// Request target, `/` at least.
    pub(crate) path: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("expected ws://host:port/path or http://host:port/path".into());
        };
        if !matches!(scheme, "ws" | "http") {
            return Err(format!(
                "{scheme}:// is not supported: the generator speaks plain ws and http"
            ));
        }
        let (host, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { host.to_owned() } else { format!("{host}:80") };
        let mut found =
            with_port.to_socket_addrs().map_err(|error| format!("{with_port}: {error}"))?;
        let address = found.next().ok_or_else(|| format!("{with_port} has no address"))?;
        Ok(Self { address, host: host.to_owned(), path: path.to_owned() })
    }
}

impl Target {
    /// Another path on the same server.
    #[must_use]
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }
}

/// Makes the tokens of the load's users.
#[derive(Debug)]
pub(crate) struct Minter {
    key: SigningKey,
    claims: Map<String, Value>,
    user_claim: String,
}

impl Minter {
    /// Tokens signed with an HS256 secret that allow to subscribe to and publish in every channel that begins with
    /// `channel_prefix`. `issuer` and `audience` are left out when empty.
    pub(crate) fn new(
        secret: &str,
        channel_prefix: &str,
        user_claim: &str,
        (issuer, audience): (&str, &str),
    ) -> Result<Self, MintError> {
        let key = SigningKey::from_secret(KeyAlgorithm::Hs256, secret.as_bytes())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut claims = Map::new();
        claims.insert("iat".into(), json!(now.as_secs()));
        claims.insert("exp".into(), json!((now + TOKEN_LIFETIME).as_secs()));
        let caps = json!([{"channels": [format!("{channel_prefix}*")], "allow": ["sub", "pub"]}]);
        claims.insert("caps".into(), caps);
        for (name, value) in [("iss", issuer), ("aud", audience)] {
            if !value.is_empty() {
                claims.insert(name.into(), json!(value));
            }
        }
        Ok(Self { key, claims, user_claim: user_claim.to_owned() })
    }

    /// A token of `user`.
    pub(crate) fn token(&mut self, user: &str) -> Result<String, MintError> {
        self.claims.insert(self.user_claim.clone(), json!(user));
        mint(&self.key, &self.claims)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let target: Target = "ws://127.0.0.1:8080/ws".parse().unwrap();
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((&*target.host, &*target.path), ("127.0.0.1:8080", "/ws"));
        let bare: Target = "http://[::1]".parse().unwrap();
        assert_eq!((bare.address.port(), &*bare.path), (80, "/"));
        for bad in ["127.0.0.1:80", "wss://127.0.0.1/ws", "ws://no such host/"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_carry_what_the_load_needs() {
        use gateway_core::auth::{Authenticator, KeySet, Permission, TokenRules, VerificationKey};
        let secret = "a secret of the tests, 32 bytes or more";
        let mut minter = Minter::new(secret, "workflow:load-1-", "sub", ("", "")).unwrap();
        let token = minter.token("u1").unwrap();
        let keys =
            vec![VerificationKey::from_secret(KeyAlgorithm::Hs256, secret.as_bytes()).unwrap()];
        let authenticator = Authenticator::new(TokenRules::default(), KeySet::from(keys), None);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let claims = authenticator.verify(&token, now).unwrap();
        assert_eq!(&*claims.user, "u1");
        assert!(claims.capabilities.allows("workflow:load-1-7", Permission::Publish));
        assert!(!claims.capabilities.allows("workflow:other", Permission::Publish));
    }
}
