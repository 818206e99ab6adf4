//! What every request handler and background task of the control plane can reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use gateway_core::settings::Settings;

use crate::api::ApiPolicy;
use crate::bridge::Bridge;
use crate::health::Health;
use crate::http::HttpServer;
use crate::metrics::ControlMetrics;
use crate::sampler::Sampler;

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
    /// Counters of the control plane itself.
    pub metrics: ControlMetrics,
    /// Rates between two samples.
    pub sampler: Sampler,
    /// The HTTP server, for its connection counts.
    pub http: HttpServer,
    /// Expiry of the certificate in use.
    pub tls_expiry: TlsExpiry,
}

impl Plane {
    /// Monotonic time since the process started.
    pub(crate) fn uptime(&self) -> Duration {
        self.bridge.shards().now().mono
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
