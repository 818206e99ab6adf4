//! What the gateway says about itself: liveness, readiness, components.
//!
//! `/live` fails when a shard has stopped turning (restart the process); `/ready` and `/health` fail also while the
//! node starts or drains (send clients elsewhere). None of them waits for a shard: the heartbeats are read from
//! shared memory. Only `/health/detailed` and the JSON endpoints gather counters.

mod websocket;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use gateway_core::ids::ShardId;
use serde_json::{Value, json};

pub(crate) use websocket::{health as websocket_health, metrics as websocket_metrics};

use crate::breaker::BreakerState;
use crate::bridge::Shards;
use crate::cluster::Cluster;
use crate::load::Load;
use crate::metrics::loop_lag_json;
use crate::notify::Dispatcher;
use crate::plane::{Plane, SharedPlane};
use crate::redis::Redis;

/// Where the process stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LifePhase {
    /// Not listening yet.
    Starting,
    /// Serving.
    Ready,
    /// Clients are being told to move.
    Draining,
}

impl LifePhase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// Phase of life, and how long a shard may stand still.
#[derive(Debug)]
pub(crate) struct Health {
    phase: AtomicU8,
    stall_limit: Duration,
}

impl Health {
    /// Starting; a shard whose heartbeat is older than `stall_limit` is stalled.
    pub(crate) fn new(stall_limit: Duration) -> Self {
        Self { phase: AtomicU8::new(LifePhase::Starting as u8), stall_limit }
    }

    /// Enters a phase.
    pub(crate) fn enter(&self, phase: LifePhase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// The phase now.
    pub(crate) fn phase(&self) -> LifePhase {
        match self.phase.load(Ordering::Acquire) {
            value if value == LifePhase::Starting as u8 => LifePhase::Starting,
            value if value == LifePhase::Ready as u8 => LifePhase::Ready,
            _ => LifePhase::Draining,
        }
    }

    /// Whether a shard has stopped turning.
    pub(crate) fn is_stalled(&self, shards: &dyn Shards, shard: ShardId) -> bool {
        shards.heartbeat_age(shard) > self.stall_limit
    }

    /// Whether any shard has stopped turning.
    pub(crate) fn any_stalled(&self, shards: &dyn Shards) -> bool {
        (0..shards.count()).any(|shard| self.is_stalled(shards, ShardId(shard)))
    }
}

impl Plane {
    /// `healthy`, or what is wrong. `degraded` serves on, with less.
    fn status(&self) -> &'static str {
        match self.health.phase() {
            _ if self.health.any_stalled(self.bridge.shards()) => "unhealthy",
            LifePhase::Ready
                if self.is_without_redis()
                    || self.is_divided()
                    || self.is_without_store()
                    || self.hooks.any_open() =>
            {
                "degraded"
            }
            LifePhase::Ready => "healthy",
            phase => phase.as_str(),
        }
    }

    /// Whether clients should be sent here.
    pub(crate) fn is_ready(&self) -> bool {
        // A database that is away takes no node out: all have the same one, and sockets and channels go on without it.
        let without_channels = self.is_without_redis() || self.is_divided();
        serves(self.status()) && !(self.redis_required && without_channels)
    }

    /// Whether there is a Redis that does not answer.
    fn is_without_redis(&self) -> bool {
        let is_down = |cluster: &Arc<Cluster>| cluster.all_servers().any(|server| !server.is_up());
        self.cluster.as_ref().is_some_and(is_down)
    }

    /// Whether there is a database that does not answer, or takes no changes.
    fn is_without_store(&self) -> bool {
        self.store.as_ref().is_some_and(|store| !store.is_up()) || self.takes_no_changes()
    }

    fn takes_no_changes(&self) -> bool {
        self.notifications.as_ref().is_some_and(|n| n.writer().is_failing())
            || self.durable.as_ref().is_some_and(|durable| durable.is_failing())
            || self.events.as_ref().is_some_and(|events| events.is_failing())
    }

    fn is_divided(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.is_divided())
    }
}

