//! All keys of one configuration, and the tasks that keep them fresh.
//!
//! Every change goes through [`KeyStore::replace`], which publishes one whole key set. An unchanged document
//! publishes nothing, because subscribers empty their token caches on every set they get.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use gateway_core::auth::KeySet;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::remote::{FetchError, Remote};
use super::schedule::Schedule;
use super::shared::SharedKeySets;
use super::source::read_local;
use super::{KeyLoadError, KeySource};
use crate::breaker::{Breaker, BreakerLimits, BreakerState, Change};
use crate::cache::LoadError;

/// How key sets are fetched and how much of any key file is read.
#[derive(Clone, Debug)]
pub(crate) struct JwksSettings {
    /// For a whole fetch, from connecting to the last byte.
    pub(crate) timeout: Duration,
    /// Largest key file or answer, in bytes.
    pub(crate) bytes_max: usize,
    /// Between two fetches when all is well.
    pub(crate) interval: Duration,
    /// Between two fetches at least, when tokens name unknown keys.
    pub(crate) interval_min: Duration,
    /// Delay after the first failed fetch; doubled after each further one.
    pub(crate) retry_min: Duration,
    /// Longest delay after a failed fetch.
    pub(crate) retry_max: Duration,
    /// When a URL that fails is left alone.
    pub(crate) breaker: BreakerLimits,
    /// Whether `http` addresses of other machines are accepted.
    pub(crate) allow_http: bool,
    /// CA certificates (PEM) trusted in addition to the system's.
    pub(crate) ca_file: Option<PathBuf>,
}

impl Default for JwksSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            bytes_max: 256 * 1024,
            interval: Duration::from_secs(600),
            interval_min: Duration::from_secs(10),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(300),
            breaker: BreakerLimits { failures: 5, open: Duration::from_secs(30) },
            allow_http: false,
            ca_file: None,
        }
    }
}

/// How one URL is doing, for health and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JwksStatus {
    /// Address.
    pub(crate) url: String,
    /// Keys in force from it.
    pub(crate) keys: usize,
    /// Failed fetches since the last good one.
    pub(crate) failures: u32,
    /// What the breaker in front of it lets through.
    pub(crate) breaker: BreakerState,
}

/// Keys of one source.
#[derive(Debug, Default)]
struct Part {
    keys: KeySet,
    /// The document they were read from, for a remote one.
    document: String,
    failures: u32,
}

/// A remote source: which part it feeds and how it is told of unknown keys.
#[derive(Debug)]
struct Feed {
    part: usize,
    remote: Remote,
    breaker: Breaker,
    unknown_key: Notify,
}

#[derive(Debug)]
struct Inner {
    settings: JwksSettings,
    /// Where documents are shared with other nodes.
    shared: Option<SharedKeySets>,
    feeds: Vec<Feed>,
    /// In configured order. Never locked across an await.
    parts: Mutex<Vec<Part>>,
    current: watch::Sender<KeySet>,
}

/// The keys of one configuration; cheap to clone, all clones are the same store.
#[derive(Clone, Debug)]
pub(crate) struct KeyStore {
    inner: Arc<Inner>,
}

impl KeyStore {
    /// Reads all sources. A local source that cannot be used is an error; a URL that does not answer is not: it is
    /// logged, starts with the keys that other nodes have shared, if any, and is retried by the refresh.
    pub(crate) async fn load(
        shared: Option<SharedKeySets>,
        sources: Vec<KeySource>,
        jwks: JwksSettings,
    ) -> Result<Self, KeyLoadError> {
        Self::read(None, shared, sources, jwks).await
    }

    /// Like [`Self::load`] for a reload: a URL that this store had keys from, and that does not answer now, starts
    /// with those.
    pub(crate) async fn load_again(
        &self,
        sources: Vec<KeySource>,
        jwks: JwksSettings,
    ) -> Result<Self, KeyLoadError> {
        Self::read(Some(self), self.inner.shared.clone(), sources, jwks).await
    }

