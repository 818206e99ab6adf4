//! What the control plane counts itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{Method, StatusCode};
use prometheus::proto::MetricFamily;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use super::families::Families;
use super::hook_metrics;
use super::store_metrics;
use super::{broker_metrics, event_metrics};
use crate::breaker::BreakerState;
use crate::cluster::{Cluster, NodeState};
use crate::plane::Plane;
use crate::redis::{OUTCOMES, Redis};

/// Upper bounds of request durations in seconds.
const REQUEST_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Counters and gauges of the control plane.
#[derive(Debug)]
pub(crate) struct ControlMetrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    /// Agent checks by outcome.
    pub agent_checks: IntCounterVec,
    /// Calls without a valid API key.
    pub api_unauthorized: IntCounter,
    reload_failures: IntCounter,
    reload_success: IntGauge,
    reload_timestamp: IntGauge,
}

impl ControlMetrics {
    /// All zero, registered.
    ///
    /// # Errors
    /// When a name or label is invalid or taken; both are constants, so a test finds it.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("archmesh_http_requests_total", "HTTP requests by route, method and status."),
            &["route", "method", "status"],
        )?;
        let request_seconds = HistogramVec::new(
            HistogramOpts::new(
                "archmesh_http_request_duration_seconds",
                "Duration of HTTP requests by route.",
            )
            .buckets(REQUEST_SECONDS.to_vec()),
            &["route"],
        )?;
        let agent_checks = IntCounterVec::new(
            Opts::new(
                "archmesh_agent_checks_total",
                "Agent checks by outcome; refused ones were closed because too many came at once.",
            ),
            &["outcome"],
        )?;
        let api_unauthorized = IntCounter::new(
            "archmesh_api_unauthorized_total",
            "Server API calls without a valid key.",
        )?;
        let reload_failures = IntCounter::new(
            "archmesh_config_reload_failures_total",
            "Reloads refused because the new configuration is bad, or not taken by every shard in time.",
        )?;
        let reload_success = IntGauge::new(
            "archmesh_config_last_reload_success",
            "1 when the last reload, or the start, succeeded.",
        )?;
        let reload_timestamp = IntGauge::new(
            "archmesh_config_last_reload_success_timestamp_seconds",
            "Unix time at which the configuration in use was loaded.",
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(request_seconds.clone()))?;
        registry.register(Box::new(agent_checks.clone()))?;
        registry.register(Box::new(api_unauthorized.clone()))?;
        registry.register(Box::new(reload_failures.clone()))?;
        registry.register(Box::new(reload_success.clone()))?;
        registry.register(Box::new(reload_timestamp.clone()))?;
        Ok(Self {
            registry,
            requests,
            request_seconds,
            agent_checks,
            api_unauthorized,
            reload_failures,
            reload_success,
            reload_timestamp,
        })
    }

    /// Counts an answered request. `route` is a pattern of ours, never a client's path.
    pub(crate) fn count_request(
        &self,
        route: &str,
        method: &Method,
        status: StatusCode,
        took: Duration,
    ) {
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::OPTIONS => "OPTIONS",
            Method::HEAD => "HEAD",
            _ => "other",
        };
        self.requests.with_label_values(&[route, method, status.as_str()]).inc();
        self.request_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// A new configuration, or the first one, is in force.
    pub(crate) fn reload_succeeded(&self) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.reload_success.set(1);
        self.reload_timestamp.set(unix.as_secs().cast_signed());
    }

    /// A new configuration was refused.
    pub(crate) fn reload_failed(&self) {
        self.reload_failures.inc();
        self.reload_success.set(0);
    }

    /// Families that have at least one series.
    pub(super) fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

