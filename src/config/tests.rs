//! The whole way from sources to a configuration.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use gateway_core::settings::{Access, AllowedOrigins, Priority, Rate};

use super::*;
use crate::config::key::FromValue;
use crate::config::sections::{Algorithm, Size};

/// Variables that make a production node complete without TLS.
const PRODUCTION: &[(&str, &str)] = &[
    ("ENVIRONMENT", "production"),
    ("ENABLE_SSL", "false"),
    ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
    ("API_KEY", "0123456789abcdef"),
];

fn sources(variables: &[(&str, &str)]) -> Sources {
    Sources {
        variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        host: "host-1".to_owned(),
        ..Sources::default()
    }
}

fn with(base: &[(&str, &str)], more: &[(&str, &str)]) -> Sources {
    sources(&[base, more].concat())
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn from_file(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let file = file(text);
    let sources = Sources { files: vec![file.path().to_owned()], ..sources(variables) };
    Config::load(&sources)
}

fn config(sources: &Sources) -> Config {
    Config::load(sources).unwrap_or_else(|errors| panic!("{errors}")).config
}

/// Every error must be found, and each line must hold all words of its entry.
fn check_errors(result: Result<Loaded, ConfigErrors>, expected: &[&[&str]]) {
    let errors = result.expect_err("must be refused");
    let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    for words in expected {
        assert!(
            lines.iter().any(|line| words.iter().all(|word| line.contains(word))),
            "{words:?} not in\n{}",
            lines.join("\n")
        );
    }
    assert_eq!(lines.len(), expected.len(), "{}", lines.join("\n"));
}

#[test]
fn nothing_given_is_a_development_node() {
    let config = config(&sources(&[]));
    assert!(config.is_development());
    assert_eq!(config.node.name, "host-1");
    assert_eq!(config.listen.public, vec!["127.0.0.1:8080".parse().unwrap()]);
    assert!(!config.tls.enabled);
    assert_eq!(config.api_keys[0].key.expose(), DEVELOPMENT_API_KEY);
    assert!(
        matches!(&config.token_keys[..], [TokenKey::Secret { algorithm: Algorithm::Hs256, secret }]
        if secret.expose() == DEVELOPMENT_JWT_SECRET.as_bytes())
    );
}

#[test]
fn core_settings_carry_the_values() {
    let config = config(&with(
        PRODUCTION,
        &[
            ("DEPLOYMENT_SIZE", "enterprise"),
            ("ALLOWED_ORIGINS", "https://App.example.com/, https://*.example.org"),
            ("ARCHMESH__RATE_LIMITS__USER_MESSAGES_PER_SECOND", "7"),
            ("ARCHMESH__NAMESPACES__CHAT__PUBLISH", "signed_in"),
            ("ARCHMESH__NAMESPACES__USER__PRIORITY", "critical"),
        ],
    ));
    let settings = config.core_settings(Arc::new(gateway_core::auth::Authenticator));
    assert_eq!(settings.limits.connections_max, 10_000);
    assert_eq!(settings.limits.messages_per_user, Rate { per_second: 7, burst: 400 });
    assert_eq!(settings.limits.messages_per_address, Rate::UNLIMITED);
    assert_eq!(settings.limits.message_bytes_max, 1 << 20);
    assert_eq!(settings.heartbeat.idle_timeout, Duration::from_secs(300));
    let origins = ["https://app.example.com", "https://*.example.org"].map(Into::into).to_vec();
    assert_eq!(settings.websocket.origins, AllowedOrigins::List(origins));
    let (_, chat) = settings.namespaces.find("chat:1").unwrap();
    assert_eq!((chat.publish, chat.subscribe), (Access::SignedIn, Access::Token));
    let (_, user) = settings.namespaces.find("user:1").unwrap();
    assert_eq!(
        (user.priority, user.subscribe, user.history_size),
        (Priority::Critical, Access::Owner, 100)
    );
}
