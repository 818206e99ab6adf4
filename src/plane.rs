//! What every request handler and background task of the control plane can reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use gateway_core::admission::Admission;
use gateway_core::settings::Settings;

use crate::api::ApiPolicy;
use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::broker::mail::Mail;
use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::durable::Durable;
use crate::events::Events;
use crate::health::Health;
use crate::hooks::Hooks;
use crate::http::HttpServer;
use crate::keys::KeyStore;
use crate::logging::LogSampler;
use crate::metrics::ControlMetrics;
use crate::notify::Notifications;
use crate::sampler::Sampler;
use crate::store::Store;

/// Shared state of the control plane. Parts that a reload replaces are swapped whole.
#[derive(Debug)]
pub(crate) struct Plane {
    /// Client of the shards.
    pub bridge: Bridge,
    /// What the shards were configured with last.
    pub settings: ArcSwap<Settings>,
    /// Keys and bounds of the server API.
    pub api: ArcSwap<ApiPolicy>,
    /// Starting, ready, draining; stalled shards.
    pub health: Health,
    /// Connections, counted by all shards together.
    pub admission: Arc<Admission>,
    /// Counters of the control plane itself.
    pub metrics: ControlMetrics,
    /// The nodes of the cluster, when there is one.
    pub cluster: Option<Arc<Cluster>>,
    /// What carries channels to them, when there is one.
    pub broker: Option<Arc<Broker>>,
    /// What waits for room in the mailboxes of the shards.
    pub mail: Arc<Mail>,
    /// What slow sources said a while ago.
    pub cache: Arc<Cache>,
    /// The database, when something needs it.
    pub store: Option<Arc<Store>>,
    /// Durable channels, when there are any.
    pub durable: Option<Arc<Durable>>,
    /// Notifications, when this node has them.
    pub notifications: Option<Arc<Notifications>>,
    /// The log of events, when something is recorded.
    pub events: Option<Arc<Events>>,
    /// Questions to the application.
    pub hooks: Hooks,
    /// Whether a node without Redis is not ready.
    pub redis_required: bool,
    /// Rates between two samples.
    pub sampler: Sampler,
    /// The HTTP server, for its connection counts.
    pub http: HttpServer,
    /// Expiry of the certificate in use.
    pub tls_expiry: TlsExpiry,
    /// Keys for tokens, for how their URLs are doing; set once the node runs.
    pub keys: ArcSwapOption<KeyStore>,
    /// Whether keys for tokens can change without a reload.
    pub keys_rotate: AtomicBool,
    /// Bounds the log lines about refused API keys.
    pub refused_keys: LogSampler,
}

impl Plane {
    /// Monotonic time since the process started.
    pub(crate) fn uptime(&self) -> Duration {
        self.bridge.shards().now().mono
    }

    /// The other nodes of the cluster hear of this node's new state.
    pub(crate) fn renew_lease_soon(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.renew_soon();
        }
    }
}

/// Shared by every handler.
pub(crate) type SharedPlane = Arc<Plane>;

/// Unix time at which the certificate in use expires.
#[derive(Debug)]
pub(crate) struct TlsExpiry(AtomicI64);

impl TlsExpiry {
    /// `None` when TLS is off.
    pub(crate) fn new(expiry: Option<i64>) -> Self {
        Self(AtomicI64::new(expiry.unwrap_or(i64::MIN)))
    }

    /// Replaces the time after a reload.
    pub(crate) fn set(&self, expiry: Option<i64>) {
        self.0.store(expiry.unwrap_or(i64::MIN), Ordering::Relaxed);
    }

    /// Seconds since the Unix epoch; `None` when TLS is off.
    pub(crate) fn get(&self) -> Option<i64> {
        let expiry = self.0.load(Ordering::Relaxed);
        (expiry != i64::MIN).then_some(expiry)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing {
    //! A control plane over shards that the test plays itself.

    use gateway_core::auth::{Authenticator, KeySet, TokenRules};

    use super::*;
    use crate::bridge::BridgeLimits;
    use crate::bridge::testing::TestShards;
    use crate::cache::CacheOptions;
    use crate::config::{Config, DEVELOPMENT_API_KEY, Sources};
    use crate::health::LifePhase;
    use crate::http::HttpLimits;
    use crate::reload;
    use crate::routes::{self, RouteOptions, Routers};

    /// Key that the plane accepts.
    pub(crate) const KEY: &str = DEVELOPMENT_API_KEY;

    /// Bounds of the HTTP server in tests.
    pub(crate) const HTTP_LIMITS: HttpLimits = HttpLimits {
        connections_max: 2,
        header_timeout: Duration::from_secs(5),
        keep_alive_timeout: Duration::from_secs(5),
        head_bytes_max: 8 * 1024,
        headers_max: 64,
    };

    /// A ready plane with the development configuration.
    pub(crate) fn plane() -> (Arc<TestShards>, SharedPlane) {
        let config = Config::load(&Sources::default()).unwrap().config;
        let authenticator = Authenticator::new(TokenRules::default(), KeySet::default(), None);
        let shards = Arc::new(TestShards::new(64));
        let limits = BridgeLimits {
            request_timeout: Duration::from_millis(200),
            snapshot_timeout: Duration::from_millis(20),
            requests_max: 64,
        };
        let bridge = Bridge::new(Arc::clone(&shards) as _, limits);
        let setups = crate::hooks::HookSetups::new(&config).unwrap();
        let hooks = Hooks::new(setups, &bridge, config.log.sample_per_second);
        let options = CacheOptions { memory_max: config.cache.store_bytes(), shares: Vec::new() };
        let plane = Plane {
            mail: Arc::new(Mail::new(bridge.clone(), 64)),
            cache: Arc::new(Cache::new(&options, None).unwrap()),
            bridge,
            settings: ArcSwap::from_pointee(config.core_settings(Arc::new(authenticator), 2)),
            api: ArcSwap::from_pointee(reload::api_policy(
                &config,
                Arc::new(tokio::sync::Semaphore::new(8)),
            )),
            health: Health::new(Duration::from_secs(2)),
            admission: Arc::default(),
            metrics: ControlMetrics::new().unwrap(),
            cluster: None,
            broker: None,
            store: None,
            durable: None,
            notifications: None,
            events: None,
            hooks,
            redis_required: false,
            sampler: Sampler::default(),
            http: HttpServer::new(HTTP_LIMITS),
            tls_expiry: TlsExpiry::new(Some(1_900_000_000)),
            keys: ArcSwapOption::empty(),
            keys_rotate: AtomicBool::new(false),
            refused_keys: LogSampler::new(config.log.sample_per_second),
        };
        plane.health.enter(LifePhase::Ready);
        (shards, Arc::new(plane))
    }

    /// Routers with everything switched on and an internal listener.
    pub(crate) fn routers(plane: &SharedPlane) -> Routers {
        let options = RouteOptions {
            internal: true,
            api: true,
            metrics: true,
            example_page: true,
            cors: Some(Duration::from_secs(60)),
        };
        routes::build(plane, options)
    }
}
