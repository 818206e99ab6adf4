//! Redis as this node sees it: one client, a deadline for every command, a breaker in front, and a watchdog.
//!
//! The client reconnects by itself, but it does not notice a server that keeps its sockets and answers nothing. So the
//! watchdog sends PING; one that is not answered in time counts as a failure, is repeated at once, and makes the client
//! drop the connection. While the breaker is open nothing is sent but the watchdog's PING, which decides: what a caller may
//! give up halfway is no trial.
//!
//! The breaker counts only what speaks against the server as a whole (`blame`). One that answers and refuses what the node
//! needs is not left alone, but it is not called up either.

mod blame;
mod cache_level;
mod connection;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fred::clients::{Client, WithOptions};
use fred::interfaces::{ClientLike, ClusterInterface, EventInterface, LuaInterface};
use fred::types::config::{Config, Options, ReconnectPolicy, Server, ServerConfig};
use fred::types::{Builder, ClusterStateChange, CustomCommand, RespVersion};
use tokio::sync::broadcast::Receiver;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::breaker::{Breaker, BreakerLimits, BreakerState, Change};
use crate::config::sections::RedisSection;
use blame::Blame;
pub(crate) use blame::has_done_nothing;
pub(crate) use cache_level::CacheLevel;
pub(crate) use connection::Connection;

/// First delay before a lost connection is tried again; it doubles from there.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);
/// How long a server that has refused what the node needs is not called up. Longer than usual from one renewal of a lease to
/// the next, so that it stays so as long as renewals are refused.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Attempts for a command: nothing is sent twice that may have been carried out.
const ATTEMPTS: u32 = 1;
/// In a Redis Cluster a node that does not have the slot has not carried it out.
const CLUSTER_ATTEMPTS: u32 = 6;

/// What commands are sent with.
pub(crate) type Caller = WithOptions<Client>;

/// A command was not carried out, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedisError {
    /// The breaker is open: nothing was sent.
    #[error("Redis is left alone after failures; it is tried again soon")]
    Open,
    /// No answer within `redis.command_timeout`.
    #[error("Redis did not answer in time")]
    Timeout,
    /// The server does not know the script: nothing was done.
    #[error("Redis does not know the script")]
    NoScript,
    /// Another server answers every time.
    #[error("Redis changes its server again and again")]
    Changing,
    /// The server or the connection says no.
    #[error("Redis: {0}")]
    Failed(#[from] fred::error::Error),
}

impl RedisError {
    /// Whether the server works and cannot do this with the keys as they are: one has another type, or content that a script
    /// does not understand.
    pub(crate) fn is_refusal(&self) -> bool {
        self.blame() == Some(Blame::Keys)
    }

    /// Whether it is certain that nothing was done: nothing was sent, or the server takes no such commands now.
    pub(crate) fn is_undone(&self) -> bool {
        match self {
            Self::Open | Self::NoScript | Self::Changing => true,
            Self::Timeout => false,
            Self::Failed(error) => has_done_nothing(error.details()),
        }
    }

    /// `None` when nothing is wrong with the server or nobody asked it.
    fn blame(&self) -> Option<Blame> {
        match self {
            Self::Open | Self::NoScript | Self::Changing => None,
            Self::Timeout => Some(Blame::Server),
            Self::Failed(error) => Some(blame::of(error.details())),
        }
    }
}

/// What a command is for, which decides what its errors mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The node needs it: leases, revocations, scripts, messages to other nodes.
    Node,
    /// One channel or value among many: when its keys are refused, nothing else is wrong.
    Keys,
    /// The watchdog: it alone is sent while the breaker is open.
    Watch,
}

/// How a command is sent.
#[derive(Debug)]
struct Manner {
    purpose: Purpose,
    /// One node of a Redis Cluster.
    node: Option<Server>,
    limit: Duration,
}

/// Configured URLs cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedisUrlError {
    /// One of them.
    #[error("{key} cannot be used: {source}; see docs/redis.md for its form")]
    Unusable {
        /// Key of the configuration.
        key: &'static str,
        /// What is wrong.
        source: fred::error::Error,
    },
    /// Two of them are the same.
    #[error("redis.channel_urls names {0} twice; name every server once")]
    Twice(String),
}

/// Outcomes of commands, in order of the counters.
pub(crate) const OUTCOMES: [&str; 4] = ["ok", "error", "timeout", "refused"];

