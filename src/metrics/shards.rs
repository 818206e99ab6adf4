//! Series made from the shards' counters: gauges per shard, counters summed over the shards.

use gateway_core::auth::AuthError;
use gateway_core::error::Disconnect;
use gateway_core::metrics::{
    Counts, DropKind, HistoryEviction, HistoryRead, MessageKind, RateScope, RefusalReason,
    ShardMetrics, SlowAction,
};
use gateway_engine::{EngineMetrics, ShardSnapshot};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::families::Families;
use crate::bridge::Snapshots;
use crate::plane::Plane;

/// Upper bounds of delivery latency and loop lag in seconds.
const LATENCY_SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// Upper bounds of connection durations in seconds.
const DURATION_SECONDS: &[f64] =
    &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0];
const SHARD: &[&str] = &["shard"];

/// Adds all families.
pub(super) fn collect(families: &mut Families, plane: &Plane, snapshots: &Snapshots) {
    shard_gauges(families, plane, snapshots);
    connections(families, snapshots);
    messages(families, snapshots);
    histories(families, snapshots);
    refusals(families, snapshots);
    histograms(families, snapshots);
    engine(families, snapshots);
}

/// A gauge per shard.
fn per_shard(
    families: &mut Families,
    snapshots: &Snapshots,
    name: &str,
    help: &str,
    read: fn(&ShardSnapshot) -> f64,
) {
    let values = snapshots.known().map(|(shard, snapshot)| (shard.to_string(), read(snapshot)));
    families.gauges(name, help, SHARD, values);
}

/// A counter summed over the shards.
fn total(
    families: &mut Families,
    snapshots: &Snapshots,
    name: &str,
    help: &str,
    read: fn(&ShardMetrics) -> u64,
) {
    let sum: u64 = snapshots.known().map(|(_, snapshot)| read(&snapshot.core)).sum();
    families.counter(name, help, sum as f64);
}

/// A counter per label value, summed over the shards.
fn by_label<const N: usize>(
    families: &mut Families,
    snapshots: &Snapshots,
    (name, help): (&str, &str),
    (label, values): (&'static str, &[&'static str]),
    read: fn(&ShardMetrics) -> &Counts<N>,
) {
    let mut sums = [0u64; N];
    for (_, snapshot) in snapshots.known() {
        for (sum, count) in sums.iter_mut().zip(read(&snapshot.core).0) {
            *sum += count;
        }
    }
    let values = values.iter().zip(sums).map(|(value, sum)| ((*value).to_owned(), sum as f64));
    families.counters(name, help, &[label], values);
}

fn shard_gauges(families: &mut Families, plane: &Plane, snapshots: &Snapshots) {
    let ages = plane
        .bridge
        .shard_ids()
        .map(|shard| (shard.to_string(), plane.bridge.shards().heartbeat_age(shard).as_secs_f64()));
    families.gauges(
        "archmesh_shard_heartbeat_age_seconds",
        "Since the shard's loop last turned.",
        SHARD,
        ages,
    );
    let mut gauge = |name, help, read| per_shard(families, snapshots, name, help, read);
    gauge("archmesh_connections", "Open sockets, with and without a session.", |s| {
        s.core.connections as f64
    });
    gauge("archmesh_sessions", "Open WebSocket sessions.", |s| s.core.sessions as f64);
    gauge("archmesh_channels", "Channels whose home the shard is.", |s| s.core.channels as f64);
    gauge("archmesh_subscriptions", "Subscriptions of the shard's connections.", |s| {
        s.core.subscriptions as f64
    });
    gauge("archmesh_mailbox_depth", "Messages waiting in the shard's mailbox.", |s| {
        s.mailbox_depth as f64
    });
    gauge("archmesh_outbox_bytes", "Unsent bytes of the shard's connections.", |s| {
        s.core.outbox_bytes as f64
    });
    gauge("archmesh_history_publications", "Publications kept.", |s| {
        s.core.history_publications as f64
    });
    gauge("archmesh_history_bytes", "Bytes that kept publications take in memory.", |s| {
        s.core.history_bytes as f64
    });
    gauge(
        "archmesh_history_bytes_max",
        "Bytes that kept publications may take (cache.memory_max_mb); above it the oldest of any channel go.",
        |s| s.core.history_bytes_max as f64,
    );
    gauge("archmesh_large_data_bytes", "Bytes of chunked transfers under way.", |s| {
        s.core.large_data_bytes as f64
    });
}

