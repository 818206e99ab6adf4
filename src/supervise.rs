//! Notices a shard that has stopped turning, and tells systemd that the process is well.
//!
//! systemd's watchdog is fed only while every shard turns. Without systemd the process ends itself when a shard stands
//! still for `engine.watchdog_timeout`, because a half-dead node is worse than a restarted one: its channels would
//! answer nobody.

use std::time::Duration;

use gateway_core::ids::ShardId;
use sd_notify::NotifyState;

use crate::bridge::Shards;
use crate::plane::SharedPlane;

/// Heartbeats are looked at so many times within the shorter limit.
const LOOKS_PER_LIMIT: u32 = 4;
/// Most time between two looks, so that a stall is logged soon.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Tells systemd about the process; without systemd nothing happens.
pub(crate) fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(category = "system", event = "sd_notify_failed", %error);
    }
}

/// Watches until the future is dropped.
pub(crate) async fn run(plane: SharedPlane, watchdog_timeout: Duration) {
    let systemd = sd_notify::watchdog_enabled();
    let shortest = systemd.map_or(watchdog_timeout, |limit| limit.min(watchdog_timeout));
    let mut looks = tokio::time::interval((shortest / LOOKS_PER_LIMIT).min(LOOK_INTERVAL_MAX));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stalled_before = vec![false; usize::from(plane.bridge.shards().count())];
    loop {
        looks.tick().await;
        let shards = plane.bridge.shards();
        for shard in plane.bridge.shard_ids() {
            let stalled = plane.health.is_stalled(shards, shard);
            report(shards, shard, stalled, &mut stalled_before[shard.index()]);
            if shards.heartbeat_age(shard) > watchdog_timeout {
                give_up(shards, shard);
            }
        }
        if systemd.is_some() && !plane.health.any_stalled(shards) {
            notify(NotifyState::Watchdog);
        }
    }
}

fn report(shards: &dyn Shards, shard: ShardId, stalled: bool, before: &mut bool) {
    if stalled == std::mem::replace(before, stalled) {
        return;
    }
    let age_ms = shards.heartbeat_age(shard).as_millis() as u64;
    if stalled {
        tracing::error!(category = "performance", event = "shard_stalled", shard = shard.0, age_ms);
    } else {
        tracing::warn!(category = "performance", event = "shard_turns_again", shard = shard.0);
    }
}

fn give_up(shards: &dyn Shards, shard: ShardId) -> ! {
    let age_ms = shards.heartbeat_age(shard).as_millis() as u64;
    tracing::error!(category = "error", event = "watchdog_abort", shard = shard.0, age_ms);
    // The log's writer is a thread of its own and its queue would be lost, so the reason is also said here.
    crate::cli::output::fail(&format!(
        "shard {shard} has not turned for {age_ms} ms; the process ends"
    ));
    std::process::abort()
}
