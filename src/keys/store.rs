//! All keys of one configuration, and the tasks that keep them fresh.
//!
//! Every change goes through [`KeyStore::replace`], which publishes one whole key set. An unchanged document
//! publishes nothing, because subscribers empty their token caches on every set they get.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gateway_core::auth::KeySet;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::remote::{FetchError, Remote};
use super::schedule::Schedule;
use super::source::read_local;
use super::{KeyLoadError, KeySource};
use crate::breaker::{Breaker, BreakerLimits, BreakerState, Change};

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
    /// logged, starts without keys and is retried by the refresh.
    pub(crate) async fn load(
        sources: Vec<KeySource>,
        jwks: JwksSettings,
    ) -> Result<Self, KeyLoadError> {
        Self::load_after(None, sources, jwks).await
    }

    /// Like [`Self::load`] for a reload: a URL that `previous` had keys from, and that does not answer now, starts
    /// with those.
    pub(crate) async fn load_after(
        previous: Option<&Self>,
        sources: Vec<KeySource>,
        jwks: JwksSettings,
    ) -> Result<Self, KeyLoadError> {
        let mut parts = Vec::with_capacity(sources.len());
        let mut feeds = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let keys = read_local(source, jwks.bytes_max).await?.unwrap_or_default();
            parts.push(Part { keys, ..Part::default() });
            if let KeySource::JwksUrl { url } = source {
                let remote = Remote::new(url, &jwks).await?;
                let breaker = Breaker::new(jwks.breaker);
                feeds.push(Feed { part: index, remote, breaker, unknown_key: Notify::new() });
            }
        }
        for (part, remote, result) in fetch_all(&feeds).await {
            feeds
                .iter()
                .filter(|feed| feed.part == part)
                .for_each(|feed| feed.report(result.is_ok()));
            parts[part] = match result {
                Ok((document, keys)) => Part { keys, document, failures: 0 },
                Err(error) => {
                    log_failure(&remote, &error);
                    let inherited = previous.and_then(|store| store.keys_of(remote.url()));
                    Part { failures: 1, ..inherited.unwrap_or_default() }
                }
            };
        }
        let (current, _) = watch::channel(combine(&parts));
        let inner = Inner { settings: jwks, feeds, parts: Mutex::new(parts), current };
        Ok(Self { inner: Arc::new(inner) })
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
                    if !feed.breaker.try_enter(Instant::now()) {
                        schedule.left_alone(Instant::now(), self.inner.settings.breaker.open);
                        continue;
                    }
                    let fetched = feed.remote.fetch().await;
                    feed.report(fetched.is_ok());
                    match fetched {
                        Ok((document, keys)) => {
                            self.replace(feed, document, keys);
                            schedule.succeeded(Instant::now(), jitter());
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
                }
            }
        }
    }

    /// Puts a fetched document into force.
    fn replace(&self, feed: &Feed, document: String, keys: KeySet) {
        self.with_parts(|parts| {
            let part = &mut parts[feed.part];
            part.failures = 0;
            if part.document == document {
                return;
            }
            tracing::info!(
                category = "security",
                event = "jwks_changed",
                url = feed.remote.url(),
                keys = keys.len()
            );
            *part = Part { keys, document, failures: 0 };
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

type Fetched = (usize, Remote, Result<(String, KeySet), FetchError>);

/// Fetches all at once, so that start-up waits for the slowest one only.
async fn fetch_all(feeds: &[Feed]) -> Vec<Fetched> {
    let mut tasks = JoinSet::new();
    for feed in feeds {
        let (part, remote) = (feed.part, feed.remote.clone());
        tasks.spawn(async move {
            let result = remote.fetch().await;
            (part, remote, result)
        });
    }
    tasks.join_all().await
}

fn combine(parts: &[Part]) -> KeySet {
    parts.iter().fold(KeySet::default(), |all, part| all.merge(&part.keys))
}

fn log_failure(remote: &Remote, error: &FetchError) {
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
