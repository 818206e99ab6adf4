//! From sources to a [`Config`]: collect, parse, merge, resolve, check.
//!
//! Every given value is parsed, also one that a higher layer hides, so that a mistake never waits in a file. A value
//! that does not parse is replaced by that of the layer below, only to go on and find the other errors.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use gateway_core::settings::{Namespace, Namespaces};

use crate::config::Config;
use crate::config::checks;
use crate::config::key::{FromValue, Key, Resolved, Values};
use crate::config::keys;
use crate::config::layers::{self, Entry, LOWER_HOST, LOWER_PORT, Sources};
use crate::config::provenance::{ConfigError, ConfigErrors, Origin, shown};
use crate::config::sections::{self, Environment, EventWebhookSection, NamespaceSection, Size};
use crate::config::tiers;
use crate::config::toml_source::{self, BLOCK, ENTRY_NAME, is_entry_name};
use crate::config::value::{Kind, Raw, Value};

/// The documented defaults.
pub const DEFAULTS: &str = include_str!("../../config/gateway.toml");

/// Keys of earlier versions, and what takes their place.
const FORMER: [(&str, &str); 1] = [(
    "delivery.allow_insecure",
    "it has become webhook.allow_insecure, for your own webhook, and web_push.allow_insecure, for URLs that users give",
)];

/// A value that parsed; `None` unsets an optional key.
struct Given {
    key: String,
    value: Option<Value>,
    origin: Origin,
}

/// Values given so far, and what is wrong with the rest.
#[derive(Default)]
struct Reading {
    given: Vec<Given>,
    errors: Vec<ConfigError>,
    /// Keys with a wrong value; rules about them are not checked.
    wrong: BTreeSet<String>,
    /// Names of namespaces that exist, also those without a field.
    namespaces: BTreeSet<String>,
    /// Names of webhooks that exist.
    webhooks: BTreeSet<String>,
    /// Blocks of a file, by full key (`api.keys.backend`).
    blocks: Vec<Entry>,
}

/// Reads and checks everything.
pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
    let (entries, errors) = layers::collect(sources);
    // Without the content of a broken file, rules between keys would speak of values that are not meant.
    let complete = !errors.iter().any(|error| layers::UNREADABLE.contains(&error.key.as_str()));
    let mut reading = Reading { errors, ..Reading::default() };
    for error in &reading.errors {
        reading.wrong.insert(error.key.clone());
    }
    let (patches, entries): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_patch);
    for entry in &entries {
        reading.read(entry);
    }
    let mut values = base(sources, &reading);
    apply_patches(&values, patches, &mut reading);
    for given in reading.given {
        match given.value {
            Some(value) => {
                values.0.insert(given.key, Resolved { value, origin: given.origin });
            }
            None => {
                values.0.remove(&given.key);
            }
        }
    }
    let mut errors = reading.errors;
    let keyless = |block: &&Entry| {
        block.key.starts_with("api.keys.")
            && !["key", "key_file"].iter().any(|field| values.get(&block.key, field).is_some())
    };
    errors.extend(reading.blocks.iter().filter(keyless).map(|block| {
        ConfigError::new(&block.key, "has no key")
            .at(block.origin.clone())
            .mend("give it key or key_file")
    }));
    keys::add_development_keys(&mut values);
    let mut config = from_values(values);
    if complete {
        config.token_keys = keys::token_keys(&config, &config.values, &mut errors);
        config.api_keys = keys::api_keys(&config, &config.values, &mut errors);
        checks::check(&config, &config.values, &reading.wrong, &mut errors);
    }
    if errors.is_empty() {
        return Ok(config);
    }
    errors.sort_by(|a, b| a.key.cmp(&b.key));
    Err(ConfigErrors(errors))
}

impl Reading {
    fn read(&mut self, entry: &Entry) {
        if entry.raw == BLOCK {
            if let Some(name) = entry.key.strip_prefix("namespaces.") {
                self.namespaces.insert(name.to_owned());
            }
            if let Some(name) = entry.key.strip_prefix("webhooks.") {
                self.webhooks.insert(name.to_owned());
            }
            return self.blocks.push(entry.clone());
        }
        match sections::split_family(&entry.key) {
            Some((family, name, _)) if !is_entry_name(name) => {
                let error = ConfigError::new(format!("{family}.{name}"), "is not a name")
                    .at(entry.origin.clone())
                    .expected(ENTRY_NAME.to_owned());
                return self.refuse(&entry.key, error);
            }
            Some(("namespaces", name, _)) => {
                self.namespaces.insert(name.to_owned());
            }
            Some(("webhooks", name, _)) => {
                self.webhooks.insert(name.to_owned());
            }
            _ => {}
        }
        let Some(key) = sections::key(&entry.key) else {
            return self.refuse(&entry.key, unknown(entry));
        };
        if key.optional
            && matches!(&entry.raw, Raw::Text(text) | Raw::String(text) if text.is_empty())
        {
            return self.give(entry, None);
        }
        match key.kind.parse(&entry.raw) {
            Ok(value) => self.give(entry, Some(value)),
            Err(problem) => self.refuse(&entry.key, unfit(key, entry, problem)),
        }
    }