/// See the module's documentation.
pub(crate) struct Redis {
    connection: Connection,
    config: Config,
    key: &'static str,
    name: String,
    section: RedisSection,
    command_timeout: Duration,
    ping_interval: Duration,
    breaker: Breaker,
    /// Whether the breaker has opened and not closed again.
    down: watch::Sender<bool>,
    outcomes: [AtomicU64; OUTCOMES.len()],
    last_error: Mutex<Option<String>>,
    /// When it last refused what the node needs, though it answers.
    refused_at: Mutex<Option<Instant>>,
    ping_micros: AtomicU64,
    /// The server takes no writes: it is a replica now, and the master is somewhere else.
    demoted: Notify,
}

/// The client's own form is pages long and contains the password.
impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("breaker", &self.breaker).finish_non_exhaustive()
    }
}

impl Redis {
    /// Begins to connect to the `url` that stands under `key`; does not wait for it. Must be called inside the runtime.
    pub(crate) fn connect(
        key: &'static str,
        url: &str,
        section: &RedisSection,
    ) -> Result<Self, RedisUrlError> {
        let unusable = |source| RedisUrlError::Unusable { key, source };
        let config = Config { fail_fast: false, ..Config::from_url(url).map_err(unusable)? };
        let client = builder(config.clone(), section).build().map_err(unusable)?;
        let connection = Connection::new(client, section.command_timeout);
        connection.connect();
        Ok(Self {
            connection,
            key,
            name: name_of(&config),
            config,
            section: section.clone(),
            command_timeout: section.command_timeout,
            ping_interval: section.ping_interval,
            breaker: Breaker::new(BreakerLimits {
                failures: section.breaker_failures,
                open: section.breaker_open,
            }),
            down: watch::Sender::new(false),
            outcomes: Default::default(),
            last_error: Mutex::default(),
            refused_at: Mutex::default(),
            ping_micros: AtomicU64::new(0),
            demoted: Notify::new(),
        })
    }

    /// A connection of its own for publications, which begins to connect when it is told to. It speaks RESP3, so that
    /// commands can prove its subscriptions.
    pub(crate) fn subscriber(&self) -> Result<Connection, RedisUrlError> {
        let config = Config { version: RespVersion::RESP3, ..self.config.clone() };
        let messages_max = self.section.messages_waiting_max as usize;
        let client = builder(config, &self.section)
            .with_performance_config(|performance| {
                performance.broadcast_channel_capacity = messages_max;
            })
            .build()
            .map_err(|source| RedisUrlError::Unusable { key: self.key, source })?;
        Ok(Connection::new(client, self.command_timeout))
    }

    fn client(&self) -> &Client {
        self.connection.client()
    }

    /// Hosts and ports, the service behind Sentinels and the database; no user and no password.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a Redis Cluster.
    pub(crate) fn is_clustered(&self) -> bool {
        self.client().is_clustered()
    }

    /// Masters of a Redis Cluster; empty otherwise.
    pub(crate) fn masters(&self) -> Vec<Server> {
        self.client()
            .cached_cluster_state()
            .map_or_else(Vec::new, |state| state.unique_primary_nodes())
    }

    /// Loads a script on every master. Answers its hash.
    pub(crate) async fn script_load(&self, text: String) -> Result<String, RedisError> {
        let slots: Vec<u16> = self.client().cached_cluster_state().map_or_else(Vec::new, |state| {
            let masters = state.unique_primary_nodes().into_iter();
            let slot_of = |master| state.slots().iter().find(|range| range.primary == master);
            masters.filter_map(slot_of).map(|range| range.start).collect()
        });
        let mut hash = String::new();
        for slot in slots {
            // The client sends its own form of this command to where the text would hash, whichever node it is told.
            let command = CustomCommand::new_static("SCRIPT", slot, false);
            let arguments = vec!["LOAD".to_owned(), text.clone()];
            hash = self.call(async |client| client.custom(command, arguments).await).await?;
        }
        if !self.is_clustered() {
            hash = self.call(async |client| client.script_load(text).await).await?;
        }
        Ok(hash)
    }

    /// A notice whenever slots of a Redis Cluster turn out to be elsewhere.
    pub(crate) fn slot_changes(&self) -> Receiver<Vec<ClusterStateChange>> {
        self.client().cluster_change_rx()
    }

    /// Whether it answers and does what the node needs, as far as is known; not before the first answer.
    pub(crate) fn is_up(&self) -> bool {
        let answered = self.outcomes[0].load(Ordering::Relaxed) > 0;
        let refuses = self.refused_at().is_some_and(|at| at.elapsed() < REFUSED_FOR);
        answered && !refuses && self.breaker.state() == BreakerState::Closed
    }

