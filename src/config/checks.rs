//! Rules that no single key can state: combinations that cannot work or would not be safe.
//!
//! A rule about a key whose value did not even parse is skipped: its error would be about a value nobody gave.

mod events;
mod hooks;
mod notifications;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use gateway_core::settings::AutoSubscribe;

use crate::config::Config;
use crate::config::key::Values;
use crate::config::keys;
use crate::config::provenance::{ConfigError, Origin};
use crate::config::sections::{Algorithm, Balance, ConnectMode, Environment};

/// Collects the errors of all rules.
struct Checker<'a> {
    config: &'a Config,
    values: &'a Values,
    wrong: &'a BTreeSet<String>,
    errors: &'a mut Vec<ConfigError>,
}

/// Appends an error for each rule that does not hold.
pub fn check(
    config: &Config,
    values: &Values,
    wrong: &BTreeSet<String>,
    errors: &mut Vec<ConfigError>,
) {
    let mut checker = Checker { config, values, wrong, errors };
    checker.tls();
    checker.token_keys();
    checker.secrets();
    checker.jwks();
    checker.api();
    checker.development_keys();
    checker.listeners();
    checker.engine();
    checker.origins();
    checker.heartbeat();
    checker.sizes();
    checker.large_data();
    checker.drain();
    checker.cluster();
    checker.diagnostics();
    checker.namespaces();
    checker.events();
    checker.notifications();
    checker.hooks();
}

