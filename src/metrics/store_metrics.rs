//! The store and the notifications in it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::families::Families;
use crate::breaker::BreakerState;
use crate::notify::Notifications;
use crate::store::{OUTCOMES, Store};

/// Counters and gauges.
pub(super) fn collect(families: &mut Families, notifications: &Notifications) {
    collect_store(families, notifications.store());
    let writer = notifications.writer();
    families.gauge(
        "archmesh_inbox_writes_waiting",
        "Changes of inboxes that wait to be written.",
        writer.waiting() as f64,
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
            "Rows of the outbox that can never be published; the log says why.",
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
        [("now", &sent.now), ("held", &sent.held), ("opted_out", &sent.opted_out)]
            .map(|(decision, counter)| (decision.to_owned(), count(counter))),
    );
}

fn collect_store(families: &mut Families, store: &Store) {
    families.gauge(
        "archmesh_database_up",
        "1 when the database answers.",
        f64::from(u8::from(store.is_up())),
    );
    families.gauge(
        "archmesh_database_breaker_state",
        "Breaker in front of the database: 0 closed, 1 half open, 2 open.",
        match store.breaker_state() {
            BreakerState::Closed => 0.0,
            BreakerState::HalfOpen => 1.0,
            BreakerState::Open => 2.0,
        },
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
    let (open, idle) = store.connections();
    families.gauges(
        "archmesh_database_connections",
        "Open connections to the database.",
        &["state"],
        [("busy", open as usize - idle.min(open as usize)), ("idle", idle)]
            .map(|(state, count)| (state.to_owned(), count as f64)),
    );
}
