//! What the server spent on a run.

use serde::Serialize;

use super::Report;
use crate::plan::Kind;
use crate::schedule::seconds;
use crate::server::Sample;

/// What the server spent between the two compared moments.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct ServerCost {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) cores: Option<f64>,
    pub(super) cpu_micros_per_delivery: Option<f64>,
    pub(super) resident_bytes: Option<f64>,
    pub(super) resident_growth_percent: Option<f64>,
    pub(super) fd_growth: Option<f64>,
    pub(super) resident_bytes_per_connection: Option<f64>,
}

impl Report {
    pub(super) fn server_cost(&self) -> ServerCost {
        let (from, to) = self.outcome.compared;
        let (Some(from), Some(to)) = (self.outcome.sample(from), self.outcome.sample(to)) else {
            return ServerCost::default();
        };
        let pair = |read: fn(&Sample) -> Option<f64>| Some((read(from)?, read(to)?));
        let cpu_seconds = pair(|sample| sample.cpu_seconds).map(|(from, to)| to - from);
        let length = seconds(to.at - from.at);
        let delivered = self.outcome.count("delivered");
        let held = self
            .outcome
            .sample("before")
            .and_then(|before| Some((from.resident_bytes? - before.resident_bytes?).max(0.0)));
        ServerCost {
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
                .filter(|_| self.outcome.plan.kind != Kind::Churn)
                .map(|bytes| bytes / f64::from(self.outcome.plan.connections)),
        }
    }
}
