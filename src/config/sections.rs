//! The sections of the configuration, each as the struct that the rest of the program reads.
//!
//! A table of contents: [`ALL`] is the order of the documentation, [`key`] finds a key by its full name.

mod choices;
mod cluster;
mod database;
mod delivery;
mod events;
mod hooks;
mod messages;
mod security;
mod service;
mod transport;

pub use choices::{
    Algorithm, Balance, Environment, HashBy, LogFormat, MailSecurity, Size, Strategy, TlsVersion,
};
pub use cluster::{ClusterSection, RedisSection};
pub use database::{DatabaseSection, DurableSection, NotificationsSection};
pub use delivery::{DeliverySection, EmailSection, WebPushSection, WebhookSection};
pub use events::{EventKind, EventWebhookSection, EventsSection};
pub use hooks::{
    ConnectHookSection, ConnectMode, HooksSection, OnFailure, PublishHookSection, RpcHookSection,
    SubscribeHookSection,
};
pub use messages::{
    CacheSection, ChannelsSection, HeartbeatSection, LargeDataSection, LimitsSection,
    NamespaceSection, OutboxSection, RateLimitsSection, WebSocketSection,
};
pub use security::{ApiKeySection, ApiSection, AuthSection, TlsSection};
pub use service::{
    ControlSection, DiagnosticsSection, DrainSection, HealthSection, HttpSection, LogSection,
    MetricsSection,
};
pub use transport::{EngineSection, ListenSection, NodeSection};

use crate::config::key::{Key, Section};

/// Every section, in documented order.
pub const ALL: &[&Section] = &[
    &NodeSection::SECTION,
    &ListenSection::SECTION,
    &TlsSection::SECTION,
    &AuthSection::SECTION,
    &ApiSection::SECTION,
    &ApiKeySection::SECTION,
    &HttpSection::SECTION,
    &WebSocketSection::SECTION,
    &HeartbeatSection::SECTION,
    &LimitsSection::SECTION,
    &RateLimitsSection::SECTION,
    &OutboxSection::SECTION,
    &LargeDataSection::SECTION,
    &ChannelsSection::SECTION,
    &NamespaceSection::SECTION,
    &CacheSection::SECTION,
    &RedisSection::SECTION,
    &ClusterSection::SECTION,
    &DatabaseSection::SECTION,
    &DurableSection::SECTION,
    &NotificationsSection::SECTION,
    &DeliverySection::SECTION,
    &EmailSection::SECTION,
    &WebPushSection::SECTION,
    &WebhookSection::SECTION,
    &EventsSection::SECTION,
    &EventWebhookSection::SECTION,
    &HooksSection::SECTION,
    &ConnectHookSection::SECTION,
    &SubscribeHookSection::SECTION,
    &PublishHookSection::SECTION,
    &RpcHookSection::SECTION,
    &EngineSection::SECTION,
    &ControlSection::SECTION,
    &HealthSection::SECTION,
    &MetricsSection::SECTION,
    &LogSection::SECTION,
    &DrainSection::SECTION,
    &DiagnosticsSection::SECTION,
];

/// Lists of named entries: `namespaces.chat.publish` is the field `publish` of the entry `chat`.
pub const FAMILIES: &[&str] = &["api.keys", "namespaces", "webhooks"];

/// Splits the full name of a key of a family into family, name of the entry and field.
pub fn split_family(path: &str) -> Option<(&'static str, &str, &str)> {
    FAMILIES.iter().find_map(|family| {
        let (name, field) = path.strip_prefix(family)?.strip_prefix('.')?.split_once('.')?;
        Some((*family, name, field))
    })
}

/// The key with the full name `path`.
pub fn key(path: &str) -> Option<&'static Key> {
    let found = |section: &str, field: &str| {
        let section = ALL.iter().find(|known| known.name == section)?;
        section.keys.iter().find(|key| key.field == field)
    };
    match split_family(path) {
        Some((family, _, field)) => found(&format!("{family}.*"), field),
        None => path.rsplit_once('.').and_then(|(section, field)| found(section, field)),
    }
}
