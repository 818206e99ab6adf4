//! The store and the notifications in it.

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use super::families::Families;
use crate::breaker::BreakerState;
use crate::cache::{Cache, RegionStats};
use crate::durable::Durable;
use crate::keys::KeyStore;
use crate::notify::kinds::Priority;
use crate::notify::{Channels, DISPATCH_OUTCOMES, Dispatcher, Notifications};
use crate::processor::{LaneSnapshot, LaneTimes};
use crate::store::{OUTCOMES, Store};

/// Upper bounds of what deliveries take, in seconds.
const DELIVERY_SECONDS: &[f64] = &[0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];

/// Counters and gauges.
pub(super) fn collect(families: &mut Families, notifications: &Notifications) {
    collect_channels(families, notifications.channels());
    if let Some(dispatcher) = notifications.dispatcher() {
        collect_dispatcher(families, dispatcher);
    }
    collect_backlog(families, notifications);
    let writer = notifications.writer();
    families.gauge(
        "archmesh_inbox_writes_waiting",
        "Changes of inboxes that wait to be written.",
        writer.waiting() as f64,
    );
    families.gauge(
        "archmesh_inbox_writes_waiting_max",
        "Most changes of inboxes that may wait.",
        writer.waiting_max() as f64,
    );
    let (written, relayed) = (writer.stats(), notifications.relay().stats());
    let sent = notifications.stats();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    for (name, help, counter) in [
        ("archmesh_inbox_writes_total", "Changes of inboxes that were written.", &written.changes),
        (
            "archmesh_inbox_write_batches_total",
            "Transactions that wrote changes of inboxes.",
            &written.batches,
        ),
        (
            "archmesh_inbox_writes_refused_total",
            "Changes of inboxes refused because too many waited.",
            &written.refused,
        ),
        (
            "archmesh_outbox_published_total",
            "Rows of the outbox that this node published.",
            &relayed.published,
        ),
        (
            "archmesh_outbox_failed_total",
            "Rows of the outbox that can never be published; the log says why. Those of a commit in doubt are not among them.",
            &relayed.failed,
        ),
        (
            "archmesh_outbox_deferred_total",
            "Tries to publish a row of the outbox that have to be repeated.",
            &relayed.deferred,
        ),
        ("archmesh_notifications_total", "Notifications that were taken.", &sent.accepted),
    ] {
        families.counter(name, help, count(counter));
    }
    families.counters(
        "archmesh_notification_recipients_total",
        "Recipients of notifications by what was decided for them.",
        &["decision"],
        [
            ("now", &sent.now),
            ("held", &sent.held),
            ("opted_out", &sent.opted_out),
            ("no_address", &sent.no_address),
        ]
        .map(|(decision, counter)| (decision.to_owned(), count(counter))),
    );
}

fn collect_backlog(families: &mut Families, notifications: &Notifications) {
    let Some(counts) = notifications.backlog() else { return };
    for (name, help, value) in [
        (
            "archmesh_outbox_waiting",
            "Rows of the outbox that wait to be published, 100000 at most; the same on all nodes.",
            counts.waiting as f64,
        ),
        (
            "archmesh_outbox_oldest_seconds",
            "How long the oldest of them has waited.",
            counts.oldest_seconds(),
        ),
        (
            "archmesh_outbox_failed",
            "Rows of the outbox that can never be published, 100000 at most; the same on all nodes.",
            counts.failed as f64,
        ),
        (
            "archmesh_deliveries_given_up",
            "Deliveries that are dead letters, 100000 at most; the same on all nodes.",
            counts.given_up as f64,
        ),
    ] {
        families.gauge(name, help, value);
    }
}

