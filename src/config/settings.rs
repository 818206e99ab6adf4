//! From the configuration to the plain [`Settings`] of the core.

use std::sync::Arc;

use gateway_core::auth::Authenticator;
use gateway_core::hook::{ConnectHook, HookSettings};
use gateway_core::occurrence::OccurrenceSettings;
use gateway_core::proxies::Proxies;
use gateway_core::settings::{
    AllowedOrigins, AuthSettings, BrokerSettings, Diagnostics, HeartbeatSettings, LargeDataLimits,
    Limits, Namespaces, Rate, Settings, WebSocketSettings,
};

use crate::config::Config;
use crate::config::sections::EventKind;

impl Config {
    /// Settings of each of `shards` shards, with `authenticator` made from [`Config::token_keys`].
    pub fn core_settings(&self, authenticator: Arc<Authenticator>, shards: u16) -> Settings {
        Settings {
            node: self.node.name.as_str().into(),
            limits: self.core_limits(shards),
            proxies: Proxies::new(self.listen.proxies.iter().copied()),
            namespaces: self.core_namespaces(),
            websocket: WebSocketSettings {
                path: self.websocket.path.as_str().into(),
                origins: self.allowed_origins(),
                compression: self.websocket.compression,
                compression_level: self.websocket.compression_level,
                compression_bytes_min: self.websocket.compression_bytes_min,
            },
            auth: AuthSettings {
                authenticator,
                anonymous: self.auth.anonymous,
                query_token: self.auth.query_token,
                expiry_grace: self.auth.expiry_grace,
            },
            broker: self
                .redis
                .url
                .as_ref()
                .map(|_| BrokerSettings { detach_delay: self.redis.detach_delay }),
            notifications: self.notifications.enabled,
            occurrences: self.core_occurrences(),
            hooks: HookSettings {
                connect: match self.hook_connect.url {
                    Some(_) => self.hook_connect.mode.to_core(),
                    None => ConnectHook::Off,
                },
                rpc: self.hook_rpc.url.is_some(),
            },
            heartbeat: HeartbeatSettings {
                ping_interval: self.heartbeat.ping_interval,
                pong_timeout: self.heartbeat.pong_timeout,
                idle_timeout: self.heartbeat.idle_timeout,
            },
            diagnostics: Diagnostics {
                echo_path: self.diagnostics.echo_path.as_deref().map(Into::into),
                fault_injection: self.diagnostics.fault_injection,
            },
        }
    }

    fn core_occurrences(&self) -> OccurrenceSettings {
        let events = &self.events;
        let sessions = [EventKind::Connected, EventKind::Disconnected];
        let channels = [EventKind::ChannelOccupied, EventKind::ChannelVacated];
        let records_any = |kinds: &[EventKind]| kinds.iter().any(|kind| self.records(*kind));
        let prefixes = events.channels.iter().filter(|_| records_any(&channels));
        OccurrenceSettings {
            sessions: events.sessions || records_any(&sessions),
            authentication: self.records(EventKind::AuthenticationFailed),
            channels: prefixes
                .map(|prefix| if prefix == "*" { "".into() } else { prefix.as_str().into() })
                .collect(),
            messages: self.records(EventKind::Message),
            waiting_max: events.shard_waiting_max as usize,
            waiting_bytes_max: events.shard_waiting_bytes_max,
        }
    }

    fn core_namespaces(&self) -> Namespaces {
        Namespaces::new(
            self.namespaces.iter().map(|(name, section)| section.to_core(name)).collect(),
        )
    }

    /// Origins of pages that may connect; also those of CORS.
    pub fn allowed_origins(&self) -> AllowedOrigins {
        let origins = &self.websocket.origins;
        if origins.iter().any(|origin| origin == "*") {
            return AllowedOrigins::Any;
        }
        AllowedOrigins::List(origins.iter().map(|origin| origin.as_str().into()).collect())
    }

    /// A tenth of what the rate allows within one interval; 0 when no rate is shared.
    fn messages_shared_min(&self) -> u32 {
        let rates = &self.rate_limits;
        let interval = rates.share_interval;
        if self.redis.url.is_none() || interval.is_zero() || rates.user_messages_per_second == 0 {
            return 0;
        }
        let allowed = f64::from(rates.user_messages_per_second) * interval.as_secs_f64();
        ((allowed / 10.0) as u32).max(1)
    }

