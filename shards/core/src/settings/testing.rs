//! The settings that tests and benchmarks begin with, so that none of them writes all of them down again.
//!
//! Part of the crate only with the feature `testing`, which nothing but development dependencies switches on.

use std::sync::Arc;
use std::time::Duration;

use super::{
    AllowedOrigins, AuthSettings, Diagnostics, HeartbeatSettings, LargeDataLimits, Limits,
    Namespaces, Rate, Settings, WebSocketSettings,
};
use crate::auth::{Authenticator, KeySet, TokenRules};
use crate::hook::HookSettings;
use crate::occurrence::OccurrenceSettings;
use crate::proxies::Proxies;

impl Settings {
    /// Settings with nothing in the way of a test: the built-in namespaces, any origin, no compression, an echo endpoint,
    /// no rate limit, and tokens signed with one of `keys`.
    pub fn for_tests(keys: KeySet) -> Self {
        Self {
            node: "test".into(),
            limits: Limits::for_tests(),
            proxies: Proxies::default(),
            namespaces: Namespaces::new(Namespaces::built_in()),
            websocket: WebSocketSettings {
                path: "/ws".into(),
                origins: AllowedOrigins::Any,
                compression: false,
                compression_level: 1,
                compression_bytes_min: 512,
            },
            auth: AuthSettings {
                authenticator: Arc::new(Authenticator::new(TokenRules::default(), keys, None)),
                anonymous: false,
                query_token: true,
                expiry_grace: Duration::from_secs(5),
            },
            broker: None,
            notifications: true,
            occurrences: OccurrenceSettings::default(),
            hooks: HookSettings::default(),
            heartbeat: HeartbeatSettings {
                ping_interval: Duration::from_secs(30),
                pong_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(300),
            },
            diagnostics: Diagnostics { echo_path: Some("/echo".into()), fault_injection: false },
        }
    }
}

impl Limits {
    /// Bounds that a small test does not reach by accident and can reach on purpose.
    pub fn for_tests() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_user_max: 0,
            connections_per_address_max: 0,
            handshakes: Rate::UNLIMITED,
            head_bytes_max: 8192,
            headers_max: 64,
            handshake_timeout: Duration::from_secs(5),
            auth_timeout: Duration::from_secs(10),
            message_bytes_max: 1 << 20,
            fragments_max: 1024,
            json_depth_max: 32,
            subscriptions_max: 128,
            requests_in_flight_max: 64,
            channel_name_bytes_max: 255,
            channels_per_shard_max: 100_000,
            outbox_bytes_max: 256 << 10,
            shard_outbox_bytes_max: 1 << 30,
            recovery_bytes_max: 128 << 10,
            history_page_max: 100,
            durable_copy_max: 10,
            history_bytes_max: 64 << 20,
            presence_members_max: 1000,
            presence_interval: Duration::from_millis(500),
            close_timeout: Duration::from_secs(5),
            messages_per_connection: Rate::UNLIMITED,
            messages_per_user: Rate::UNLIMITED,
            messages_shared_min: 0,
            messages_per_address: Rate::UNLIMITED,
            rate_violations_max: 10,
            bad_messages_max: 10,
            large_data: LargeDataLimits {
                chunk_bytes_max: 64 << 10,
                chunks_max: 1000,
                transfers_max: 4,
                connection_bytes_max: 16 << 20,
                shard_bytes_max: 64 << 20,
                expiry: Duration::from_secs(60),
            },
            idempotency_ttl: Duration::from_secs(300),
            idempotency_keys_max: 100,
            channel_idle_ttl: Duration::from_secs(60),
            last_seen_ttl: Duration::from_secs(86_400),
            last_seen_max: 1000,
            token_cache_entries_max: 100,
        }
    }
}
