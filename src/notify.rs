//! Notifications: an inbox per user in the store, told to all devices of the user.
//!
//! A notification, its items, the counters and what is to be published belong to one transaction ([`apply`]); the [`relay`]
//! publishes afterwards, in `user:{id}`. So a counter cannot differ from the rows, and what was answered is not lost. Devices get
//! an item at least once and know it by its id.
//!
//! This module owns who gets what and when; the store owns the connections, the shards own the sockets.

mod apply;
mod arrivals;
mod backlog;
mod breakers;
mod cached;
pub(crate) mod calls;
mod change;
mod channels;
mod contacts;
mod dispatch;
mod insight;
mod item;
pub(crate) mod kinds;
mod leases;
mod outgoing;
mod preferences;
mod reads;
mod relay;
mod request;
mod scheduler;
mod send;
pub(crate) mod senders;
mod template;
mod templates;
mod writer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gateway_core::error::{ClientError, ErrorCode};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::cache::{Cache, CacheError};
use crate::config::sections::{DeliverySection, NotificationsSection};
use crate::config::{Config, Secret};
use crate::plane::SharedPlane;
pub(crate) use crate::store::now_ms;
use crate::store::{Arg, Store, StoreError};
use backlog::Backlog;
use change::Change;
pub(crate) use change::{Applied, Counters, Mark, Which};
pub(crate) use channels::Channels;
pub(crate) use contacts::{ContactChange, Contacts};
pub(crate) use dispatch::{Dispatcher, OUTCOMES as DISPATCH_OUTCOMES};
pub(crate) use insight::{Analytics, DeadLetter, Status};
use preferences::{Preferences, PreferencesError};
pub(crate) use reads::{InboxPage, Page};
pub(crate) use relay::Relay;
pub(crate) use request::{Draft, NotificationRequest, check_ids, check_user, ids_or_all};
pub(crate) use send::Prepared;
use senders::SetupError;
pub(crate) use templates::StoredTemplate;
pub(crate) use writer::Writer;

/// Arrivals that may wait to be looked up; more are left out, and those clients ask for themselves.
const ARRIVALS_MAX: usize = 65_536;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Notifications {
    store: Arc<Store>,
    writer: Writer,
    relay: Arc<Relay>,
    arrivals: mpsc::Sender<arrivals::Arrival>,
    limits: NotificationsSection,
    writers: u32,
    poll_interval: Duration,
    defaults: Preferences,
    cached: cached::Cached,
    channels: Channels,
    compiled: templates::Compiled,
    delivery: DeliverySection,
    dispatcher: OnceLock<Arc<Dispatcher>>,
    /// Told when there are deliveries.
    outgoing: Arc<Notify>,
    backlog: Backlog,
    backlog_interval: Duration,
    stats: SendStats,
}

/// Far ends of the queues into which requests and arrivals go.
#[derive(Debug)]
pub(crate) struct Queues {
    changes: Arc<writer::Changes>,
    arrived: mpsc::Receiver<arrivals::Arrival>,
}

/// Numbers of what was sent.
#[derive(Debug, Default)]
pub(crate) struct SendStats {
    /// Notifications that were taken.
    pub accepted: AtomicU64,
    /// Recipients who got one at once.
    pub now: AtomicU64,
    /// Recipients for whom it waits.
    pub held: AtomicU64,
    /// Recipients who do not want it.
    pub opted_out: AtomicU64,
    /// Recipients without an address for it.
    pub no_address: AtomicU64,
}