impl Checker<'_> {
    /// Refuses the combination of `keys` unless it holds. The first key's value and origin are shown.
    fn require(&mut self, holds: bool, keys: &[&str], problem: &str, mend: &str) {
        if holds || keys.iter().any(|key| self.wrong.contains(*key)) {
            return;
        }
        let mut error = ConfigError::new(keys[0], problem).mend(mend);
        if let Some(resolved) = self.values.0.get(keys[0]) {
            let secret =
                crate::config::sections::key(keys[0]).is_none_or(|key| key.kind.is_secret());
            if !secret {
                error = error.value(resolved.value.to_string());
            }
            error = error.at(resolved.origin.clone());
        }
        self.errors.push(error);
    }

    fn tls(&mut self) {
        let tls = &self.config.tls;
        if !tls.enabled {
            return;
        }
        for (key, path) in
            [("tls.certificate_path", &tls.certificate_path), ("tls.key_path", &tls.key_path)]
        {
            match path {
                Some(path) => {
                    keys::read(self.values, key, path, self.errors);
                }
                None => self.require(
                    false,
                    &[key, "tls.enabled"],
                    "is not set, and TLS is enabled",
                    "set SSL_CERT_PATH and SSL_KEY_PATH, or ENABLE_SSL=false if a proxy in front ends TLS",
                ),
            }
        }
    }

    fn token_keys(&mut self) {
        let auth = &self.config.auth;
        let any = auth.secret.is_some()
            || auth.secret_file.is_some()
            || auth.public_key_path.is_some()
            || auth.jwks_file.is_some()
            || auth.jwks_url.is_some();
        let asked = &self.config.hook_connect;
        let by_hook = asked.url.is_some() && asked.mode == ConnectMode::InsteadOfToken;
        self.require(
            any || auth.anonymous || by_hook,
            &["auth.secret", "auth.secret_file", "auth.public_key_path", "auth.jwks_file", "auth.jwks_url"],
            "is not set, nor any other key that could verify a token",
            "set JWT_SECRET, JWT_PUBLIC_KEY_PATH or JWT_JWKS_URL (or auth.secret_file, auth.jwks_file)",
        );
        let secrets = u8::from(auth.secret.is_some()) + u8::from(auth.secret_file.is_some());
        let local = secrets + u8::from(auth.public_key_path.is_some());
        self.require(
            local <= 1,
            &["auth.secret", "auth.secret_file", "auth.public_key_path"],
            "excludes each other: auth.secret, auth.secret_file and auth.public_key_path",
            "keep one of them; use a JWKS for several keys",
        );
        self.require(
            auth.jwks_file.is_none() || auth.jwks_url.is_none(),
            &["auth.jwks_url", "auth.jwks_file"],
            "excludes auth.jwks_file",
            "keep one of them",
        );
        let symmetric = auth.algorithm.and_then(Algorithm::secret_bytes_min).is_some();
        self.require(
            auth.public_key_path.is_none() || (auth.algorithm.is_some() && !symmetric),
            &["auth.algorithm", "auth.public_key_path"],
            "does not name the algorithm of the public key",
            "set JWT_ALGORITHM to RS256, PS256, ES256 or EdDSA",
        );
        self.require(
            secrets == 0 || auth.algorithm.is_none() || symmetric,
            &["auth.algorithm", "auth.secret", "auth.secret_file"],
            "is not an algorithm of a shared secret",
            "set JWT_ALGORITHM to HS256, HS384 or HS512, or give a public key instead",
        );
    }

    /// A short secret can be found from one token on a laptop, and the built-in ones are public.
    fn secrets(&mut self) {
        let production = !self.config.is_development();
        let key =
            if self.config.auth.secret.is_some() { "auth.secret" } else { "auth.secret_file" };
        for token_key in &self.config.token_keys {
            if let keys::TokenKey::Secret { algorithm, secret } = token_key {
                let min = algorithm.secret_bytes_min().unwrap_or(0);
                self.require(
                    secret.expose().len() >= min,
                    &[key, "auth.algorithm"],
                    &format!("is shorter than the {min} bytes that {} needs", algorithm.as_str()),
                    "use `openssl rand -hex 64`",
                );
                self.require(
                    !production || secret.expose() != keys::DEVELOPMENT_JWT_SECRET.as_bytes(),
                    &[key],
                    "is the secret of the development environment, which everybody knows",
                    "use `openssl rand -hex 64`",
                );
            }
        }
        let channel = self.config.auth.channel_token_secret.as_ref();
        self.require(
            channel.is_none_or(|secret| secret.expose().len() >= 32),
            &["auth.channel_token_secret"],
            "is shorter than the 32 bytes that HS256 needs",
            "use `openssl rand -hex 64`",
        );
        for key in &self.config.api_keys {
            let path = format!("api.keys.{}.key", key.name);
            self.require(
                !production
                    || (key.key.expose().len() >= 16
                        && key.key.expose() != keys::DEVELOPMENT_API_KEY),
                &[&path],
                "is shorter than 16 bytes, or the key of the development environment",
                "use `openssl rand -hex 32`",
            );
        }
    }

    fn jwks(&mut self) {
        let auth = &self.config.auth;
        let plain = auth.jwks_url.as_deref().and_then(|url| url.strip_prefix("http://"));
        let loopback = plain.is_some_and(|rest| {
            ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
                rest.strip_prefix(host)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
            })
        });
        self.require(
            plain.is_none() || loopback || self.config.is_development(),
            &["auth.jwks_url"],
            "is not https: whoever sits on the way could put in keys of their own",
            "use an https URL",
        );
        self.require(
            auth.jwks_shared_ttl.is_zero() || self.config.redis.url.is_some(),
            &["auth.jwks_shared_ttl", "redis.url"],
            "is set, but there is no Redis that nodes share",
            "set REDIS_URL (redis.url), or auth.jwks_shared_ttl to 0s",
        );
    }

    fn api(&mut self) {
        let api = &self.config.api;
        self.require(
            !api.enabled || !self.config.api_keys.is_empty() || self.has_wrong_api_key(),
            &["api.keys", "api.enabled"],
            "is empty, and the server API is enabled",
            "set API_KEY, add a [[api.keys]] block, or set api.enabled = false",
        );
    }

    fn has_wrong_api_key(&self) -> bool {
        self.wrong.iter().any(|key| key.starts_with("api.keys"))
            || self.errors.iter().any(|error| error.key.starts_with("api.keys"))
    }

    /// The built-in keys are public: with them only this machine may reach the node.
    fn development_keys(&mut self) {
        let config = self.config;
        let addresses = config.listen.public.iter().chain(&config.listen.internal);
        let open = addresses.into_iter().any(|address| !address.ip().is_loopback());
        let listen = ["listen.public", "listen.internal", "node.environment"];
        let uses: Vec<String> = self
            .values
            .0
            .iter()
            .filter(|(_, resolved)| resolved.origin == Origin::DevelopmentKey)
            .map(|(key, _)| key.clone())
            .filter(|key| config.api.enabled || !key.starts_with("api."))
            .collect();
        for key in uses {
            let mut keys = vec![key.as_str()];
            keys.extend(listen);
            self.require(
                !open,
                &keys,
                "is not set, and the built-in development key is only for loopback addresses",
                "set JWT_SECRET and API_KEY, or listen on 127.0.0.1",
            );
        }
    }

    fn listeners(&mut self) {
        let listen = &self.config.listen;
        let taken = |address: SocketAddr, others: &[SocketAddr]| {
            address.port() != 0
                && others.iter().any(|other| {
                    other.port() == address.port()
                        && (other.ip() == address.ip() || other.ip().is_unspecified())
                })
        };
        self.require(
            !listen.internal.is_some_and(|internal| taken(internal, &listen.public)),
            &["listen.internal", "listen.public"],
            "is also a public address",
            "give the internal listener another port",
        );
        let others: Vec<SocketAddr> =
            listen.public.iter().copied().chain(listen.internal).collect();
        self.require(
            !listen.agent.is_some_and(|agent| taken(agent, &others)),
            &["listen.agent", "listen.public", "listen.internal"],
            "is also the address of another listener",
            "give the agent check another port",
        );
    }

    fn engine(&mut self) {
        let engine = &self.config.engine;
        let shards = usize::from(engine.shards);
        let by_weight = engine.balance == Balance::WeightedRoundRobin;
        self.require(
            !by_weight || (shards > 0 && engine.weights.len() == shards),
            &["engine.weights", "engine.shards", "engine.balance"],
            "does not have one weight per shard, which weighted_round_robin needs",
            "set engine.shards and as many engine.weights",
        );
        self.require(
            by_weight || engine.weights.is_empty(),
            &["engine.weights", "engine.balance"],
            "has an effect only with engine.balance = \"weighted_round_robin\"",
            "change engine.balance, or remove the weights",
        );
        self.require(
            engine.cpus.is_empty() || shards == 0 || engine.cpus.len() == shards,
            &["engine.cpus", "engine.shards"],
            "does not have one CPU per shard",
            "list as many CPUs as engine.shards, or set engine.shards = 0",
        );
        let distinct: BTreeSet<_> = engine.cpus.iter().collect();
        self.require(
            distinct.len() == engine.cpus.len(),
            &["engine.cpus"],
            "names a CPU twice",
            "give each shard its own CPU",
        );
        self.require(
            engine.receive_turn_bytes_max >= engine.receive_buffer_bytes,
            &["engine.receive_turn_bytes_max", "engine.receive_buffer_bytes"],
            "is smaller than one receive buffer",
            "raise it to engine.receive_buffer_bytes or more",
        );
        self.require(
            engine.stall_threshold < engine.watchdog_timeout,
            &["engine.stall_threshold", "engine.watchdog_timeout"],
            "is not shorter than engine.watchdog_timeout",
            "lower it",
        );
    }

    fn origins(&mut self) {
        let origins = &self.config.websocket.origins;
        self.require(
            origins.len() <= 1 || !origins.iter().any(|origin| origin == "*"),
            &["websocket.origins"],
            "has * beside other origins",
            "use * alone for any origin, or remove it",
        );
        self.require(
            self.config.node.environment != Environment::Production
                || !origins.iter().any(|origin| origin == "*"),
            &["websocket.origins", "node.environment"],
            "lets every web site connect with its visitors' browsers",
            "list the origins of your own pages",
        );
    }

    fn heartbeat(&mut self) {
        let heartbeat = &self.config.heartbeat;
        self.require(
            heartbeat.pong_timeout <= heartbeat.ping_interval,
            &["heartbeat.pong_timeout", "heartbeat.ping_interval"],
            "is longer than heartbeat.ping_interval",
            "lower it",
        );
        self.require(
            heartbeat.idle_timeout > heartbeat.ping_interval,
            &["heartbeat.idle_timeout", "heartbeat.ping_interval"],
            "is not longer than heartbeat.ping_interval, so quiet clients would be closed before their pong",
            "raise it to several ping intervals",
        );
        let limits = &self.config.limits;
        self.require(
            limits.auth_timeout >= limits.handshake_timeout,
            &["limits.auth_timeout", "limits.handshake_timeout"],
            "is shorter than limits.handshake_timeout, which is a part of it",
            "raise it",
        );
    }

    fn sizes(&mut self) {
        /// Envelope around the data of a message, at most.
        const ENVELOPE_BYTES: usize = 4 << 10;
        let (limits, outbox) = (&self.config.limits, &self.config.outbox);
        self.require(
            outbox.connection_bytes_max >= limits.message_bytes_max + ENVELOPE_BYTES,
            &["outbox.connection_bytes_max", "limits.message_bytes_max"],
            "does not hold the largest message with its envelope (limits.message_bytes_max + 4KiB)",
            "raise it, or lower limits.message_bytes_max",
        );
        self.require(
            outbox.connection_bytes_max >= self.config.channels.recovery_bytes_max + ENVELOPE_BYTES,
            &["outbox.connection_bytes_max", "channels.recovery_bytes_max"],
            "does not hold the largest recovery (channels.recovery_bytes_max + 4KiB)",
            "raise it, or lower channels.recovery_bytes_max",
        );
        self.require(
            outbox.shard_bytes_max >= outbox.connection_bytes_max,
            &["outbox.shard_bytes_max", "outbox.connection_bytes_max"],
            "is smaller than outbox.connection_bytes_max",
            "raise it",
        );
    }

    fn large_data(&mut self) {
        let (large, message) = (&self.config.large_data, self.config.limits.message_bytes_max);
        self.require(
            large.chunk_bytes_max.div_ceil(3) * 4 + 1024 <= message,
            &["large_data.chunk_bytes_max", "limits.message_bytes_max"],
            "does not fit into one message in base64 (limits.message_bytes_max)",
            "lower it, or raise limits.message_bytes_max",
        );
        self.require(
            large.connection_bytes_max >= large.chunk_bytes_max,
            &["large_data.connection_bytes_max", "large_data.chunk_bytes_max"],
            "is smaller than one chunk",
            "raise it",
        );
        self.require(
            large.shard_bytes_max >= large.connection_bytes_max,
            &["large_data.shard_bytes_max", "large_data.connection_bytes_max"],
            "is smaller than large_data.connection_bytes_max",
            "raise it, or lower that one",
        );
    }

    /// A drain that cannot tell all clients in time would cut the last ones off.
    fn drain(&mut self) {
        let (drain, connections) = (&self.config.drain, self.config.limits.connections_max);
        let rate = u64::from(drain.connections_per_second);
        self.require(
            rate == 0
                || u128::from(connections) * 1000 <= u128::from(rate) * drain.timeout.as_millis(),
            &["drain.connections_per_second", "drain.timeout", "limits.connections_max"],
            "does not get limits.connections_max clients told within drain.timeout",
            "raise it or drain.timeout",
        );
    }

    fn cluster(&mut self) {
        let (redis, cluster) = (&self.config.redis, &self.config.cluster);
        let urls = [("redis.url", redis.url.as_slice())];
        for (key, urls) in urls.into_iter().chain([("redis.channel_urls", &redis.channel_urls[..])])
        {
            self.require(
                urls.iter().all(|url| is_redis_url(url.expose())),
                &[key],
                "is not the URL of a Redis server",
                "give one such as redis://user:password@redis.example.com:6379/0 (docs/redis.md)",
            );
        }
        self.require(
            redis.url.is_some() || cluster.url.is_none(),
            &["cluster.url", "redis.url"],
            "is set, but nodes meet in Redis, and redis.url is not set",
            "set redis.url, or unset cluster.url",
        );
        self.require(
            redis.url.is_some() || redis.channel_urls.is_empty(),
            &["redis.channel_urls", "redis.url"],
            "is set, but nodes meet in redis.url, which is not set",
            "set redis.url to one of them, or to another server",
        );
        self.require(
            self.config.database.url.as_ref().is_none_or(|url| {
                ["postgres://", "postgresql://"].iter().any(|scheme| url.expose().starts_with(scheme))
            }),
            &["database.url"],
            "is not the URL of a PostgreSQL database",
            "give one such as postgres://user:password@db.example.com:5432/archmesh (docs/database.md)",
        );
        self.require(
            cluster.lease_ttl >= 3 * cluster.lease_interval,
            &["cluster.lease_ttl", "cluster.lease_interval"],
            "is less than three times cluster.lease_interval, so one late renewal could end a lease",
            "raise it, or renew more often",
        );
    }

    fn diagnostics(&mut self) {
        let config = self.config;
        self.require(
            !config.diagnostics.fault_injection || config.is_development(),
            &["diagnostics.fault_injection", "node.environment"],
            "lets clients stop a shard, and is only for the development environment",
            "remove it",
        );
        let echo = config.diagnostics.echo_path.as_ref();
        self.require(
            echo.is_none() || config.node.environment != Environment::Production,
            &["diagnostics.echo_path", "node.environment"],
            "accepts connections without a token, and is not for production",
            "remove it",
        );
        self.require(
            echo.is_none_or(|path| *path != config.websocket.path),
            &["diagnostics.echo_path", "websocket.path"],
            "is the path of the native protocol",
            "choose another path",
        );
        let path = &config.websocket.path;
        let taken = ["/health", "/health/detailed", "/live", "/ready", "/metrics"];
        self.require(
            !taken.contains(&path.as_str()) && !path.starts_with("/api/"),
            &["websocket.path"],
            "is a path of the control plane",
            "choose another path",
        );
    }

    fn namespaces(&mut self) {
        for (name, namespace) in &self.config.namespaces {
            let key = |field: &str| format!("namespaces.{name}.{field}");
            let (size, ttl) = (key("history_size"), key("history_ttl"));
            let history = namespace.history_size > 0 && !namespace.history_ttl.is_zero();
            self.require(
                history == (namespace.history_size > 0)
                    && history != namespace.history_ttl.is_zero(),
                &[&size, &ttl],
                "and history_ttl make a history only together",
                "set both, or both to zero",
            );
            for (field, on) in [
                ("recovery", namespace.recovery),
                ("history_access", namespace.history_access),
                ("durable", namespace.durable),
            ] {
                self.require(
                    history || !on,
                    &[&key(field), &size, &ttl],
                    "needs a history",
                    "set history_size and history_ttl as well",
                );
            }
            self.require(
                namespace.presence || !namespace.join_leave,
                &[&key("join_leave"), &key("presence")],
                "needs presence",
                "set presence = true as well",
            );
            self.require(
                namespace.auto_subscribe == AutoSubscribe::Never
                    || name.len() < self.config.channels.name_bytes_max,
                &[&key("auto_subscribe"), "channels.name_bytes_max"],
                "subscribes to names longer than channels.name_bytes_max",
                "raise channels.name_bytes_max",
            );
        }
    }
}

fn is_redis_url(url: &str) -> bool {
    const SCHEMES: [&str; 8] = [
        "redis://",
        "rediss://",
        "redis-sentinel://",
        "rediss-sentinel://",
        "redis-cluster://",
        "rediss-cluster://",
        "valkey://",
        "valkeys://",
    ];
    let mut rests = SCHEMES.iter().filter_map(|scheme| url.strip_prefix(scheme));
    rests.any(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace))
}