/// Redis and the other nodes.
fn collect_cluster(families: &mut Families, cluster: &Cluster) {
    let servers = |value: fn(&Redis) -> f64| {
        cluster.all_servers().map(move |server| (server.name().to_owned(), value(server)))
    };
    families.gauges(
        "archmesh_redis_up",
        "1 when the server answers.",
        &["server"],
        servers(|server| f64::from(u8::from(server.is_up()))),
    );
    families.gauges(
        "archmesh_redis_breaker_state",
        "Breaker in front of the server: 0 closed, 1 half open, 2 open.",
        &["server"],
        servers(|server| match server.breaker_state() {
            BreakerState::Closed => 0.0,
            BreakerState::HalfOpen => 1.0,
            BreakerState::Open => 2.0,
        }),
    );
    families.gauges(
        "archmesh_redis_ping_seconds",
        "Round trip of the last answered PING.",
        &["server"],
        servers(|server| server.ping_time().as_secs_f64()),
    );
    let sum = |at: usize| cluster.all_servers().map(|server| server.outcomes()[at]).sum::<u64>();
    families.counters(
        "archmesh_redis_commands_total",
        "Commands to all servers by outcome; refused ones were not sent.",
        &["outcome"],
        OUTCOMES.iter().enumerate().map(|(at, outcome)| ((*outcome).to_owned(), sum(at) as f64)),
    );
    let view = cluster.view();
    let states = [
        ("starting", NodeState::Starting),
        ("up", NodeState::Up),
        ("draining", NodeState::Draining),
    ];
    families.gauges(
        "archmesh_cluster_nodes",
        "Nodes of the cluster by state, as this node saw them last.",
        &["state"],
        states.map(|(name, state)| {
            let count = view.nodes.iter().filter(|node| node.state == state).count();
            (name.to_owned(), count as f64)
        }),
    );
    families.gauge(
        "archmesh_cluster_nodes_unreachable",
        "Nodes that this one cannot reach over HTTP, so that it sends no client there.",
        view.nodes.iter().filter(|node| cluster.reaches(&node.id) == Some(false)).count() as f64,
    );
    families.gauge(
        "archmesh_cluster_divided",
        "1 when some node has its channels on other servers.",
        f64::from(u8::from(cluster.is_divided())),
    );
    families.gauge(
        "archmesh_cluster_lease_held",
        "1 while this node holds its lease.",
        f64::from(u8::from(cluster.holds_lease())),
    );
    families.counter(
        "archmesh_cluster_leases_lost_total",
        "Times this node found its lease ended and came back under a new id.",
        cluster.leases_lost() as f64,
    );
}

/// Gauges that are read at scrape.
pub(super) fn collect(families: &mut Families, plane: &Plane) {
    families.info(
        "archmesh_build_info",
        "Version of the gateway, by label.",
        &[("version", env!("CARGO_PKG_VERSION")), ("architecture", std::env::consts::ARCH)],
    );
    families.gauge(
        "archmesh_uptime_seconds",
        "Seconds since the process started.",
        plane.uptime().as_secs_f64(),
    );
    families.gauge(
        "archmesh_connections_max",
        "Most connections of clients that this node takes.",
        plane.settings.load().limits.connections_max as f64,
    );
    families.gauge(
        "archmesh_http_connections",
        "Open HTTP connections.",
        plane.http.connections() as f64,
    );
    families.counter(
        "archmesh_http_connections_refused_total",
        "HTTP connections refused because too many were open.",
        plane.http.refused() as f64,
    );
    families.gauge(
        "archmesh_control_requests_in_flight",
        "Questions of the control plane that wait for a shard's answer.",
        plane.bridge.requests_in_flight() as f64,
    );
    families.counter(
        "archmesh_control_late_answers_total",
        "Answers of shards that came after their deadline.",
        plane.bridge.late_answers() as f64,
    );
    if let Some(cluster) = &plane.cluster {
        collect_cluster(families, cluster);
    }
    if let Some(broker) = &plane.broker {
        broker_metrics::collect(families, &broker.counts());
    }
    if let Some(keys) = plane.keys.load().as_ref() {
        store_metrics::collect_keys(families, keys);
    }
    store_metrics::collect_cache(families, &plane.cache);
    if let Some(store) = &plane.store {
        store_metrics::collect_store(families, store);
    }
    if let Some(durable) = &plane.durable {
        store_metrics::collect_durable(families, durable);
    }
    if let Some(notifications) = &plane.notifications {
        store_metrics::collect(families, notifications);
    }
    if let Some(events) = &plane.events {
        event_metrics::collect(families, events);
    }
    hook_metrics::collect(families, &plane.hooks);
    if let Some(expiry) = plane.tls_expiry.get() {
        families.gauge(
            "archmesh_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate in use expires.",
            expiry as f64,
        );
    }
}
