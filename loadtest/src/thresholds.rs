//! What a run must keep to: limits by name, from the scenario's file and the flags, and whether they were met.
//!
//! A name ends in `_max` or `_min`; what stands before it is a figure of the run. A limit whose figure was not measured
//! is not met: a run that has shown nothing has not passed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Figures that are no latency, and what they are.
const FIGURES: [(&str, &str); 13] = [
    ("violations_max", "broken promises"),
    ("errors_max", "operations that failed"),
    ("late_percent_max", "publications and connects that the generator began more than 10 ms late"),
    ("deliveries_per_second_min", "deliveries"),
    ("operations_per_second_min", "what the scenario is about"),
    ("server_cpu_us_per_operation_max", "CPU of the gateway"),
    ("rss_growth_percent_max", "resident memory of the gateway, compared with before the load"),
    ("rss_bytes_per_connection_max", "resident memory of the gateway for one connection"),
    ("fd_growth_max", "descriptors of the gateway, compared with before the load"),
    ("rss_slope_mib_per_hour_max", "trend of the gateway's resident memory"),
    ("fd_slope_per_hour_max", "trend of the gateway's descriptors"),
    ("p99_rise_max", "p99 while some are slow, in p99 before"),
    ("slow_noticed_min", "slow clients that were told of losses or disconnected"),
];

/// Percentiles that a latency limit may name.
const PERCENTILES: [&str; 4] = ["p50", "p90", "p99", "p999"];
/// Latencies that may stand before them.
const LATENCIES: [&str; 7] =
    ["connect", "ready", "deliver", "acknowledge", "recover", "ping", "presence"];

/// Name of a limit; one that exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Name(String);

impl Name {
    /// As it is written.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The figure: the name without `_max` or `_min`.
    pub(crate) fn figure(&self) -> &str {
        &self.0[..self.0.len() - "_max".len()]
    }

    /// Latency (absent: the scenario's main one) and percentile, for a limit of a latency.
    pub(crate) fn latency(&self) -> Option<(Option<&str>, &str)> {
        let figure = self.0.strip_suffix("_ms_max")?;
        let (latency, percentile) =
            figure.rsplit_once('_').map_or((None, figure), |(before, last)| (Some(before), last));
        let known = PERCENTILES.contains(&percentile)
            && latency.is_none_or(|latency| LATENCIES.contains(&latency));
        known.then_some((latency, percentile))
    }

    fn is_minimum(&self) -> bool {
        self.0.ends_with("_min")
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = Self(text.to_owned());
        if FIGURES.iter().any(|(known, _)| *known == text) || name.latency().is_some() {
            return Ok(name);
        }
        let figures: Vec<_> = FIGURES.iter().map(|(known, _)| *known).collect();
        Err(format!(
            "no threshold {text}: {}, or a latency such as p99_ms_max or connect_p50_ms_max ({}; {})",
            figures.join(", "),
            LATENCIES.join(", "),
            PERCENTILES.join(", ")
        ))
    }
}

/// `NAME=VALUE` of the command line; `none` takes a limit away.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assignment(Name, Option<f64>);

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
        let name = name.parse()?;
        if value == "none" {
            return Ok(Self(name, None));
        }
        let value: f64 = value.parse().map_err(|_| format!("{value:?} is not a number"))?;
        Ok(Self(name, Some(checked(value)?)))
    }
}

fn checked(value: f64) -> Result<f64, String> {
    let usable = value.is_finite() && value >= 0.0;
    usable.then_some(value).ok_or_else(|| format!("a threshold is 0 or more, not {value}"))
}

/// Limits by name.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "BTreeMap<String, f64>")]
pub(crate) struct Thresholds(BTreeMap<Name, Option<f64>>);

impl TryFrom<BTreeMap<String, f64>> for Thresholds {
    type Error = String;

    fn try_from(raw: BTreeMap<String, f64>) -> Result<Self, String> {
        let limits =
            raw.into_iter().map(|(name, value)| Ok((name.parse()?, Some(checked(value)?))));
        limits.collect::<Result<_, String>>().map(Self)
    }
}

impl FromIterator<Assignment> for Thresholds {
    fn from_iter<I: IntoIterator<Item = Assignment>>(assignments: I) -> Self {
        Self(assignments.into_iter().map(|Assignment(name, value)| (name, value)).collect())
    }
}

impl Thresholds {
    /// What holds when nobody says anything: nothing may go wrong.
    pub(crate) fn fallback() -> Self {
        ["violations_max", "errors_max"]
            .into_iter()
            .map(|name| Assignment(Name(name.to_owned()), Some(0.0)))
            .collect()
    }

