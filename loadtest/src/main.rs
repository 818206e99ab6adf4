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
//! | `schedule`, `latencies`, `server` | time, histograms, the gateway's own figures |
//! | `report`, `output` | the result |

#![forbid(unsafe_code)]

mod checker;
mod figures;
mod fleet;
mod latencies;
mod ledger;
mod load;
mod options;
mod output;
mod plan;
mod processes;
mod report;
mod scenario;
mod schedule;
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
use options::Options;
use output::Progress;
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
    let mut passed = true;
    let mut reports = Vec::new();
    for (number, plan) in plans.into_iter().enumerate() {
        match run(plan, number, &environment, &options) {
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

fn run(
    plan: Plan,
    number: usize,
    environment: &Environment,
    options: &Options,
) -> Result<Report, String> {
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let mut progress = Progress::new(options.quiet);
    let (outcome, cpu_seconds) = if options.processes > 1 {
        processes::run(plan, (number, options.processes), run, &mut progress)?
    } else {
        make_room(u64::from(plan.sockets()) + OTHER_FDS)?;
        pin(&options.cores, 0)?;
        let start = Start { run, clock: Clock::start(), crew: Crew::default() };
        let before = own_cpu_seconds();
        let outcome = scenario::run(plan, environment, start, &mut progress)?;
        (outcome, own_cpu_seconds() - before)
    };
    progress.finish();
    Ok(Report::new(outcome, cpu_seconds))
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
        pin(&options.cores, assigned.index as usize)?;
        let clock = Clock::since(assigned.clock);
        let start = Start { run: assigned.run, clock, crew: Crew::worker(assigned.index) };
        scenario::run(plan, environment, start, &mut Progress::new(true))
    });
    match result {
        Ok(outcome) => {
            let parcel = processes::parcel(outcome, own_cpu_seconds());
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

fn write_json(path: &Path, reports: &[serde_json::Value]) -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(reports).map_err(std::io::Error::other)?;
    std::fs::write(path, text + "\n")
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
