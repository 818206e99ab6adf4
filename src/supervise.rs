//! Notices a shard that has stopped turning, and tells systemd that the process is well.
//!
//! systemd's watchdog is fed only while every shard turns. Without systemd the process ends itself when a shard stands
//! still for `engine.watchdog_timeout`, because a half-dead node is worse than a restarted one: its channels would
//! answer nobody. A process that stood still as a whole (a paused container or virtual machine) is not ended for that when
//! it goes on: only time that this watchdog itself saw pass counts.

use std::time::{Duration, Instant};

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
    let interval = (shortest / LOOKS_PER_LIMIT).min(LOOK_INTERVAL_MAX);
    let mut looks = tokio::time::interval(interval);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let count = usize::from(plane.bridge.shards().count());
    let mut stalled_before = vec![false; count];
    let mut still = vec![Still::default(); count];
    let mut last_look = Instant::now();
    loop {
        looks.tick().await;
        let shards = plane.bridge.shards();
        let between = last_look.elapsed();
        last_look += between;
        for shard in plane.bridge.shard_ids() {
            let stalled = plane.health.is_stalled(shards, shard);
            report(shards, shard, stalled, &mut stalled_before[shard.index()]);
            let age = shards.heartbeat_age(shard);
            if still[shard.index()].look(age, between, 2 * interval) > watchdog_timeout {
                give_up(shards, shard);
            }
        }
        if systemd.is_some() && !plane.health.any_stalled(shards) {
            notify(NotifyState::Watchdog);
        }
    }
}

/// For how long a shard was seen to stand still.
#[derive(Clone, Copy, Debug, Default)]
struct Still(Duration);

impl Still {
    /// A look at a shard whose heartbeat is `age` old, `between` after the last look. A longer time between looks than `most`
    /// was not spent looking.
    fn look(&mut self, age: Duration, between: Duration, most: Duration) -> Duration {
        let turned = age < between;
        self.0 = if turned { age.min(most) } else { self.0 + between.min(most) };
        self.0
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_what_was_seen_counts() {
        let mut still = Still::default();
        let mut look = |age: u32, between: u32| {
            still.look(age * SECOND, between * SECOND, 2 * SECOND).as_secs()
        };
        assert_eq!(look(0, 1), 0);
        assert_eq!([look(1, 1), look(2, 1), look(3, 1)], [1, 2, 3]);
        assert_eq!(look(0, 1), 0, "it turns again");
        // The whole process was paused for half a minute.
        assert_eq!(look(30, 30), 2);
        assert_eq!(look(0, 1), 0);
        assert_eq!(look(29, 30), 2, "it turned once before the pause");
        assert_eq!([look(30, 1), look(31, 1)], [3, 4], "and never after it");
    }
}
