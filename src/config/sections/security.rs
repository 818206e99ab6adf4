//! TLS, tokens and API keys.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::key::section;
use crate::config::secret::Secret;
use crate::config::sections::{Algorithm, TlsVersion};
use crate::config::value::Kind;

section! {
    /// TLS on the public listeners.
    "tls" => TlsSection {
        /// Whether the public listeners speak TLS. Switch it off only behind a proxy that ends TLS itself.
        enabled: bool = Kind::Bool, Restart;
        /// Certificate chain in PEM, leaf first. Read again at SIGHUP.
        certificate_path: Option<PathBuf> = Kind::File, Live;
        /// Private key in PEM. Read again at SIGHUP.
        key_path: Option<PathBuf> = Kind::File, Live;
        /// Lowest protocol version.
        min_version: TlsVersion = TlsVersion::KIND, Live;
    }
}

section! {
    /// Tokens (JWT). At least one key is needed unless `anonymous` is on: a shared secret, a public key or a JWKS.
    "auth" => AuthSection {
        /// Shared secret of the HS algorithms.
        secret: Option<Secret<String>> = Kind::Secret, Live;
        /// File with the shared secret; white space at its end is ignored.
        secret_file: Option<PathBuf> = Kind::File, Live;
        /// Algorithm of the secret (unset: HS256) or of the public key (then it must be set). A token with another
        /// one is refused.
        algorithm: Option<Algorithm> = Algorithm::KIND, Live;
        /// File with a public key in PEM.
        public_key_path: Option<PathBuf> = Kind::File, Live;
        /// File with a JWKS (RFC 7517). Read again at every `jwks_refresh_interval` and at SIGHUP.
        jwks_file: Option<PathBuf> = Kind::File, Live;
        /// URL of a JWKS. Outside development it must be https unless its host is loopback.
        jwks_url: Option<String> = Kind::Url, Live;
        /// Between two reads of the JWKS.
        jwks_refresh_interval: Duration = Kind::Duration(1_000, 86_400_000), Live;
        /// For one fetch of the JWKS, connecting included.
        jwks_timeout: Duration = Kind::Duration(100, 60_000), Live;
        /// After a token with an unknown key id made the JWKS be read early: how long further unknown ids do not.
        jwks_retry_interval: Duration = Kind::Duration(1_000, 3_600_000), Live;
        /// Failed fetches in a row after which the JWKS is left alone, whatever tokens come.
        jwks_breaker_failures: u32 = Kind::Count(1, 1_000), Live;
        /// How long it is left alone before it is tried again.
        jwks_breaker_open: Duration = Kind::Duration(50, 3_600_000), Live;
        /// How long a JWKS stays in Redis after it was fetched from `jwks_url`, for nodes that start while the URL does not answer
        /// and so that not every node fetches keys that have rotated. 0 switches it off: then nobody who can write to
        /// that Redis can make keys.
        jwks_shared_ttl: Duration = Kind::Duration(0, 604_800_000), Restart;
        /// Accepted `iss` values. Empty: not checked.
        issuers: Vec<String> = Kind::List(&Kind::Text(256), 0, 16), Live;
        /// Accepted `aud` values, one of which must be in the token. Empty: not checked.
        audiences: Vec<String> = Kind::List(&Kind::Text(256), 0, 16), Live;
        /// Claim with the user id.
        user_claim: String = Kind::Text(64), Live;
        /// Length of a token.
        token_bytes_max: usize = Kind::Size(256, 64 << 10), Live;
        /// Clock difference that `exp`, `nbf` and `iat` may have.
        leeway: Duration = Kind::Duration(0, 300_000), Live;
        /// Whether a token without `exp` is refused.
        require_exp: bool = Kind::Bool, Live;
        /// Whether a connection without a token is accepted, with an empty user id.
        anonymous: bool = Kind::Bool, Live;
        /// Whether `?token=` is accepted. Proxies tend to log URLs: turn it off where all clients can do without.
        query_token: bool = Kind::Bool, Live;
        /// Time after `exp` within which a refresh still saves the connection.
        expiry_grace: Duration = Kind::Duration(0, 3_600_000), Live;
        /// Shared secret (HS256) of channel tokens. Unset: the keys of connection tokens.
        channel_token_secret: Option<Secret<String>> = Kind::Secret, Live;
    }
}

section! {
    /// The server API over HTTP.
    "api" => ApiSection {
        /// Whether the API is served.
        enabled: bool = Kind::Bool, Restart;
        /// Body of an API request.
        body_bytes_max: usize = Kind::Size(1 << 10, 64 << 20), Restart;
        /// From the complete request to its answer. Shards and other nodes are waited for half as long.
        timeout: Duration = Kind::Duration(100, 300_000), Restart;
        /// Commands in one batch, and channels in one broadcast.
        batch_max: u32 = Kind::Count(1, 100_000), Restart;
    }
}

section! {
    /// Keys of the server API. Written as `[[api.keys]]` with a `name`, which appears in logs instead of the key.
    "api.keys.*" => ApiKeySection {
        /// The key itself. Either this or `key_file`.
        key: Option<Secret<String>> = Kind::Secret, Live;
        /// File with the key; white space at its end is ignored.
        key_file: Option<PathBuf> = Kind::File, Live;
    }
}
