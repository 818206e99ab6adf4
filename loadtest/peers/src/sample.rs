//! Results: one sample per measure, subject and round; medians over the rounds; the file that keeps them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Values of a sample by name; the unit is the end of the name.
pub type Values = BTreeMap<String, f64>;

/// What one measure said about one subject in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Name of the measure.
    pub measure: String,
    /// Name of the subject.
    pub subject: String,
    /// Round, from 1.
    pub round: u32,
    /// The figures.
    pub values: Values,
}

/// A run as it is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// Command that made it.
    pub command: String,
    /// Kernel, processor and memory.
    pub machine: String,
    /// Version by subject.
    pub versions: BTreeMap<String, String>,
    /// Subjects left out, with the reason.
    pub left_out: BTreeMap<String, String>,
    /// Everything measured.
    pub samples: Vec<Sample>,
}

impl Run {
    /// Reads a file of [`Run::write`].
    pub fn read(path: &Path) -> Result<Self, String> {
        let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| fault(&error))?;
        serde_json::from_str(&text).map_err(|error| fault(&error))
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).expect("plain data becomes JSON");
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Adds the samples of another run on the same machine, as further rounds.
    pub fn absorb(&mut self, other: Self) {
        "make bench-peers (in pieces, joined with --from)".clone_into(&mut self.command);
        let done = self.rounds();
        let later = |sample: Sample| Sample { round: done + sample.round, ..sample };
        self.samples.extend(other.samples.into_iter().map(later));
        self.versions.extend(other.versions);
        self.left_out.extend(other.left_out);
    }

    /// The number of the last round.
    pub fn rounds(&self) -> u32 {
        self.samples.iter().map(|sample| sample.round).max().unwrap_or(0)
    }

    /// Every value of that name.
    pub fn all(&self, measure: &str, subject: &str, value: &str) -> Vec<f64> {
        self.samples
            .iter()
            .filter(|sample| sample.measure == measure && sample.subject == subject)
            .filter_map(|sample| sample.values.get(value).copied())
            .collect()
    }

    /// Median over the rounds, if it was measured.
    pub fn median(&self, measure: &str, subject: &str, value: &str) -> Option<f64> {
        median(self.all(measure, subject, value))
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// The value below which the share `quantile` of sorted `values` lies (nearest rank); 0 without values.
pub fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let rank = (quantile * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank.min(sorted.len()).saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn runs_are_joined_as_rounds() {
        let sample = |round, value: f64| Sample {
            measure: "m".to_owned(),
            subject: "s".to_owned(),
            round,
            values: Values::from([("v".to_owned(), value)]),
        };
        let mut run = Run { samples: vec![sample(1, 1.0), sample(2, 5.0)], ..Run::default() };
        run.absorb(Run { samples: vec![sample(1, 3.0)], ..Run::default() });
        assert_eq!(run.rounds(), 3);
        assert_eq!(run.median("m", "s", "v"), Some(3.0));
        assert_eq!(run.median("m", "other", "v"), None);
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5).to_bits(), 500.0f64.to_bits());
        assert_eq!(quantile(&values, 0.99).to_bits(), 990.0f64.to_bits());
        assert_eq!(quantile(&values, 1.0).to_bits(), 1000.0f64.to_bits());
        assert_eq!(quantile(&[], 0.5).to_bits(), 0.0f64.to_bits());
    }
}