fn answer(ok: bool, body: Value) -> Response<Body> {
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

/// Tells a balancer that reads headers how full the node is.
fn with_load(plane: &Plane, mut response: Response<Body>) -> Response<Body> {
    let load = Load::of(plane);
    let headers = response.headers_mut();
    for (name, value) in [
        ("x-archmesh-connections", load.connections),
        ("x-archmesh-connections-max", load.connections_max),
        ("x-archmesh-load", load.percent()),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
    response
}

/// `GET /health`.
pub(crate) async fn summary(State(plane): State<SharedPlane>) -> Response<Body> {
    let status = plane.status();
    with_load(&plane, answer(serves(status), json!({"status": status})))
}

/// `GET /live`.
pub(crate) async fn live(State(plane): State<SharedPlane>) -> Response<Body> {
    let stalled = plane.health.any_stalled(plane.bridge.shards());
    answer(!stalled, json!({"status": if stalled { "stalled" } else { "live" }}))
}

/// `GET /ready`.
pub(crate) async fn ready(State(plane): State<SharedPlane>) -> Response<Body> {
    let (ready, status) = (plane.is_ready(), plane.status());
    with_load(&plane, answer(ready, json!({"status": if ready { "ready" } else { status }})))
}

/// `GET /health/detailed`.
pub(crate) async fn detailed(State(plane): State<SharedPlane>) -> Response<Body> {
    let snapshots = plane.bridge.snapshots().await;
    let status = plane.status();
    let shards: Vec<Value> = plane
        .bridge
        .shard_ids()
        .map(|shard| {
            let heartbeat_age = plane.bridge.shards().heartbeat_age(shard);
            let stalled = plane.health.is_stalled(plane.bridge.shards(), shard);
            let mut report = json!({
                "shard": shard.0,
                "status": if stalled { "stalled" } else { "healthy" },
                "heartbeat_age_seconds": heartbeat_age.as_secs_f64(),
            });
            if let Some(snapshot) = snapshots.shards.get(shard.index()).and_then(Option::as_deref) {
                report["connections"] = snapshot.core.connections.into();
                report["sessions"] = snapshot.core.sessions.into();
                report["channels"] = snapshot.core.channels.into();
                report["subscriptions"] = snapshot.core.subscriptions.into();
                report["outbox_bytes"] = snapshot.core.outbox_bytes.into();
                report["mailbox_depth"] = snapshot.mailbox_depth.into();
                report["loop_lag_seconds"] = loop_lag_json(snapshot);
            }
            report
        })
        .collect();
    let history_bytes: u64 =
        snapshots.known().map(|(_, snapshot)| snapshot.core.history_bytes).sum();
    let settings = plane.settings.load();
    let limits = &settings.limits;
    let body = json!({
        "status": status,
        "phase": plane.health.phase().as_str(),
        "node": &*settings.node,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": plane.uptime().as_secs(),
        "partial": snapshots.partial,
        "components": {
            "shards": shards,
            "broker": broker(&plane, history_bytes),
            "redis": redis(&plane),
            "cluster": cluster(&plane),
            "database": database(&plane),
            "events": events(&plane),
            "hooks": hooks(&plane),
            "tls": tls(&plane),
            "keys": keys(&plane),
            "control": {
                "requests_in_flight": plane.bridge.requests_in_flight(),
                "late_answers": plane.bridge.late_answers(),
                "http_connections": plane.http.connections(),
            },
        },
        "limits": {
            "connections_max": limits.connections_max,
            "connections_per_user_max": limits.connections_per_user_max,
            "connections_per_address_max": limits.connections_per_address_max,
            "handshakes_per_second": limits.handshakes.per_second,
            "message_bytes_max": limits.message_bytes_max,
            "outbox_bytes_max": limits.outbox_bytes_max,
            "subscriptions_max": limits.subscriptions_max,
        },
    });
    answer(serves(status), body)
}

fn serves(status: &str) -> bool {
    matches!(status, "healthy" | "degraded")
}

/// What carries channels. In memory it lives and dies with the shards.
fn broker(plane: &Plane, history_bytes: u64) -> Value {
    let Some(broker) = &plane.broker else {
        return json!({"status": "healthy", "kind": "memory", "history_bytes": history_bytes});
    };
    let counts = broker.counts();
    json!({
        "status": match counts.servers {
            [_, 0] => "healthy",
            [0, _] => "unavailable",
            _ => "degraded",
        },
        "kind": "redis",
        "history_bytes": history_bytes,
        "servers": counts.servers.iter().sum::<usize>(),
        "servers_healthy": counts.servers[0],
        "channels": counts.channels,
        "writes_waiting": counts.waiting,
        "probe_seconds": counts.probe.as_secs_f64(),
        "probe_age_seconds": counts.probe_age.map(|age| age.as_secs_f64()),
    })
}

fn redis(plane: &Plane) -> Value {
    let Some(cluster) = &plane.cluster else { return json!({"status": "not_configured"}) };
    let one = |redis: &Redis| {
        json!({
            "server": redis.name(),
            "status": if redis.is_up() { "healthy" } else { "unavailable" },
            "breaker": redis.breaker_state().as_str(),
            "ping_seconds": redis.ping_time().as_secs_f64(),
            "last_error": redis.last_error(),
        })
    };
    let mut answer = one(cluster.redis());
    if !cluster.channel_servers().is_empty() {
        let servers = cluster.channel_servers().iter().map(|server| one(server));
        answer["channel_servers"] = servers.collect();
    }
    answer
}

fn cluster(plane: &Plane) -> Value {
    let Some(cluster) = &plane.cluster else { return json!({"status": "not_configured"}) };
    let held = cluster.holds_lease();
    json!({
        "status": if held && !cluster.is_divided() { "healthy" } else { "degraded" },
        "divided": cluster.is_divided(),
        "node": cluster.id(),
        "lease": if held { "held" } else { "not_held" },
        "nodes": cluster.view().nodes.len(),
        "stale": cluster.is_stale(),
    })
}

fn database(plane: &Plane) -> Value {
    let Some(store) = &plane.store else { return json!({"status": "not_configured"}) };
    let mut answer = json!({
        "database": store.name(),
        "kind": store.dialect().as_str(),
        "status": match store.is_up() {
            true if plane.takes_no_changes() => "read_only",
            true => "healthy",
            false => "unavailable",
        },
        "breaker": store.breaker_state().as_str(),
        "last_error": store.last_error(),
    });
    if let Some(notifications) = &plane.notifications {
        answer["writes_waiting"] = json!(notifications.writer().waiting());
        answer["delivery_channels"] = notifications
            .channels()
            .states()
            .map(|(channel, state)| (channel.to_string(), json!(state.as_str())))
            .collect::<serde_json::Map<_, _>>()
            .into();
        answer["delivery"] = json!(notifications.dispatcher().and_then(delivery));
    }
    if let Some(durable) = &plane.durable {
        answer["durable_channels"] = json!({
            "followed": durable.attached(),
            "writes_waiting": durable.waiting(),
        });
    }
    answer
}

/// The log of events. An endpoint that takes nothing makes no node unwell: that is told here and by metrics.
fn events(plane: &Plane) -> Value {
    let Some(events) = &plane.events else { return json!({"status": "not_configured"}) };
    let (waiting, _) = events.waiting();
    let endpoints = events.endpoints().map(|endpoint| {
        let stats = endpoint.stats();
        let state = json!({
            "breaker": endpoint.breaker_state().as_str(),
            "lag_events": stats.lag.load(Ordering::Relaxed),
            "lag_seconds": stats.age().as_secs_f64(),
        });
        (endpoint.name().to_owned(), state)
    });
    json!({
        "status": if events.is_failing() { "degraded" } else { "healthy" },
        "waiting": waiting,
        "webhooks": endpoints.collect::<serde_json::Map<_, _>>(),
    })
}

fn hooks(plane: &Plane) -> Value {
    let on = plane.hooks.states().filter_map(|state| {
        let breaker = state.breaker?;
        let report = json!({
            "status": if breaker == BreakerState::Closed { "healthy" } else { "unavailable" },
            "breaker": breaker.as_str(),
            "waiting": state.waiting,
            "in_flight": state.in_flight,
        });
        Some((state.kind.as_str().to_owned(), report))
    });
    let on: serde_json::Map<_, _> = on.collect();
    if on.is_empty() { json!({"status": "not_configured"}) } else { on.into() }
}

fn delivery(dispatcher: &Dispatcher) -> Option<Value> {
    let snapshot = dispatcher.snapshot()?;
    let lanes = snapshot.lanes.iter().map(|lane| {
        let numbers = json!({
            "held": lane.held,
            "running": lane.running,
            "oldest_seconds": lane.oldest.map(|age| age.as_secs_f64()),
        });
        (lane.priority.to_string(), numbers)
    });
    Some(json!({
        "phase": snapshot.phase.as_str(),
        "workers": snapshot.workers,
        "busy": snapshot.busy,
        "delayed": snapshot.delayed,
        "lanes": lanes.collect::<serde_json::Map<_, _>>(),
    }))
}

/// How the URLs of key sets are doing. Old keys stay in force while one does not answer.
fn keys(plane: &Plane) -> Value {
    let keys = plane.keys.load();
    let urls = keys.as_ref().map(|keys| keys.status()).unwrap_or_default();
    let urls = urls.into_iter().map(|status| {
        json!({
            "url": status.url,
            "status": if status.failures == 0 { "healthy" } else { "degraded" },
            "keys": status.keys,
            "failures": status.failures,
            "breaker": status.breaker.as_str(),
        })
    });
    urls.collect()
}

fn tls(plane: &Plane) -> Value {
    let Some(expiry) = plane.tls_expiry.get() else {
        return json!({"enabled": false, "status": "healthy"});
    };
    let left = expiry - plane.bridge.shards().now().unix.as_secs().cast_signed();
    json!({
        "enabled": true,
        "status": if left > 0 { "healthy" } else { "expired" },
        "expires_at": expiry,
        "expires_in_seconds": left,
    })
}

#[cfg(test)]
mod tests;
