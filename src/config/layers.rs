//! Sources of values and how each becomes a list of entries.
//!
//! An [`Entry`] is a full key with what was written and where. Nothing is checked against the table here, except that
//! the shape is one a source can have; the caller parses, and the last entry of a key wins.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::provenance::{ConfigError, Origin};
use crate::config::sections::FAMILIES;
use crate::config::service_variables;
use crate::config::toml_source;
use crate::config::value::Raw;

/// Everything a configuration is made from. Plain data, so that a reload and a test read the same way.
#[derive(Clone, Default)]
pub struct Sources {
    /// Files, the later ones on top.
    pub files: Vec<PathBuf>,
    /// Environment variables of the process.
    pub variables: Vec<(String, String)>,
    /// Flags on top of all: full key, text, and the flag as the user wrote it.
    pub flags: Vec<FlagValue>,
    /// Name of the host, the default of `node.name`.
    pub host: String,
}

/// Variables and flags may be secret, so only their number is shown.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("files", &self.files)
            .field("variables", &self.variables.len())
            .field("flags", &self.flags.len())
            .finish_non_exhaustive()
    }
}

/// A value given by flag.
#[derive(Clone)]
pub struct FlagValue {
    /// Full key.
    pub key: String,
    /// The value as text.
    pub text: String,
    /// Name of the flag, e.g. `--listen`.
    pub flag: String,
}

impl Sources {
    /// Sources of this process: its variables (`ARCHMESH_CONFIG` names files, separated by `:`, below those of
    /// `files`) and its host name.
    pub fn of_process(files: Vec<PathBuf>, flags: Vec<FlagValue>) -> Self {
        let named = std::env::var_os("ARCHMESH_CONFIG").unwrap_or_default();
        let mut all: Vec<PathBuf> =
            std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect();
        all.extend(files);
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { files: all, variables, flags, host: host.trim().to_owned() }
    }
}

/// What a source says about a key.
#[derive(Clone)]
pub struct Entry {
    /// Full key.
    pub key: String,
    /// The value as written.
    pub raw: Raw,
    /// Where.
    pub origin: Origin,
}

impl Entry {
    pub(super) fn text(key: &str, text: &str, origin: Origin) -> Self {
        Self { key: key.to_owned(), raw: Raw::Text(text.to_owned()), origin }
    }
}

/// Flat variables of the product and their keys. `HOST`, `PORT` and `API_KEY` are read apart.
pub const FLAT_VARIABLES: &[(&str, &str)] = &[
    ("ENVIRONMENT", "node.environment"),
    ("DEPLOYMENT_SIZE", "node.size"),
    ("ENABLE_SSL", "tls.enabled"),
    ("SSL_CERT_PATH", "tls.certificate_path"),
    ("SSL_KEY_PATH", "tls.key_path"),
    ("CACHE_MAX_MEMORY_MB", "cache.memory_max_mb"),
    ("ALLOWED_ORIGINS", "websocket.origins"),
    ("JWT_SECRET", "auth.secret"),
    ("JWT_ALGORITHM", "auth.algorithm"),
    ("JWT_ISSUER", "auth.issuers"),
    ("JWT_AUDIENCE", "auth.audiences"),
    ("JWT_PUBLIC_KEY_PATH", "auth.public_key_path"),
    ("JWT_JWKS_URL", "auth.jwks_url"),
    ("LOG_LEVEL", "log.level"),
    ("API_KEY", "api.keys.env.key"),
];

/// Prefix of the variables that name a key.
pub const PREFIX: &str = "ARCHMESH__";

/// Keys of the errors that stand for a file without usable content.
pub const UNREADABLE: [&str; 2] = ["--config", "TOML"];