/// The configuration of notifications cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotificationsError {
    /// A document that is none.
    #[error("notifications.default_preferences: {0}")]
    DefaultPreferences(#[from] PreferencesError),
    /// A delivery channel.
    #[error(transparent)]
    Channel(#[from] SetupError),
    /// The cache.
    #[error("cache.memory_max_mb, cache.store_percent: {0}")]
    Cache(#[from] CacheError),
}

/// A notification was taken.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    /// Its id, or that of the first one with the same idempotency key.
    pub id: String,
    /// Whether nothing was done, because it had been done before.
    pub duplicate: bool,
    /// Users who have it in their inbox now.
    pub delivered: usize,
    /// Users who get it into their inbox later.
    pub held: usize,
    /// Deliveries by other ways than the inbox.
    pub queued: usize,
    /// Users who do not want it, or whom no way out that is switched on could reach.
    pub opted_out: usize,
    /// Users who want it, and have no address for it.
    pub no_address: usize,
}

/// A request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotifyError {
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The store did not do it.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl From<PreferencesError> for NotifyError {
    fn from(error: PreferencesError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<NotifyError> for ClientError {
    fn from(error: NotifyError) -> Self {
        match error {
            NotifyError::Invalid(problem) => Self::new(ErrorCode::InvalidMessageFormat, problem),
            NotifyError::Store(error) => error.into(),
        }
    }
}

/// What a client is told: not what the database said.
impl From<StoreError> for ClientError {
    fn from(error: StoreError) -> Self {
        match error.root() {
            error @ (StoreError::Open | StoreError::Full | StoreError::Timeout) => {
                Self::new(ErrorCode::Unavailable, format!("{error}; try again"))
            }
            error if error.is_outage() || error.is_conflict() => {
                Self::new(ErrorCode::Unavailable, "the database is not available; try again")
            }
            _ => Self::new(ErrorCode::SystemError, "the store failed; the gateway's log says why"),
        }
    }
}

impl Notifications {
    /// Notifications in `store`, and the queues that [`Self::spawn`] works off; nothing runs before it.
    pub(crate) fn new(
        store: Arc<Store>,
        cache: &Cache,
        config: &Config,
    ) -> Result<(Arc<Self>, Queues), NotificationsError> {
        let (database, limits) = (&config.database, &config.notifications);
        let document = limits.default_preferences.as_deref().unwrap_or("{}");
        let defaults = Preferences::from_slice(document.as_bytes())?;
        let (committed, outgoing) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let bounds = (database.writes_waiting_max as usize, database.batch_max as usize);
        let told = [Arc::clone(&committed), Arc::clone(&outgoing)];
        let (writer, changes) = writer::queue(Arc::clone(&store), bounds, told);
        let (arrivals, arrived) = mpsc::channel(ARRIVALS_MAX);
        let relay = Relay::new(Arc::clone(&store), committed, database.poll_interval);
        let notifications = Self {
            store,
            writer,
            relay: Arc::new(relay),
            arrivals,
            limits: limits.clone(),
            writers: if database.url.is_some() { database.writers } else { 1 },
            poll_interval: database.poll_interval,
            backlog_interval: database.backlog_interval,
            defaults,
            cached: cached::Cached::new(config, cache)?,
            channels: Channels::new(config)?,
            compiled: templates::Compiled::default(),
            delivery: config.delivery.clone(),
            dispatcher: OnceLock::new(),
            outgoing,
            backlog: Backlog::default(),
            stats: SendStats::default(),
        };
        Ok((Arc::new(notifications), Queues { changes, arrived }))
    }

    /// Starts the tasks of the node; once.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        plane: &SharedPlane,
        Queues { changes, arrived }: Queues,
        tasks: &mut JoinSet<()>,
    ) {
        for _ in 0..self.writers {
            tasks.spawn(Arc::clone(&changes).write());
        }
        tasks.spawn(Arc::clone(&self.relay).run(Arc::clone(plane)));
        if self.store.dialect() == crate::store::Dialect::Postgres {
            tasks.spawn(Arc::clone(&self.relay).listen());
        }
        tasks.spawn(scheduler::release(Arc::clone(self)));
        tasks.spawn(scheduler::clean(Arc::clone(self)));
        tasks.spawn(arrivals::run(Arc::clone(self), Arc::clone(plane), arrived));
        tasks.spawn(backlog::watch(Arc::clone(self)));
        if self.channels.any() {
            let start = || Arc::new(Dispatcher::start(self));
            let dispatcher = Arc::clone(self.dispatcher.get_or_init(start));
            tasks.spawn(Arc::clone(&dispatcher).renew(Arc::clone(self)));
            tasks.spawn(dispatcher.run(Arc::clone(self), Arc::clone(&self.outgoing)));
        }
    }

    /// Finishes the deliveries that are under way.
    pub(crate) async fn drain(&self, limit: Duration) {
        if let Some(dispatcher) = self.dispatcher.get() {
            dispatcher.drain(self, limit).await;
        }
    }

    /// What works deliveries off, when a delivery channel is switched on.
    pub(crate) fn dispatcher(&self) -> Option<&Dispatcher> {
        self.dispatcher.get().map(Arc::as_ref)
    }

    /// The ways out.
    pub(crate) fn channels(&self) -> &Channels {
        &self.channels
    }

    /// The queue of changes.
    pub(crate) fn writer(&self) -> &Writer {
        &self.writer
    }

    /// What publishes.
    pub(crate) fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Bounds of requests.
    pub(crate) fn limits(&self) -> &NotificationsSection {
        &self.limits
    }

    fn count(&self, accepted: &Accepted) {
        if accepted.duplicate {
            return;
        }
        self.stats.accepted.fetch_add(1, Ordering::Relaxed);
        self.stats.now.fetch_add(accepted.delivered as u64, Ordering::Relaxed);
        self.stats.held.fetch_add(accepted.held as u64, Ordering::Relaxed);
        self.stats.opted_out.fetch_add(accepted.opted_out as u64, Ordering::Relaxed);
        self.stats.no_address.fetch_add(accepted.no_address as u64, Ordering::Relaxed);
    }

    /// What waits in the store, when it is known.
    pub(crate) fn backlog(&self) -> Option<backlog::Counts> {
        self.backlog.counts()
    }

    /// Numbers since the start.
    pub(crate) fn stats(&self) -> &SendStats {
        &self.stats
    }

    /// Puts a mark on items; tells how many changed and how the inbox stands.
    pub(crate) async fn mark(
        &self,
        user: &str,
        mark: Mark,
        which: Which,
    ) -> Result<(usize, Counters), NotifyError> {
        let change = Change::Mark { user: user.to_owned(), mark, which };
        match self.writer.write(change).await? {
            Applied::Changed(items, counters) => Ok((items, counters)),
            _ => Err(StoreError::Unexpected("another outcome than was asked for").into()),
        }
    }

    /// A page of an inbox.
    pub(crate) async fn page(&self, user: &str, page: &Page) -> Result<InboxPage, NotifyError> {
        if let Some(category) = &page.category {
            request::check_category(category).map_err(NotifyError::Invalid)?;
        }
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let page = reads::page(&mut transaction, user, page, now_ms()).await?;
            transaction.commit().await?;
            Ok(page)
        };
        Ok(self.store.run(read).await?)
    }

    /// Preferences of those of `users` who have any.
    async fn preferences_of(
        &self,
        users: &[String],
    ) -> Result<HashMap<String, Preferences>, NotifyError> {
        let documents = self.cached.preferences(&self.store, users).await?;
        let mut preferences = HashMap::new();
        for (user, document) in users.iter().zip(documents) {
            if let Some(document) = document {
                preferences.insert(user.clone(), Preferences::of_stored(&document));
            }
        }
        Ok(preferences)
    }

    /// The user's own preferences, after merging `patch` into them when there is one, and the defaults; both as JSON.
    pub(crate) async fn preferences(
        &self,
        user: &str,
        patch: Option<&Value>,
    ) -> Result<(Value, Value), NotifyError> {
        let document = self.cached.preferences_of_one(&self.store, user).await?;
        let own = document.map(|document| Preferences::of_stored(&document)).unwrap_or_default();
        let own = match patch {
            None => own,
            Some(patch) => self.change_preferences(user, patch).await?,
        };
        Ok((serde_json::json!(own), serde_json::json!(self.defaults)))
    }

    async fn change_preferences(
        &self,
        user: &str,
        patch: &Value,
    ) -> Result<Preferences, NotifyError> {
        let mut refused = None;
        let change = async {
            let mut transaction = self.store.begin().await?;
            // Made first, so that two changes of the same user wait for each other.
            let row = "INSERT INTO archmesh_preferences (user_id, document, updated_at) VALUES ($1, '{}', $2) \
                       ON CONFLICT (user_id) DO UPDATE SET updated_at = excluded.updated_at RETURNING document";
            let rows = transaction.fetch(row, &[Arg::Text(user), Arg::Int(now_ms())]).await?;
            let document = rows.first().map_or(Ok("{}".to_owned()), |row| row.text(0))?;
            let merged =
                Preferences::from_slice(document.as_bytes()).and_then(|own| own.merge_patch(patch));
            let merged = match merged {
                Ok(merged) => merged,
                Err(error) => {
                    refused = Some(error);
                    transaction.roll_back().await?;
                    return Ok(Preferences::default());
                }
            };
            let document = serde_json::json!(merged).to_string();
            let sql = "UPDATE archmesh_preferences SET document = $2 WHERE user_id = $1";
            transaction.execute(sql, &[Arg::Text(user), Arg::Text(&document)]).await?;
            transaction.commit().await?;
            Ok(merged)
        };
        let merged = self.store.run(change).await?;
        self.cached.forget_preferences(user).await;
        refused.map_or(Ok(merged), |error| Err(error.into()))
    }
}

/// What is wrong with the delivery channels that are switched on, by the key that does it.
pub(crate) fn check_channels(config: &Config) -> Vec<(&'static str, SetupError)> {
    channels::check(config)
}

/// Checks a document of preferences.
pub(crate) fn check_preferences(document: &str) -> Result<(), PreferencesError> {
    Preferences::from_slice(document.as_bytes()).map(|_| ())
}

/// A new key pair for Web Push: public and private, base64url.
pub(crate) fn generate_vapid_keys() -> Option<(String, Secret<String>)> {
    senders::VapidKeys::generate()
}
