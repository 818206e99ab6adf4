//! Everything that changes while the node runs: SIGHUP, rotated keys.
//!
//! A reload first makes all new parts, certificates and keys included, and only then puts them in force: a bad
//! configuration is refused as a whole, loudly, and the old one stays. What can change only at a restart is named in a
//! warning and keeps its old value.

mod delivery;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gateway_core::auth::KeySet;
use gateway_core::settings::Settings;
use gateway_engine::EngineHandle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::api::{ApiKey, ApiPolicy};
use crate::bootstrap::tokens::{self, Lender, TokenKeys};
use crate::config::sections::{EventKind, TlsVersion};
use crate::config::{Config, Loaded, restart_only_changes};
use crate::events::Entry;
use crate::hooks::HookSetups;
use crate::keys::{KeyStore, WatchedFiles};
use crate::logging::{self, Logging};
use crate::plane::SharedPlane;
use crate::tls::{self, LoadedTls, TlsError};
use delivery::{Delivery, RETRY_INTERVAL};

/// A reload is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// The configuration itself.
    #[error("{0}")]
    Config(#[from] crate::config::ConfigErrors),
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Keys for tokens.
    #[error(transparent)]
    Keys(#[from] tokens::TokenKeysError),
    /// The client of hooks.
    #[error("hooks cannot be asked: {0}")]
    Hooks(#[from] crate::notify::senders::SetupError),
    /// The log filter.
    #[error(transparent)]
    Logging(#[from] logging::LoggingError),
    /// Shards with full mailboxes.
    #[error("these shards did not take the new settings in time and are tried on: {0}")]
    Undelivered(String),
}

impl From<crate::keys::KeyLoadError> for ReloadError {
    fn from(error: crate::keys::KeyLoadError) -> Self {
        Self::Keys(error.into())
    }
}

/// The configuration in force, and what is needed to replace it.
#[derive(Debug)]
pub(crate) struct Controller {
    /// In force.
    pub loaded: Loaded,
    plane: SharedPlane,
    engine: EngineHandle,
    logging: Arc<Logging>,
    keys: Keys,
    /// Settings that not every shard has yet.
    undelivered: Option<Delivery>,
    /// Whether a reload counts as failed only because of them.
    reload_incomplete: bool,
}

/// Keys in force, and the tasks that keep them fresh.
#[derive(Debug)]
struct Keys {
    store: KeyStore,
    changes: watch::Receiver<KeySet>,
    _refresh: JoinSet<()>,
    files: WatchedFiles,
}

impl Keys {
    /// Starts to keep the keys fresh, and shows them to the plane.
    fn follow(keys: TokenKeys, config: &Config, plane: &SharedPlane) -> Self {
        let TokenKeys { store, files } = keys;
        plane.keys.store(Some(Arc::new(store.clone())));
        plane.keys_rotate.store(TokenKeys::rotate(config), Ordering::Relaxed);
        Self { changes: store.subscribe(), _refresh: store.spawn_refresh(), store, files }
    }
}

impl Controller {
    /// Takes what the node was started with; starts the refresh of remote keys. Must be called inside the runtime.
    pub(crate) fn new(
        loaded: Loaded,
        plane: SharedPlane,
        engine: EngineHandle,
        logging: Arc<Logging>,
        keys: TokenKeys,
    ) -> Self {
        let keys = Keys::follow(keys, &loaded.config, &plane);
        Self { loaded, plane, engine, logging, keys, undelivered: None, reload_incomplete: false }
    }

    /// Waits until keys were rotated behind a URL or in a file. Meanwhile shards that could not take the settings in
    /// force are tried again.
    ///
    /// # Cancel safety
    /// No change is lost when the future is dropped.
    pub(crate) async fn keys_rotated(&mut self) {
        loop {
            tokio::select! {
                // The store lives in `self`, so its sender cannot be gone.
                _ = self.keys.changes.changed() => return,
                () = self.keys.files.changed() => return,
                () = sleep(RETRY_INTERVAL), if self.undelivered.is_some() => self.redeliver(),
            }
        }
    }

    /// Puts rotated keys in force.
    pub(crate) async fn apply_rotated_keys(&mut self) {
        let result = self.rotate().await;
        if let Err(error) = result {
            tracing::error!(category = "security", event = "key_rotation_failed", %error);
        }
    }

    async fn rotate(&mut self) -> Result<(), ReloadError> {
        if self.keys.files.differ() {
            let keys =
                tokens::load(&self.loaded.config, Lender::Previous(&self.keys.store)).await?;
            self.keys = Keys::follow(keys, &self.loaded.config, &self.plane);
        }
        let settings = settings(&self.loaded.config, &self.keys.store, self.engine.shards())?;
        self.reconfigure(settings).await?;
        tracing::info!(
            category = "security",
            event = "keys_rotated",
            keys = self.keys.store.current().len()
        );
        Ok(())
    }

    /// A token named an unknown key: the URLs are asked, and the files looked at, early.
    pub(crate) fn note_unknown_kid(&mut self) {
        self.keys.store.note_unknown_kid();
        self.keys.files.hint();
    }

    /// Reads the configuration again and puts it in force, or refuses it and keeps the old one.
    pub(crate) async fn reload(&mut self) {
        tracing::info!(category = "system", event = "reload_started");
        let outcome = self.try_reload().await;
        if let Some(events) = &self.plane.events {
            let detail = serde_json::json!({"action": "reload", "ok": outcome.is_ok()});
            events.record(Entry::new(EventKind::AdminAction, &detail));
        }
        match outcome {
            Ok(()) => {
                self.plane.metrics.reload_succeeded();
                tracing::info!(category = "system", event = "reload_finished");
            }
            Err(error @ ReloadError::Undelivered(_)) => {
                self.reload_incomplete = true;
                self.plane.metrics.reload_failed();
                tracing::error!(category = "error", event = "reload_incomplete", %error);
            }
            Err(error) => {
                self.plane.metrics.reload_failed();
                tracing::error!(
                    category = "error",
                    event = "reload_refused",
                    %error,
                    "the new configuration is refused; the old one stays in force",
                );
            }
        }
    }

    async fn try_reload(&mut self) -> Result<(), ReloadError> {
        let mut new = self.loaded.reload()?;
        let kept = new.config.keep_durable(&self.loaded.config);
        logging::parse(&new.config.log.level)?;
        let tls = if self.loaded.config.tls.enabled { load_tls(&new.config)? } else { None };
        let keys = tokens::load(&new.config, Lender::Previous(&self.keys.store)).await?;
        let hooks = HookSetups::new(&new.config)?;
        let mut settings = settings(&new.config, &keys.store, self.engine.shards())?;
        // The name changes only at a restart, and so does what clients see of it.
        settings.node = Arc::clone(&self.plane.settings.load().node);
        // From here on nothing fails.
        let changes = restart_only_changes(&self.loaded.config, &new.config);
        let changes: Vec<String> = changes.into_iter().map(str::to_owned).chain(kept).collect();
        if !changes.is_empty() {
            tracing::warn!(
                category = "system",
                event = "restart_needed",
                keys = changes.join(", ")
            );
        }
        self.logging.set_filter(&new.config.log.level)?;
        if let Some(tls) = tls {
            self.engine.replace_tls(tls.config);
            self.plane.tls_expiry.set(Some(tls.expires_at));
        }
        let workers = Arc::clone(&self.plane.api.load().workers);
        self.plane.api.store(Arc::new(api_policy(&new.config, workers)));
        self.keys = Keys::follow(keys, &new.config, &self.plane);
        // Before the shards begin to ask.
        self.plane.hooks.replace(hooks);
        // An operator who has changed rows by hand reloads to see them.
        self.plane.cache.clear_local();
        self.plane.cache.resize(new.config.cache.store_bytes());
        self.loaded = new;
        self.reconfigure(settings).await
    }

    /// Gives every shard the new settings. A shard with a full mailbox is tried until the watchdog's limit; after that
    /// the reload has failed, and the shard is tried on while the node does its other work.
    async fn reconfigure(&mut self, mut settings: Settings) -> Result<(), ReloadError> {
        // What is recorded changes only at a restart: the log must know a channel's whole story.
        settings.occurrences = self.plane.settings.load().occurrences.clone();
        let settings = Arc::new(settings);
        self.plane.settings.store(Arc::clone(&settings));
        let mut delivery = Delivery::new(settings, &self.plane.bridge);
        let timeout = self.loaded.config.engine.watchdog_timeout;
        if delivery.deliver(&self.plane.bridge, timeout).await {
            self.delivered();
            return Ok(());
        }
        let left = delivery.left();
        self.undelivered = Some(delivery);
        Err(ReloadError::Undelivered(left))
    }

    fn redeliver(&mut self) {
        let bridge = &self.plane.bridge;
        if self.undelivered.as_mut().is_some_and(|delivery| delivery.try_once(bridge)) {
            self.delivered();
            tracing::info!(category = "system", event = "settings_delivered_late");
        }
    }

    /// Every shard has the settings in force.
    fn delivered(&mut self) {
        self.undelivered = None;
        if std::mem::take(&mut self.reload_incomplete) {
            self.plane.metrics.reload_succeeded();
        }
    }
}

/// Settings of the shards with the keys in force.
pub(crate) fn settings(
    config: &Config,
    keys: &KeyStore,
    shards: u16,
) -> Result<Settings, tokens::TokenKeysError> {
    Ok(config.core_settings(Arc::new(tokens::authenticator(config, keys.current())?), shards))
}

/// Certificate and key, when TLS is on.
pub(crate) fn load_tls(config: &Config) -> Result<Option<LoadedTls>, TlsError> {
    match (&config.tls.certificate_path, &config.tls.key_path) {
        (Some(certificate), Some(key)) if config.tls.enabled => {
            let only_1_3 = config.tls.min_version == TlsVersion::Tls13;
            tls::load(certificate, key, only_1_3).map(Some)
        }
        _ => Ok(None),
    }
}

/// Keys and bounds of the server API.
pub(crate) fn api_policy(config: &Config, workers: Arc<tokio::sync::Semaphore>) -> ApiPolicy {
    ApiPolicy {
        keys: config.api_keys.iter().map(|key| ApiKey::new(&key.name, key.key.expose())).collect(),
        body_bytes_max: config.api.body_bytes_max,
        timeout: config.api.timeout,
        batch_max: config.api.batch_max as usize,
        workers,
    }
}