    fn refused_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.refused_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is down, for who waits for a change: as the log says it.
    pub(crate) fn outages(&self) -> watch::Receiver<bool> {
        self.down.subscribe()
    }

    /// What the breaker lets through.
    pub(crate) fn breaker_state(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Commands by outcome, in order of [`OUTCOMES`].
    pub(crate) fn outcomes(&self) -> [u64; OUTCOMES.len()] {
        std::array::from_fn(|index| self.outcomes[index].load(Ordering::Relaxed))
    }

    /// Round trip of the last answered PING.
    pub(crate) fn ping_time(&self) -> Duration {
        Duration::from_micros(self.ping_micros.load(Ordering::Relaxed))
    }

    /// Why the last failed command failed.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a command that the node needs, unless the breaker is open, and waits for its answer within the limit.
    pub(crate) async fn call<T, F>(
        &self,
        command: impl FnOnce(Caller) -> F + Send,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, fred::error::Error>> + Send,
    {
        self.call_on(None, command).await
    }

    /// As [`Self::call`], for one node of a Redis Cluster.
    pub(crate) async fn call_on<T, F>(
        &self,
        node: Option<Server>,
        command: impl FnOnce(Caller) -> F + Send,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, fred::error::Error>> + Send,
    {
        let manner = Manner { purpose: Purpose::Node, node, limit: self.command_timeout };
        self.send(manner, command).await
    }

    /// As [`Self::call`], for the keys of channels or values of which each is one among many: that some are refused says
    /// nothing of the server.
    pub(crate) async fn call_on_keys<T, F>(
        &self,
        command: impl FnOnce(Caller) -> F + Send,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, fred::error::Error>> + Send,
    {
        let manner = Manner { purpose: Purpose::Keys, node: None, limit: self.command_timeout };
        self.send(manner, command).await
    }

    /// Calls of a Redis Cluster do not wait for a connection, and before the first one none can be made. Where that is a moment
    /// away, as after a start, clients must not be answered as if Redis could not be reached.
    async fn await_first_connection(&self) {
        if self.is_clustered() && self.client().cached_cluster_state().is_none() {
            // The call itself fails when this does.
            let _connected = self.client().wait_for_connect().await;
        }
    }

    async fn send<T, F>(
        &self,
        Manner { purpose, node, limit }: Manner,
        command: impl FnOnce(Caller) -> F + Send,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, fred::error::Error>> + Send,
    {
        let may = match purpose {
            Purpose::Watch => self.breaker.try_enter(Instant::now()),
            Purpose::Node | Purpose::Keys => self.breaker.state() == BreakerState::Closed,
        };
        if !may {
            self.count(3);
            return Err(RedisError::Open);
        }
        let caller = self.client().with_options(&Options {
            cluster_node: node,
            // Following a slot needs attempts, and nothing may be sent again whose connection was lost.
            fail_fast: self.is_clustered(),
            ..Options::default()
        });
        let called = async {
            self.await_first_connection().await;
            command(caller).await
        };
        let answer = match timeout(limit, called).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if *error.kind() == fred::error::ErrorKind::Timeout => {
                Err(RedisError::Timeout)
            }
            Ok(Err(error)) if error.details().starts_with("NOSCRIPT") => Err(RedisError::NoScript),
            Ok(Err(error)) => {
                if blame::is_replica(error.details()) {
                    self.demoted.notify_one();
                }
                Err(RedisError::Failed(error))
            }
            Err(_) => Err(RedisError::Timeout),
        };
        self.count(match &answer {
            Ok(_) => 0,
            Err(RedisError::Timeout) => 2,
            Err(_) => 1,
        });
        self.report(purpose, answer.as_ref().err());
        answer
    }

    fn count(&self, outcome: usize) {
        self.outcomes[outcome].fetch_add(1, Ordering::Relaxed);
    }

    fn report(&self, purpose: Purpose, error: Option<&RedisError>) {
        let blame = error.and_then(RedisError::blame);
        if let (Some(error), Some(_)) = (error, blame) {
            let text = Some(error.to_string());
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
        match (blame, error) {
            (Some(Blame::State), Some(error)) => self.note_refusal(error),
            (Some(Blame::Keys), Some(error)) if purpose != Purpose::Keys => {
                self.note_refusal(error);
            }
            _ => self.note_refusals_over(),
        }
        let answers = blame != Some(Blame::Server);
        match (self.breaker.report(Instant::now(), answers), error) {
            (Some(Change::Opened), Some(error)) => {
                tracing::error!(category = "error", event = "redis_down", %error);
                self.down.send_replace(true);
            }
            (Some(Change::Closed), _) => {
                tracing::info!(category = "system", event = "redis_up");
                self.down.send_replace(false);
            }
            _ => {}
        }
    }

    /// The server answers and does not do what the node needs.
    fn note_refusal(&self, error: &RedisError) {
        if self.refused_at().replace(Instant::now()).is_none() {
            tracing::error!(
                category = "error", event = "redis_refuses", %error,
                mend = "docs/operations.md, table of failures: memory, role and rights of the server, and who else uses its keys"
            );
        }
    }

    /// Nothing was refused for a while.
    fn note_refusals_over(&self) {
        let mut refused_at = self.refused_at();
        if refused_at.is_some_and(|at| at.elapsed() >= REFUSED_FOR) {
            *refused_at = None;
            tracing::info!(category = "system", event = "redis_accepts");
        }
    }

    /// Watches until the future is dropped.
    pub(crate) async fn watch(&self) {
        loop {
            match self.ping(self.command_timeout).await {
                Ok(()) => self.rest().await,
                Err(RedisError::Timeout) => {
                    // One that hangs must not take its time again with the next connection.
                    tokio::join!(self.drop_connection(), self.ping_again());
                }
                Err(_) => {
                    self.connection.revive();
                    // Answered at once, so it must not be repeated at once.
                    tokio::time::sleep(self.ping_interval / 4).await;
                }
            }
        }
    }

    /// Answers within `limit` or counts as a failure.
    async fn ping(&self, limit: Duration) -> Result<(), RedisError> {
        let began = Instant::now();
        let manner = Manner { purpose: Purpose::Watch, node: None, limit };
        self.send(manner, async |client| client.ping::<()>(None).await).await?;
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.ping_micros.store(micros, Ordering::Relaxed);
        Ok(())
    }

    /// Repeats a PING that was not answered, until one is or the breaker opens. Each has half the time: the first had all of it.
    async fn ping_again(&self) {
        while self.breaker.state() == BreakerState::Closed
            && matches!(self.ping(self.command_timeout / 2).await, Err(RedisError::Timeout))
        {
        }
    }

    /// Until the next PING is due. A server that was found to be a replica keeps its sockets and answers; only a new
    /// connection is made to the master. At most one in each interval: perhaps there is no other.
    async fn rest(&self) {
        let due = tokio::time::Instant::now() + self.ping_interval;
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = self.demoted.notified() => {
                tracing::warn!(
                    category = "connection",
                    event = "redis_read_only",
                    "the server takes no writes; the connection is made anew to find the master",
                );
                self.drop_connection().await;
                tokio::time::sleep_until(due).await;
            }
        }
    }

    /// A server that hangs keeps its sockets open; only a new connection shows whether it is back.
    async fn drop_connection(&self) {
        self.connection.renew().await;
    }

    /// Says goodbye to the server.
    pub(crate) async fn quit(&self) {
        self.connection.quit().await;
    }
}

/// The same for every node, whatever the order in which its URL names hosts.
fn name_of(config: &Config) -> String {
    let mut hosts: Vec<String> = config
        .server
        .hosts()
        .into_iter()
        .map(|server| format!("{}:{}", server.host, server.port))
        .collect();
    hosts.sort_unstable();
    let mut name = hosts.join(",");
    if let ServerConfig::Sentinel { service_name, .. } = &config.server {
        name = format!("{name}/{service_name}");
    }
    match config.database {
        Some(database) if database > 0 => format!("{name}#{database}"),
        _ => name,
    }
}

/// What all connections have in common.
fn builder(config: Config, section: &RedisSection) -> Builder {
    let (min, max) = (RECONNECT_DELAY_MIN, section.reconnect_delay_max);
    let attempts = if config.server.is_clustered() { CLUSTER_ATTEMPTS } else { ATTEMPTS };
    let millis = |delay: Duration| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
    let mut builder = Builder::from_config(config);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = section.connect_timeout;
            connection.internal_command_timeout = section.connect_timeout;
            connection.max_command_attempts = attempts;
            connection.max_command_buffer_len = section.commands_waiting_max as usize;
            connection.reconnect_on_auth_error = true;
            connection.tcp.nodelay = Some(true);
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = section.command_timeout;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, millis(min), millis(max), 2));
    builder
}

#[cfg(test)]
mod tests;
