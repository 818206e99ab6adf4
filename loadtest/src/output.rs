//! The only place that prints: the report on standard output, progress and faults on standard error.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a command-line tool is for")]

use std::io::{IsTerminal, Write};
use std::time::Duration;

use gateway_loadtest::chart::number;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::schedule::{Clock, Nanos, SECOND};
use crate::scraper::Scraper;
use crate::series::{Point, Recorder, Series, Status};
use crate::server::Sample;
use crate::target::Target;
use crate::worker::{self, Said};

/// Between two lines where nobody can see a bar.
const LINE_INTERVAL: Nanos = 5 * SECOND;
/// Parts of the bar.
const BAR_PARTS: u64 = 1_000;
const BAR: &str = "{spinner:.cyan} {prefix:<8} {bar:24.cyan/dim} {wide_msg}";
const NO_BAR: &str = "{spinner:.cyan} {prefix:<8} {wide_msg}";

/// Latencies of which one is told, the most telling first.
const TOLD: [&str; 7] =
    ["recover", "deliver", "acknowledge", "presence", "ping", "ready", "connect"];

/// Prints a finished report.
pub(crate) fn report(text: &str) {
    print!("{text}");
    // A closed pipe must not hide the exit code.
    let _ = std::io::stdout().flush();
}

/// Prints why something did not work.
pub(crate) fn fault(text: &str) {
    eprintln!("error: {text}");
}

/// Prints something to know beside the report.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

#[derive(Debug)]
enum Display {
    Quiet,
    Lines {
        next_at: Nanos,
    },
    Bar(ProgressBar),
    /// Told to the process that started this one, which shows and keeps it.
    Parent,
}

/// Where the server tells its figures, and how long to wait between two questions; zero = never ask.
pub(crate) type Metrics = (Target, Duration);

/// A run while it goes on: looked at each second, shown and kept.
#[derive(Debug)]
pub(crate) struct Progress {
    /// The run's clock.
    pub(crate) clock: Clock,
    display: Display,
    recorder: Recorder,
    scraper: Option<Scraper>,
    next_at: Nanos,
}

impl Progress {
    /// Starts the clock, and asks the server for its `metrics` from now on. `quiet` shows nothing.
    pub(crate) fn start(quiet: bool, metrics: Option<Metrics>) -> Self {
        let display = if quiet {
            Display::Quiet
        } else if std::io::stderr().is_terminal() {
            // Drawn when it is told something: a thread that draws would disturb the load.
            Display::Bar(ProgressBar::with_draw_target(
                Some(BAR_PARTS),
                ProgressDrawTarget::stderr(),
            ))
        } else {
            Display::Lines { next_at: LINE_INTERVAL }
        };
        Self::new(Clock::start(), display, metrics)
    }

    /// Tells the process that started this one how it goes, by its clock.
    pub(crate) fn worker(clock: Clock, metrics: Option<Metrics>) -> Self {
        Self::new(clock, Display::Parent, metrics)
    }

    fn new(clock: Clock, display: Display, metrics: Option<Metrics>) -> Self {
        let scraper =
            metrics.and_then(|(target, interval)| Scraper::start(target, clock, interval));
        Self { clock, display, recorder: Recorder::default(), scraper, next_at: SECOND }
    }

    /// Looks at the status when a second has passed, or the run is done.
    pub(crate) fn tell(&mut self, now: Nanos, done: bool, status: impl FnOnce() -> Status) {
        if now < self.next_at && !done {
            return;
        }
        // After a stall the seconds go on from there.
        self.next_at = (self.next_at + SECOND).max(now + SECOND / 2);
        self.show(now, status());
    }

    /// Keeps a status, and shows it.
    pub(crate) fn show(&mut self, now: Nanos, status: Status) {
        if matches!(self.display, Display::Parent) {
            return worker::say(&Said::Second { at: now, status });
        }
        let (part, wanted, violations) = (status.part, status.wanted, status.violations);
        let point = self.recorder.record(now, status);
        match &mut self.display {
            Display::Bar(bar) => {
                let template = if part.is_some() { BAR } else { NO_BAR };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                bar.set_prefix(point.phase.clone());
                bar.set_position((part.unwrap_or(0.0).clamp(0.0, 1.0) * BAR_PARTS as f64) as u64);
                bar.set_message(line(point, wanted, violations));
                bar.tick();
            }
            Display::Lines { next_at } if now >= *next_at => {
                *next_at = now + LINE_INTERVAL;
                eprintln!("{:<8} {}", point.phase, line(point, wanted, violations));
            }
            Display::Lines { .. } | Display::Quiet | Display::Parent => {}
        }
    }

    /// Ends it: what was kept, with what a worker heard from the server.
    pub(crate) fn finish(self, mut heard: Vec<Sample>) -> Series {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
        heard.extend(self.scraper.map(Scraper::finish).unwrap_or_default());
        self.recorder.finish(&heard)
    }

    /// Ends that of a worker: what it heard from the server.
    pub(crate) fn into_samples(self) -> Vec<Sample> {
        self.scraper.map(Scraper::finish).unwrap_or_default()
    }
}

/// A second of the run in a line.
fn line(point: &Point, wanted: u32, violations: u64) -> String {
    let mut parts = vec![
        format!("{:.0} s", point.at_seconds),
        format!("{} of {} open", number(point.connections.into()), number(wanted.into())),
    ];
    for (what, rate) in [
        ("connects", point.connects_per_second),
        ("publishes", point.published_per_second),
        ("deliveries", point.delivered_per_second),
    ] {
        if rate > 0.0 {
            parts.push(format!("{} {what}/s", number(rate.round())));
        }
    }
    let told = TOLD.iter().find_map(|name| Some((name, point.latencies_ms.get(*name)?)));
    if let Some((name, latency)) = told {
        parts.push(format!("{name} p99 {} ms", number(latency.p99)));
    }
    parts.push(format!("{} violations", number(violations as f64)));
    parts.join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::latencies::Brief;

    #[test]
    fn a_point_in_a_line() {
        let latency = Brief { count: 1, p50: 1.0, p99: 2.5, max: 3.0 };
        let point = Point {
            at_seconds: 12.01,
            connections: 4_500,
            delivered_per_second: 12_345.6,
            latencies_ms: [("connect".into(), latency), ("deliver".into(), latency)].into(),
            ..Point::default()
        };
        assert_eq!(
            line(&point, 10_000, 2),
            "12 s, 4,500 of 10,000 open, 12,346 deliveries/s, deliver p99 2.50 ms, 2 violations"
        );
    }

    #[test]
    fn templates_are_sound() {
        for template in [BAR, NO_BAR] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn each_second_is_looked_at_once_and_the_end_too() {
        let nobody = "http://127.0.0.1:1/metrics".parse().unwrap();
        let mut progress = Progress::start(true, Some((nobody, Duration::from_secs(1))));
        for now in [0, SECOND / 2, SECOND, SECOND + 1, 2 * SECOND, 2 * SECOND + 5] {
            progress.tell(now, false, Status::default);
        }
        progress.tell(2 * SECOND + 6, true, Status::default);
        let heard = Sample { at: SECOND, ..Sample::default() };
        let series = progress.finish(vec![heard]);
        assert_eq!(series.points.len(), 3);
        assert_eq!(series.server.len(), 1, "nobody answers, a worker heard something");
    }
}
