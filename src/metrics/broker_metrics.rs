//! What the broker between nodes counts.

use super::families::Families;
use crate::broker::BrokerCounts;

/// Counters and gauges of the broker.
pub(super) fn collect(families: &mut Families, counts: &BrokerCounts) {
    families.counters(
        "archmesh_broker_writes_total",
        "Publications, removals and members by what became of them; refused ones found too many waiting, local ones no Redis.",
        &["outcome"],
        ["written", "failed", "refused", "local"]
            .into_iter()
            .zip(counts.writes)
            .map(|(outcome, count)| (outcome.to_owned(), count as f64)),
    );
    families.counters(
        "archmesh_broker_questions_total",
        "Questions to other nodes by whether all answered.",
        &["outcome"],
        ["complete", "partial"]
            .into_iter()
            .zip(counts.questions)
            .map(|(outcome, count)| (outcome.to_owned(), count as f64)),
    );
    for (name, help, count) in [
        ("archmesh_broker_calls_total", "Script calls that carried writes.", counts.calls),
        ("archmesh_broker_messages_total", "Messages received from Redis.", counts.received),
        (
            "archmesh_broker_messages_unreadable_total",
            "Messages from Redis that could not be read.",
            counts.unreadable,
        ),
        (
            "archmesh_broker_lagged_total",
            "Times this node was too slow for what Redis sent; all channels were checked.",
            counts.lagged,
        ),
        (
            "archmesh_broker_given_up_total",
            "Publications and news of members given up because a shard was too slow; their channels were read again.",
            counts.given_up,
        ),
        (
            "archmesh_broker_questions_refused_total",
            "Questions of other nodes that were refused because cluster.questions_at_once_max were being answered.",
            counts.questions_refused,
        ),
        (
            "archmesh_broker_charged_messages_total",
            "Messages of users on other nodes that were counted against their rate here.",
            counts.charged,
        ),
        ("archmesh_broker_snapshots_total", "Channels read from Redis.", counts.snapshots),
        (
            "archmesh_broker_missed_total",
            "Channels that a check found behind Redis; they were read again.",
            counts.missed,
        ),
        (
            "archmesh_broker_probe_reconnects_total",
            "Connections made anew because a probe did not come back through Redis.",
            counts.probe_reconnects,
        ),
    ] {
        families.counter(name, help, count as f64);
    }
    collect_gauges(families, counts);
}

fn collect_gauges(families: &mut Families, counts: &BrokerCounts) {
    families.gauge(
        "archmesh_broker_revocations_behind",
        "1 from the start, or a new connection to Redis, until the revocations kept there are known.",
        f64::from(u8::from(counts.revocations_behind)),
    );
    families.gauge(
        "archmesh_broker_writes_waiting",
        "Writes that wait to be sent to Redis.",
        counts.waiting as f64,
    );
    families.gauge(
        "archmesh_broker_channels",
        "Channels that this node is subscribed to in Redis.",
        counts.channels as f64,
    );
    families.gauge(
        "archmesh_broker_probe_seconds",
        "Duration of the last probe through Redis and back.",
        counts.probe.as_secs_f64(),
    );
}
