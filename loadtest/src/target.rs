//! Where the load goes and who it claims to be: addresses and tokens.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway_core::auth::{KeyAlgorithm, MintError, SigningKey, mint};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use serde_json::{Map, Value, json};

/// Life of the tokens.
const TOKEN_LIFETIME: Duration = Duration::from_secs(86_400);

/// How long one address of a name may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A `ws://`, `wss://`, `http://` or `https://` address, resolved.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Where to connect to.
    pub(crate) address: SocketAddr,
    /// The other addresses of the name.
    others: Vec<SocketAddr>,
    /// `Host` header.
    pub(crate) host: String,
    /// Request target, `/` at least.
    pub(crate) path: String,
    /// Name that the server's certificate must have; absent without TLS.
    name: Option<ServerName<'static>>,
    config: Option<Arc<ClientConfig>>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.trim().split_once("://") else {
            return Err("expected ws://host:port/path (or wss, http, https)".into());
        };
        let (secure, port) = match scheme {
            "ws" | "http" => (false, 80),
            "wss" | "https" => (true, 443),
            _ => return Err(format!("{scheme}:// is not supported: use ws, wss, http or https")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        if host.contains('@') {
            return Err("credentials do not belong into the address; use --secret".into());
        }
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { host.to_owned() } else { format!("{host}:{port}") };
        let mut found =
            with_port.to_socket_addrs().map_err(|error| format!("{with_port}: {error}"))?;
        let address = found.next().ok_or_else(|| format!("{with_port} has no address"))?;
        let bare = with_port.rsplit_once(':').map_or("", |(bare, _)| bare);
        let bare = bare.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = secure.then(|| ServerName::try_from(bare)).transpose();
        Ok(Self {
            address,
            others: found.filter(|other| *other != address).collect(),
            host: host.to_owned(),
            path,
            name: name.map_err(|_| format!("{host} is no name that a certificate can have"))?,
            config: None,
        })
    }
}

impl Target {
    /// Another path on the same server.
    #[must_use]
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// Whether TLS is spoken.
    pub(crate) fn is_secure(&self) -> bool {
        self.name.is_some()
    }

    /// Uses this configuration where TLS is spoken.
    pub(crate) fn trust(&mut self, config: &Arc<ClientConfig>) {
        if self.is_secure() {
            self.config = Some(Arc::clone(config));
        }
    }

    /// Of a name with several addresses, settles for the first one that answers.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        if self.others.is_empty() {
            return Ok(());
        }
        let others = std::mem::take(&mut self.others);
        let candidates = std::iter::once(self.address).chain(others);
        let mut fault = String::new();
        for address in candidates {
            match TcpStream::connect_timeout(&address, PROBE_TIMEOUT) {
                Ok(_) => {
                    self.address = address;
                    return Ok(());
                }
                Err(error) => fault = format!("{address}: {error}"),
            }
        }
        Err(format!("no address of {} answers ({fault})", self.host))
    }

    /// A TLS session for one connection; none without TLS.
    pub(crate) fn session(&self) -> io::Result<Option<ClientConnection>> {
        let (Some(name), Some(config)) = (&self.name, &self.config) else { return Ok(None) };
        let mut session =
            ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
        session.set_buffer_limit(None);
        Ok(Some(session))
    }

    /// A blocking connection.
    pub(crate) fn open(&self, timeout: Duration) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect_timeout(&self.address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(match self.session()? {
            Some(session) => Box::new(StreamOwned::new(session, stream)),
            None => Box::new(stream),
        })
    }
}

/// Something to read from and write to.
pub(crate) trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

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
        assert!(!target.is_secure());
        let bare: Target = "http://[::1]".parse().unwrap();
        assert_eq!((bare.address.port(), &*bare.path), (80, "/"));
        let secure: Target = "wss://[::1]/a/b?c=d#e".parse().unwrap();
        assert_eq!((secure.address, &*secure.path), ("[::1]:443".parse().unwrap(), "/a/b?c=d"));
        assert_eq!(secure.name, Some(ServerName::from(std::net::Ipv6Addr::LOCALHOST)));
        let named: Target = "https://localhost:8443?x".parse().unwrap();
        assert_eq!((&*named.host, &*named.path), ("localhost:8443", "/?x"));
        assert_eq!(named.name.unwrap().to_str(), "localhost");
        for bad in ["127.0.0.1:80", "ftp://127.0.0.1/ws", "ws://no such host/", "ws://a@127.0.0.1/"]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_settles_for_the_address_that_answers() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let mut target: Target = "ws://127.0.0.1:1/".parse().unwrap();
        target.others = vec![there];
        target.settle().unwrap();
        assert_eq!(target.address, there);
        let mut nowhere: Target = "ws://127.0.0.1:1/".parse().unwrap();
        nowhere.others = vec!["127.0.0.2:1".parse().unwrap()];
        assert!(nowhere.settle().unwrap_err().contains("127.0.0.2:1"));
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
