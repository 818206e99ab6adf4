//! Rates: the difference between two samples taken `health.interval` apart.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gateway_core::auth::AuthError;
use gateway_core::metrics::ShardMetrics;
use tokio::sync::watch;

use crate::bridge::Snapshots;
use crate::plane::SharedPlane;

/// Sums over all shards at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    /// Monotonic time of the sample.
    pub at: Duration,
    /// Open sockets.
    pub connections: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Connections accepted since the start.
    pub connections_total: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Bytes received and sent.
    pub message_bytes: u64,
    /// Error replies.
    pub errors: u64,
    /// Deliveries, and the sum of their latencies in microseconds.
    pub deliveries: u64,
    /// See `deliveries`.
    pub delivery_us: f64,
    /// Recoveries that gave everything.
    pub recoveries_ok: u64,
    /// Recoveries that could not.
    pub recoveries_failed: u64,
    /// Ended sessions.
    pub sessions_ended: u64,
    /// Sum of their durations in milliseconds.
    pub session_ms: u64,
    /// Longest of them.
    pub session_ms_max: u64,
}

impl Totals {
    /// Adds up what is known.
    pub(crate) fn of(snapshots: &Snapshots, at: Duration) -> Self {
        let mut totals = Self { at, ..Self::default() };
        for (_, snapshot) in snapshots.known() {
            totals.add(&snapshot.core);
        }
        totals
    }

    fn add(&mut self, core: &ShardMetrics) {
        self.connections += core.connections;
        self.sessions += core.sessions;
        self.connections_total += core.connections_total;
        self.messages_in += core.messages_in.0.iter().sum::<u64>();
        self.messages_out += core.messages_out.0.iter().sum::<u64>();
        self.message_bytes += core.message_bytes_in + core.message_bytes_out;
        self.errors += core.errors;
        self.deliveries += core.delivery_us.len();
        self.delivery_us += core.delivery_us.mean() * core.delivery_us.len() as f64;
        self.recoveries_ok += core.recoveries_ok;
        self.recoveries_failed += core.recoveries_failed;
        self.sessions_ended += core.disconnected.0.iter().sum::<u64>();
        self.session_ms += core.session_ms_total;
        self.session_ms_max = self.session_ms_max.max(core.session_ms_max);
    }
}

/// Rates over one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Messages received and sent per second.
    pub messages_per_second: f64,
    /// Mean delivery latency in milliseconds.
    pub response_ms: f64,
    /// Error replies per message received, 0 to 1.
    pub error_rate: f64,
}

impl Rates {
    /// From `before` to `after`.
    fn between(before: &Totals, after: &Totals) -> Self {
        let messages = |totals: &Totals| totals.messages_in + totals.messages_out;
        let seconds = after.at.saturating_sub(before.at).as_secs_f64();
        let diff = |new: u64, old: u64| new.saturating_sub(old) as f64;
        Self {
            messages_per_second: ratio(diff(messages(after), messages(before)), seconds),
            response_ms: ratio(
                (after.delivery_us - before.delivery_us).max(0.0),
                diff(after.deliveries, before.deliveries),
            ) / 1000.0,
            error_rate: ratio(
                diff(after.errors, before.errors),
                diff(after.messages_in, before.messages_in),
            )
            .min(1.0),
        }
    }
}

/// `a / b`, and 0 when there is nothing to divide by.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// The last two samples.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    samples: Mutex<(Totals, Option<Rates>)>,
}

impl Sampler {
    /// Takes a sample; the rates are those since the sample before.
    pub(crate) fn record(&self, totals: Totals) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.1 = Some(Rates::between(&samples.0, &totals));
        samples.0 = totals;
    }

    /// Rates of the last whole interval; before there is one, those from the start to `now`.
    pub(crate) fn rates(&self, now: &Totals) -> Rates {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.1.unwrap_or_else(|| Rates::between(&samples.0, now))
    }
}

/// Between two looks for tokens with unknown key ids: a rotated key is in use soon after its first token.
const UNKNOWN_KID_INTERVAL: Duration = Duration::from_secs(1);

/// Samples until the future is dropped.
pub(crate) async fn run(plane: SharedPlane, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is at once, when there is nothing to compare with yet.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let snapshots = plane.bridge.snapshots().await;
        plane.sampler.record(Totals::of(&snapshots, plane.uptime()));
    }
}

/// Changes `unknown_kid` when tokens with unknown key ids came since the last look: perhaps keys were rotated. Runs
/// until the future is dropped.
pub(crate) async fn watch_unknown_kids(plane: SharedPlane, unknown_kid: watch::Sender<u64>) {
    let mut ticks = tokio::time::interval(UNKNOWN_KID_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Keys that cannot rotate need no look, and an idle node is left asleep.
        if !plane.keys_rotate.load(Ordering::Relaxed) {
            continue;
        }
        let unknown = unknown_kids(&plane.bridge.snapshots().await);
        unknown_kid.send_if_modified(|known| std::mem::replace(known, unknown) < unknown);
    }
}

fn unknown_kids(snapshots: &Snapshots) -> u64 {
    let index =
        AuthError::ALL.iter().position(|error| *error == AuthError::UnknownKey).unwrap_or(0);
    snapshots.known().map(|(_, snapshot)| snapshot.core.auth_failures.0[index]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences() {
        let sampler = Sampler::default();
        let at = |seconds, messages_in, errors| Totals {
            at: Duration::from_secs(seconds),
            messages_in,
            errors,
            deliveries: messages_in,
            delivery_us: messages_in as f64 * 2_000.0,
            ..Totals::default()
        };
        let first = sampler.rates(&at(10, 100, 0));
        assert!((first.messages_per_second - 10.0).abs() < 1e-9, "since the start: {first:?}");
        sampler.record(at(10, 100, 0));
        sampler.record(at(20, 1_100, 100));
        let rates = sampler.rates(&at(21, 99_999, 0));
        assert!((rates.messages_per_second - 100.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.response_ms - 2.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.error_rate - 0.1).abs() < 1e-9, "{rates:?}");
    }

    #[test]
    fn nothing_happened_is_zero_not_nan() {
        let sampler = Sampler::default();
        assert_eq!(sampler.rates(&Totals::default()), Rates::default());
    }
}
