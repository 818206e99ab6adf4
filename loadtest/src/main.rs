//! `archmesh-loadtest`: a load generator for people who run the gateway.
//!
//! | module | owns |
//! |---|---|
//! | `options`, `values`, `plan` | the command line, scenario files, and the plan that comes out of both |
//! | `fleet` | sockets, upgrades and frames of thousands of clients on one thread |
//! | `wire` | the messages of the native protocol |
//! | `load`, `ledger`, `checker` | connections, publications, and whether what came is what was promised |
//! | `scenario` | what each kind of scenario does |
//! | `schedule`, `latencies` | time, histograms |
//! | `server`, `scraper` | the gateway's own figures, between the phases and each second |
//! | `series`, `output` | the run over time, and its progress on standard error |
//! | `report`, `machine` | the result as text, JSON and HTML, and where it was measured |
//! | `chart` (of the library) | charts as SVG |

#![forbid(unsafe_code)]

mod checker;
mod fleet;
mod latencies;
mod ledger;
mod load;
mod machine;
mod options;
mod output;
mod plan;
mod report;
mod scenario;
mod schedule;
mod scraper;
mod series;
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

use machine::Machine;
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
    let machine = Machine::look();
    let mut reports = Vec::new();
    let mut fault = None;
    for plan in plans {
        match run(plan, &options) {
            Ok(report) => {
                output::report(&report.text());
                reports.push(report);
            }
            Err(error) => {
                fault = Some(error);
                break;
            }
        }
    }
    // What was measured before something could not be run is worth keeping.
    if let Err(error) = write_files(&options, &reports, &machine) {
        fault.get_or_insert(error);
    }
    if let Some(error) = fault {
        output::fault(&error);
        return ExitCode::from(EXIT_NOT_RUN);
    }
    let passed = reports.iter().all(Report::passed);
    if passed { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN) }
}

fn run(plan: Plan, options: &Options) -> Result<Report, String> {
    make_room(u64::from(plan.sockets()) + OTHER_FDS)?;
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let environment = options.environment();
    let mut progress =
        Progress::start(options.quiet, environment.metrics.clone(), options.metrics_interval.0);
    let before = own_cpu_seconds();
    let outcome = scenario::run(plan, &environment, run, &mut progress);
    let series = progress.finish();
    Ok(Report::new(outcome?, series, own_cpu_seconds() - before))
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

fn write_files(options: &Options, reports: &[Report], machine: &Machine) -> Result<(), String> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        output::note(&format!("report: {}", path.display()));
        Ok::<_, String>(())
    };
    if let Some(path) = &options.json {
        let values: Vec<_> = reports.iter().map(|report| report.json(machine)).collect();
        let text = serde_json::to_string_pretty(&values).map_err(|error| error.to_string())?;
        write(path, text + "\n")?;
    }
    if let Some(path) = &options.html {
        write(path, report::page(reports, machine))?;
    }
    Ok(())
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
