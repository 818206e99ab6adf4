//! Scenarios as files, the concrete plan that comes out of file, size and flags, and the share of it that one of several
//! processes has.

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::schedule::{Nanos, nanos};
use crate::thresholds::Thresholds;
use crate::values::Values;

/// Scenarios that are built in, by name.
const BUILT_IN: [(&str, &str); 10] = [
    ("connect_storm", include_str!("../scenarios/connect_storm.toml")),
    ("fanout", include_str!("../scenarios/fanout.toml")),
    ("many_channels", include_str!("../scenarios/many_channels.toml")),
    ("hold", include_str!("../scenarios/hold.toml")),
    ("churn", include_str!("../scenarios/churn.toml")),
    ("publish_ack", include_str!("../scenarios/publish_ack.toml")),
    ("reconnect", include_str!("../scenarios/reconnect.toml")),
    ("presence", include_str!("../scenarios/presence.toml")),
    ("slow_consumers", include_str!("../scenarios/slow_consumers.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
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
    /// Open-loop connects.
    ConnectStorm,
    /// Members join and leave.
    Presence,
    /// Some do not read for a while.
    SlowConsumers,
    /// Open-loop publications while connections are cut off and come back, for long.
    Soak,
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
    /// Thresholds of every size; a size has its own as `[large.thresholds]`.
    #[serde(default)]
    thresholds: Thresholds,
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
        let of_all = Values { thresholds: self.thresholds.clone(), ..Values::default() };
        let values = flags.over(of_size).over(&self.values).over(&of_all).over(&Values::fallback());
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
    /// Connections cut off, or joins and leaves, per second.
    pub(crate) churn_rate: f64,
    /// Time that a connection which was cut off stays away.
    #[serde(rename = "away_nanos")]
    pub(crate) away: Nanos,
    /// Of the connections in busy channels, so many percent stop reading.
    pub(crate) slow_percent: u32,
    /// Channels that get publications, the first ones.
    pub(crate) busy_channels: u32,
    /// Time that the slowest of them does not read.
    #[serde(rename = "pause_nanos")]
    pub(crate) pause: Nanos,
    /// Connections per channel that watch.
    pub(crate) watchers: u32,
    /// Beginning of every channel name.
    pub(crate) channel_prefix: String,
    /// Which process of the run this is, and of how many.
    #[serde(skip)]
    pub(crate) process: (u32, u32),
    /// Number of the first connection among those of all processes.
    #[serde(skip)]
    pub(crate) first: u32,
    /// When the run counts as failed.
    pub(crate) thresholds: Thresholds,
}

impl Plan {
    fn new(name: &str, kind: Kind, values: &Values) -> Result<Self, String> {
        let connections = values.connections.unwrap_or(1);
        let channels = values.channels.unwrap_or(1);
        let rate = values.rate.unwrap_or(0.0);
        let publishers = match (values.publishers.unwrap_or(0), kind) {
            // Each channel gets its missed publications from a publisher of its own: a burst, not a stream.
            (0, Kind::Reconnect) => channels.min(connections / 2),
            (0, Kind::ConnectStorm) => channels,
            (0, _) => (rate / PUBLISHER_RATE).ceil() as u32,
            (given, _) => given,
        };
        let plan = Self {
            name: name.to_owned(),
            kind,
            connections,
            channels,
            subscriptions: values.subscriptions.unwrap_or(1),
            rate,
            payload_bytes: values.payload_bytes.unwrap_or(0) as usize,
            duration: values.duration.map_or(0, |span| nanos(span.0)),
            warmup: values.warmup.map_or(0, |span| nanos(span.0)),
            publishers: publishers.clamp(1, connections),
            in_flight: values.in_flight.unwrap_or(1),
            cycles: values.cycles.unwrap_or(1),
            abort_every: values.abort_every.unwrap_or(0),
            missed: values.missed.unwrap_or(0),
            concurrency: values.concurrency.unwrap_or(1),
            connect_rate: values.connect_rate.unwrap_or(0.0),
            churn_rate: values.churn_rate.unwrap_or(0.0),
            away: values.away.map_or(0, |span| nanos(span.0)),
            slow_percent: values.slow_percent.unwrap_or(0),
            busy_channels: match values.busy_channels.unwrap_or(0) {
                0 => channels,
                some => some.min(channels),
            },
            pause: values.pause.map_or(0, |span| nanos(span.0)),
            watchers: values.watchers.unwrap_or(1),
            channel_prefix: values.channel_prefix.clone().unwrap_or_default(),
            process: (0, 1),
            first: 0,
            thresholds: values.thresholds.clone(),
        };
        plan.check().map_err(|error| format!("{name}: {error}"))?;
        Ok(plan)
    }

    /// Whether the values go together.
    fn check(&self) -> Result<(), String> {
        let rates = [self.rate, self.connect_rate, self.churn_rate];
        if rates.iter().any(|rate| !rate.is_finite() || *rate < 0.0) {
            return Err("rates must be 0 or more".into());
        }
        let needed = match self.kind {
            Kind::Fanout | Kind::SlowConsumers => [("rate", self.rate), ("rate", self.rate)],
            Kind::Soak => [("rate", self.rate), ("churn_rate", self.churn_rate)],
            Kind::ConnectStorm => [("connect_rate", self.connect_rate); 2],
            Kind::Presence => [("churn_rate", self.churn_rate); 2],
            _ => [("", 1.0); 2],
        };
        if let Some((name, _)) = needed.iter().find(|(_, value)| *value == 0.0) {
            return Err(format!("{name} must be above 0"));
        }
        if self.subscriptions > self.channels {
            let Self { subscriptions, channels, .. } = self;
            return Err(format!(
                "{subscriptions} subscriptions per connection, but {channels} channels"
            ));
        }
        let (others, what) = match self.kind {
            Kind::Reconnect | Kind::Soak => (self.publishers, "publishers"),
            Kind::SlowConsumers => (self.publishers + self.slow(), "publishers and slow ones"),
            Kind::Presence => (self.channels.saturating_mul(self.watchers), "watchers"),
            _ => (0, ""),
        };
        if others >= self.connections {
            return Err(format!("needs more connections than {what} ({others})"));
        }
        if self.kind == Kind::Presence && self.subscriptions != 1 {
            return Err("members of presence have one channel each: subscriptions must be 1".into());
        }
        Ok(())
    }

    /// The share of one of several processes. Rates, connections and what else there is a number of add up to the whole.
    pub(crate) fn share(&self, index: u32, count: u32) -> Result<Self, String> {
        if count > self.connections.min(self.channels).min(self.concurrency) {
            return Err(format!(
                "{}: {count} processes are more than there are connections, channels or handshakes at one time",
                self.name
            ));
        }
        let part = |whole: u32| whole / count + u32::from(index < whole % count);
        let before =
            |whole: u32| (0..index).map(|i| whole / count + u32::from(i < whole % count)).sum();
        let parts = f64::from(count);
        // Only the members of one process know of each other, so that presence has channels of its own in each.
        let alone = self.kind == Kind::Presence;
        let channels = if alone { part(self.channels) } else { self.channels };
        let share = Self {
            connections: part(self.connections),
            channels,
            busy_channels: self.busy_channels.min(channels),
            rate: self.rate / parts,
            publishers: part(self.publishers).max(1),
            cycles: part(self.cycles),
            missed: part(self.missed),
            concurrency: part(self.concurrency),
            connect_rate: self.connect_rate / parts,
            churn_rate: self.churn_rate / parts,
            process: (index, count),
            first: before(self.connections),
            ..self.clone()
        };
        share.check().map_err(|error| format!("{}: in {count} processes, {error}", self.name))?;
        Ok(share)
    }

    /// How many connections stop reading: a part of those in busy channels.
    pub(crate) fn slow(&self) -> u32 {
        let (connections, channels) = (u64::from(self.connections), u64::from(self.channels));
        let busy = connections * u64::from(self.busy_channels) / channels;
        let part = busy * u64::from(self.slow_percent) / 100;
        if self.kind == Kind::SlowConsumers { (part as u32).max(1) } else { 0 }
    }

    /// Connections that watch who joins and leaves; the first ones.
    pub(crate) fn watching(&self) -> u32 {
        self.channels * self.watchers
    }

    /// Channels of one connection: neighbours in the list of channels, those of the next connection come after them.
    pub(crate) fn channels_of(&self, member: u32) -> impl Iterator<Item = u32> + use<> {
        let (channels, first) = (self.channels, self.channel_of(member));
        (0..self.subscriptions).map(move |nth| (first + nth) % channels)
    }

    /// Channel that a member publishes in when it publishes by itself; it is subscribed to it.
    pub(crate) fn channel_of(&self, member: u32) -> u32 {
        let nth = u64::from(self.first + member) * u64::from(self.subscriptions.max(1));
        (nth % u64::from(self.channels)) as u32
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

    fn built_in(name: &str, size: Size, flags: &Values) -> Result<Plan, String> {
        Scenario::load(name).unwrap().plan(name, size, flags)
    }

    #[test]
    fn every_built_in_scenario_has_a_plan_and_thresholds_for_every_size() {
        let tiers = [100, 1_000, 5_000, 10_000];
        for name in Scenario::names() {
            for (size, tier) in Size::value_variants().iter().zip(tiers) {
                let plan = built_in(name, *size, &Values::default()).unwrap();
                assert_eq!(plan.connections, tier, "{name}");
                assert!(plan.sockets() <= tier);
                assert!((5..=2 * tier).contains(&plan.channels), "{name} {size:?}");
                let limits = plan.thresholds.judge(|_| None);
                assert!(limits.len() > 2, "{name} {size:?} has more than what always holds");
                plan.share(1, 2).unwrap();
            }
        }
        assert!(Scenario::load("nothing").unwrap_err().contains("fanout"));
    }

    #[test]
    fn flags_win_and_nonsense_is_refused() {
        let plan = |name: &str, flags: Values| built_in(name, Size::Small, &flags);
        let none = Values::default;
        let made = plan("fanout", Values { rate: Some(400.0), ..none() }).unwrap();
        assert_eq!((made.rate, made.publishers), (400.0, 10));
        for (name, bad) in [
            ("fanout", Values { rate: Some(0.0), ..none() }),
            ("fanout", Values { rate: Some(f64::NAN), ..none() }),
            ("fanout", Values { subscriptions: Some(11), channels: Some(10), ..none() }),
            ("connect_storm", Values { connect_rate: Some(0.0), ..none() }),
            ("soak", Values { churn_rate: Some(0.0), ..none() }),
            ("presence", Values { watchers: Some(100), ..none() }),
            ("presence", Values { subscriptions: Some(2), ..none() }),
            ("slow_consumers", Values { publishers: Some(95), ..none() }),
        ] {
            assert!(plan(name, bad.clone()).is_err(), "{name} {bad:?}");
        }
    }

    #[test]
    fn layers_of_thresholds() {
        let text = "kind = \"hold\"\nabout = \"x\"\n[thresholds]\np99_ms_max = 5\nfd_growth_max = 3\n\
                    [large]\nthresholds = { p99_ms_max = 7 }\n";
        let scenario: Scenario = toml::from_str(text).unwrap();
        let limits = |size, flags: &[&str]| -> Vec<(String, f64)> {
            let thresholds = flags.iter().map(|flag| flag.parse().unwrap()).collect();
            let flags = Values { thresholds, ..Values::default() };
            let plan = scenario.plan("x", size, &flags).unwrap();
            let verdicts = plan.thresholds.judge(|_| None).into_iter();
            verdicts.map(|verdict| (verdict.name.as_str().to_owned(), verdict.limit)).collect()
        };
        let of = |p99: f64| {
            [
                ("errors_max", 0.0),
                ("fd_growth_max", 3.0),
                ("p99_ms_max", p99),
                ("violations_max", 0.0),
            ]
            .map(|(name, limit)| (name.to_owned(), limit))
        };
        assert_eq!(limits(Size::Small, &[]), of(5.0));
        assert_eq!(limits(Size::Large, &[]), of(7.0));
        assert_eq!(limits(Size::Large, &["p99_ms_max=9"]), of(9.0));
        let error = toml::from_str::<Scenario>(&text.replace("fd_growth", "fd_grow")).unwrap_err();
        assert!(error.to_string().contains("no threshold fd_grow_max"), "{error}");
    }

    #[test]
    fn connections_are_spread_over_the_channels() {
        let flags = Values { channels: Some(5), subscriptions: Some(2), ..Values::default() };
        let plan = built_in("fanout", Size::Small, &flags).unwrap();
        assert_eq!(plan.channels_of(0).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(plan.channels_of(2).collect::<Vec<_>>(), [4, 0]);
    }

    #[test]
    fn shares_add_up_to_the_plan() {
        let flags = Values { connections: Some(101), cycles: Some(7), ..Values::default() };
        let plan = built_in("fanout", Size::Small, &flags).unwrap();
        let shares: Vec<_> = (0..3).map(|index| plan.share(index, 3).unwrap()).collect();
        let sum = |of: fn(&Plan) -> u32| -> u32 { shares.iter().map(of).sum() };
        assert_eq!(sum(|share| share.connections), 101);
        assert_eq!((sum(|share| share.cycles), sum(|share| share.concurrency)), (7, 100));
        assert!((shares.iter().map(|share| share.rate).sum::<f64>() - plan.rate).abs() < 1e-9);
        assert_eq!(shares.iter().map(|share| share.first).collect::<Vec<_>>(), [0, 34, 68]);
        // A connection has the channels that it would have in one process.
        let alone: Vec<_> = plan.channels_of(70).collect();
        assert_eq!(shares[2].channels_of(2).collect::<Vec<_>>(), alone);
        assert!(plan.share(0, 11).unwrap_err().contains("channels"), "more than channels");
    }
}
