//! Defaults that depend on the size tier and on the environment.
//!
//! They lie above the documented defaults and below every file. Where both name a key, the environment wins: it is
//! about safety, the size about amounts.

use crate::config::sections::{Environment, Size};

/// A key and its value for each size, as it would be given in an environment variable.
pub struct BySize {
    /// Full name.
    pub key: &'static str,
    /// Values for small, medium, large, enterprise.
    pub values: [&'static str; 4],
}

/// A key and its value for each environment that differs from the documented default.
pub struct ByEnvironment {
    /// Full name.
    pub key: &'static str,
    /// Values for development, staging, production.
    pub values: [Option<&'static str>; 3],
}

const fn by_size(key: &'static str, values: [&'static str; 4]) -> BySize {
    BySize { key, values }
}

const fn by_environment(key: &'static str, values: [Option<&'static str>; 3]) -> ByEnvironment {
    ByEnvironment { key, values }
}

/// Defaults by size.
pub const SIZES: &[BySize] = &[
    by_size("limits.connections_max", ["100", "1000", "5000", "10000"]),
    by_size("limits.token_cache_entries_max", ["1000", "2000", "10000", "20000"]),
    by_size("rate_limits.handshakes_per_second", ["200", "500", "1000", "2000"]),
    by_size("rate_limits.handshakes_burst", ["200", "1000", "5000", "10000"]),
    by_size("outbox.shard_bytes_max", ["32MiB", "128MiB", "512MiB", "1GiB"]),
    by_size("large_data.shard_bytes_max", ["128MiB", "256MiB", "512MiB", "1GiB"]),
    by_size("channels.per_shard_max", ["10000", "100000", "500000", "1000000"]),
    by_size("cache.memory_max_mb", ["128", "512", "1024", "2048"]),
    by_size("database.connections_max", ["4", "8", "16", "32"]),
    by_size("database.writes_waiting_max", ["1000", "10000", "50000", "100000"]),
    by_size("durable.writes_waiting_max", ["1000", "10000", "50000", "100000"]),
    by_size("delivery.jobs_max", ["1000", "5000", "20000", "50000"]),
    by_size("delivery.workers_max", ["8", "32", "64", "128"]),
    by_size("events.waiting_max", ["2000", "10000", "50000", "100000"]),
    by_size("engine.mailbox_messages_max", ["1000", "50000", "100000", "500000"]),
    by_size("engine.receive_buffers", ["256", "512", "1024", "2048"]),
    by_size("control.workers", ["5", "20", "50", "100"]),
    by_size("health.interval", ["60s", "30s", "15s", "10s"]),
    by_size("drain.connections_per_second", ["100", "200", "500", "1000"]),
];

/// Defaults by environment.
pub const ENVIRONMENTS: &[ByEnvironment] = &[
    by_environment("listen.public", [Some("127.0.0.1:8080"), None, None]),
    by_environment("tls.enabled", [Some("false"), None, None]),
    by_environment("websocket.origins", [Some("*"), None, None]),
    by_environment("limits.connections_per_user_max", [None, Some("100"), Some("100")]),
    by_environment("rate_limits.handshakes_per_second", [Some("0"), None, None]),
    by_environment("database.sqlite_path", [None, None, Some("/var/lib/archmesh/archmesh.db")]),
    by_environment("log.format", [Some("pretty"), None, None]),
];

impl BySize {
    /// Value for `size`.
    pub fn value(&self, size: Size) -> &'static str {
        self.values[match size {
            Size::Small => 0,
            Size::Medium => 1,
            Size::Large => 2,
            Size::Enterprise => 3,
        }]
    }
}

impl ByEnvironment {
    /// Value for `environment`, if it differs from the documented default.
    pub fn value(&self, environment: Environment) -> Option<&'static str> {
        self.values[match environment {
            Environment::Development => 0,
            Environment::Staging => 1,
            Environment::Production => 2,
        }]
    }
}
