//! The charts of a report.

use gateway_loadtest::chart::{Axis, Lines, Scale, Series};

use super::Report;
use crate::schedule::seconds;
use crate::series::{Point, ServerPoint};

/// More points than a screen has room for are drawn in groups.
const POINTS_MAX: usize = 600;
/// Values that are so far apart are drawn by their logarithm.
const WIDE: f64 = 30.0;
/// From here on the time axis counts minutes.
const LONG_SECONDS: f64 = 1_200.0;

/// A figure of a second.
type Figure = fn(&Point) -> f64;

/// What stands for a group of points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Mean,
    Largest,
}

impl Report {
    /// All charts that this run has something for.
    pub(super) fn charts(&self) -> Vec<Lines> {
        let mut charts = vec![self.percentiles()];
        charts.extend(self.throughput());
        charts.extend(self.latencies_over_time());
        charts.extend(self.server_over_time());
        charts.push(self.connections());
        charts
    }

    /// Latency by percentile, the distance to 100 % on a logarithmic axis.
    fn percentiles(&self) -> Lines {
        let measured = self.outcome.latencies.measured();
        let series: Vec<Series> =
            measured.map(|(name, latency)| line(name, latency.curve())).collect();
        Lines {
            title: "Latency by percentile".into(),
            x: Axis { label: "percentile".into(), unit: String::new(), scale: Scale::Nines },
            y: Axis { label: "latency".into(), unit: "ms".into(), scale: spread(values(&series)) },
            series,
            marks: Vec::new(),
        }
    }

    fn throughput(&self) -> Option<Lines> {
        let rates: [(&str, Figure); 4] = [
            ("deliveries", |point| point.delivered_per_second),
            ("publishes", |point| point.published_per_second),
            ("acknowledgements", |point| point.acknowledged_per_second),
            ("connects", |point| point.connects_per_second),
        ];
        let lines = rates.map(|(name, rate)| self.line(name, Stand::Mean, rate));
        let seen = lines.into_iter().filter(|line| peak(line) > 0.0);
        self.over_time("Throughput", ("operations", "per second"), seen.collect())
    }

    /// The scenario's main latency and that of connecting, second by second.
    fn latencies_over_time(&self) -> Vec<Lines> {
        let (main, _) = self.outcome.main_latency();
        let mut names = vec![main];
        if main != "connect" {
            names.push("connect");
        }
        names.into_iter().filter_map(|name| self.latency_over_time(name)).collect()
    }

    fn latency_over_time(&self, name: &'static str) -> Option<Lines> {
        let points = &self.series.points;
        let seconds = points.iter().filter(|point| point.latencies_ms.contains_key(name)).count();
        let lateness = |point: &Point| point.late_ms.unwrap_or(f64::NAN);
        let of = |read: fn(&crate::latencies::Brief) -> f64| {
            move |point: &Point| point.latencies_ms.get(name).map_or(f64::NAN, read)
        };
        let mut lines = vec![
            self.line("p50", Stand::Largest, of(|brief| brief.p50)),
            self.line("p99", Stand::Largest, of(|brief| brief.p99)),
            self.line("max", Stand::Largest, of(|brief| brief.max)),
        ];
        if name != "connect" && points.iter().any(|point| point.late_ms.is_some()) {
            lines.push(self.line("generator late, max", Stand::Largest, lateness));
        }
        let title = format!("Latency of {name} over time");
        // A single second is in the table of percentiles already.
        self.over_time(&title, ("latency", "ms"), lines).filter(|_| seconds > 1)
    }

