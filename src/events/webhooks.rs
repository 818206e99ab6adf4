//! Webhooks: each endpoint is a reader of the log with a place of its own in it.
//!
//! The node that holds the lease of an endpoint sends what comes next, one batch at a time and in order, and moves the place when
//! the endpoint has taken it; so every event is sent at least once, and twice only when an answer was lost or a lease ran out. A
//! batch that fails is sent again as it was. After the last attempt it is put aside as a dead letter and the next one is sent.

mod cursor;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::reads::Event;
use super::{Events, Kinds};
use crate::breaker::{Breaker, BreakerLimits, BreakerState, Change};
use crate::config::Secret;
use crate::config::sections::EventWebhookSection;
use crate::notify::now_ms;
use crate::notify::senders::{
    HttpSettings, SendError, SetupError, WebhookSender, WebhookSettings, retry_delay,
};
use crate::store::StoreError;
pub(super) use cursor::make_cursor;
use cursor::{Claim, Parcel};
pub(crate) use cursor::{DeadBatch, EndpointState};

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What came of attempts, in order of the counters.
pub(crate) const OUTCOMES: [&str; 3] = ["sent", "failed", "dead"];

/// Numbers of an endpoint.
#[derive(Debug, Default)]
pub(crate) struct EndpointStats {
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// Events that it has taken.
    pub events: AtomicU64,
    /// Places in the log that had left it before they were sent.
    pub lost: AtomicU64,
    /// Places in the log that are still to be looked at.
    pub lag: AtomicI64,
    /// When the oldest of them happened, in Unix milliseconds; 0 = there is none.
    oldest_at: AtomicI64,
}

impl EndpointStats {
    fn count(&self, outcome: &str) {
        let index = OUTCOMES.iter().position(|known| *known == outcome).unwrap_or_default();
        self.outcomes[index].fetch_add(1, Ordering::Relaxed);
    }

    /// Attempts by [`OUTCOMES`].
    pub(crate) fn outcomes(&self) -> [u64; OUTCOMES.len()] {
        std::array::from_fn(|index| self.outcomes[index].load(Ordering::Relaxed))
    }

    /// How long the oldest event waits that is still to be looked at.
    pub(crate) fn age(&self) -> Duration {
        let at = self.oldest_at.load(Ordering::Relaxed);
        let age = if at == 0 { 0 } else { (now_ms() - at).max(0) };
        Duration::from_millis(age as u64)
    }

    fn note_lag(&self, lag: i64, oldest_at: Option<i64>) {
        self.lag.store(lag, Ordering::Relaxed);
        self.oldest_at.store(oldest_at.unwrap_or(0), Ordering::Relaxed);
    }
}

/// A configured endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    name: String,
    kinds: Kinds,
    /// Beginnings of names of channels; none = all.
    channels: Vec<String>,
    section: EventWebhookSection,
    sender: WebhookSender,
    breaker: Breaker,
    stats: EndpointStats,
}

impl Endpoint {
    /// Checks URL and secrets and makes the client.
    pub(super) fn new(name: &str, section: &EventWebhookSection) -> Result<Self, SetupError> {
        let http = HttpSettings {
            deadline: section.timeout,
            allow_http: section.allow_insecure,
            allow_private_addresses: section.allow_insecure,
            retry_after_max: section.retry_max,
            answer_bytes_max: ANSWER_BYTES_MAX,
            ca_file: section.ca_path.clone(),
        };
        let url = section.url.clone().unwrap_or_else(|| Secret::new(String::new()));
        let secrets = section.secrets.clone();
        Ok(Self {
            name: name.to_owned(),
            kinds: Kinds::of(|kind| section.events.contains(&kind)),
            channels: section.channels.clone(),
            sender: WebhookSender::new(WebhookSettings { url, secrets, http })?,
            breaker: Breaker::new(BreakerLimits {
                failures: section.breaker_failures,
                open: section.breaker_open,
            }),
            stats: EndpointStats::default(),
            section: section.clone(),
        })
    }

