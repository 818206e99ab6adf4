//! Key material: which keys verify tokens and API requests, with their files read.
//!
//! The keys of the development environment are public knowledge; they exist only there, only when no other key is
//! configured, and `checks` refuses them on any address but loopback.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::config::key::{Resolved, Values};
use crate::config::provenance::{ConfigError, Origin};
use crate::config::secret::Secret;
use crate::config::sections::{Algorithm, ApiKeySection, Environment};
use crate::config::value::Value;

/// Signs tokens in development when no key is configured. Known to everybody.
pub const DEVELOPMENT_JWT_SECRET: &str =
    "archmesh-development-secret-known-to-everybody-never-use-it-anywhere-else";

/// API key in development when none is configured. Known to everybody.
pub const DEVELOPMENT_API_KEY: &str = "archmesh-development-api-key-known-to-everybody";

/// Name of [`DEVELOPMENT_API_KEY`].
const DEVELOPMENT_API_KEY_NAME: &str = "development";

/// What verifies connection tokens.
#[derive(Clone, Debug)]
pub enum TokenKey {
    /// A shared secret.
    Secret {
        /// Always one of the HS algorithms.
        algorithm: Algorithm,
        /// Its bytes.
        secret: Secret<Vec<u8>>,
    },
    /// A public key.
    PublicKey {
        /// Never one of the HS algorithms.
        algorithm: Algorithm,
        /// PEM text.
        pem: Vec<u8>,
        /// Where it was read.
        path: PathBuf,
    },
    /// A JWKS in a file, read by the control plane at intervals.
    JwksFile(PathBuf),
    /// A JWKS behind a URL, fetched by the control plane at intervals.
    JwksUrl(String),
}

/// A key of the server API.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// What logs call it.
    pub name: String,
    /// The key.
    pub key: Secret<String>,
}

/// Gives a development node the built-in keys where none are configured.
pub fn add_development_keys(values: &mut Values) {
    let environment = values.get("node", "environment");
    if environment != Some(&Value::Text(Environment::Development.as_str().to_owned())) {
        return;
    }
    let has = |field| values.get("auth", field).is_some();
    let keyless =
        !["secret", "secret_file", "public_key_path", "jwks_file", "jwks_url"].into_iter().any(has);
    let built_in = |text: &str| Resolved {
        value: Value::Text(text.to_owned()),
        origin: Origin::DevelopmentKey,
    };
    if keyless {
        values.0.insert("auth.secret".to_owned(), built_in(DEVELOPMENT_JWT_SECRET));
    }
    if values.names("api.keys").is_empty() {
        let key = format!("api.keys.{DEVELOPMENT_API_KEY_NAME}.key");
        values.0.insert(key, built_in(DEVELOPMENT_API_KEY));
    }
}

/// Reads what verifies connection tokens.
pub fn token_keys(
    config: &Config,
    values: &Values,
    errors: &mut Vec<ConfigError>,
) -> Vec<TokenKey> {
    let auth = &config.auth;
    let mut keys = Vec::new();
    let from_file = auth.secret_file.as_ref().and_then(|path| {
        read(values, "auth.secret_file", path, errors).map(|text| text.trim_end().to_owned())
    });
    let given = auth.secret.as_ref().map(|secret| secret.expose().clone());
    if let Some(secret) = given.or(from_file) {
        let algorithm = auth.algorithm.unwrap_or(Algorithm::Hs256);
        keys.push(TokenKey::Secret { algorithm, secret: Secret::new(secret.into_bytes()) });
    }
    if let Some(path) = &auth.public_key_path {
        let pem = read(values, "auth.public_key_path", path, errors);
        if let (Some(pem), Some(algorithm)) = (pem, auth.algorithm) {
            keys.push(TokenKey::PublicKey { algorithm, pem: pem.into_bytes(), path: path.clone() });
        }
    }
    if let Some(path) = &auth.jwks_file
        && read(values, "auth.jwks_file", path, errors).is_some()
    {
        keys.push(TokenKey::JwksFile(path.clone()));
    }
    keys.extend(auth.jwks_url.clone().map(TokenKey::JwksUrl));
    keys
}

/// Reads the keys of the server API.
pub fn api_keys(config: &Config, values: &Values, errors: &mut Vec<ConfigError>) -> Vec<ApiKey> {
    if !config.api.enabled {
        return Vec::new();
    }
    let mut keys: Vec<ApiKey> = Vec::new();
    for name in values.names("api.keys") {
        let prefix = format!("api.keys.{name}");
        let section = ApiKeySection::read(values, &prefix);
        let key = match (section.key, section.key_file) {
            (Some(key), None) => key.expose().clone(),
            (None, Some(path)) => {
                match read(values, &format!("{prefix}.key_file"), &path, errors) {
                    Some(text) => text.trim_end().to_owned(),
                    None => continue,
                }
            }
            (Some(_), Some(_)) => {
                errors.push(
                    ConfigError::new(prefix, "has both key and key_file")
                        .mend("remove one of them"),
                );
                continue;
            }
            (None, None) => continue,
        };
        if let Some(other) = keys.iter().find(|other| *other.key.expose() == key) {
            let problem = format!("has the same key as {}", other.name);
            errors.push(ConfigError::new(prefix, problem).mend("give each caller its own key"));
        }
        keys.push(ApiKey { name: name.to_owned(), key: Secret::new(key) });
    }
    keys
}

/// Text of the file that `key` names; an error with the key's origin otherwise.
pub fn read(
    values: &Values,
    key: &str,
    path: &Path,
    errors: &mut Vec<ConfigError>,
) -> Option<String> {
    let problem = match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => "names an empty file".to_owned(),
        Ok(text) => return Some(text),
        Err(error) => format!("cannot be read: {error}"),
    };
    let error = ConfigError::new(key, problem).value(path.display().to_string());
    let error = match values.0.get(key) {
        Some(resolved) => error.at(resolved.origin.clone()),
        None => error,
    };
    errors.push(error.mend("put a readable file there, or change the path"));
    None
}
