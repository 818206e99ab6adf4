//! The connection on which publications arrive.
//!
//! The client reconnects by itself and drops the server's confirmations of subscriptions, so everything is proven here: a
//! PING behind a SUBSCRIBE (the server answers in order), and a probe that goes through Redis and back. A probe that does not
//! come back makes the client drop the connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, ClusterInterface, EventInterface, PubsubInterface};
use fred::types::Message;
use tokio::sync::broadcast::Receiver;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::redis::{Caller, Connection, Redis, RedisError};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Subscriber {
    connected: Connection,
    clustered: bool,
    timeout: Duration,
    /// Counts connections.
    connection: AtomicU64,
    /// The connection on which probes arrive.
    probed: AtomicU64,
    /// The newest probe that came back.
    returned: watch::Sender<u64>,
    probe_micros: AtomicU64,
    /// When the last probe came back.
    probed_at: Mutex<Option<Instant>>,
    reconnects: AtomicU64,
}

impl Subscriber {
    pub(super) fn new(connected: Connection, timeout: Duration) -> Self {
        Self {
            clustered: connected.client().is_clustered(),
            connected,
            timeout,
            connection: AtomicU64::new(0),
            probed: AtomicU64::new(0),
            returned: watch::Sender::new(0),
            probe_micros: AtomicU64::new(0),
            probed_at: Mutex::default(),
            reconnects: AtomicU64::new(0),
        }
    }

    /// Begins to connect.
    pub(super) fn connect(&self) {
        self.connected.connect();
    }

    fn client(&self) -> &Client {
        self.connected.client()
    }

    /// What arrives.
    pub(super) fn messages(&self) -> Receiver<Message> {
        self.client().message_rx()
    }

    /// A notice for every new connection.
    pub(super) fn connections(&self) -> Receiver<fred::types::config::Server> {
        self.client().reconnect_rx()
    }

    /// Which connection is in use.
    pub(super) fn connection(&self) -> u64 {
        self.connection.load(Ordering::Acquire)
    }

    pub(super) fn connection_is_new(&self) {
        self.connection.fetch_add(1, Ordering::AcqRel);
    }

    /// Subscribes to what every node listens to, probes among it; answers whether it will arrive.
    /// Without probes the connection would not be watched, so it is made anew.
    pub(super) async fn subscribe_own(&self, topics: Vec<String>) -> bool {
        let connection = self.connection();
        let subscribed = self.subscribe(topics).await.is_ok();
        if subscribed {
            self.probed.store(connection, Ordering::Release);
        } else {
            self.drop_connection().await;
        }
        subscribed
    }

    /// Times a connection was dropped because a probe did not come back.
    pub(super) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Duration of the last probe through Redis and back.
    pub(super) fn probe_time(&self) -> Duration {
        Duration::from_micros(self.probe_micros.load(Ordering::Relaxed))
    }

    /// Since the last probe came back; `None` before the first.
    pub(super) fn probe_age(&self) -> Option<Duration> {
        let probed_at = *self.probed_at.lock().unwrap_or_else(PoisonError::into_inner);
        probed_at.map(|at| at.elapsed())
    }

    /// Subscribes; done when the server has confirmed it.
    pub(super) async fn subscribe(&self, topics: Vec<String>) -> Result<(), RedisError> {
        let work = async {
            if self.clustered {
                // The client waits for the confirmation of this one, and follows where the slot has gone.
                for topic in topics {
                    self.client().ssubscribe(topic).await?;
                }
                return Ok(());
            }
            self.client().subscribe(topics).await?;
            self.client().ping::<()>(None).await
        };
        self.within_limit(work).await
    }

    /// Slots of a Redis Cluster have moved: subscriptions to them ended without a word.
    pub(super) async fn follow_slots(&self) {
        // What cannot be subscribed after this shows whether the cluster is there.
        let _synced = timeout(self.timeout, self.client().sync_cluster()).await;
    }

    /// Whether every node of a Redis Cluster answers on its connection for publications; a probe goes through one of them
    /// only.
    async fn masters_answer(&self, redis: &Redis) -> bool {
        let pings = redis
            .masters()
            .into_iter()
            .map(|master| async { self.client().with_cluster_node(master).ping::<()>(None).await });
        let all = timeout(self.timeout, futures_util::future::try_join_all(pings)).await;
        matches!(all, Ok(Ok(_)))
    }

    /// Ends subscriptions.
    pub(super) async fn unsubscribe(&self, topics: Vec<String>) -> Result<(), RedisError> {
        let work = async {
            if self.clustered {
                for topic in topics {
                    self.client().sunsubscribe(topic).await?;
                }
                return Ok(());
            }
            self.client().unsubscribe(topics).await
        };
        self.within_limit(work).await
    }

    async fn within_limit(
        &self,
        work: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), RedisError> {
        match timeout(self.timeout, work).await {
            Ok(done) => done.map_err(RedisError::Failed),
            Err(_) => Err(RedisError::Timeout),
        }
    }

    /// The probe with this number has come back.
    pub(super) fn probe_returned(&self, number: u64) {
        self.returned.send_replace(number);
    }

    /// Publishes a message to whoever is subscribed to `topic`.
    pub(super) async fn send(
        &self,
        redis: &Redis,
        topic: &str,
        text: String,
    ) -> Result<(), RedisError> {
        let topic = topic.to_owned();
        redis
            .call(async |client: Caller| {
                if client.is_clustered() {
                    client.spublish(topic, text).await
                } else {
                    client.publish(topic, text).await
                }
            })
            .await
    }

    /// Sends probes until the future is dropped.
    pub(super) async fn probe(&self, redis: &Redis, topic: &str, interval: Duration) {
        for number in 1.. {
            let connection = self.connection();
            if connection == 0 || self.probed.load(Ordering::Acquire) != connection {
                // Not connected, or about to be subscribed: nothing can come back.
                tokio::time::sleep(interval / 4).await;
                continue;
            }
            let mut returned = self.returned.subscribe();
            let began = Instant::now();
            if self.send(redis, topic, number.to_string()).await.is_ok() {
                let came = returned.wait_for(|newest| *newest >= number);
                let came = timeout(self.timeout, came).await.is_ok();
                if came && self.masters_answer(redis).await {
                    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                    self.probe_micros.store(micros, Ordering::Relaxed);
                    *self.probed_at.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(Instant::now());
                } else {
                    self.drop_connection().await;
                }
            }
            tokio::time::sleep(interval).await;
        }
    }

    async fn drop_connection(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            category = "connection",
            event = "redis_probe_lost",
            "a probe did not come back through Redis; the connection for publications is made anew",
        );
        self.connected.renew().await;
    }

    pub(super) async fn quit(&self) {
        self.connected.quit().await;
    }
}