    /// Its name in the configuration.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the breaker lets through.
    pub(crate) fn breaker_state(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Numbers since the start.
    pub(crate) fn stats(&self) -> &EndpointStats {
        &self.stats
    }

    /// Whether it wants an event of one of its kinds.
    fn wants(&self, event: &Event) -> bool {
        let Some(channel) = &event.channel else { return true };
        self.channels.is_empty() || self.channels.iter().any(|prefix| channel.starts_with(prefix))
    }

    /// One attempt; tells the breaker.
    async fn attempt(&self, parcel: &Parcel) -> Result<(), SendError> {
        let now_unix = Duration::from_millis(now_ms() as u64);
        let body = parcel.body.clone().into_bytes();
        let sent = self.sender.post(&parcel.id(&self.name), body, now_unix).await;
        match self.breaker.report(Instant::now(), sent.is_ok()) {
            Some(Change::Opened) => {
                let error = sent.as_ref().err().map(ToString::to_string);
                tracing::warn!(
                    category = "events",
                    event = "webhook_lost",
                    webhook = self.name,
                    error
                );
            }
            Some(Change::Closed) => {
                tracing::info!(category = "events", event = "webhook_back", webhook = self.name);
            }
            None => {}
        }
        sent.map(|_| ())
    }

    fn delay(&self, attempt: i64, error: &SendError) -> Duration {
        let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
        let (base, max) = (self.section.retry_base, self.section.retry_max);
        retry_delay(attempt, base, max, error.retry_after, fastrand::u64(..))
    }
}

/// What to do next.
enum Next {
    /// Look again at once.
    Now,
    /// Look again after this, or when something was written.
    After(Duration),
    /// Look again after this.
    Rest(Duration),
}

/// Sends until the future is dropped.
pub(super) async fn deliver(events: Arc<Events>, endpoint: Arc<Endpoint>) {
    loop {
        // Begins to listen before it looks, so that nothing is missed in between.
        let written = events.written.notified();
        let next = match events.deliver_next(&endpoint).await {
            Ok(next) => next,
            // An outage has been logged by the store.
            Err(error) => {
                tracing::debug!(category = "events", event = "webhook_waits", webhook = endpoint.name, %error);
                Next::Rest(events.poll_interval)
            }
        };
        match next {
            Next::Now => {}
            Next::After(wait) => {
                let _woken = tokio::time::timeout(wait, written).await;
            }
            Next::Rest(wait) => tokio::time::sleep(wait).await,
        }
    }
}

impl Events {
    async fn deliver_next(&self, endpoint: &Endpoint) -> Result<Next, StoreError> {
        let Some(wait) = self.store.run(self.look(endpoint)).await? else {
            return self.claim_and_send(endpoint).await;
        };
        Ok(Next::After(wait.min(self.poll_interval)))
    }

    async fn claim_and_send(&self, endpoint: &Endpoint) -> Result<Next, StoreError> {
        let parcel = match self.store.run(self.claim(endpoint)).await? {
            Claim::Send(parcel) => parcel,
            Claim::Moved => return Ok(Next::Now),
            Claim::Nothing => return Ok(Next::After(self.poll_interval)),
        };
        if !endpoint.breaker.try_enter(Instant::now()) {
            self.store.run(self.release(endpoint)).await?;
            return Ok(Next::Rest(endpoint.section.breaker_open));
        }
        match endpoint.attempt(&parcel).await {
            Ok(()) => {
                endpoint.stats.count("sent");
                endpoint.stats.events.fetch_add(parcel.events as u64, Ordering::Relaxed);
                self.settle_patiently(endpoint, &parcel).await?;
            }
            Err(error) => self.settle_failure(endpoint, &parcel, &error).await?,
        }
        Ok(Next::Now)
    }

    /// What was taken should not be sent again because the database has a moment of weakness: while the lease holds, the node
    /// keeps trying to say so.
    async fn settle_patiently(
        &self,
        endpoint: &Endpoint,
        parcel: &Parcel,
    ) -> Result<(), StoreError> {
        let until = Instant::now() + self.lease(endpoint) / 2;
        loop {
            match self.store.run(self.settle(endpoint, parcel)).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    tracing::warn!(
                        category = "events",
                        event = "webhook_lease_lost",
                        webhook = endpoint.name
                    );
                    return Ok(());
                }
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => {
                    let pause = self.poll_interval.min(self.lease(endpoint) / 8);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn settle_failure(
        &self,
        endpoint: &Endpoint,
        parcel: &Parcel,
        error: &SendError,
    ) -> Result<(), StoreError> {
        endpoint.stats.count("failed");
        let attempts = parcel.attempts + 1;
        let is_dead = parcel.dead.is_some() || attempts >= i64::from(endpoint.section.attempts_max);
        if is_dead {
            endpoint.stats.count("dead");
            tracing::error!(
                category = "events",
                event = "webhook_batch_dead",
                webhook = endpoint.name,
                first = parcel.first,
                last = parcel.last,
                attempts,
                %error,
                mend = "mend the endpoint, then POST /api/v1/webhooks/{name}/dead/retry"
            );
            return self.store.run(self.put_aside(endpoint, parcel, &error.to_string())).await;
        }
        let delay = endpoint.delay(attempts, error);
        tracing::debug!(
            category = "events",
            event = "webhook_failed",
            webhook = endpoint.name,
            attempts,
            reason = error.kind.as_str(),
            delay_ms = delay.as_millis() as u64
        );
        self.store.run(self.put_off(endpoint, parcel, (&error.to_string(), delay))).await
    }

    /// How long a claim holds: an attempt, and until a node that died is found.
    fn lease(&self, endpoint: &Endpoint) -> Duration {
        endpoint.section.timeout + self.section.node_ttl
    }
}