fn connections(families: &mut Families, snapshots: &Snapshots) {
    total(
        families,
        snapshots,
        "archmesh_connections_accepted_total",
        "WebSocket connections accepted.",
        |core| core.connections_total,
    );
    by_label(
        families,
        snapshots,
        (
            "archmesh_connections_refused_total",
            "Connections refused before they became sessions, by reason.",
        ),
        ("reason", &names(RefusalReason::ALL, RefusalReason::as_str)),
        |core| &core.refused,
    );
    by_label(
        families,
        snapshots,
        ("archmesh_disconnects_total", "Ended sessions by reason."),
        ("reason", &names(&Disconnect::ALL, Disconnect::reason)),
        |core| &core.disconnected,
    );
    let mut count = |name, help, read| total(families, snapshots, name, help, read);
    count(
        "archmesh_broker_gaps_total",
        "Holes that homes found in what the broker told them; each is read again.",
        |core| core.broker_gaps,
    );
    count(
        "archmesh_epochs_changed_total",
        "Streams that began anew under their subscribers, by channel and shard.",
        |core| core.epochs_changed,
    );
    count("archmesh_gaps_found_total", "Gaps between shards found.", |core| core.gaps_found);
    count("archmesh_gaps_repaired_total", "Gaps repaired from the home shard.", |core| {
        core.gaps_repaired
    });
    count("archmesh_panics_total", "Panics caught while a connection was handled.", |core| {
        core.panics
    });
    count(
        "archmesh_revocations_forgotten_total",
        "Revocations not kept, or pushed out by another, because the table is full.",
        |core| core.revocations_forgotten,
    );
    let sum = |read: fn(&ShardMetrics) -> u64| -> f64 {
        snapshots.known().map(|(_, snapshot)| read(&snapshot.core)).sum::<u64>() as f64
    };
    let recoveries = [
        ("ok".to_owned(), sum(|core| core.recoveries_ok)),
        ("failed".to_owned(), sum(|core| core.recoveries_failed)),
    ];
    let help = "Recoveries asked for by returning clients, by result.";
    families.counters("archmesh_recoveries_total", help, &["result"], recoveries);
}

fn histories(families: &mut Families, snapshots: &Snapshots) {
    by_label(
        families,
        snapshots,
        (
            "archmesh_history_evicted_total",
            "Publications that left a history: over the bytes of the shard, the number or the age of the namespace.",
        ),
        ("reason", &names(HistoryEviction::ALL, HistoryEviction::as_str)),
        |core| &core.history_evicted,
    );
    let outcomes = names(HistoryRead::ALL, HistoryRead::as_str);
    by_label(
        families,
        snapshots,
        (
            "archmesh_history_reads_total",
            "Reads of history: answered from what a shard holds, asked of the database, or more was wanted than is held.",
        ),
        ("outcome", &outcomes),
        |core| &core.history_reads,
    );
    by_label(
        families,
        snapshots,
        (
            "archmesh_recovery_reads_total",
            "Recoveries in the same stream: from what a shard holds, from the database, or more was missed than is held.",
        ),
        ("outcome", &outcomes),
        |core| &core.recovery_reads,
    );
}

fn messages(families: &mut Families, snapshots: &Snapshots) {
    let kinds = names(MessageKind::ALL, MessageKind::as_str);
    by_label(
        families,
        snapshots,
        ("archmesh_messages_received_total", "Client messages by type."),
        ("type", &kinds),
        |core| &core.messages_in,
    );
    by_label(
        families,
        snapshots,
        ("archmesh_messages_sent_total", "Messages put into outboxes by type."),
        ("type", &kinds),
        |core| &core.messages_out,
    );
    let mut count = |name, help, read| total(families, snapshots, name, help, read);
    count("archmesh_messages_received_bytes_total", "Payload bytes of client messages.", |c| {
        c.message_bytes_in
    });
    count("archmesh_messages_sent_bytes_total", "Frame bytes put into outboxes.", |c| {
        c.message_bytes_out
    });
    count("archmesh_publications_total", "Publications ordered.", |c| c.publications);
    count("archmesh_error_replies_total", "Commands answered with an error.", |c| c.errors);
}

fn refusals(families: &mut Families, snapshots: &Snapshots) {
    by_label(
        families,
        snapshots,
        (
            "archmesh_mailbox_dropped_total",
            "Internal messages that a full queue dropped or refused, by kind.",
        ),
        ("kind", &names(DropKind::ALL, DropKind::as_str)),
        |core| &core.dropped,
    );
    by_label(
        families,
        snapshots,
        ("archmesh_slow_consumers_total", "What full outboxes led to, by action."),
        ("action", &names(SlowAction::ALL, SlowAction::as_str)),
        |core| &core.slow,
    );
    by_label(
        families,
        snapshots,
        (
            "archmesh_rate_limited_total",
            "Client messages refused by a rate limit, by whose it was.",
        ),
        ("scope", &names(RateScope::ALL, RateScope::as_str)),
        |core| &core.rate_limited,
    );
    by_label(
        families,
        snapshots,
        ("archmesh_auth_failures_total", "Tokens refused, by reason."),
        ("reason", &names(&AuthError::ALL, AuthError::as_str)),
        |core| &core.auth_failures,
    );
}

