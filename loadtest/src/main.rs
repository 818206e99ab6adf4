//! `archmesh-loadtest`: a load generator for people who run the gateway.
//!
//! | module | owns |
//! |---|---|
//! | `options`, `values`, `plan` | the command line, scenario files, and the plan that comes out of both |
//! | `thresholds`, `figures` | what a run must keep to, and what it is compared with |
//! | `processes`, `worker` | a run in several processes: their parent, and one of them |
//! | `target`, `tls` | where the load goes, as whom, and whom it trusts |
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
mod figures;
mod fleet;
mod latencies;
mod ledger;
mod load;
mod machine;
mod options;
mod output;
mod plan;
mod processes;
mod report;
mod scenario;
mod schedule;
mod scraper;
mod series;
mod server;
mod target;
mod thresholds;
mod tls;
mod values;
mod wire;
mod worker;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser as _;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use load::{Environment, Start};
use machine::Machine;
use options::Options;
use output::{Metrics, Progress};
use plan::{Plan, Scenario};
use report::Report;
use schedule::Clock;
use worker::{Assigned, Crew, Said};

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
    let prepared = options.plans().and_then(|plans| Ok((plans, options.environment()?)));
    let (plans, environment) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            output::fault(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let Some(assigned) = options.worker {
        return work(&plans, &environment, &options, assigned);
    }
    let machine = Machine::look();
    let mut reports = Vec::new();
    let mut fault = None;
    for (number, plan) in plans.into_iter().enumerate() {
        match run(plan, number, &environment, &options) {
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

fn run(
    plan: Plan,
    number: usize,
    environment: &Environment,
    options: &Options,
) -> Result<Report, String> {
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let mut progress =
        Progress::start(options.quiet, metrics(options, environment, options.processes == 1));
    let (outcome, cpu_seconds, heard) = if options.processes > 1 {
        let count = options.processes;
        let gathered = processes::run(plan, (number, count), run, &mut progress)?;
        (gathered.outcome, gathered.cpu_seconds, gathered.heard)
    } else {
        make_room(u64::from(plan.sockets()) + OTHER_FDS)?;
        pin(&options.cores, 0)?;
        let start = Start { run, clock: progress.clock, crew: Crew::default() };
        let before = own_cpu_seconds();
        let outcome = scenario::run(plan, environment, start, &mut progress)?;
        (outcome, own_cpu_seconds() - before, Vec::new())
    };
    Ok(Report::new(outcome, progress.finish(heard), cpu_seconds))
}

/// The server's figures are asked for each second by one process, the one that also asks between the phases.
fn metrics(options: &Options, environment: &Environment, asks: bool) -> Option<Metrics> {
    asks.then(|| (environment.metrics.clone(), options.metrics_interval.0))
}

/// Does a share of a plan for the process that started this one.
fn work(
    plans: &[Plan],
    environment: &Environment,
    options: &Options,
    assigned: Assigned,
) -> ExitCode {
    let share = |plan: &Plan| plan.share(assigned.index, options.processes);
    let result = plans.get(assigned.plan).ok_or_else(|| "no such plan".to_owned());
    let result = result.and_then(|plan| {
        let plan = share(plan)?;
        make_room(u64::from(plan.sockets()) + OTHER_FDS)?;
        let (clock, crew) = (Clock::since(assigned.clock), Crew::worker(assigned.index));
        let mut progress = Progress::worker(clock, metrics(options, environment, crew.is_first()));
        pin(&options.cores, assigned.index as usize)?;
        let start = Start { run: assigned.run, clock, crew };
        let outcome = scenario::run(plan, environment, start, &mut progress)?;
        Ok((outcome, progress.into_samples()))
    });
    match result {
        Ok((outcome, heard)) => {
            let parcel = processes::parcel(outcome, own_cpu_seconds(), heard);
            worker::say(&Said::Done(Box::new(parcel)));
            ExitCode::SUCCESS
        }
        Err(why) => {
            worker::say(&Said::Failed(why));
            ExitCode::from(EXIT_NOT_RUN)
        }
    }
}

/// Pins this thread to its core of the list; to none without a list.
fn pin(cores: &[usize], index: usize) -> Result<(), String> {
    if cores.is_empty() {
        return Ok(());
    }
    let core = cores[index % cores.len()];
    let mut set = CpuSet::new();
    if core < CpuSet::MAX_CPU {
        set.set(core);
    }
    sched_setaffinity(None, &set).map_err(|error| format!("cannot use core {core}: {error}"))
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
            Ok(scenario) => writeln!(text, "{name:<15} {}", scenario.about),
            Err(error) => writeln!(text, "{name:<15} {error}"),
        }
        .expect("a String takes any text");
    }
    text
}
