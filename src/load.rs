//! How full the node is: what balancers and the other nodes go by.
//!
//! Read from what the shards share, so that it costs nothing and waits for nobody, however busy they are. What is measured
//! over a time besides (`Meter`) waits for the shards' counters, no longer than a scrape does.

use std::time::Duration;

use gateway_core::ids::ShardId;
use hdrhistogram::Histogram;

use crate::bridge::Snapshots;
use crate::metrics;
use crate::plane::Plane;

/// An idle shard turns once in a second; one that has not for so long stands.
const IDLE_TURN_MAX: Duration = Duration::from_secs(2);

/// Shortest time over which CPU time and lag are measured: the kernel counts CPU time in hundredths of a second.
const MEASURED_MIN: Duration = Duration::from_secs(1);

/// The node's load at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Open WebSockets.
    pub connections: u64,
    /// Most of them that it takes.
    pub connections_max: u64,
    /// Busy share of its shards in the last second, the mean over all, in thousandths.
    pub busy_permille: u32,
}

impl Load {
    /// The load now.
    pub(crate) fn of(plane: &Plane) -> Self {
        let shards = plane.bridge.shards();
        let busy: u32 = plane.bridge.shard_ids().map(|shard| shards.load_permille(shard)).sum();
        Self {
            connections: plane.admission.sessions(),
            connections_max: plane.settings.load().limits.connections_max,
            busy_permille: busy / u32::from(shards.count().max(1)),
        }
    }

    /// Whether no connection is taken any more.
    pub(crate) fn is_full(&self) -> bool {
        self.connections >= self.connections_max
    }

    /// How full it is in percent, 0 to 100: by its connections or by its shards, whichever is more.
    pub(crate) fn percent(&self) -> u64 {
        let taken = (self.connections * 100).checked_div(self.connections_max).unwrap_or(100);
        taken.max(u64::from(self.busy_permille / 10)).min(100)
    }

    /// Share of new clients that it should get, in percent: what is free. 0 only when it is full.
    pub(crate) fn weight_percent(&self) -> u64 {
        if self.is_full() { 0 } else { (100 - self.percent()).max(1) }
    }
}

/// How the process keeps up, over the time between two measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    /// CPU time as a share of the cores that it may use, in thousandths; `None` when the kernel does not tell it.
    pub cpu_permille: Option<u32>,
    /// Time from turn to turn of a busy shard in microseconds, 99th percentile of the slowest shard, or how long one has stood.
    pub loop_lag_us: u64,
}

/// Measures [`Pace`]. Each measurement begins where the one before ended; the first where the process began.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    measured: Option<Pace>,
    cpu: Duration,
    at: Duration,
    lags: Vec<Option<Histogram<u64>>>,
}

impl Meter {
    /// Measured anew, unless the last measurement is so young that a new one would say nothing.
    pub(crate) async fn measure(&mut self, plane: &Plane) -> Pace {
        let age = plane.uptime().saturating_sub(self.at);
        if let Some(pace) = self.measured.filter(|_| age < MEASURED_MIN) {
            return pace;
        }
        let pace = self.measure_anew(plane).await;
        self.measured = Some(pace);
        pace
    }

    async fn measure_anew(&mut self, plane: &Plane) -> Pace {
        let snapshots = plane.bridge.snapshots().await;
        let shards = plane.bridge.shards();
        let standing = |shard| shards.heartbeat_age(shard).saturating_sub(IDLE_TURN_MAX);
        let longest = plane.bridge.shard_ids().map(standing).max().unwrap_or_default();
        let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (now, cpu) = (plane.uptime(), metrics::cpu_time());
        let cpu_permille = cpu.map(|cpu| self.cpu_permille(now, cpu, cores));
        Pace { cpu_permille, loop_lag_us: self.loop_lag_us(&snapshots).max(longest_us) }
    }

    fn cpu_permille(&mut self, at: Duration, cpu: Duration, cores: usize) -> u32 {
        let used = cpu.saturating_sub(self.cpu).as_micros() * 1000;
        let had = at.saturating_sub(self.at).as_micros() * cores as u128;
        (self.cpu, self.at) = (cpu, at);
        // The kernel counts in ticks, so a short time can seem to be more than full.
        used.checked_div(had).map_or(0, |share| share.min(1000) as u32)
    }

    fn loop_lag_us(&mut self, snapshots: &Snapshots) -> u64 {
        self.lags.resize_with(snapshots.shards.len(), || None);
        let lags = snapshots.known().map(|(ShardId(shard), snapshot)| {
            let now = &snapshot.engine.loop_lag_us;
            let before = self.lags[usize::from(shard)].replace(now.clone());
            p99_since(before.as_ref(), now)
        });
        lags.max().unwrap_or(0)
    }
}

/// 99th percentile of what was recorded since `before`; 0 when that is nothing.
fn p99_since(before: Option<&Histogram<u64>>, now: &Histogram<u64>) -> u64 {
    let mut since = now.clone();
    // They have the same bounds, and what was counted before is still counted.
    let _subtracted = before.map(|before| since.subtract(before));
    if since.is_empty() { 0 } else { since.value_at_quantile(0.99) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_a_share_of_the_time_between_measurements() {
        let ms = Duration::from_millis;
        let mut meter = Meter::default();
        assert_eq!(meter.cpu_permille(ms(1_000), ms(1_000), 2), 500);
        assert_eq!(meter.cpu_permille(ms(3_000), ms(1_100), 2), 25);
        assert_eq!(meter.cpu_permille(ms(3_000), ms(1_100), 2), 0, "no time, no share");
        assert_eq!(meter.cpu_permille(ms(3_001), ms(1_200), 2), 1_000);
    }

    #[test]
    fn loop_lag_forgets_what_was_measured_before() {
        let mut lag = Histogram::new_with_max(60_000_000, 2).unwrap();
        lag.saturating_record(50_000);
        assert_eq!(p99_since(None, &lag) / 1000, 50);
        let before = lag.clone();
        assert_eq!(p99_since(Some(&before), &lag), 0);
        (0..100).for_each(|_| lag.saturating_record(200));
        assert!((200..210).contains(&p99_since(Some(&before), &lag)));
    }

    fn check(connections: u64, busy_permille: u32, percent: u64, weight: u64) {
        let load = Load { connections, connections_max: 200, busy_permille };
        assert_eq!((load.percent(), load.weight_percent()), (percent, weight), "{load:?}");
    }

    #[test]
    fn the_fuller_of_both_counts() {
        check(0, 0, 0, 100);
        check(34, 0, 17, 83);
        check(34, 500, 50, 50);
        check(0, 1_000, 100, 1);
        check(199, 0, 99, 1);
        check(200, 0, 100, 0);
        check(230, 1_000, 100, 0);
    }
}
