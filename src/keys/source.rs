//! Key sources as configured, and reading the local ones.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use gateway_core::auth::{KeyAlgorithm, KeyError, KeySet, VerificationKey};
use tokio::io::AsyncReadExt;

use crate::web_client::TrustError;

/// One place with keys for tokens. Its `Debug` never shows a secret.
#[derive(Clone)]
pub(crate) enum KeySource {
    /// A shared secret written in the configuration.
    Secret {
        /// HS256, HS384 or HS512.
        algorithm: KeyAlgorithm,
        /// `kid` of its tokens; any when absent.
        id: Option<Box<str>>,
        /// The secret itself.
        secret: Box<str>,
    },
    /// A public key or certificate in PEM form.
    PemFile {
        /// RS256, PS256, ES256 or EdDSA.
        algorithm: KeyAlgorithm,
        /// `kid` of its tokens; any when absent.
        id: Option<Box<str>>,
        /// Path of the file.
        path: PathBuf,
    },
    /// A JSON Web Key Set; symmetric keys are accepted.
    JwksFile {
        /// Path of the file.
        path: PathBuf,
    },
    /// A JSON Web Key Set fetched over HTTP and kept fresh; symmetric keys are not accepted.
    JwksUrl {
        /// Address, `https` unless plain HTTP is allowed or the host is this machine.
        url: String,
    },
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { algorithm, id, .. } => {
                write!(f, "Secret({algorithm}, kid {id:?}, redacted)")
            }
            Self::PemFile { algorithm, id, path } => {
                write!(f, "PemFile({algorithm}, kid {id:?}, {})", path.display())
            }
            Self::JwksFile { path } => write!(f, "JwksFile({})", path.display()),
            Self::JwksUrl { url } => write!(f, "JwksUrl({url:?})"),
        }
    }
}

/// Why the configured keys cannot be used. For the operator: says where and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyLoadError {
    /// The configured secret.
    #[error("the token secret in the configuration cannot be used: {0}")]
    Secret(#[source] KeyError),
    /// A file that cannot be read.
    #[error(
        "the key file {path} cannot be read: {source}; check that it exists and that the gateway's user may read it"
    )]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file above the limit.
    #[error("the key file {path} is larger than {bytes_max} bytes; is it the right file?")]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Limit in bytes.
        bytes_max: usize,
    },
    /// A file without a usable key.
    #[error("the key file {path} cannot be used: {source}")]
    Key {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with the key.
        source: KeyError,
    },
    /// A key set file in which no key is usable.
    #[error(
        "the key set {path} has no usable signature key ({reasons}); add one of RS256, PS256, ES256, EdDSA or HS256/384/512"
    )]
    NoUsableKey {
        /// Path of the file.
        path: PathBuf,
        /// Why each key was left out.
        reasons: String,
    },
    /// An address that is not acceptable.
    #[error("the JWKS address {url:?} cannot be used: {reason}")]
    Url {
        /// The address, without user and password.
        url: String,
        /// What is wrong, and what to do.
        reason: &'static str,
    },
    /// No HTTP client.
    #[error("no HTTP client for the JWKS: {0}")]
    Client(#[from] TrustError),
}

/// Reads the key of a local source; `None` for a URL.
pub(super) async fn read_local(
    source: &KeySource,
    bytes_max: usize,
) -> Result<Option<KeySet>, KeyLoadError> {
    let key = match source {
        KeySource::Secret { algorithm, id, secret } => {
            VerificationKey::from_secret(*algorithm, secret.as_bytes())
                .map_err(KeyLoadError::Secret)?
                .with_id(id.clone())
        }
        KeySource::PemFile { algorithm, id, path } => {
            let bytes = read_file(path, bytes_max).await?;
            VerificationKey::from_pem(*algorithm, &bytes)
                .map_err(|source| KeyLoadError::Key { path: path.clone(), source })?
                .with_id(id.clone())
        }
        KeySource::JwksFile { path } => return read_jwks(path, bytes_max).await.map(Some),
        KeySource::JwksUrl { .. } => return Ok(None),
    };
    Ok(Some(vec![key].into()))
}

/// Reads at most `bytes_max` bytes of a file.
async fn read_file(path: &Path, bytes_max: usize) -> Result<Vec<u8>, KeyLoadError> {
    let failed = |source| KeyLoadError::Read { path: path.to_owned(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() > bytes_max {
        return Err(KeyLoadError::TooLarge { path: path.to_owned(), bytes_max });
    }
    Ok(bytes)
}

async fn read_jwks(path: &Path, bytes_max: usize) -> Result<KeySet, KeyLoadError> {
    let unusable = |source| KeyLoadError::Key { path: path.to_owned(), source };
    let bytes = read_file(path, bytes_max).await?;
    let text = String::from_utf8(bytes).map_err(|_| unusable(KeyError::Jwks("not UTF-8 text")))?;
    let (keys, skipped) = KeySet::from_jwks(&text, bytes_max, true).map_err(unusable)?;
    if keys.is_empty() {
        let reasons =
            if skipped.is_empty() { "it is empty".to_owned() } else { skipped.join("; ") };
        return Err(KeyLoadError::NoUsableKey { path: path.to_owned(), reasons });
    }
    for reason in &skipped {
        tracing::warn!(category = "security", event = "jwks_key_skipped", path = %path.display(), reason);
    }
    Ok(keys)
}