    async fn read(
        previous: Option<&Self>,
        shared: Option<SharedKeySets>,
        sources: Vec<KeySource>,
        jwks: JwksSettings,
    ) -> Result<Self, KeyLoadError> {
        let mut parts = Vec::with_capacity(sources.len());
        let mut feeds = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let keys = read_local(source, jwks.bytes_max).await?.unwrap_or_default();
            parts.push(Part { keys, ..Part::default() });
            if let KeySource::JwksUrl { url } = source {
                let remote = Remote::new(url, &jwks)?;
                let breaker = Breaker::new(jwks.breaker);
                feeds.push(Feed { part: index, remote, breaker, unknown_key: Notify::new() });
            }
        }
        let (current, _) = watch::channel(KeySet::default());
        let inner = Inner { settings: jwks, shared, feeds, parts: Mutex::new(parts), current };
        let store = Self { inner: Arc::new(inner) };
        // All at once, so that the start waits for the slowest one only.
        join_all(store.inner.feeds.iter().map(|feed| store.begin(feed, previous))).await;
        store.with_parts(|parts| store.inner.current.send_replace(combine(parts)));
        Ok(store)
    }

    /// The first keys of a URL.
    async fn begin(&self, feed: &Feed, previous: Option<&Self>) {
        let part = match self.fetch(feed).await {
            Ok((document, keys)) => Part { keys, document, failures: 0 },
            Err(error) => {
                log_failure(&feed.remote, &error);
                let mut lent = previous.and_then(|store| store.keys_of(feed.remote.url()));
                if lent.is_none() {
                    lent = self.lend(feed).await;
                }
                Part { failures: 1, ..lent.unwrap_or_default() }
            }
        };
        self.with_parts(|parts| parts[feed.part] = part);
    }

    /// The keys in force.
    pub(crate) fn current(&self) -> KeySet {
        self.inner.current.borrow().clone()
    }

    /// Gets every later change, as a whole set.
    pub(crate) fn subscribe(&self) -> watch::Receiver<KeySet> {
        self.inner.current.subscribe()
    }

    /// Starts one task per URL, on the current tokio runtime. They end when the answer is dropped.
    pub(crate) fn spawn_refresh(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for feed in 0..self.inner.feeds.len() {
            let store = self.clone();
            tasks.spawn(async move { store.refresh(feed).await });
        }
        tasks
    }

    /// A token named a key id that no key has: perhaps the keys were rotated. Never waits; many calls are one.
    pub(crate) fn note_unknown_kid(&self) {
        for feed in &self.inner.feeds {
            feed.unknown_key.notify_one();
        }
    }

    /// How every URL is doing.
    pub(crate) fn status(&self) -> Vec<JwksStatus> {
        self.with_parts(|parts| {
            let status = |feed: &Feed| JwksStatus {
                url: feed.remote.url().to_owned(),
                keys: parts[feed.part].keys.len(),
                failures: parts[feed.part].failures,
                breaker: feed.breaker.state(),
            };
            self.inner.feeds.iter().map(status).collect()
        })
    }

    async fn refresh(&self, feed: usize) {
        let feed = &self.inner.feeds[feed];
        let mut schedule = Schedule::new(&self.inner.settings, Instant::now());
        if self.with_parts(|parts| parts[feed.part].failures > 0) {
            schedule.failed(Instant::now(), jitter());
        } else {
            schedule.succeeded(Instant::now(), jitter());
        }
        loop {
            tokio::select! {
                () = feed.unknown_key.notified() => schedule.hint(Instant::now()),
                () = tokio::time::sleep_until(schedule.due().into()) => {
                    self.fetch_again(feed, &mut schedule).await;
                }
            }
        }
    }

    async fn fetch_again(&self, feed: &Feed, schedule: &mut Schedule) {
        match self.fetch(feed).await {
            Ok((document, keys)) => {
                self.replace(feed, Part { keys, document, failures: 0 });
                schedule.succeeded(Instant::now(), jitter());
                return;
            }
            Err(LoadError::Failed(error)) if matches!(*error, FetchError::LeftAlone) => {
                schedule.left_alone(Instant::now(), self.inner.settings.breaker.open);
            }
            Err(error) => {
                log_failure(&feed.remote, &error);
                self.with_parts(|parts| {
                    let failures = &mut parts[feed.part].failures;
                    *failures = failures.saturating_add(1);
                });
                schedule.failed(Instant::now(), jitter());
            }
        }
        // Redis may have been away when the node started.
        let failures = self.with_parts(|parts| {
            let part = &parts[feed.part];
            part.keys.is_empty().then_some(part.failures)
        });
        if let Some(failures) = failures
            && let Some(lent) = self.lend(feed).await
        {
            self.replace(feed, Part { failures, ..lent });
        }
    }

    /// The document of a URL: what a node has fetched a moment ago, else what the server says now.
    async fn fetch(&self, feed: &Feed) -> Result<(String, KeySet), LoadError<FetchError>> {
        let ask = || feed.ask();
        let document = match &self.inner.shared {
            Some(shared) => shared.get(&feed.remote, self.inner.settings.interval_min, ask).await?,
            None => ask().await.map_err(|error| LoadError::Failed(Arc::new(error)))?,
        };
        let keys = feed.remote.keys_in(&document);
        Ok((document, keys.map_err(|error| LoadError::Failed(Arc::new(error)))?))
    }

    /// What other nodes have shared of a URL that does not answer.
    async fn lend(&self, feed: &Feed) -> Option<Part> {
        let (document, age) = self.inner.shared.as_ref()?.last(&feed.remote).await?;
        let keys = feed.remote.keys_in(&document).ok()?;
        tracing::warn!(
            category = "security",
            event = "jwks_lent",
            url = feed.remote.url(),
            keys = keys.len(),
            age_seconds = age.as_secs(),
            "the key server does not answer; the keys that another node has fetched are in force"
        );
        Some(Part { keys, document, failures: 0 })
    }

    /// Puts the keys of a URL into force.
    fn replace(&self, feed: &Feed, new: Part) {
        self.with_parts(|parts| {
            let part = &mut parts[feed.part];
            part.failures = new.failures;
            if part.document == new.document {
                return;
            }
            tracing::info!(
                category = "security",
                event = "jwks_changed",
                url = feed.remote.url(),
                keys = new.keys.len()
            );
            *part = new;
            // Sent under the lock, so that two feeds cannot publish out of order.
            self.inner.current.send_replace(combine(parts));
        });
    }

    /// What this store holds from a URL, when it ever had keys from it.
    fn keys_of(&self, url: &str) -> Option<Part> {
        let feed = self.inner.feeds.iter().find(|feed| feed.remote.url() == url)?;
        self.with_parts(|parts| {
            let part = &parts[feed.part];
            (!part.keys.is_empty()).then(|| Part {
                keys: part.keys.clone(),
                document: part.document.clone(),
                failures: part.failures,
            })
        })
    }

    fn with_parts<T>(&self, use_parts: impl FnOnce(&mut Vec<Part>) -> T) -> T {
        // A panic under the lock leaves whole parts behind, so a poisoned lock is still good.
        use_parts(&mut self.inner.parts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Feed {
    /// Asks the server, unless it is left alone.
    async fn ask(&self) -> Result<String, FetchError> {
        if !self.breaker.try_enter(Instant::now()) {
            return Err(FetchError::LeftAlone);
        }
        let fetched = self.remote.fetch().await;
        self.report(fetched.is_ok());
        fetched
    }

    /// Tells the breaker how a fetch went.
    fn report(&self, ok: bool) {
        let url = self.remote.url();
        match self.breaker.report(Instant::now(), ok) {
            Some(Change::Opened) => {
                tracing::warn!(
                    category = "security",
                    event = "jwks_lost",
                    url,
                    "the keys in force stay"
                );
            }
            Some(Change::Closed) => tracing::info!(category = "security", event = "jwks_back", url),
            None => {}
        }
    }
}

fn combine(parts: &[Part]) -> KeySet {
    parts.iter().fold(KeySet::default(), |all, part| all.merge(&part.keys))
}

fn log_failure(remote: &Remote, error: &LoadError<FetchError>) {
    tracing::warn!(
        category = "security",
        event = "jwks_fetch_failed",
        url = remote.url(),
        %error,
        "keys could not be fetched; the ones in force stay"
    );
}

/// A number in 0.0..1.0. The standard library seeds every [`RandomState`] anew, which is random enough to spread
/// fetches.
fn jitter() -> f64 {
    (RandomState::new().hash_one(0) >> 11) as f64 / (1_u64 << 53) as f64
}
