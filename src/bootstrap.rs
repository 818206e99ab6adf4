//! Starts a node and runs it to its end.
//!
//! Order of the start: logs, probe of the machine, certificates, Redis and cache, keys, database, engine, control plane, internal listener,
//! readiness. Whatever fails before readiness ends the process with one sentence that names the mend; nothing is left
//! running.

mod caches;
mod engine_config;
mod greeting;
mod opening;
pub(crate) mod tokens;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use gateway_core::admission::Admission;
use gateway_core::settings::Settings;
use gateway_engine::{
    ControlReceiver, Engine, EngineError, EngineHandle, ProbeError, ShardPlacement,
};
use rustls::crypto::aws_lc_rs;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::bridge::{self, Bridge, BridgeLimits};
use crate::broker::Broker;
use crate::broker::mail::Mail;
use crate::cache::{Cache, CacheError};
use crate::cluster::Cluster;
use crate::config::sections::{Environment, LogFormat};
use crate::config::{Config, Loaded};
use crate::durable::Durable;
use crate::events::{self, Events};
use crate::health::{Health, LifePhase};
use crate::hooks::{HookSetups, Hooks};
use crate::http::{HttpLimits, HttpServer, serve_listener};
use crate::keys::KeyLoadError;
use crate::logging::{LogSampler, Logging, LoggingError};
use crate::metrics::ControlMetrics;
use crate::notify::senders::SetupError;
use crate::notify::{Notifications, NotificationsError, Queues};
use crate::plane::{Plane, SharedPlane, TlsExpiry};
use crate::reload::Controller;
use crate::routes::{self, RouteOptions};
use crate::sampler::Sampler;
use crate::signals::{Signals, Wish};
use crate::store::{Store, StoreStartError};
use crate::tls::{LoadedTls, TlsError};
use crate::{agent, drain, reload, sampler, supervise};
use engine_config::Seeds;
use tokens::Lender;