    fn give(&mut self, entry: &Entry, value: Option<Value>) {
        let (key, origin) = (entry.key.clone(), entry.origin.clone());
        self.given.push(Given { key, value, origin });
    }

    fn refuse(&mut self, key: &str, error: ConfigError) {
        self.wrong.insert(key.to_owned());
        self.errors.push(error);
    }

    /// The last value given for `key`.
    fn last<T: FromValue>(&self, key: &str) -> Option<T> {
        let given = self.given.iter().rev().find(|given| given.key == key)?;
        given.value.as_ref().map(|value| T::from_value(Some(value)))
    }
}

fn unfit(key: &Key, entry: &Entry, problem: String) -> ConfigError {
    let value = shown(&key.kind, &entry.raw.to_string());
    let problem = if key.kind.is_secret() { "is not usable text".to_owned() } else { problem };
    ConfigError::new(&entry.key, problem)
        .value(value)
        .at(entry.origin.clone())
        .expected(key.kind.expected())
}

/// The value of an unknown key is not shown: it may be a secret with a misspelt name.
fn unknown(entry: &Entry) -> ConfigError {
    let error = ConfigError::new(&entry.key, "is not a key").at(entry.origin.clone());
    if let Some((_, mend)) = FORMER.iter().find(|(former, _)| *former == entry.key) {
        return error.mend(*mend);
    }
    match nearest(&entry.key) {
        Some(known) => error.mend(format!("did you mean {known}?")),
        None => error.mend("`archmesh config docs` lists all keys"),
    }
}

/// The known key that differs from `key` in the fewest characters, if they are few.
fn nearest(key: &str) -> Option<&'static str> {
    const DISTANCE_MAX: usize = 3;
    sections::ALL
        .iter()
        .flat_map(|section| section.keys)
        .map(|known| (distance(key, known.path), known.path))
        .filter(|(distance, _)| *distance <= DISTANCE_MAX)
        .min()
        .map(|(_, path)| path)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

/// Defaults, size tier, environment and namespaces' own defaults.
fn base(sources: &Sources, reading: &Reading) -> Values {
    let mut values = defaults();
    let read = |field| values.get("node", field);
    let size = reading.last("node.size").unwrap_or_else(|| Size::from_value(read("size")));
    let environment = reading
        .last("node.environment")
        .unwrap_or_else(|| Environment::from_value(read("environment")));
    for tier in tiers::SIZES {
        put(&mut values, tier.key, tier.value(size), Origin::Size(size));
    }
    for profile in tiers::ENVIRONMENTS {
        if let Some(text) = profile.value(environment) {
            put(&mut values, profile.key, text, Origin::Environment(environment));
        }
    }
    let host = if sources.host.is_empty() { "archmesh" } else { &sources.host };
    put(&mut values, "node.name", host, Origin::Host);
    let built_in = Namespaces::built_in();
    for namespace in &built_in {
        put_namespace(&mut values, namespace);
    }
    for name in &reading.namespaces {
        if !built_in.iter().any(|namespace| *namespace.name == **name) {
            put_namespace(&mut values, &Namespace::closed(name));
        }
    }
    for name in &reading.webhooks {
        for (field, value) in EventWebhookSection::defaults() {
            let resolved = Resolved { value, origin: Origin::Default };
            values.0.insert(format!("webhooks.{name}.{field}"), resolved);
        }
    }
    values
}

/// The documented defaults. They are part of the program, so a mistake in them is a bug.
pub fn defaults() -> Values {
    let (mut entries, mut errors) = (Vec::new(), Vec::new());
    toml_source::entries(DEFAULTS, &|_| Origin::Default, &mut entries, &mut errors);
    let mut values = Values::default();
    for entry in entries {
        let key = sections::key(&entry.key).expect("a test reads the documented defaults");
        let value = key.kind.parse(&entry.raw).expect("a test reads the documented defaults");
        values.0.insert(entry.key, Resolved { value, origin: entry.origin });
    }
    values
}

fn put(values: &mut Values, path: &'static str, text: &str, origin: Origin) {
    let key = sections::key(path).expect("a test builds every tier and environment");
    if let Ok(value) = key.kind.parse(&Raw::Text(text.to_owned())) {
        values.0.insert(path.to_owned(), Resolved { value, origin });
    }
}

fn put_namespace(values: &mut Values, namespace: &Namespace) {
    for (field, value) in NamespaceSection::values_of(namespace) {
        let key = format!("namespaces.{}.{field}", namespace.name);
        values.0.insert(key, Resolved { value, origin: Origin::Default });
    }
}