/// All entries of files, variables and flags, lowest layer first, and what cannot be read.
pub fn collect(sources: &Sources) -> (Vec<Entry>, Vec<ConfigError>) {
    let mut entries = Vec::new();
    let mut errors = Vec::new();
    for path in &sources.files {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let path = Arc::new(path.clone());
                let origin = |line| Origin::File(Arc::clone(&path), line);
                toml_source::entries(&text, &origin, &mut entries, &mut errors);
            }
            Err(error) => errors.push(
                ConfigError::new("--config", format!("cannot be read: {error}"))
                    .value(path.display().to_string())
                    .mend("give the path of a readable TOML file"),
            ),
        }
    }
    flat_variables(&sources.variables, &mut entries);
    address_variables(&sources.variables, &mut entries, &mut errors);
    service_variables::read(&sources.variables, &mut entries, &mut errors);
    let mut named: Vec<_> =
        sources.variables.iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    named.sort();
    for (name, value) in named {
        let key = key_of_variable(&name[PREFIX.len()..]);
        entries.push(Entry::text(&key, value, Origin::Variable(name.clone())));
    }
    for flag in &sources.flags {
        entries.push(Entry::text(&flag.key, &flag.text, Origin::Flag(flag.flag.clone())));
    }
    (entries, errors)
}

/// `LIMITS__AUTH_TIMEOUT` → `limits.auth_timeout`.
fn key_of_variable(name: &str) -> String {
    name.to_ascii_lowercase().replace("__", ".")
}

/// `limits.auth_timeout` → `ARCHMESH__LIMITS__AUTH_TIMEOUT`.
pub fn variable_of_key(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// A flat variable that is empty counts as not set: compose files pass optional ones on that way.
fn flat_variables(variables: &[(String, String)], entries: &mut Vec<Entry>) {
    for (name, key) in FLAT_VARIABLES {
        let value = variables.iter().find(|(known, value)| known == name && !value.is_empty());
        if let Some((name, value)) = value {
            entries.push(Entry::text(key, value, Origin::Variable(name.clone())));
        }
    }
}

/// `HOST` and `PORT` together are one public address. What is not given is taken from the layers below, which only
/// the caller knows, so a placeholder stands for it.
fn address_variables(
    variables: &[(String, String)],
    entries: &mut Vec<Entry>,
    errors: &mut Vec<ConfigError>,
) {
    let find = |name: &str| {
        let found = variables.iter().find(|(known, value)| known == name && !value.is_empty());
        found.map(|(_, value)| value.trim())
    };
    let (host, port) = (find("HOST"), find("PORT"));
    let name = match (host, port) {
        (None, None) => return,
        (Some(_), Some(_)) => "HOST and PORT",
        (Some(_), None) => "HOST",
        (None, Some(_)) => "PORT",
    };
    let before = errors.len();
    let mut refuse = |name: &str, value: &str, problem: &str, expected: &str| {
        errors.push(
            ConfigError::new("listen.public", problem)
                .value(format!("{value:?}"))
                .at(Origin::Variable(name.to_owned()))
                .expected(expected.to_owned()),
        );
    };
    if let Some(port) = port.filter(|port| port.parse::<u16>().is_err()) {
        refuse("PORT", port, "is not a port", "a whole number from 0 to 65535");
    }
    let host = host.map(|host| if host == "localhost" { "127.0.0.1" } else { host });
    let address = host.and_then(|host| host.parse::<IpAddr>().ok());
    if let (Some(host), None) = (host, address) {
        refuse("HOST", host, "is not an IP address", "an address to listen on, e.g. 0.0.0.0");
    }
    if errors.len() == before {
        let host = match address {
            Some(IpAddr::V6(address)) => format!("[{address}]"),
            Some(IpAddr::V4(address)) => address.to_string(),
            None => LOWER_HOST.to_owned(),
        };
        let text = format!("{host}:{}", port.unwrap_or(LOWER_PORT));
        entries.push(Entry::text("listen.public", &text, Origin::Variable(name.to_owned())));
    }
}

/// Stands for the address that the layers below `PORT` give.
pub const LOWER_HOST: &str = "{host}";
/// Stands for the port that the layers below `HOST` give.
pub const LOWER_PORT: &str = "{port}";

/// `REDIS_SERVICE_HOST=...`, `REDIS_PORT=tcp://...`, `REDIS_PORT_6379_TCP=...`.
pub(super) fn is_service_link(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_")
        || name.contains("_PORT_")
        || (name.ends_with("_PORT") && value.starts_with("tcp://"))
}

/// Whether `key` names an entry list as a whole (`namespaces`), which only a file can give.
pub fn is_family(key: &str) -> bool {
    FAMILIES.contains(&key)
}