/// Durable channels.
pub(super) fn collect_durable(families: &mut Families, durable: &Durable) {
    let stats = durable.stats();
    for (name, help, value) in [
        (
            "archmesh_durable_channels",
            "Durable channels that this node follows.",
            durable.attached(),
        ),
        (
            "archmesh_durable_writes_waiting",
            "Publications that wait to be written.",
            durable.waiting(),
        ),
    ] {
        families.gauge(name, help, value as f64);
    }
    for (name, help, counter) in [
        (
            "archmesh_durable_publications_total",
            "Publications in durable channels, and removals, that this node wrote.",
            &stats.writes.changes,
        ),
        ("archmesh_durable_batches_total", "Transactions that wrote them.", &stats.writes.batches),
        (
            "archmesh_durable_refused_total",
            "Publications refused because too many waited.",
            &stats.writes.refused,
        ),
        (
            "archmesh_durable_snapshots_total",
            "Times that a home read what a durable channel holds.",
            &stats.snapshots,
        ),
        (
            "archmesh_durable_pages_total",
            "Pages of older publications read for clients.",
            &stats.pages,
        ),
        (
            "archmesh_durable_behind_total",
            "Durable channels that were found behind the database by a comparison.",
            &stats.behind,
        ),
        (
            "archmesh_durable_deleted_total",
            "Publications deleted by number or age, dropped partitions not counted.",
            &stats.deleted,
        ),
    ] {
        families.counter(name, help, counter.load(Ordering::Relaxed) as f64);
    }
}

pub(super) fn state_number(state: BreakerState) -> f64 {
    match state {
        BreakerState::Closed => 0.0,
        BreakerState::HalfOpen => 1.0,
        BreakerState::Open => 2.0,
    }
}

type Counter = fn(&RegionStats) -> u64;

pub(super) fn collect_cache(families: &mut Families, cache: &Cache) {
    let stats = cache.stats();
    let by_region = |value: Counter| {
        stats.iter().map(move |(region, stats)| (region.as_str().to_owned(), value(stats) as f64))
    };
    let counters: [(&str, &str, Counter); 15] = [
        ("archmesh_cache_hits_total", "Lookups that this node's level answered.", |s| s.hits),
        ("archmesh_cache_misses_total", "Lookups that it did not.", |s| s.misses),
        ("archmesh_cache_loads_total", "Calls of the source; one for a batch.", |s| s.loads),
        (
            "archmesh_cache_load_errors_total",
            "Calls of the source that failed or ran out of time.",
            |s| s.load_errors,
        ),
        ("archmesh_cache_coalesced_total", "Lookups that waited for a load of another.", |s| {
            s.coalesced
        }),
        ("archmesh_cache_refused_total", "Lookups refused because too many waited.", |s| s.refused),
        (
            "archmesh_cache_stale_served_total",
            "Expired values given out because the source failed.",
            |s| s.stale_served,
        ),
        ("archmesh_cache_second_hits_total", "Values found in Redis.", |s| s.second_hits),
        ("archmesh_cache_second_misses_total", "Values that were not in Redis.", |s| {
            s.second_misses
        }),
        ("archmesh_cache_second_errors_total", "Calls of Redis that failed.", |s| {
            s.second_errors + s.second_corrupt
        }),
        (
            "archmesh_cache_second_skipped_total",
            "Values not put into Redis, for their size or age.",
            |s| s.second_skipped,
        ),
        ("archmesh_cache_evictions_size_total", "Values that made room for others.", |s| {
            s.evicted_by_size
        }),
        ("archmesh_cache_evictions_ttl_total", "Values whose time was over.", |s| s.evicted_by_ttl),
        (
            "archmesh_cache_too_large_total",
            "Values that were not kept because of their size.",
            |s| s.too_large,
        ),
        (
            "archmesh_cache_invalidations_total",
            "Values that were changed here or by another node.",
            |s| s.invalidations,
        ),
    ];
    for (name, help, value) in counters {
        families.counters(name, help, &["region"], by_region(value));
    }
    families.gauges(
        "archmesh_cache_entries",
        "Values on this node.",
        &["region"],
        by_region(|s| s.entries),
    );
    families.gauges(
        "archmesh_cache_bytes",
        "Memory that they take.",
        &["region"],
        by_region(|s| s.bytes),
    );
}

fn collect_channels(families: &mut Families, channels: &Channels) {
    families.gauges(
        "archmesh_delivery_channel_breaker_state",
        "Breaker in front of a delivery channel: 0 closed, 1 half open, 2 open; the best one of the push services.",
        &["channel"],
        channels.states().map(|(channel, state)| (channel.to_string(), state_number(state))),
    );
    families.gauge(
        "archmesh_delivery_push_services_open",
        "Push services whose breaker is open, so that their browsers wait.",
        channels.open_push_services() as f64,
    );
}