/// Whether the entry changes only a part of the address that lower layers give.
fn is_patch(entry: &Entry) -> bool {
    entry.key == "listen.public"
        && matches!(&entry.raw, Raw::Text(text) if text.contains(LOWER_HOST) || text.contains(LOWER_PORT))
}

/// `PORT` without `HOST`, or the other way round. They lie above files and below named variables and flags.
fn apply_patches(base: &Values, patches: Vec<Entry>, reading: &mut Reading) {
    for mut patch in patches {
        let lower = reading
            .given
            .iter()
            .rfind(|given| given.key == "listen.public" && matches!(given.origin, Origin::File(..)))
            .and_then(|given| given.value.as_ref())
            .or_else(|| base.get("listen", "public"));
        let first = Vec::<SocketAddr>::from_value(lower)[0];
        let host = first.ip();
        let host = if host.is_ipv6() { format!("[{host}]") } else { host.to_string() };
        if let Raw::Text(text) = &mut patch.raw {
            *text = text.replace(LOWER_HOST, &host).replace(LOWER_PORT, &first.port().to_string());
        }
        let Ok(value) = Kind::List(&Kind::Address, 1, 1).parse(&patch.raw) else { continue };
        let above = reading.given.iter().position(|given| {
            given.key == "listen.public" && !matches!(given.origin, Origin::File(..))
        });
        let given = Given { key: patch.key, value: Some(value), origin: patch.origin };
        reading.given.insert(above.unwrap_or(reading.given.len()), given);
    }
}

fn from_values(values: Values) -> Config {
    let built_in = Namespaces::built_in();
    let is_built_in = |name: &&str| built_in.iter().any(|known| &*known.name == *name);
    let mut names: Vec<&str> = built_in.iter().map(|namespace| &*namespace.name).collect();
    names.extend(values.names("namespaces").into_iter().filter(|name| !is_built_in(name)));
    let namespaces = names
        .iter()
        .map(|name| {
            ((*name).to_owned(), NamespaceSection::read(&values, &format!("namespaces.{name}")))
        })
        .collect();
    let webhooks = values.names("webhooks").into_iter().map(|name| {
        (name.to_owned(), EventWebhookSection::read(&values, &format!("webhooks.{name}")))
    });
    let webhooks = webhooks.collect();
    Config {
        node: sections::NodeSection::read(&values, "node"),
        listen: sections::ListenSection::read(&values, "listen"),
        tls: sections::TlsSection::read(&values, "tls"),
        auth: sections::AuthSection::read(&values, "auth"),
        api: sections::ApiSection::read(&values, "api"),
        http: sections::HttpSection::read(&values, "http"),
        websocket: sections::WebSocketSection::read(&values, "websocket"),
        heartbeat: sections::HeartbeatSection::read(&values, "heartbeat"),
        limits: sections::LimitsSection::read(&values, "limits"),
        rate_limits: sections::RateLimitsSection::read(&values, "rate_limits"),
        outbox: sections::OutboxSection::read(&values, "outbox"),
        large_data: sections::LargeDataSection::read(&values, "large_data"),
        channels: sections::ChannelsSection::read(&values, "channels"),
        namespaces,
        cache: sections::CacheSection::read(&values, "cache"),
        redis: sections::RedisSection::read(&values, "redis"),
        database: sections::DatabaseSection::read(&values, "database"),
        durable: sections::DurableSection::read(&values, "durable"),
        notifications: sections::NotificationsSection::read(&values, "notifications"),
        delivery: sections::DeliverySection::read(&values, "delivery"),
        email: sections::EmailSection::read(&values, "email"),
        web_push: sections::WebPushSection::read(&values, "web_push"),
        webhook: sections::WebhookSection::read(&values, "webhook"),
        hooks: sections::HooksSection::read(&values, "hooks"),
        hook_connect: sections::ConnectHookSection::read(&values, "hooks.connect"),
        hook_subscribe: sections::SubscribeHookSection::read(&values, "hooks.subscribe"),
        hook_publish: sections::PublishHookSection::read(&values, "hooks.publish"),
        hook_rpc: sections::RpcHookSection::read(&values, "hooks.rpc"),
        cluster: sections::ClusterSection::read(&values, "cluster"),
        engine: sections::EngineSection::read(&values, "engine"),
        control: sections::ControlSection::read(&values, "control"),
        health: sections::HealthSection::read(&values, "health"),
        metrics: sections::MetricsSection::read(&values, "metrics"),
        log: sections::LogSection::read(&values, "log"),
        drain: sections::DrainSection::read(&values, "drain"),
        diagnostics: sections::DiagnosticsSection::read(&values, "diagnostics"),
        events: sections::EventsSection::read(&values, "events"),
        webhooks,
        token_keys: Vec::new(),
        api_keys: Vec::new(),
        values,
    }
}
