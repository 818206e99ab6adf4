//! The knobs of a scenario, from three layers: the scenario's file, its part for the size, the flags.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::thresholds::Thresholds;

/// A duration with a unit: `250ms`, `30s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(format!("{text:?}: expected a number with ms, s, m or h")),
        };
        let number: u64 = number.parse().map_err(|_| format!("{text:?}: expected a number"))?;
        let total = number.checked_mul(ms).filter(|ms| *ms <= 7 * 86_400_000);
        total
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| format!("{text:?} is longer than seven days"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1_000) { write!(f, "{}s", ms / 1_000) } else { write!(f, "{ms}ms") }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Everything a scenario may be told; what is absent comes from the layer below.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Scenario")]
pub(crate) struct Values {
    /// Connections.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: Option<u32>,
    /// Channels; the connections are spread over them.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) channels: Option<u32>,
    /// Channels that each connection subscribes to.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(crate) subscriptions: Option<u32>,
    /// Publications per second, all channels together (open loop).
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Bytes of a publication's payload.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) payload_bytes: Option<u32>,
    /// How long the load lasts.
    #[arg(long)]
    pub(crate) duration: Option<Span>,
    /// Load before the measurement begins.
    #[arg(long)]
    pub(crate) warmup: Option<Span>,
    /// Connections that publish; 0 = so many that each stays below 40 messages per second.
    #[arg(long)]
    pub(crate) publishers: Option<u32>,
    /// Publications in flight per connection (closed loop).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) in_flight: Option<u32>,
    /// Connect-and-close cycles.
    #[arg(long)]
    pub(crate) cycles: Option<u32>,
    /// Of the cycles, one in so many is left in the middle of the handshake; 0 = none.
    #[arg(long)]
    pub(crate) abort_every: Option<u32>,
    /// Publications per channel that everybody misses before reconnecting.
    #[arg(long)]
    pub(crate) missed: Option<u32>,
    /// Handshakes at one time.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) concurrency: Option<u32>,
    /// New connections per second; 0 = as fast as `concurrency` allows.
    #[arg(long)]
    pub(crate) connect_rate: Option<f64>,
    /// Connections that are cut off and come back (soak), or members that join or leave (presence), per second.
    #[arg(long)]
    pub(crate) churn_rate: Option<f64>,
    /// How long a connection that was cut off stays away.
    #[arg(long)]
    pub(crate) away: Option<Span>,
    /// Of the connections in busy channels, so many percent stop reading for a while.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=90))]
    pub(crate) slow_percent: Option<u32>,
    /// Channels that get publications, the first ones; 0 = all.
    #[arg(long)]
    pub(crate) busy_channels: Option<u32>,
    /// How long the slowest of them does not read; keep it below 40 s, or the heartbeat ends them.
    #[arg(long)]
    pub(crate) pause: Option<Span>,
    /// Connections per channel that stay and watch who joins and leaves.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) watchers: Option<u32>,
    /// What every channel name begins with: a namespace in which tokens may allow to publish.
    #[arg(long)]
    pub(crate) channel_prefix: Option<String>,
    /// When the run counts as failed.
    #[arg(skip)]
    pub(crate) thresholds: Thresholds,
}

macro_rules! over {
    ($upper:expr, $lower:expr, $($field:ident),+ $(,)?) => {
        Values {
            thresholds: $upper.thresholds.over(&$lower.thresholds),
            $($field: $upper.$field.clone().or_else(|| $lower.$field.clone())),+
        }
    };
}

impl Values {
    /// These values, with `lower` where they say nothing.
    #[must_use]
    pub(crate) fn over(&self, lower: &Self) -> Self {
        over!(
            self,
            lower,
            connections,
            channels,
            subscriptions,
            rate,
            payload_bytes,
            duration,
            warmup,
            publishers,
            in_flight,
            cycles,
            abort_every,
            missed,
            concurrency,
            connect_rate,
            churn_rate,
            away,
            slow_percent,
            busy_channels,
            pause,
            watchers,
            channel_prefix,
        )
    }

    /// What holds when nobody says anything.
    pub(crate) fn fallback() -> Self {
        Self {
            connections: Some(100),
            channels: Some(10),
            subscriptions: Some(1),
            rate: Some(50.0),
            payload_bytes: Some(256),
            duration: Some(Span(Duration::from_secs(10))),
            warmup: Some(Span(Duration::from_secs(1))),
            publishers: Some(0),
            in_flight: Some(1),
            cycles: Some(1_000),
            abort_every: Some(10),
            missed: Some(10),
            concurrency: Some(100),
            connect_rate: Some(0.0),
            churn_rate: Some(10.0),
            away: Some(Span(Duration::from_secs(1))),
            slow_percent: Some(10),
            busy_channels: Some(0),
            pause: Some(Span(Duration::from_secs(20))),
            watchers: Some(2),
            channel_prefix: Some("workflow:".into()),
            thresholds: Thresholds::fallback(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (text, ms) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("0s", 0)] {
            assert_eq!(text.parse::<Span>().unwrap().0.as_millis(), ms);
        }
        for bad in ["", "5", "s", "-1s", "1.5s", "5d", "99999999h", "99999999999999999999s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!(Span(Duration::from_millis(1_500)).to_string(), "1500ms");
    }

    #[test]
    fn upper_layers_win_and_leave_the_rest() {
        let upper = Values { channels: Some(3), ..Values::default() };
        let merged = upper.over(&Values::fallback());
        assert_eq!((merged.channels, merged.connections), (Some(3), Some(100)));
    }
}
