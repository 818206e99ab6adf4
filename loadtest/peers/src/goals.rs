//! What the gateway is meant to reach, and whether a run says that it does.

use crate::sample::Run;

/// Servers whose best counts as the one to beat.
const BEST_OF: &[&str] = &["bun", "uwebsockets", "socketify"];
const GATEWAY: &str = "gateway";
/// CPU time of the raw server per delivery of `fanout-1`, in microseconds, on the machine that goals in units of time were
/// set on. Machines differ by a factor of four in what a send costs.
const REFERENCE_RAW_US: f64 = 5.2;

/// One goal.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What is compared.
    pub what: &'static str,
    /// What was measured, when it was.
    pub measured: Option<f64>,
    /// For goals in units of time: the same on a machine as fast as the one they were set on.
    pub at_reference: Option<f64>,
    /// The limit.
    pub target: f64,
    /// Whether `target` is a lower bound.
    pub at_least: bool,
    /// Unit of both.
    pub unit: &'static str,
}

impl Goal {
    /// Whether it is reached; `None` when it was not measured.
    pub fn met(&self) -> Option<bool> {
        let measured = self.at_reference.or(self.measured)?;
        Some(if self.at_least { measured >= self.target } else { measured <= self.target })
    }
}

/// What a measured value is divided by.
enum Against {
    /// A constant, for the unit.
    Unit(f64),
    /// Nothing: a time, which depends on how fast the machine is.
    Time,
    /// CPU time of another measure of the gateway.
    Own(&'static str),
    /// CPU time of the best server to beat.
    Best(&'static str),
    /// The same, upside down: messages a second of one core are the inverse of CPU time.
    BestPerSecond(&'static str),
}

/// Meaning, measure, value, what it is divided by, limit, unit.
type Rule = (&'static str, &'static str, &'static str, Against, f64, &'static str);

const RULES: &[Rule] = {
    use Against::{Best, BestPerSecond, Own, Time, Unit};
    const CPU: &str = "cpu_us";
    const X: &str = "x";
    &[
        (
            "fan-out to 1,000 against the best of uWebSockets and Bun, 8 in flight",
            "fanout-8",
            CPU,
            Best("fanout-8"),
            0.9,
            X,
        ),
        ("the same, 1 in flight", "fanout-1", CPU, Best("fanout-1"), 1.0, X),
        (
            "10,000 subscribers against 1,000, 1 in flight",
            "fanout-10k-1",
            CPU,
            Own("fanout-1"),
            1.1,
            X,
        ),
        ("the same, 8 in flight", "fanout-10k-8", CPU, Own("fanout-8"), 1.1, X),
        (
            "history and recovery on against off, 1 in flight",
            "history-1",
            CPU,
            Own("fanout-1"),
            1.1,
            X,
        ),
        ("the same, 8 in flight", "history-8", CPU, Own("fanout-8"), 1.1, X),
        (
            "echo: messages/s per core against the best of uWebSockets and Bun",
            "echo",
            CPU,
            BestPerSecond("echo"),
            0.95,
            X,
        ),
        (
            "acknowledged JSON publish against their echo",
            "publish-ack",
            CPU,
            BestPerSecond("echo"),
            0.7,
            X,
        ),
        (
            "memory of an idle connection, authenticated and subscribed",
            "memory",
            "rss_bytes",
            Unit(1024.0),
            1.5,
            "KiB",
        ),
        ("the same over TLS", "memory-tls", "rss_bytes", Unit(1024.0), 12.0, "KiB"),
        (
            "CPU of an idle connection at the default heartbeat",
            "memory",
            "idle_us_s",
            Time,
            1.0,
            "us/s",
        ),
        ("CPU of connect, HS256, subscribe", "connect-fresh", CPU, Time, 45.0, "us"),
        ("10,000 reconnects with recovery on one core", "storm", "seconds", Time, 3.0, "s"),
        (
            "p99 on a shard while 10,000 reconnect to the other, against a storm to another process",
            "storm-beside",
            "loaded_to_busy",
            Unit(1.0),
            1.2,
            X,
        ),
        (
            "two shards against one, per delivery, 1 in flight",
            "two-shards-1",
            CPU,
            Own("one-shard-1"),
            1.05,
            X,
        ),
        ("the same, 8 in flight", "two-shards-8", CPU, Own("one-shard-8"), 1.05, X),
        (
            "p99 on a shard while the other is flooded, against a busy other core",
            "isolation",
            "loaded_to_busy",
            Unit(1.0),
            1.2,
            X,
        ),
        ("10,000 connections, 200 publications/s: p99", "tail", "p99_ms", Time, 5.0, "ms"),
        ("the same: p99.9", "tail", "p999_ms", Time, 20.0, "ms"),
        ("fan-out over TLS against plain, 1 in flight", "tls-1", CPU, Own("fanout-1"), 1.6, X),
        ("the same, 8 in flight", "tls-8", CPU, Own("fanout-8"), 1.6, X),
        (
            "fan-out of 1 KiB deflated against plain, 1 in flight",
            "deflate-1",
            CPU,
            Own("json-1"),
            1.3,
            X,
        ),
        ("the same, 8 in flight", "deflate-8", CPU, Own("json-8"), 1.3, X),
    ]
};

/// All goals with what `run` measured.
pub fn of(run: &Run) -> Vec<Goal> {
    RULES.iter().map(|rule| goal(run, rule)).collect()
}

fn goal(run: &Run, (what, measure, value, against, target, unit): &Rule) -> Goal {
    let own = |measure: &str| run.median(measure, GATEWAY, "cpu_us");
    let measured = run.median(measure, GATEWAY, value);
    let over = |than: Option<f64>| Some(measured? / than?);
    let measured = match against {
        Against::Unit(unit) => over(Some(*unit)),
        Against::Time => measured,
        Against::Own(measure) => over(own(measure)),
        Against::Best(measure) => over(best(run, measure)),
        Against::BestPerSecond(measure) => over(best(run, measure)).map(f64::recip),
    };
    let raw = run.median("fanout-1", "raw", "cpu_us");
    let at_reference = match against {
        Against::Time => measured.zip(raw).map(|(time, raw)| time * REFERENCE_RAW_US / raw),
        _ => None,
    };
    let at_least = matches!(against, Against::BestPerSecond(_));
    Goal { what, measured, at_reference, target: *target, at_least, unit }
}

/// The least CPU time among the servers to beat.
fn best(run: &Run, measure: &str) -> Option<f64> {
    BEST_OF
        .iter()
        .filter_map(|subject| run.median(measure, subject, "cpu_us"))
        .min_by(f64::total_cmp)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sample::{Sample, Values};

    fn run(samples: &[(&str, &str, f64)]) -> Run {
        let sample = |(measure, subject, cpu): &(&str, &str, f64)| Sample {
            measure: (*measure).to_owned(),
            subject: (*subject).to_owned(),
            round: 1,
            values: Values::from([("cpu_us".to_owned(), *cpu)]),
        };
        Run { samples: samples.iter().map(sample).collect(), ..Run::default() }
    }

    fn check(samples: &[(&str, &str, f64)], what: &str, measured: Option<f64>, met: Option<bool>) {
        let goals = of(&run(samples));
        let goal = goals.iter().find(|goal| goal.what.starts_with(what)).unwrap();
        assert_eq!(goal.met(), met, "{goal:?}");
        match (goal.measured, measured) {
            (Some(is), Some(wanted)) => assert!((is - wanted).abs() < 1e-9, "{goal:?}"),
            (is, wanted) => assert_eq!(is, wanted),
        }
    }

    #[test]
    fn the_best_peer_is_the_one_to_beat() {
        let samples =
            [("fanout-8", GATEWAY, 0.45), ("fanout-8", "bun", 0.6), ("fanout-8", "socketify", 0.5)];
        check(&samples, "fan-out to 1,000 against", Some(0.9), Some(true));
        check(&samples, "the same, 1 in flight", None, None);
    }

    #[test]
    fn times_are_judged_as_on_the_reference_machine() {
        let connect = ("connect-fresh", GATEWAY, 90.0);
        check(&[connect], "CPU of connect", Some(90.0), Some(false));
        let twice_as_slow = ("fanout-1", "raw", 2.0 * REFERENCE_RAW_US);
        check(&[connect, twice_as_slow], "CPU of connect", Some(90.0), Some(true));
    }

    #[test]
    fn throughput_is_the_inverse_of_cpu_time() {
        let samples = [("echo", GATEWAY, 5.0), ("echo", "bun", 4.0), ("publish-ack", GATEWAY, 5.0)];
        check(&samples, "echo", Some(0.8), Some(false));
        check(&samples, "acknowledged", Some(0.8), Some(true));
    }
}
