//! Builds Prometheus families from plain numbers.

use hdrhistogram::Histogram;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as ProtoHistogram, LabelPair, Metric, MetricFamily,
    MetricType,
};

/// Families in the order they were added.
#[derive(Debug, Default)]
pub(super) struct Families(Vec<MetricFamily>);

/// A label and its value.
pub(super) type Label<'a> = (&'static str, &'a str);

impl Families {
    /// A counter without labels. The name ends in `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.counters(name, help, &[], [(String::new(), value)]);
    }

    /// A counter per value of one label.
    pub(super) fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &[&'static str],
        values: impl IntoIterator<Item = (String, f64)>,
    ) {
        let metrics = values.into_iter().map(|(text, value)| {
            let mut metric = labelled(label, &text);
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
            metric
        });
        self.push(name, help, MetricType::COUNTER, metrics.collect());
    }

    /// A counter per combination of values of several labels.
    pub(super) fn labelled_counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<Label<'a>>, f64)>,
    ) {
        let metrics = values.into_iter().map(|(labels, value)| {
            let labels = labels.iter().map(|(name, value)| pair(name, value)).collect();
            let mut metric = Metric::from_label(labels);
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
            metric
        });
        self.push(name, help, MetricType::COUNTER, metrics.collect());
    }

    /// A gauge without labels.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, &[], [(String::new(), value)]);
    }

    /// A gauge per value of one label.
    pub(super) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &[&'static str],
        values: impl IntoIterator<Item = (String, f64)>,
    ) {
        let metrics =
            values.into_iter().map(|(text, value)| gauge_metric(labelled(label, &text), value));
        self.push(name, help, MetricType::GAUGE, metrics.collect());
    }

    /// A gauge that is always 1 and says something by its labels.
    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[Label<'_>]) {
        let pairs = labels.iter().map(|(name, value)| pair(name, value)).collect();
        self.push(
            name,
            help,
            MetricType::GAUGE,
            vec![gauge_metric(Metric::from_label(pairs), 1.0)],
        );
    }

    /// A histogram per value of one label, with cumulative buckets at `bounds` (in the exported unit). `unit` is how
    /// many recorded units make one exported unit.
    pub(super) fn histograms<'a>(
        &mut self,
        (name, help): (&str, &str),
        label: &[&'static str],
        (bounds, unit): (&[f64], f64),
        values: impl IntoIterator<Item = (String, &'a Histogram<u64>)>,
    ) {
        let metrics = values.into_iter().map(|(text, recorded)| {
            let mut metric = labelled(label, &text);
            metric.set_histogram(cumulative(recorded, bounds, unit));
            metric
        });
        self.push(name, help, MetricType::HISTOGRAM, metrics.collect());
    }

    /// Everything that has at least one series.
    pub(super) fn into_families(self) -> Vec<MetricFamily> {
        self.0
    }

    fn push(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn labelled(label: &[&'static str], value: &str) -> Metric {
    Metric::from_label(label.iter().map(|name| pair(name, value)).collect())
}

fn gauge_metric(mut metric: Metric, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

/// One walk over the recorded values; the sum is exact to the recorder's resolution.
fn cumulative(recorded: &Histogram<u64>, bounds: &[f64], unit: f64) -> ProtoHistogram {
    let mut counts = vec![0u64; bounds.len()];
    let mut sum = 0.0;
    for step in recorded.iter_recorded() {
        let value = recorded.median_equivalent(step.value_iterated_to()) as f64 / unit;
        let count = step.count_since_last_iteration();
        sum += value * count as f64;
        let first = bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = counts.get_mut(first) {
            *bucket += count;
        }
    }
    let mut seen = 0;
    let buckets = bounds.iter().zip(counts).map(|(bound, count)| {
        seen += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(seen);
        bucket
    });
    let mut histogram = ProtoHistogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(recorded.len());
    histogram.set_sample_sum(sum);
    histogram
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_values_above_all_bounds_still_count() {
        let mut recorded = Histogram::<u64>::new_with_bounds(1, 60_000_000, 2).unwrap();
        for us in [50, 900, 900, 9_000, 50_000_000] {
            recorded.record(us).unwrap();
        }
        let histogram = cumulative(&recorded, &[0.000_1, 0.001, 0.01, 1.0], 1e6);
        let counts: Vec<_> = histogram.get_bucket().iter().map(Bucket::cumulative_count).collect();
        assert_eq!(counts, [1, 3, 4, 4]);
        assert_eq!(histogram.get_sample_count(), 5);
        assert!((histogram.get_sample_sum() - 50.01).abs() < 0.5, "{}", histogram.get_sample_sum());
    }
}
