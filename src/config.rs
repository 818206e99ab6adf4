//! Configuration: from sources (defaults, size tier, environment, files, variables, flags) to checked, typed
//! sections.
//!
//! [`Config::load`] either gives a whole, consistent configuration or every error at once. Nothing behind it parses
//! text, and nothing here starts, opens or connects anything; it only reads files. A reload is another `load`.

pub mod checks;
pub mod docs;
pub mod key;
pub mod keys;
pub mod layers;
pub mod load;
pub mod print;
pub mod provenance;
pub mod secret;
pub mod sections;
pub mod service_variables;
pub mod settings;
pub mod tiers;
pub mod toml_source;
pub mod value;

use key::{Reload, Values};
pub use keys::{ApiKey, DEVELOPMENT_API_KEY, DEVELOPMENT_JWT_SECRET, TokenKey};
pub use layers::{FlagValue, Sources};
pub use print::Format;
pub use provenance::{ConfigError, ConfigErrors};
pub use secret::Secret;
use sections::{
    ApiSection, AuthSection, CacheSection, ChannelsSection, ClusterSection, ConnectHookSection,
    ControlSection, DatabaseSection, DeliverySection, DiagnosticsSection, DrainSection,
    DurableSection, EmailSection, EngineSection, Environment, EventKind, EventWebhookSection,
    EventsSection, HealthSection, HeartbeatSection, HooksSection, HttpSection, LargeDataSection,
    LimitsSection, ListenSection, LogSection, MetricsSection, NamespaceSection, NodeSection,
    NotificationsSection, OutboxSection, PublishHookSection, RateLimitsSection, RedisSection,
    RpcHookSection, SubscribeHookSection, TlsSection, WebPushSection, WebSocketSection,
    WebhookSection,
};

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What this node is.
    pub node: NodeSection,
    /// Where it listens.
    pub listen: ListenSection,
    /// TLS on the public listeners. When enabled, both paths are set.
    pub tls: TlsSection,
    /// Rules for tokens; the keys are in `token_keys`.
    pub auth: AuthSection,
    /// Server API; the keys are in `api_keys`.
    pub api: ApiSection,
    /// HTTP server of the control plane.
    pub http: HttpSection,
    /// WebSocket endpoint.
    pub websocket: WebSocketSection,
    /// Pings and idle time.
    pub heartbeat: HeartbeatSection,
    /// Bounds of connections.
    pub limits: LimitsSection,
    /// Token buckets.
    pub rate_limits: RateLimitsSection,
    /// Unsent bytes.
    pub outbox: OutboxSection,
    /// Chunked transfers.
    pub large_data: LargeDataSection,
    /// Channels.
    pub channels: ChannelsSection,
    /// Namespaces with their names: the built-in ones first, then the others by name.
    pub namespaces: Vec<(String, NamespaceSection)>,
    /// Memory for histories.
    pub cache: CacheSection,
    /// Where the nodes of a cluster meet.
    pub redis: RedisSection,
    /// The durable store.
    pub database: DatabaseSection,
    /// Durable channels.
    pub durable: DurableSection,
    /// Notifications.
    pub notifications: NotificationsSection,
    /// Deliveries by other ways than the inbox.
    pub delivery: DeliverySection,
    /// Mail.
    pub email: EmailSection,
    /// Push messages of browsers.
    pub web_push: WebPushSection,
    /// Webhook of notifications.
    pub webhook: WebhookSection,
    /// Questions to the application.
    pub hooks: HooksSection,
    /// Whether a client may connect.
    pub hook_connect: ConnectHookSection,
    /// Whether a client may subscribe.
    pub hook_subscribe: SubscribeHookSection,
    /// Whether a client may publish.
    pub hook_publish: PublishHookSection,
    /// Calls of clients to the application.
    pub hook_rpc: RpcHookSection,
    /// This node's part in a cluster.
    pub cluster: ClusterSection,
    /// Shards.
    pub engine: EngineSection,
    /// Executor of the control plane.
    pub control: ControlSection,
    /// Health.
    pub health: HealthSection,
    /// Metrics.
    pub metrics: MetricsSection,
    /// Logs.
    pub log: LogSection,
    /// Orderly end.
    pub drain: DrainSection,
    /// Switches for tests.
    pub diagnostics: DiagnosticsSection,
    /// The log of events.
    pub events: EventsSection,
    /// Endpoints that are told of events, by name.
    pub webhooks: Vec<(String, EventWebhookSection)>,
    /// Keys that verify connection tokens, files already read.
    pub token_keys: Vec<TokenKey>,
    /// Keys of the server API, files already read; empty when the API is off.
    pub api_keys: Vec<ApiKey>,
    /// All values, for comparison with another configuration.
    values: Values,
}

/// A configuration and what it was made from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where it came from; files are read again by [`Loaded::reload`].
    pub sources: Sources,
}

impl Loaded {
    /// Reads the same sources again: files as they are now, variables and flags as they were at the start.
    pub fn reload(&self) -> Result<Self, ConfigErrors> {
        Config::load(&self.sources)
    }
}

impl Config {
    /// Reads the sources and checks everything.
    ///
    /// # Errors
    /// All that is wrong, in order of the keys.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
        load::load(sources).map(|config| Loaded { config, sources: sources.clone() })
    }

    /// Whether any namespace is durable.
    pub fn has_durable_channels(&self) -> bool {
        self.namespaces.iter().any(|(_, namespace)| namespace.durable)
    }

    /// Leaves every namespace as durable as it is in `old`: channels that exist cannot change where their publications are.
    /// Answers the keys that would have changed.
    pub fn keep_durable(&mut self, old: &Self) -> Vec<String> {
        let mut changed = Vec::new();
        for (name, namespace) in &mut self.namespaces {
            let before = old.namespaces.iter().find(|(known, _)| known == name);
            let durable = before.is_some_and(|(_, namespace)| namespace.durable);
            if std::mem::replace(&mut namespace.durable, durable) != durable {
                changed.push(format!("namespaces.{name}.durable"));
            }
        }
        changed
    }

    /// Whether events of this kind are recorded, for their own sake or for a webhook.
    pub fn records(&self, kind: EventKind) -> bool {
        self.events.record.contains(&kind)
            || self.webhooks.iter().any(|(_, webhook)| webhook.events.contains(&kind))
    }

    /// Whether there is a log of events.
    pub fn has_events(&self) -> bool {
        self.events.sessions || EventKind::ALL.iter().any(|kind| self.records(*kind))
    }

    /// Whether this is a developer's machine.
    pub fn is_development(&self) -> bool {
        self.node.environment == Environment::Development
    }
}

/// Keys that differ between the two and take effect only at the next start.
pub fn restart_only_changes(old: &Config, new: &Config) -> Vec<&'static str> {
    let value = |config: &Config, path: &str| {
        config.values.0.get(path).map(|resolved| resolved.value.clone())
    };
    sections::ALL
        .iter()
        .flat_map(|section| section.keys)
        .filter(|key| key.reload == Reload::Restart)
        .map(|key| key.path)
        .filter(|path| value(old, path) != value(new, path))
        .collect()
}

#[cfg(test)]
mod tests;
