//! `archmesh-loadtest`: a load generator for people who run the gateway.
//!
//! | module | owns |
//! |---|---|
//! | `options`, `values`, `plan` | the command line, scenario files, and the plan that comes out of both |
//! | `fleet` | sockets, upgrades and frames of thousands of clients on one thread |
//! | `wire` | the messages of the native protocol |
//! | `load`, `ledger`, `checker` | connections, publications, and whether what came is what was promised |
//! | `scenario` | what each kind of scenario does |
//! | `schedule`, `latencies`, `server` | time, histograms, the gateway's own figures |
//! | `report`, `output` | the result |

#![forbid(unsafe_code)]

mod checker;
mod fleet;
mod latencies;
mod ledger;
mod load;
mod options;
mod output;
mod plan;
mod report;
mod scenario;
mod schedule;
mod server;
mod target;
mod values;
mod wire;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser as _;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use options::Options;
use output::Progress;
use plan::{Plan, Scenario};
use report::Report;

const EXIT_BROKEN: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_NOT_RUN: u8 = 3;

/// Descriptors beside those of the connections.
const OTHER_FDS: u64 = 64;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        output::report(&list());
        return ExitCode::SUCCESS;
    }
    let plans = match options.plans() {
        Ok(plans) => plans,
        Err(error) => {
            output::fault(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let mut passed = true;
    let mut reports = Vec::new();
    for plan in plans {
        match run(plan, &options) {
            Ok(report) => {
                output::report(&report.text());
                passed &= report.passed();
                reports.push(report.json());
            }
            Err(error) => {
                output::fault(&error);
                return ExitCode::from(EXIT_NOT_RUN);
            }
        }
    }
    if let Some(path) = &options.json
        && let Err(error) = write_json(path, &reports)
    {
        output::fault(&format!("{}: {error}", path.display()));
        return ExitCode::from(EXIT_NOT_RUN);
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN) }
}

fn run(plan: Plan, options: &Options) -> Result<Report, String> {
    make_room(u64::from(plan.sockets()) + OTHER_FDS)?;
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let mut progress = Progress::new(options.quiet);
    let before = own_cpu_seconds();
    let outcome = scenario::run(plan, &options.environment(), run, &mut progress)?;
    progress.finish();
    Ok(Report::new(outcome, own_cpu_seconds() - before))
}

/// Every connection is a descriptor: takes the soft limit up to the hard one when that is needed.
fn make_room(fds: u64) -> Result<(), String> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= fds) {
        return Ok(());
    }
    if let Some(maximum) = limit.maximum.filter(|maximum| *maximum < fds) {
        return Err(format!(
            "{fds} descriptors are needed and this process may open {maximum}: raise `ulimit -Hn`, or ask for fewer \
             --connections"
        ));
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)
        .map_err(|error| format!("cannot raise the descriptor limit: {error}"))
}

fn own_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn write_json(path: &Path, reports: &[serde_json::Value]) -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(reports).map_err(std::io::Error::other)?;
    std::fs::write(path, text + "\n")
}

fn list() -> String {
    let mut text = String::new();
    for name in Scenario::names() {
        match Scenario::load(name) {
            Ok(scenario) => writeln!(text, "{name:<12} {}", scenario.about),
            Err(error) => writeln!(text, "{name:<12} {error}"),
        }
        .expect("a String takes any text");
    }
    text
}