    fn server_over_time(&self) -> Vec<Lines> {
        let mib =
            |point: &ServerPoint| point.resident_bytes.map(|bytes| bytes / f64::from(1 << 20));
        let cpu = self.server_line("gateway", Stand::Mean, |point| point.cpu_percent);
        let memory = self.server_line("gateway", Stand::Largest, mib);
        [
            self.over_time("Server CPU", ("CPU, 100 % = one core", "%"), vec![cpu]),
            self.over_time("Server memory", ("resident memory", "MiB"), vec![memory]),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn connections(&self) -> Lines {
        let lines = vec![
            self.line("connections", Stand::Mean, |point| f64::from(point.connections)),
            self.server_line("descriptors of the server", Stand::Mean, |point| point.open_fds),
        ];
        let drawn = |line: &Series| line.points.iter().any(|point| point.1.is_finite());
        let lines = lines.into_iter().filter(drawn).collect();
        self.time_chart("Connections", ("connections", ""), lines)
    }

    /// A chart over time, if there is anything to be drawn.
    fn over_time(&self, title: &str, y: (&str, &str), series: Vec<Series>) -> Option<Lines> {
        let any = series.iter().flat_map(|line| &line.points).any(|point| point.1.is_finite());
        any.then(|| self.time_chart(title, y, series))
    }

    fn time_chart(&self, title: &str, (label, unit): (&str, &str), series: Vec<Series>) -> Lines {
        let scale = match unit {
            "ms" => spread(values(&series)),
            // Few publications would be a line at the bottom beside their many deliveries.
            "per second" => spread(series.iter().map(peak)),
            _ => Scale::Linear,
        };
        let (time_unit, divisor) = self.time_unit();
        Lines {
            title: title.to_owned(),
            x: Axis { label: "time".into(), unit: time_unit.into(), scale: Scale::Linear },
            y: Axis { label: label.to_owned(), unit: unit.to_owned(), scale },
            series,
            marks: self
                .phase_starts()
                .into_iter()
                .map(|(start, name)| (start / divisor, name.to_owned()))
                .collect(),
        }
    }

    fn time_unit(&self) -> (&'static str, f64) {
        let length = self.series.points.last().map_or(0.0, |point| point.at_seconds);
        if length > LONG_SECONDS { ("min", 60.0) } else { ("s", 1.0) }
    }

    /// When the phases began, counted back from the end of the run.
    fn phase_starts(&self) -> Vec<(f64, &'static str)> {
        let mut at = self.series.points.last().map_or(0.0, |point| point.at_seconds);
        let phases = self.outcome.phases.iter().rev().map(|(name, nanos)| {
            at -= seconds(*nanos);
            (at.max(0.0), *name)
        });
        let mut starts: Vec<_> = phases.collect();
        starts.reverse();
        starts
    }

    fn line(&self, name: &str, stand: Stand, read: impl Fn(&Point) -> f64) -> Series {
        let (_, divisor) = self.time_unit();
        let points = self.series.points.iter();
        let points = points.map(|point| (point.at_seconds / divisor, read(point))).collect();
        line(name, thin(points, stand))
    }

    fn server_line(
        &self,
        name: &str,
        stand: Stand,
        read: impl Fn(&ServerPoint) -> Option<f64>,
    ) -> Series {
        let (_, divisor) = self.time_unit();
        let points = self.series.server.iter();
        let value = |point| read(point).unwrap_or(f64::NAN);
        let points = points.map(|point| (point.at_seconds / divisor, value(point))).collect();
        line(name, thin(points, stand))
    }
}

fn line(name: &str, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.to_owned(), points }
}

fn values(series: &[Series]) -> impl Iterator<Item = f64> {
    series.iter().flat_map(|line| &line.points).map(|point| point.1)
}

/// The largest value of a line.
fn peak(line: &Series) -> f64 {
    line.points.iter().map(|point| point.1).fold(0.0, f64::max)
}

/// A logarithmic scale when the largest value is far from the smallest.
fn spread(values: impl Iterator<Item = f64>) -> Scale {
    let (low, high) = values
        .filter(|value| *value > 0.0)
        .fold((f64::MAX, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
    if high > low * WIDE { Scale::Log } else { Scale::Linear }
}

/// As many points as can be told apart; each stands for the same number of them.
fn thin(points: Vec<(f64, f64)>, stand: Stand) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(POINTS_MAX);
    if group <= 1 {
        return points;
    }
    let groups = points.chunks(group).map(|group| {
        let values = || group.iter().map(|point| point.1).filter(|value| value.is_finite());
        let value = match stand {
            Stand::Mean => values().sum::<f64>() / values().count() as f64,
            Stand::Largest => values().fold(f64::NAN, f64::max),
        };
        (group[group.len() - 1].0, value)
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_thinned_without_losing_their_peaks() {
        let points: Vec<_> =
            (0..1_800).map(|n| (f64::from(n), if n == 700 { 50.0 } else { 2.0 })).collect();
        let peaks = thin(points.clone(), Stand::Largest);
        assert_eq!((peaks.len(), peaks[233]), (600, (701.0, 50.0)));
        assert_eq!(thin(points.clone(), Stand::Mean)[233], (701.0, 18.0));
        assert_eq!(thin(points[..600].to_vec(), Stand::Mean), points[..600]);
        let gap = vec![(0.0, f64::NAN); 1_200];
        assert!(thin(gap.clone(), Stand::Mean).iter().all(|point| point.1.is_nan()));
        assert!(thin(gap, Stand::Largest).iter().all(|point| point.1.is_nan()));
    }

    #[test]
    fn wide_latencies_get_a_logarithmic_axis() {
        let scale = |values: &[f64]| spread(values.iter().copied());
        assert_eq!(scale(&[1.0, 10.0]), Scale::Linear);
        assert_eq!(scale(&[0.0, 1.0, f64::NAN, 100.0]), Scale::Log);
        assert_eq!(scale(&[]), Scale::Linear);
    }
}
