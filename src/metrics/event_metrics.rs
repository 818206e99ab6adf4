//! The log of events and its webhooks.

use std::sync::atomic::Ordering;

use super::families::Families;
use super::store_metrics::state_number;
use crate::events::{Endpoint, Events};

/// Counters and gauges.
pub(super) fn collect(families: &mut Families, events: &Events) {
    let counts: Vec<_> = events.stats().counts().collect();
    families.counters(
        "archmesh_events_recorded_total",
        "Events that this node wrote into the log.",
        &["kind"],
        counts.iter().map(|(kind, recorded, _)| (kind.as_str().to_owned(), *recorded as f64)),
    );
    families.counters(
        "archmesh_events_dropped_total",
        "Events that found no room on this node, or that the database will never take.",
        &["kind"],
        counts.iter().map(|(kind, _, dropped)| (kind.as_str().to_owned(), *dropped as f64)),
    );
    let (waiting, bytes) = events.waiting();
    families.gauge("archmesh_events_waiting", "Events that wait to be written.", waiting as f64);
    families.gauge("archmesh_events_waiting_bytes", "What they hold.", bytes as f64);
    families.gauge(
        "archmesh_events_channels",
        "Channels of this node whose occupancy is recorded.",
        events.channels() as f64,
    );
    let stats = events.stats();
    for (name, help, counter) in [
        ("archmesh_events_batches_total", "Transactions that wrote events.", &stats.batches),
        (
            "archmesh_events_nodes_ended_total",
            "Nodes that died and whose sessions and channels this one has ended.",
            &stats.nodes_ended,
        ),
        (
            "archmesh_events_node_lost_total",
            "Times this node was taken for dead because it could not write.",
            &stats.fenced,
        ),
    ] {
        families.counter(name, help, counter.load(Ordering::Relaxed) as f64);
    }
    collect_endpoints(families, events);
}

fn collect_endpoints(families: &mut Families, events: &Events) {
    let each = |value: &dyn Fn(&Endpoint) -> f64| -> Vec<(String, f64)> {
        events.endpoints().map(|endpoint| (endpoint.name().to_owned(), value(endpoint))).collect()
    };
    for (index, name, help) in [
        (0, "archmesh_webhook_batches_sent_total", "Batches that a webhook has taken."),
        (1, "archmesh_webhook_attempts_failed_total", "Attempts that failed."),
        (2, "archmesh_webhook_batches_dead_total", "Batches that were given up."),
    ] {
        let values = each(&|endpoint| endpoint.stats().outcomes()[index] as f64);
        families.counters(name, help, &["webhook"], values);
    }
    families.counters(
        "archmesh_webhook_events_sent_total",
        "Events that a webhook has taken.",
        &["webhook"],
        each(&|endpoint| endpoint.stats().events.load(Ordering::Relaxed) as f64),
    );
    families.counters(
        "archmesh_webhook_events_lost_total",
        "Places in the log that had left it before they were sent: events of any kind.",
        &["webhook"],
        each(&|endpoint| endpoint.stats().lost.load(Ordering::Relaxed) as f64),
    );
    families.gauges(
        "archmesh_webhook_lag_events",
        "Places in the log between what a webhook is done with and the newest: events of any kind.",
        &["webhook"],
        each(&|endpoint| endpoint.stats().lag.load(Ordering::Relaxed) as f64),
    );
    families.gauges(
        "archmesh_webhook_lag_seconds",
        "Age of the oldest of them.",
        &["webhook"],
        each(&|endpoint| endpoint.stats().age().as_secs_f64()),
    );
    families.gauges(
        "archmesh_webhook_breaker_state",
        "Breaker in front of a webhook: 0 closed, 1 half open, 2 open.",
        &["webhook"],
        each(&|endpoint| state_number(endpoint.breaker_state())),
    );
}
