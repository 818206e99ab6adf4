//! From the configured keys to the core's authenticator.

use std::path::PathBuf;
use std::time::Duration;

use gateway_core::auth::{
    Authenticator, KeyAlgorithm, KeyError, KeySet, TokenRules, VerificationKey,
};

use crate::breaker::BreakerLimits;
use crate::config::sections::Algorithm;
use crate::config::{Config, TokenKey};
use crate::keys::{JwksSettings, KeyLoadError, KeySource, KeyStore, SharedKeySets, WatchedFiles};

/// The keys for tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenKeysError {
    /// A connection key.
    #[error(transparent)]
    Load(#[from] KeyLoadError),
    /// The secret of channel tokens.
    #[error("auth.channel_token_secret cannot be used: {0}")]
    Channel(#[source] KeyError),
}

/// Keys as read, and the files to look at again.
#[derive(Debug)]
pub(crate) struct TokenKeys {
    /// The keys.
    pub store: KeyStore,
    /// Files of key sets as they were before they were read.
    pub files: WatchedFiles,
}

impl TokenKeys {
    /// Whether these keys can change without a reload.
    pub(crate) fn rotate(config: &Config) -> bool {
        let rotates = |key: &TokenKey| matches!(key, TokenKey::JwksFile(_) | TokenKey::JwksUrl(_));
        config.token_keys.iter().any(rotates)
    }
}

/// What lends the keys of URLs that do not answer now.
#[derive(Debug)]
pub(crate) enum Lender<'a> {
    /// At the start: what other nodes have fetched, where that is shared.
    Nodes(Option<SharedKeySets>),
    /// At a reload: the keys in force.
    Previous(&'a KeyStore),
}

/// Reads all configured keys.
pub(crate) async fn load(config: &Config, lender: Lender<'_>) -> Result<TokenKeys, KeyLoadError> {
    let files = WatchedFiles::new(
        watched_files(config),
        config.auth.jwks_refresh_interval,
        config.auth.jwks_retry_interval,
    );
    let sources = config.token_keys.iter().map(source).collect();
    let auth = &config.auth;
    let jwks = JwksSettings {
        timeout: auth.jwks_timeout,
        interval: auth.jwks_refresh_interval,
        interval_min: auth.jwks_retry_interval,
        retry_min: auth.jwks_retry_interval.min(Duration::from_secs(1)),
        retry_max: auth.jwks_refresh_interval,
        breaker: BreakerLimits {
            failures: auth.jwks_breaker_failures,
            open: auth.jwks_breaker_open,
        },
        allow_http: config.is_development(),
        ..JwksSettings::default()
    };
    let store = match lender {
        Lender::Nodes(shared) => KeyStore::load(shared, sources, jwks).await?,
        Lender::Previous(store) => store.load_again(sources, jwks).await?,
    };
    Ok(TokenKeys { store, files })
}

/// Rules of the configuration with the keys in force.
pub(crate) fn authenticator(
    config: &Config,
    keys: KeySet,
) -> Result<Authenticator, TokenKeysError> {
    let auth = &config.auth;
    let boxed = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
    let rules = TokenRules {
        issuers: boxed(&auth.issuers),
        audiences: boxed(&auth.audiences),
        leeway: auth.leeway,
        require_exp: auth.require_exp,
        token_bytes_max: auth.token_bytes_max,
        user_claim: auth.user_claim.as_str().into(),
    };
    let channel_keys = match &auth.channel_token_secret {
        None => None,
        Some(secret) => {
            let key = VerificationKey::from_secret(KeyAlgorithm::Hs256, secret.expose().as_bytes());
            Some(KeySet::from(vec![key.map_err(TokenKeysError::Channel)?]))
        }
    };
    Ok(Authenticator::new(rules, keys, channel_keys))
}

/// Files of key sets that are looked at again at every refresh interval.
fn watched_files(config: &Config) -> Vec<PathBuf> {
    let file = |key: &TokenKey| match key {
        TokenKey::JwksFile(path) => Some(path.clone()),
        _ => None,
    };
    config.token_keys.iter().filter_map(file).collect()
}

fn source(key: &TokenKey) -> KeySource {
    match key {
        TokenKey::Secret { algorithm, secret } => KeySource::Secret {
            algorithm: core_algorithm(*algorithm),
            id: None,
            secret: String::from_utf8_lossy(secret.expose()).into(),
        },
        TokenKey::PublicKey { algorithm, path, .. } => KeySource::PemFile {
            algorithm: core_algorithm(*algorithm),
            id: None,
            path: path.clone(),
        },
        TokenKey::JwksFile(path) => KeySource::JwksFile { path: path.clone() },
        TokenKey::JwksUrl(url) => KeySource::JwksUrl { url: url.clone() },
    }
}

fn core_algorithm(algorithm: Algorithm) -> KeyAlgorithm {
    match algorithm {
        Algorithm::Hs256 => KeyAlgorithm::Hs256,
        Algorithm::Hs384 => KeyAlgorithm::Hs384,
        Algorithm::Hs512 => KeyAlgorithm::Hs512,
        Algorithm::Rs256 => KeyAlgorithm::Rs256,
        Algorithm::Ps256 => KeyAlgorithm::Ps256,
        Algorithm::Es256 => KeyAlgorithm::Es256,
        Algorithm::EdDsa => KeyAlgorithm::EdDsa,
    }
}
