//! Scenarios as files, and the concrete plan that comes out of file, size and flags.

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::schedule::{Nanos, nanos};
use crate::values::Values;

/// Scenarios that are built in, by name.
const BUILT_IN: [(&str, &str); 5] = [
    ("fanout", include_str!("../scenarios/fanout.toml")),
    ("hold", include_str!("../scenarios/hold.toml")),
    ("churn", include_str!("../scenarios/churn.toml")),
    ("publish_ack", include_str!("../scenarios/publish_ack.toml")),
    ("reconnect", include_str!("../scenarios/reconnect.toml")),
];

/// Messages per second that one publisher may send under the gateway's default limits, with a margin.
const PUBLISHER_RATE: f64 = 40.0;

/// Size tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Size {
    /// 100 connections.
    Small,
    /// 1,000 connections.
    Medium,
    /// 5,000 connections.
    Large,
    /// 10,000 connections.
    Enterprise,
}

/// What a scenario does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Open-loop publications to subscribed connections.
    Fanout,
    /// Connections that are kept open.
    Hold,
    /// Connections that come and go.
    Churn,
    /// Closed-loop publications.
    PublishAck,
    /// Everybody is cut off and comes back.
    Reconnect,
}

/// A scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// What it does.
    pub(crate) kind: Kind,
    /// What it shows, in a sentence.
    pub(crate) about: String,
    /// Values of every size.
    #[serde(default)]
    values: Values,
    #[serde(default)]
    small: Values,
    #[serde(default)]
    medium: Values,
    #[serde(default)]
    large: Values,
    #[serde(default)]
    enterprise: Values,
}

impl Scenario {
    /// Names of the built-in scenarios.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// Finds a built-in scenario by name, or reads a file.
    pub(crate) fn load(name: &str) -> Result<Self, String> {
        let text = match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => (*text).to_owned(),
            None if Path::new(name).extension().is_some_and(|extension| extension == "toml") => {
                std::fs::read_to_string(name).map_err(|error| format!("{name}: {error}"))?
            }
            None => {
                let known: Vec<_> = Self::names().collect();
                return Err(format!(
                    "no scenario {name}: {}, all, or a path of a .toml file",
                    known.join(", ")
                ));
            }
        };
        toml::from_str(&text).map_err(|error| format!("scenario {name}: {error}"))
    }

    /// The plan of this scenario for a size, with flags on top.
    pub(crate) fn plan(&self, name: &str, size: Size, flags: &Values) -> Result<Plan, String> {
        let of_size = match size {
            Size::Small => &self.small,
            Size::Medium => &self.medium,
            Size::Large => &self.large,
            Size::Enterprise => &self.enterprise,
        };
        let values = flags.over(of_size).over(&self.values).over(&Values::fallback());
        Plan::new(name, self.kind, &values)
    }
}

/// A scenario with every value settled.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    /// Name of the scenario.
    pub(crate) name: String,
    /// What it does.
    pub(crate) kind: Kind,
    /// See [`Values`] for this and the following.
    pub(crate) connections: u32,
    /// Channels.
    pub(crate) channels: u32,
    /// Subscriptions per connection.
    pub(crate) subscriptions: u32,
    /// Publications per second.
    pub(crate) rate: f64,
    /// Payload.
    pub(crate) payload_bytes: usize,
    /// Length of the load.
    #[serde(rename = "duration_nanos")]
    pub(crate) duration: Nanos,
    /// Length of the warm-up before it.
    #[serde(rename = "warmup_nanos")]
    pub(crate) warmup: Nanos,
    /// Connections that publish.
    pub(crate) publishers: u32,
    /// Publications in flight per connection.
    pub(crate) in_flight: u32,
    /// Connect-and-close cycles.
    pub(crate) cycles: u32,
    /// One in so many is abandoned.
    pub(crate) abort_every: u32,
    /// Publications per channel missed.
    pub(crate) missed: u32,
    /// Handshakes at one time.
    pub(crate) concurrency: u32,
    /// New connections per second; 0 = unlimited.
    pub(crate) connect_rate: f64,
    /// When the run counts as failed.
    pub(crate) thresholds: Thresholds,
}

/// When a run counts as failed.
#[allow(clippy::struct_field_names, reason = "the names of the flags")]
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Thresholds {
    /// 99th percentile of the main latency, in milliseconds.
    pub(crate) max_p99_ms: Option<f64>,
    /// Violations.
    pub(crate) max_errors: u64,
    /// Growth of the server's resident memory in percent.
    pub(crate) max_rss_growth: Option<f64>,
    /// Growth of the server's open descriptors.
    pub(crate) max_fd_growth: Option<u32>,
}