    /// These limits, with those of `lower` that are not among them.
    #[must_use]
    pub(crate) fn over(&self, lower: &Self) -> Self {
        let mut limits = lower.0.clone();
        limits.extend(self.0.iter().map(|(name, value)| (name.clone(), *value)));
        Self(limits)
    }

    /// Compares each limit with what was measured.
    pub(crate) fn judge(&self, measured: impl Fn(&Name) -> Option<f64>) -> Vec<Verdict> {
        let limits = self.0.iter().filter_map(|(name, limit)| Some((name, (*limit)?)));
        limits
            .map(|(name, limit)| {
                let measured = measured(name).filter(|value| value.is_finite());
                let met = |value: f64| {
                    if name.is_minimum() { value >= limit } else { value <= limit }
                };
                let ok = measured.is_some_and(met);
                Verdict { name: name.clone(), limit, measured, ok }
            })
            .collect()
    }
}

/// One limit, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// Name of the limit.
    pub(crate) name: Name,
    /// The limit.
    pub(crate) limit: f64,
    /// What was measured; absent when the run has no such figure.
    pub(crate) measured: Option<f64>,
    /// Whether it was met.
    pub(crate) ok: bool,
}

impl Verdict {
    /// A clause about a limit that was not met.
    pub(crate) fn failure(&self) -> String {
        let Self { name, limit, measured, .. } = self;
        let measured = measured
            .map_or_else(|| "not measured".into(), |value| format!("measured {}", round(value)));
        format!("{} is {limit}, {measured}", name.as_str())
    }
}

/// Three digits after the point are enough for people.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, limit, measured, ok } = self;
        let measured =
            measured.map_or_else(|| "nothing".to_owned(), |value| round(value).to_string());
        let verdict = if *ok { "ok" } else { "NOT MET" };
        write!(f, "{:<34} limit {limit:>10}   measured {measured:>12}   {verdict}", name.as_str())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Thresholds, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn unknown_names_and_bad_values_are_refused() {
        for bad in
            ["p98_ms_max = 1", "p99_ms = 1", "p99_ms_min = 1", "dial_p99_ms_max = 1", "x = 1"]
        {
            let error = file(bad).unwrap_err();
            assert!(error.contains("no threshold") && error.contains("errors_max"), "{error}");
        }
        assert!(file("p99_ms_max = -1").unwrap_err().contains("0 or more"));
        for bad in ["p99_ms_max", "p99_ms_max=", "p99_ms_max=x", "p99_ms_max=NaN", "nothing=1"] {
            assert!(bad.parse::<Assignment>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_say_what_they_limit() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert_eq!(name("p999_ms_max").latency(), Some((None, "p999")));
        assert_eq!(name("connect_p50_ms_max").latency(), Some((Some("connect"), "p50")));
        assert_eq!(name("p99_rise_max").latency(), None);
        assert_eq!(name("fd_growth_max").figure(), "fd_growth");
    }

    #[test]
    fn limits_are_compared_with_what_was_measured() {
        let limits =
            file("p99_ms_max = 10\nfd_growth_max = 0\ndeliveries_per_second_min = 5").unwrap();
        let verdicts = |p99: Option<f64>, rate: f64| -> Vec<bool> {
            let judged = limits.judge(|name| match name.as_str() {
                "p99_ms_max" => p99,
                "fd_growth_max" => Some(-1.0),
                _ => Some(rate),
            });
            judged.iter().map(|verdict| verdict.ok).collect()
        };
        assert_eq!(verdicts(Some(10.0), 5.0), [true, true, true]);
        assert_eq!(verdicts(Some(10.1), 4.9), [false, true, false]);
        assert_eq!(verdicts(None, 5.0), [true, true, false], "not measured is not met");
        assert_eq!(verdicts(Some(f64::NAN), 5.0), [true, true, false]);
    }

    #[test]
    fn the_upper_layer_wins_and_none_takes_away() {
        let lower = file("p99_ms_max = 10\np50_ms_max = 5").unwrap();
        let flags = ["p99_ms_max=20", "p50_ms_max=none"].map(|text| text.parse().unwrap());
        let merged = flags.into_iter().collect::<Thresholds>().over(&lower);
        let verdicts = merged.judge(|_| Some(15.0));
        assert_eq!(verdicts.len(), 1);
        assert!(verdicts[0].ok, "15 is below 20, which the flag allows");
    }
}