fn histograms(families: &mut Families, snapshots: &Snapshots) {
    let merged = |read: fn(&ShardMetrics) -> &Histogram<u64>| -> Option<Histogram<u64>> {
        let mut known = snapshots.known().map(|(_, snapshot)| read(&snapshot.core));
        let mut sum = known.next()?.clone();
        // All shards record with the same bounds, so nothing can be out of range.
        known.try_for_each(|other| sum.add(other)).ok()?;
        Some(sum)
    };
    if let Some(delivery) = merged(|core| &core.delivery_us) {
        let name = "archmesh_delivery_latency_seconds";
        let help = "From accepting a publication to handing it to a socket.";
        families.histograms(
            (name, help),
            &[],
            (LATENCY_SECONDS, 1e6),
            [(String::new(), &delivery)],
        );
    }
    if let Some(durations) = merged(|core| &core.session_seconds) {
        let name = "archmesh_connection_duration_seconds";
        let help = "How long ended sessions were open.";
        families.histograms(
            (name, help),
            &[],
            (DURATION_SECONDS, 1.0),
            [(String::new(), &durations)],
        );
    }
}

fn names<T: Copy>(all: &[T], name: fn(T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(|label| name(*label)).collect()
}

/// Adds what the engine measures below the core.
fn engine(families: &mut Families, snapshots: &Snapshots) {
    per_shard(
        families,
        snapshots,
        "archmesh_mailbox_capacity",
        "Messages the shard's mailbox holds at most.",
        |s| s.mailbox_capacity as f64,
    );
    per_shard(
        families,
        snapshots,
        "archmesh_shard_load_ratio",
        "Busy part of the shard's last second, 0 to 1.",
        |s| f64::from(s.engine.load_permille) / 1000.0,
    );
    let lags = snapshots
        .known()
        .map(|(shard, snapshot)| (shard.to_string(), &snapshot.engine.loop_lag_us));
    let help = "How long ready work may have waited for its shard.";
    families.histograms(("archmesh_loop_lag_seconds", help), SHARD, (LATENCY_SECONDS, 1e6), lags);
    per_shard(
        families,
        snapshots,
        "archmesh_loop_stall_longest_seconds",
        "Longest turn of the shard's loop.",
        |s| s.engine.stall_us_max as f64 / 1e6,
    );
    engine_loop(families, snapshots);
    engine_io(families, snapshots);
}

fn engine_loop(families: &mut Families, snapshots: &Snapshots) {
    let mut count = |name, help, read: fn(&EngineMetrics) -> u64| {
        let values = snapshots
            .known()
            .map(|(shard, snapshot)| (shard.to_string(), read(&snapshot.engine) as f64));
        families.counters(name, help, SHARD, values);
    };
    count("archmesh_loop_stalls_total", "Turns longer than the stall threshold.", |e| e.stalls);
    count("archmesh_loop_turns_total", "Turns of the shard's loop.", |e| e.turns);
    count("archmesh_loop_parks_total", "Times the shard slept.", |e| e.parks);
    count("archmesh_shard_wakeups_total", "Times the shard woke another one.", |e| e.wakeups);
    count("archmesh_sockets_accepted_total", "Sockets accepted by the shard.", |e| e.accepted);
    count(
        "archmesh_accept_pauses_total",
        "Times accepting rested for want of descriptors or memory.",
        |e| e.accept_pauses,
    );
    count(
        "archmesh_accept_errors_total",
        "Accepts that failed, mostly clients that went away.",
        |e| e.accept_errors,
    );
    count(
        "archmesh_placements_refused_total",
        "Sockets kept because the chosen shard's mailbox was full.",
        |e| e.placements_refused,
    );
    count("archmesh_http_handed_over_total", "Connections given to the control plane.", |e| {
        e.handed_over
    });
    count("archmesh_tls_handshake_failures_total", "TLS handshakes that failed.", |e| {
        e.tls_failures
    });
}

fn engine_io(families: &mut Families, snapshots: &Snapshots) {
    let mut count = |name, help, read: fn(&EngineMetrics) -> u64| {
        let values = snapshots
            .known()
            .map(|(shard, snapshot)| (shard.to_string(), read(&snapshot.engine) as f64));
        families.counters(name, help, SHARD, values);
    };
    count("archmesh_network_received_bytes_total", "Bytes received from sockets.", |e| e.bytes_in);
    count("archmesh_network_sent_bytes_total", "Bytes given to sockets.", |e| e.bytes_out);
    count("archmesh_sends_total", "Send calls.", |e| e.sends);
    count("archmesh_sends_short_total", "Sends that took less than offered.", |e| e.sends_short);
    count(
        "archmesh_receive_pauses_total",
        "Receives paused for a turn because of the connection's budget.",
        |e| e.receive_pauses,
    );
    count("archmesh_receive_buffers_exhausted_total", "Receives that found no free buffer.", |e| {
        e.receive_buffers_exhausted
    });
    count(
        "archmesh_completion_overflows_total",
        "Times completions did not fit into the ring; none is lost.",
        |e| e.completion_overflows,
    );
    count("archmesh_engine_panics_total", "Panics caught by the engine.", |e| e.panics);
}

/// Loop lag of one shard for `/health/detailed`, since the start.
pub(crate) fn loop_lag_json(snapshot: &ShardSnapshot) -> Value {
    let lag = &snapshot.engine.loop_lag_us;
    let seconds = |us: u64| us as f64 / 1e6;
    json!({
        "p50": seconds(lag.value_at_quantile(0.5)),
        "p99": seconds(lag.value_at_quantile(0.99)),
        "max": seconds(lag.max()),
    })
}