    fn core_limits(&self, shards: u16) -> Limits {
        let (limits, rates, channels) = (&self.limits, &self.rate_limits, &self.channels);
        Limits {
            connections_max: limits.connections_max,
            connections_per_user_max: limits.connections_per_user_max,
            connections_per_address_max: limits.connections_per_address_max,
            handshakes: rate(rates.handshakes_per_second, rates.handshakes_burst),
            head_bytes_max: limits.head_bytes_max,
            headers_max: limits.headers_max,
            handshake_timeout: limits.handshake_timeout,
            auth_timeout: limits.auth_timeout,
            message_bytes_max: limits.message_bytes_max,
            fragments_max: limits.fragments_max,
            json_depth_max: limits.json_depth_max,
            subscriptions_max: limits.subscriptions_max,
            requests_in_flight_max: limits.requests_in_flight_max,
            channel_name_bytes_max: channels.name_bytes_max,
            channels_per_shard_max: channels.per_shard_max,
            outbox_bytes_max: self.outbox.connection_bytes_max,
            shard_outbox_bytes_max: self.outbox.shard_bytes_max,
            recovery_bytes_max: channels.recovery_bytes_max,
            history_page_max: channels.history_page_max,
            durable_copy_max: self.durable.copy_publications_max,
            history_bytes_max: self.cache.history_bytes_per_shard(shards),
            presence_members_max: channels.presence_members_max,
            presence_interval: channels.presence_interval,
            close_timeout: self.engine.close_timeout,
            messages_per_connection: rate(
                rates.connection_messages_per_second,
                rates.connection_messages_burst,
            ),
            messages_per_user: rate(rates.user_messages_per_second, rates.user_messages_burst),
            messages_shared_min: self.messages_shared_min(),
            messages_per_address: rate(
                rates.address_messages_per_second,
                rates.address_messages_burst,
            ),
            rate_violations_max: rates.violations_max,
            bad_messages_max: limits.bad_messages_max,
            large_data: self.core_large_data(),
            idempotency_ttl: channels.idempotency_ttl,
            idempotency_keys_max: channels.idempotency_keys_max,
            channel_idle_ttl: channels.idle_ttl,
            last_seen_ttl: channels.last_seen_ttl,
            last_seen_max: channels.last_seen_users_max,
            token_cache_entries_max: limits.token_cache_entries_max,
        }
    }

    fn core_large_data(&self) -> LargeDataLimits {
        let large = &self.large_data;
        LargeDataLimits {
            chunk_bytes_max: large.chunk_bytes_max,
            chunks_max: large.chunks_max,
            transfers_max: large.transfers_max,
            connection_bytes_max: large.connection_bytes_max,
            shard_bytes_max: large.shard_bytes_max,
            expiry: large.expiry,
        }
    }
}

fn rate(per_second: u32, burst: u32) -> Rate {
    if per_second == 0 { Rate::UNLIMITED } else { Rate { per_second, burst } }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use gateway_core::settings::{Access, Priority};

    use super::*;
    use crate::config::Sources;

    fn config(variables: &[(&str, &str)]) -> Config {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&Sources { variables, ..Sources::default() }).unwrap().config
    }

    #[test]
    fn limits_carry_the_values() {
        let config = config(&[
            ("DEPLOYMENT_SIZE", "enterprise"),
            ("ARCHMESH__RATE_LIMITS__USER_MESSAGES_PER_SECOND", "7"),
            ("ARCHMESH__CHANNELS__LAST_SEEN_TTL", "2d"),
        ]);
        let limits = config.core_limits(2);
        assert_eq!(limits.connections_max, 10_000);
        assert_eq!(limits.messages_per_user, Rate { per_second: 7, burst: 400 });
        assert_eq!(limits.messages_per_address, Rate::UNLIMITED);
        assert_eq!(limits.message_bytes_max, 1 << 20);
        assert_eq!(limits.last_seen_ttl, Duration::from_secs(2 * 86_400));
        assert_eq!(limits.large_data.chunk_bytes_max, 64 << 10);
    }

    #[test]
    fn namespaces_build_on_the_built_in_ones() {
        let config = config(&[
            ("ARCHMESH__NAMESPACES__CHAT__PUBLISH", "signed_in"),
            ("ARCHMESH__NAMESPACES__USER__PRIORITY", "critical"),
        ]);
        let namespaces = config.core_namespaces();
        let names: Vec<&str> = namespaces.iter().map(|namespace| &*namespace.name).collect();
        assert_eq!(names, ["user", "workflow", "session", "system", "chat"]);
        let (_, chat) = namespaces.find("chat:1").unwrap();
        assert_eq!((chat.publish, chat.subscribe), (Access::SignedIn, Access::Token));
        let (_, user) = namespaces.find("user:1").unwrap();
        assert_eq!(
            (user.priority, user.subscribe, user.history_size),
            (Priority::Critical, Access::Owner, 100)
        );
    }

    #[test]
    fn built_in_namespaces_survive_the_way_through_the_configuration() {
        let config = config(&[]);
        for (built_in, configured) in
            Namespaces::built_in().iter().zip(config.core_namespaces().iter())
        {
            assert_eq!(format!("{built_in:?}"), format!("{configured:?}"));
        }
    }

    #[test]
    fn origins() {
        assert_eq!(config(&[]).allowed_origins(), AllowedOrigins::Any);
        let listed =
            config(&[("ALLOWED_ORIGINS", "https://App.example.com/, https://*.example.org")]);
        let expected =
            ["https://app.example.com", "https://*.example.org"].map(Into::into).to_vec();
        assert_eq!(listed.allowed_origins(), AllowedOrigins::List(expected));
    }
}
