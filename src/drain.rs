//! The orderly end: clients are told to move, a few at a time, before the process goes.
//!
//! Whoever comes meanwhile is answered, by HTTP or with the refusal that names another node, so the listeners close last.
//! Only WebSockets are load and waited for: a node that is asked again and again ends all the same.

use std::sync::Arc;
use std::time::Duration;

use gateway_core::admission::Admission;
use gateway_core::message::ShardOp;
use gateway_engine::EngineHandle;
use sd_notify::NotifyState;
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::sections::DrainSection;
use crate::health::LifePhase;
use crate::plane::SharedPlane;
use crate::supervise;

/// Between two looks at the number of connections, and between two tries at a full mailbox.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Part of the limit that is kept for clients told last to go and for the last bytes.
const RESERVE_PART: u32 = 5;
/// For what has reached the listeners when the last client is gone: long enough to be read and answered.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(1);

/// How a drain is paced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    /// From the first client told to move to the last.
    spread: Duration,
    /// From the start to giving up.
    limit: Duration,
}

impl Pace {
    fn new(connections: u64, section: &DrainSection) -> Self {
        let limit = section.timeout;
        let wanted = match section.connections_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(connections as f64 / f64::from(rate)),
        };
        Self { spread: wanted.min(limit.saturating_sub(limit / RESERVE_PART)), limit }
    }
}

/// Drains; returns when no client is left or the limit is reached.
pub(crate) async fn run(
    plane: &SharedPlane,
    engine: &EngineHandle,
    admission: &Admission,
    section: &DrainSection,
) {
    plane.health.enter(LifePhase::Draining);
    // First, so that no other node names this one to its clients any more.
    plane.renew_lease_soon();
    let urls: Arc<[Box<str>]> =
        plane.cluster.as_ref().map_or_else(Vec::new, |cluster| cluster.others()).into();
    supervise::notify(NotifyState::Stopping);
    let connections = admission.sessions();
    let pace = Pace::new(connections, section);
    let deadline = Instant::now() + pace.limit;
    tracing::info!(
        category = "system",
        event = "drain_started",
        connections,
        spread_ms = pace.spread.as_millis() as u64,
        limit_ms = pace.limit.as_millis() as u64,
        nodes = urls.len(),
    );
    admission.set_draining(true);
    for shard in plane.bridge.shard_ids() {
        let drain = ShardOp::Drain {
            duration: pace.spread,
            reconnect_delay_max: section.reconnect_delay_max,
            urls: Arc::clone(&urls),
        };
        let mut refused = plane.bridge.tell(shard, drain).err();
        while let Some(op) = refused.take() {
            if Instant::now() >= deadline {
                tracing::error!(category = "error", event = "drain_not_delivered", shard = shard.0);
                break;
            }
            sleep(LOOK_INTERVAL).await;
            refused = plane.bridge.tell(shard, *op).err();
        }
    }
    // Kept HTTP connections close with their next answer; idle ones at once.
    plane.http.stop();
    until(deadline, || admission.sessions() == 0).await;
    let left = admission.sessions();
    engine.stop_accepting();
    let last = deadline.min(Instant::now() + LAST_ANSWERS_MAX);
    until(last, || admission.connections() == 0).await;
    if timeout_at(deadline, plane.http.stopped()).await.is_err() {
        tracing::warn!(
            category = "system",
            event = "http_cut",
            connections = plane.http.connections()
        );
    }
    if left > 0 {
        tracing::warn!(category = "system", event = "drain_limit_reached", connections = left);
    }
    tracing::info!(category = "system", event = "drain_finished", connections = left);
}

/// Waits until `done` or the deadline.
async fn until(deadline: Instant, done: impl Fn() -> bool) {
    while !done() && Instant::now() < deadline {
        sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(connections: u64, per_second: u32, timeout: u64, expected_ms: u64) {
        let section = DrainSection {
            timeout: Duration::from_secs(timeout),
            connections_per_second: per_second,
            reconnect_delay_max: Duration::from_secs(5),
        };
        assert_eq!(Pace::new(connections, &section).spread, Duration::from_millis(expected_ms));
    }

    #[test]
    fn pace_follows_the_rate_and_stays_within_the_limit() {
        check(1_000, 500, 30, 2_000);
        check(0, 500, 30, 0);
        check(1_000, 0, 30, 0);
        check(1_000_000, 100, 30, 24_000);
    }
}