/// Least age of a heartbeat that counts as a stall: an idle shard turns once a second.
const STALL_LIMIT_MIN: Duration = Duration::from_secs(2);
/// From asking for counters to going on without: a scrape answers within a second.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_millis(500);
/// For the last bytes of the outboxes after the drain; the engine itself gives them one second.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// The node cannot start, or ended badly.
#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Keys(#[from] KeyLoadError),
    #[error(transparent)]
    ChannelKeys(#[from] tokens::TokenKeysError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Cluster(#[from] crate::cluster::ClusterError),
    #[error(transparent)]
    Redis(#[from] crate::redis::RedisUrlError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Store(#[from] StoreStartError),
    #[error(transparent)]
    Notifications(#[from] NotificationsError),
    #[error("[[webhooks]]: {0}")]
    Webhooks(#[from] SetupError),
    #[error("hooks cannot be asked: {0}")]
    Hooks(#[source] SetupError),
    #[error("the system gives no random numbers")]
    Random,
    #[error(
        "listen.{name} {address} cannot be listened on: {source}; is another process using it?"
    )]
    Listen { name: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("the control plane cannot {what}: {source}")]
    Control { what: &'static str, source: std::io::Error },
    #[error("the engine ended by itself")]
    EngineEnded,
}

/// Runs a node until it is told to stop.
pub fn serve(loaded: &Loaded) -> ExitCode {
    let started = Instant::now();
    let log = &loaded.config.log;
    let json = log.format == LogFormat::Json;
    let logging = match Logging::start(&log.level, json, log.error_file.as_deref()) {
        Ok(logging) => Arc::new(logging),
        Err(error) => {
            crate::cli::output::fail(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    match run(loaded, &logging, started) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(category = "error", event = "node_failed", %error);
            crate::cli::output::fail(&error.to_string());
            match error {
                NodeError::Notifications(_) | NodeError::Cache(_) => {
                    ExitCode::from(crate::cli::EXIT_CONFIG)
                }
                NodeError::Store(StoreStartError::Away { .. }) => {
                    ExitCode::from(crate::cli::EXIT_TRY_AGAIN)
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(loaded: &Loaded, logging: &Arc<Logging>, started: Instant) -> Result<ExitCode, NodeError> {
    let config = &loaded.config;
    let placements = engine_config::placements(config, &engine_config::usable_cpus());
    gateway_engine::probe(engine_config::sockets_max(config), placements.len())?;
    // Another part of the process may have chosen the same provider already.
    let _already_installed = aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.control.threads as usize)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|source| NodeError::Control { what: "start its threads", source })?;
    let result = runtime.block_on(async {
        // Handlers first: a signal during the start must not be lost to the default action.
        let mut signals = Signals::listen()
            .map_err(|source| NodeError::Control { what: "handle signals", source })?;
        let start = Node::start(loaded.clone(), placements, Arc::clone(logging), started);
        let node = tokio::select! {
            node = start => node?,
            // It may wait for the database.
            () = signals.stop() => {
                tracing::info!(category = "system", event = "stopped_before_it_was_ready");
                return Ok(ExitCode::SUCCESS);
            }
        };
        node.run(signals).await
    });
    runtime.shutdown_background();
    result
}

/// A running node.
struct Node {
    plane: SharedPlane,
    engine: EngineHandle,
    engine_end: oneshot::Receiver<Result<(), EngineError>>,
    admission: Arc<Admission>,
    controller: Controller,
    tasks: JoinSet<()>,
    /// Work with Redis and the database; they end before the node says goodbye there.
    service_tasks: JoinSet<()>,
    unknown_kids: tokio::sync::watch::Receiver<u64>,
}

impl Node {
    async fn start(
        loaded: Loaded,
        placements: Vec<ShardPlacement>,
        logging: Arc<Logging>,
        started: Instant,
    ) -> Result<Self, NodeError> {
        let config = &loaded.config;
        let tls = reload::load_tls(config)?;
        let cluster = Cluster::start(config)?;
        let cache = caches::open(config, cluster.as_ref().map(|cluster| cluster.redis()))?;
        let key_sets = caches::key_sets(config, &cache)?;
        let keys = tokens::load(config, Lender::Nodes(key_sets)).await?;
        let settings = Arc::new(reload::settings(config, &keys.store, placements.len() as u16)?);
        let seeds = seeds()?;
        let admission = Arc::new(Admission::new(seeds.hash));
        // Bound before the engine starts, so that a taken port leaves nothing to stop.
        let internal = bind("internal", config.listen.internal).await?;
        let agent = bind("agent", config.listen.agent).await?;
        let store = open_store(config).await?;
        let events = open_events(config, store.as_ref(), &cache).await?;
        let tls_config = tls.as_ref().map(|tls| Arc::clone(&tls.config));
        let engine_config =
            engine_config::engine_config(config, placements, tls_config, started, seeds);
        let (engine, receiver) =
            Engine::start(engine_config, Arc::clone(&settings), Arc::clone(&admission))?;
        let handle = engine.handle();
        let outside = Outside { cluster, cache, store, events };
        let (plane, queues) =
            plane(config, (&handle, &admission), (settings, outside), tls.as_ref()).await?;
        let routers = routes::build(&plane, route_options(config));
        let (unknown_kid, unknown_kids) = tokio::sync::watch::channel(0);
        let mut tasks = JoinSet::new();
        spawn_receiver(&mut tasks, receiver, &plane, routers.public);
        if let Some(listener) = internal {
            tasks.spawn(serve_listener(plane.http.clone(), listener, routers.internal));
        }
        if let Some(listener) = agent {
            tasks.spawn(agent::run(Arc::clone(&plane), listener));
        }
        tasks.spawn(sampler::run(Arc::clone(&plane), config.health.interval));
        tasks.spawn(sampler::watch_unknown_kids(Arc::clone(&plane), unknown_kid));
        tasks.spawn(supervise::run(Arc::clone(&plane), config.engine.watchdog_timeout));
        let mut service_tasks = JoinSet::new();
        spawn_services(&plane, queues, &mut service_tasks);
        let engine_end = watch_engine(engine);
        announce(config, &handle, plane.bridge.shards().now().unix);
        plane.metrics.reload_succeeded();
        plane.health.enter(LifePhase::Ready);
        plane.renew_lease_soon();
        supervise::notify(NotifyState::Ready);
        let controller = Controller::new(loaded, Arc::clone(&plane), handle.clone(), logging, keys);
        Ok(Self {
            plane,
            engine: handle,
            engine_end,
            admission,
            controller,
            tasks,
            service_tasks,
            unknown_kids,
        })
    }

    async fn run(mut self, mut signals: Signals) -> Result<ExitCode, NodeError> {
        loop {
            tokio::select! {
                wish = signals.next() => match wish {
                    Wish::Stop => break,
                    Wish::Reload => self.controller.reload().await,
                },
                () = self.controller.keys_rotated() => self.controller.apply_rotated_keys().await,
                Ok(()) = self.unknown_kids.changed() => self.controller.note_unknown_kid(),
                Some(task) = self.tasks.join_next() => report_ended_task(task)?,
                Some(task) = self.service_tasks.join_next() => report_ended_task(task)?,
                end = &mut self.engine_end => return Err(engine_error(end)),
            }
        }
        tokio::select! {
            () = self.stop() => Ok(ExitCode::SUCCESS),
            () = signals.stop() => {
                tracing::warn!(category = "system", event = "stopped_at_once");
                Ok(ExitCode::FAILURE)
            }
        }
    }

    /// Drains, flushes and ends the engine.
    async fn stop(&mut self) {
        let section = self.controller.loaded.config.drain.clone();
        drain::run(&self.plane, &self.engine, &self.admission, &section).await;
        if let Some(notifications) = &self.plane.notifications {
            notifications.drain(self.controller.loaded.config.delivery.timeout).await;
        }
        if let Some(events) = &self.plane.events {
            self.plane.bridge.settle().await;
            events.finish().await;
        }
        self.service_tasks.shutdown().await;
        if let Some(broker) = &self.plane.broker {
            broker.leave().await;
        }
        if let Some(cluster) = &self.plane.cluster {
            cluster.leave().await;
        }
        if let Some(store) = &self.plane.store {
            store.close().await;
        }
        self.engine.shutdown();
        match tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut self.engine_end).await {
            Ok(Ok(Ok(()))) => tracing::info!(category = "system", event = "engine_stopped"),
            Ok(end) => {
                tracing::error!(category = "error", event = "engine_failed", error = %engine_error(end));
            }
            Err(_) => tracing::warn!(category = "system", event = "engine_cut"),
        }
    }
}

/// What works with Redis and the database as long as the node runs.
fn spawn_services(plane: &SharedPlane, queues: Option<Queues>, tasks: &mut JoinSet<()>) {
    caches::tell_others(plane);
    tasks.spawn(caches::sweep(Arc::clone(&plane.cache)));
    if let Some(cluster) = &plane.cluster {
        tasks.spawn(Arc::clone(cluster).watch_redis());
        tasks.spawn(Arc::clone(cluster).run(Arc::clone(plane)));
        tasks.spawn(Arc::clone(cluster).watch_nodes(Arc::clone(plane)));
    }
    if let Some(broker) = &plane.broker {
        broker.spawn(plane, tasks);
    }
    if let Some(durable) = &plane.durable {
        durable.spawn(tasks);
    }
    if plane.broker.is_some() || plane.durable.is_some() {
        let mail = Arc::clone(&plane.mail);
        tasks.spawn(async move { mail.run().await });
    }
    if let (Some(notifications), Some(queues)) = (&plane.notifications, queues) {
        notifications.spawn(plane, queues, tasks);
    }
    if let Some(events) = &plane.events {
        events.spawn(tasks);
    }
}

/// What a node has besides its shards.
struct Outside {
    cluster: Option<Arc<Cluster>>,
    cache: Arc<Cache>,
    store: Option<Arc<Store>>,
    events: Option<Arc<Events>>,
}

async fn plane(
    config: &Config,
    (handle, admission): (&EngineHandle, &Arc<Admission>),
    (settings, outside): (Arc<Settings>, Outside),
    tls: Option<&LoadedTls>,
) -> Result<(SharedPlane, Option<Queues>), NodeError> {
    let Outside { cluster, cache, store, events } = outside;
    let workers = Arc::new(Semaphore::new(config.control.workers as usize));
    let bridge = Bridge::new(
        Arc::new(handle.clone()),
        BridgeLimits {
            // Shorter than a call's own limit, so that the answer can say what was waited for.
            request_timeout: config.api.timeout / 2,
            snapshot_timeout: SNAPSHOT_TIMEOUT,
            // No more answers can be under way than the queue that brings them holds.
            requests_max: config.engine.control_messages_max,
        },
    );
    let http = HttpServer::new(HttpLimits {
        connections_max: config.http.connections_max as usize,
        header_timeout: config.http.header_timeout,
        keep_alive_timeout: config.http.keep_alive_timeout,
        head_bytes_max: config.limits.head_bytes_max,
        headers_max: config.limits.headers_max,
    });
    let (mail, durable, broker) =
        channels(config, (&bridge, admission), (cluster.as_ref(), store.as_ref()), events.as_ref())
            .await?;
    let notifications = match &store {
        Some(store) if config.notifications.enabled => {
            Some(Notifications::new(Arc::clone(store), &cache, config)?)
        }
        _ => None,
    };
    let hooks = Hooks::new(
        HookSetups::new(config).map_err(NodeError::Hooks)?,
        &bridge,
        config.log.sample_per_second,
    );
    let (notifications, queues) = notifications.unzip();
    let plane = Plane {
        bridge,
        settings: ArcSwap::new(settings),
        api: ArcSwap::from_pointee(reload::api_policy(config, workers)),
        health: Health::new((config.engine.watchdog_timeout / 2).max(STALL_LIMIT_MIN)),
        admission: Arc::clone(admission),
        metrics: ControlMetrics::new()?,
        cluster,
        broker,
        mail,
        cache,
        store,
        durable,
        notifications,
        events,
        hooks,
        redis_required: config.redis.required,
        sampler: Sampler::default(),
        http,
        tls_expiry: TlsExpiry::new(tls.map(|tls| tls.expires_at)),
        keys: ArcSwapOption::empty(),
        keys_rotate: AtomicBool::new(false),
        refused_keys: LogSampler::new(config.log.sample_per_second),
    };
    Ok((Arc::new(plane), queues))
}

/// Where channels are that reach further than this process: in the database, in Redis, or in both.
async fn channels(
    config: &Config,
    (bridge, admission): (&Bridge, &Arc<Admission>),
    (cluster, store): (Option<&Arc<Cluster>>, Option<&Arc<Store>>),
    events: Option<&Arc<Events>>,
) -> Result<(Arc<Mail>, Option<Arc<Durable>>, Option<Arc<Broker>>), NodeError> {
    let mail = Arc::new(Mail::new(bridge.clone(), config.redis.updates_waiting_max as usize));
    let durable = match store {
        Some(store) if config.has_durable_channels() => {
            let durable = Durable::new(config, store, (bridge, &mail), events).await;
            Some(Arc::new(durable.map_err(|source| store.unusable(source))?))
        }
        _ => None,
    };
    let broker = match cluster {
        Some(cluster) => {
            let around = (bridge, Arc::clone(admission));
            let below = (&mail, durable.as_ref());
            Some(Broker::start(config, around, below, (cluster, events))?)
        }
        None => None,
    };
    if let (Some(durable), Some(broker)) = (&durable, &broker) {
        durable.set_broker(broker);
    }
    Ok((mail, durable, broker))
}

/// Opens the store, with its schema up to date, when something needs it.
async fn open_store(config: &Config) -> Result<Option<Arc<Store>>, NodeError> {
    let needed =
        config.notifications.enabled || config.has_durable_channels() || config.has_events();
    if !needed {
        return Ok(None);
    }
    let store = Arc::new(Store::open(&config.database)?);
    opening::await_schema(&store, &config.database).await?;
    store
        .open_file()
        .await
        .map_err(|source| StoreStartError::Unusable { name: store.name().to_owned(), source })?;
    tracing::info!(category = "database", event = "store_opened", database = store.name());
    if config.database.url.is_none() && config.redis.url.is_some() {
        tracing::warn!(
            category = "database",
            event = "store_not_shared",
            mend =
                "set DB_HOST (database.url): every node of a cluster has an SQLite file of its own"
        );
    }
    Ok(Some(store))
}

/// The log of events, with the places of its endpoints, before anything can happen.
async fn open_events(
    config: &Config,
    store: Option<&Arc<Store>>,
    cache: &Cache,
) -> Result<Option<Arc<Events>>, NodeError> {
    let Some(store) = store else { return Ok(None) };
    let last_seen = events::open_last_seen(config, cache)?;
    let events = Events::new(config, Arc::clone(store), last_seen)?;
    if let Some(events) = &events {
        let unusable = |source| StoreStartError::Unusable { name: store.name().to_owned(), source };
        events.prepare().await.map_err(unusable)?;
    }
    Ok(events)
}

fn route_options(config: &Config) -> RouteOptions {
    RouteOptions {
        internal: config.listen.internal.is_some(),
        api: config.api.enabled,
        metrics: config.metrics.enabled,
        example_page: config.node.environment == Environment::Development,
        cors: config.http.cors.then_some(config.http.cors_max_age),
    }
}

/// Binds a listener of the control plane, if there is to be one.
async fn bind(
    name: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<TcpListener>, NodeError> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await.map_err(|source| NodeError::Listen {
        name,
        address,
        source,
    })?;
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(category = "system", event = "listening", listener = name, %address);
    Ok(Some(listener))
}

fn spawn_receiver(
    tasks: &mut JoinSet<()>,
    receiver: ControlReceiver,
    plane: &SharedPlane,
    router: axum::Router,
) {
    let plane = Arc::clone(plane);
    tasks.spawn(async move {
        let serve = |connection| plane.http.serve_handed_over(router.clone(), connection);
        let served = bridge::run_receiver(receiver, &plane, serve);
        if let Err(error) = served.await {
            tracing::error!(category = "error", event = "control_queue_failed", %error);
        }
    });
}

/// The engine's threads are joined on one of their own, so that an end nobody asked for is noticed.
fn watch_engine(engine: Engine) -> oneshot::Receiver<Result<(), EngineError>> {
    let (sender, receiver) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        // Nobody listens any more when the node was stopped at once.
        let _unheard = sender.send(engine.join());
    });
    receiver
}

fn engine_error(end: Result<Result<(), EngineError>, oneshot::error::RecvError>) -> NodeError {
    match end {
        Ok(Err(error)) => NodeError::Engine(error),
        Ok(Ok(())) | Err(_) => NodeError::EngineEnded,
    }
}

/// The node's own tasks run as long as the node.
fn report_ended_task(task: Result<(), tokio::task::JoinError>) -> Result<(), NodeError> {
    let source = task.map_or_else(std::io::Error::other, |()| std::io::Error::other("it returned"));
    Err(NodeError::Control { what: "go on, because one of its tasks ended", source })
}

fn announce(config: &Config, engine: &EngineHandle, now_unix: Duration) {
    for address in engine.local_addresses() {
        tracing::info!(category = "system", event = "listening", listener = "public", %address);
    }
    tracing::info!(
        category = "system",
        event = "node_started",
        version = env!("CARGO_PKG_VERSION"),
        node = config.node.name,
        environment = config.node.environment.as_str(),
        size = config.node.size.as_str(),
        shards = engine.shards(),
        connections_max = config.limits.connections_max,
        tls = config.tls.enabled,
    );
    if config.is_development() {
        greeting::print(config, engine.local_addresses(), now_unix);
    }
}

fn seeds() -> Result<Seeds, NodeError> {
    let random = aws_lc_rs::default_provider().secure_random;
    let (mut stream, mut hash) = ([0; 32], [0; 8]);
    random
        .fill(&mut stream)
        .and_then(|()| random.fill(&mut hash))
        .map_err(|_| NodeError::Random)?;
    Ok(Seeds { stream, hash: u64::from_le_bytes(hash) })
}
