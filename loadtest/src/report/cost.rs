//! What the server spent on a run.

use serde::Serialize;

use crate::plan::Kind;
use crate::scenario::Outcome;
use crate::schedule::seconds;
use crate::server::Sample;

/// What the server spent between the two compared moments.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct ServerCost {
    pub(crate) cpu_seconds: Option<f64>,
    pub(super) cores: Option<f64>,
    pub(super) cpu_micros_per_delivery: Option<f64>,
    pub(super) resident_bytes: Option<f64>,
    pub(crate) resident_growth_percent: Option<f64>,
    pub(crate) fd_growth: Option<f64>,
    pub(crate) resident_bytes_per_connection: Option<f64>,
}

impl ServerCost {
    /// What it spent on this outcome.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        let (from, to) = outcome.compared;
        let (Some(from), Some(to)) = (outcome.sample(from), outcome.sample(to)) else {
            return Self::default();
        };
        let pair = |read: fn(&Sample) -> Option<f64>| Some((read(from)?, read(to)?));
        let cpu_seconds = pair(|sample| sample.cpu_seconds).map(|(from, to)| to - from);
        let length = seconds(to.at - from.at);
        let delivered = outcome.count("delivered");
        let held = outcome
            .sample("before")
            .and_then(|before| Some((from.resident_bytes? - before.resident_bytes?).max(0.0)));
        Self {
            cpu_seconds,
            cores: cpu_seconds.filter(|_| length > 0.0).map(|cpu| cpu / length),
            cpu_micros_per_delivery: cpu_seconds
                .filter(|_| delivered > 0)
                .map(|cpu| cpu * 1e6 / delivered as f64),
            resident_bytes: to.resident_bytes,
            resident_growth_percent: pair(|sample| sample.resident_bytes)
                .map(|(from, to)| (to / from - 1.0) * 100.0),
            fd_growth: pair(|sample| sample.open_fds).map(|(from, to)| to - from),
            resident_bytes_per_connection: held
                .filter(|_| !matches!(outcome.plan.kind, Kind::Churn | Kind::ConnectStorm))
                .map(|bytes| bytes / f64::from(outcome.plan.connections)),
        }
    }
}