impl Plan {
    fn new(name: &str, kind: Kind, values: &Values) -> Result<Self, String> {
        let connections = values.connections.unwrap_or(1);
        let channels = values.channels.unwrap_or(1);
        let rate = values.rate.unwrap_or(0.0);
        let positive = |value: f64| value.is_finite() && value >= 0.0;
        let connect_rate = values.connect_rate.unwrap_or(0.0);
        if !positive(rate) || !positive(connect_rate) || (kind == Kind::Fanout && rate == 0.0) {
            return Err(format!("{name}: rates must be above 0 (connect rate: 0 or above)"));
        }
        let subscriptions = values.subscriptions.unwrap_or(1);
        if subscriptions > channels {
            return Err(format!(
                "{name}: {subscriptions} subscriptions per connection, but {channels} channels"
            ));
        }
        let publishers = match (values.publishers.unwrap_or(0), kind) {
            // Each channel gets its missed publications from a publisher of its own: a burst, not a stream.
            (0, Kind::Reconnect) => channels.min(connections / 2),
            (0, _) => (rate / PUBLISHER_RATE).ceil() as u32,
            (given, _) => given,
        };
        let publishers = publishers.clamp(1, connections);
        if kind == Kind::Reconnect && publishers == connections {
            return Err(format!("{name}: needs more connections than publishers ({publishers})"));
        }
        Ok(Self {
            name: name.to_owned(),
            kind,
            connections,
            channels,
            subscriptions,
            rate,
            payload_bytes: values.payload_bytes.unwrap_or(0) as usize,
            duration: values.duration.map_or(0, |span| nanos(span.0)),
            warmup: values.warmup.map_or(0, |span| nanos(span.0)),
            publishers,
            in_flight: values.in_flight.unwrap_or(1),
            cycles: values.cycles.unwrap_or(1),
            abort_every: values.abort_every.unwrap_or(0),
            missed: values.missed.unwrap_or(0),
            concurrency: values.concurrency.unwrap_or(1),
            connect_rate,
            thresholds: Thresholds {
                max_p99_ms: values.max_p99_ms,
                max_errors: values.max_errors.unwrap_or(0),
                max_rss_growth: values.max_rss_growth,
                max_fd_growth: values.max_fd_growth,
            },
        })
    }

    /// Channels of one connection.
    pub(crate) fn channels_of(&self, member: u32) -> impl Iterator<Item = u32> + use<> {
        let channels = self.channels;
        (0..self.subscriptions).map(move |nth| (member + nth) % channels)
    }

    /// Channel that a member publishes in when it publishes by itself.
    pub(crate) fn channel_of(&self, member: u32) -> u32 {
        member % self.channels
    }

    /// Connections that are open at one time, for the descriptor limit.
    pub(crate) fn sockets(&self) -> u32 {
        if self.kind == Kind::Churn { self.concurrency } else { self.connections }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_scenario_has_a_plan_for_every_size() {
        let tiers = [100, 1_000, 5_000, 10_000];
        for name in Scenario::names() {
            let scenario = Scenario::load(name).unwrap();
            for (size, tier) in Size::value_variants().iter().zip(tiers) {
                let plan = scenario.plan(name, *size, &Values::default()).unwrap();
                assert_eq!(plan.connections, tier, "{name}");
                assert!(plan.sockets() <= tier);
                let channels_max = if name == "publish_ack" { tier } else { 100 };
                assert!((10..=channels_max).contains(&plan.channels), "{name} {size:?}");
            }
        }
        assert!(Scenario::load("nothing").unwrap_err().contains("fanout"));
    }

    #[test]
    fn flags_win_and_nonsense_is_refused() {
        let scenario = Scenario::load("fanout").unwrap();
        let plan = |flags: Values| scenario.plan("fanout", Size::Small, &flags);
        let flags = Values { rate: Some(400.0), ..Values::default() };
        let made = plan(flags).unwrap();
        assert_eq!((made.rate, made.publishers), (400.0, 10));
        for bad in [
            Values { rate: Some(0.0), ..Values::default() },
            Values { rate: Some(f64::NAN), ..Values::default() },
            Values { subscriptions: Some(11), channels: Some(10), ..Values::default() },
        ] {
            assert!(plan(bad).is_err());
        }
    }

    #[test]
    fn connections_are_spread_over_the_channels() {
        let scenario = Scenario::load("fanout").unwrap();
        let flags = Values { channels: Some(3), subscriptions: Some(2), ..Values::default() };
        let plan = scenario.plan("fanout", Size::Small, &flags).unwrap();
        assert_eq!(plan.channels_of(5).collect::<Vec<_>>(), [2, 0]);
    }
}