fn collect_dispatcher(families: &mut Families, dispatcher: &Dispatcher) {
    families.counters(
        "archmesh_delivery_attempts_total",
        "Attempts to deliver by what came of them; those left alone were not made.",
        &["outcome"],
        DISPATCH_OUTCOMES
            .iter()
            .zip(dispatcher.stats().outcomes())
            .map(|(outcome, count)| ((*outcome).to_owned(), count as f64)),
    );
    families.gauges(
        "archmesh_delivery_channel_jobs",
        "Deliveries on this node that wait for a worker or are under way.",
        &["channel"],
        dispatcher
            .snapshots()
            .iter()
            .map(|(channel, snapshot)| (channel.to_string(), snapshot.held as f64)),
    );
    let (Some(snapshot), Some(times)) = (dispatcher.snapshot(), dispatcher.times()) else { return };
    let lanes = |value: fn(&LaneSnapshot) -> f64| {
        snapshot.lanes.iter().map(move |lane| (lane.priority.to_string(), value(lane)))
    };
    families.gauges(
        "archmesh_delivery_jobs_waiting",
        "Deliveries on this node that wait for a worker.",
        &["priority"],
        lanes(|lane| lane.depth as f64),
    );
    families.gauges(
        "archmesh_delivery_jobs_oldest_seconds",
        "How long the oldest of them has waited.",
        &["priority"],
        lanes(|lane| lane.oldest.unwrap_or_default().as_secs_f64()),
    );
    families.counters(
        "archmesh_delivery_jobs_refused_total",
        "Deliveries that found no room on this node and went back into the store.",
        &["priority"],
        lanes(|lane| lane.counts.refused as f64),
    );
    for (name, help, of) in [
        (
            "archmesh_delivery_wait_seconds",
            "From claiming a delivery to a worker that takes it.",
            (|times| &times.wait_us) as fn(&LaneTimes) -> &Histogram<u64>,
        ),
        ("archmesh_delivery_run_seconds", "Duration of attempts to deliver.", |times| {
            &times.run_us
        }),
    ] {
        let lanes = Priority::ALL.into_iter().map(|p| (p.to_string(), of(&times[p.index()])));
        families.histograms((name, help), &["priority"], (DELIVERY_SECONDS, 1e6), lanes);
    }
    families.gauges(
        "archmesh_delivery_workers",
        "Workers that deliver.",
        &["state"],
        [("busy", snapshot.busy), ("idle", snapshot.workers.saturating_sub(snapshot.busy))]
            .map(|(state, count)| (state.to_owned(), count as f64)),
    );
}

/// Key sets behind URLs.
pub(super) fn collect_keys(families: &mut Families, keys: &KeyStore) {
    let states = keys.status();
    if let Some(worst) = states.iter().map(|status| state_number(status.breaker)).reduce(f64::max) {
        families.gauge(
            "archmesh_jwks_breaker_state",
            "Breaker in front of the JWKS: 0 closed, 1 half open, 2 open.",
            worst,
        );
    }
}

/// The database.
pub(super) fn collect_store(families: &mut Families, store: &Store) {
    families.gauge(
        "archmesh_database_up",
        "1 when the database answers.",
        f64::from(u8::from(store.is_up())),
    );
    families.gauge(
        "archmesh_database_breaker_state",
        "Breaker in front of the database: 0 closed, 1 half open, 2 open.",
        state_number(store.breaker_state()),
    );
    families.counters(
        "archmesh_database_requests_total",
        "Requests to the database by outcome; refused ones were not sent.",
        &["outcome"],
        OUTCOMES
            .iter()
            .zip(store.outcomes())
            .map(|(outcome, count)| ((*outcome).to_owned(), count as f64)),
    );
    families.counter(
        "archmesh_database_request_seconds_total",
        "Time that all requests to the database took together.",
        store.busy().as_secs_f64(),
    );
    families.gauge(
        "archmesh_database_connections_max",
        "Most connections to the database.",
        f64::from(store.connections_max()),
    );
    let (open, idle) = store.connections();
    families.gauges(
        "archmesh_database_connections",
        "Open connections to the database.",
        &["state"],
        [("busy", open as usize - idle.min(open as usize)), ("idle", idle)]
            .map(|(state, count)| (state.to_owned(), count as f64)),
    );
}
