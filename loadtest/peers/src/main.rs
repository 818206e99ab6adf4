//! `gateway-peers`: runs the comparison and writes its report.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use gateway_peers::measure::{Context, MEASURES, Measure};
use gateway_peers::sample::{Run, Sample};
use gateway_peers::subject::{Places, Subject};
use gateway_peers::{limits, machine, report, tls};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Measures the gateway beside the servers that users would pick instead: one server at a time on one core, one
/// generator on another, rounds interleaved, medians. Run it through `make bench-peers`.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Rounds; each takes one sample of every measure and subject.
    #[arg(long, default_value_t = 5)]
    rounds: u32,

    /// Seconds of one measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,

    /// Subjects, separated by commas; default: all that are installed.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,

    /// Measures, separated by commas; default: all.
    #[arg(long, value_delimiter = ',')]
    measure: Vec<String>,

    /// Binary of the gateway.
    #[arg(long, default_value = "target/release/archmesh")]
    gateway: PathBuf,

    /// Another one, measured in turns with the first.
    #[arg(long)]
    gateway_b: Option<PathBuf>,

    /// Core of the servers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,

    /// Core of the generator.
    #[arg(long, default_value_t = 1)]
    generator_core: usize,

    /// Writes every sample to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Measures nothing and reads these result files instead, as one run.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    from: Vec<PathBuf>,

    /// Writes tables and chart into docs/.
    #[arg(long)]
    docs: bool,

    /// Prints the names of measures and subjects and ends.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn run(options: &Options) -> Result<bool, String> {
    let context = context(options)?;
    let gateways: Vec<PathBuf> =
        std::iter::once(&options.gateway).chain(&options.gateway_b).cloned().collect();
    let subjects = Subject::all(&gateways);
    if options.list {
        list(&subjects);
        return Ok(true);
    }
    let subjects = chosen(&subjects, &options.only, |subject| &subject.name, "--only")?;
    let measures = chosen(MEASURES, &options.measure, |measure| measure.name, "--measure")?;
    let (record, whole) = if options.from.is_empty() {
        measured(options, &context, &measures, &subjects)?
    } else {
        (merged(&options.from)?, true)
    };
    print(&table(&record, &measures, &subjects));
    if options.docs {
        report::write(&record, Path::new("docs"))?;
    }
    Ok(whole)
}

/// Runs all rounds; false beside the record when a sample failed.
fn measured(
    options: &Options,
    context: &Context,
    measures: &[&Measure],
    subjects: &[&Subject],
) -> Result<(Run, bool), String> {
    limits::raise_descriptors();
    tls::prepare(&context.places)?;
    let command = format!("make bench-peers{}", arguments());
    let mut record = Run { command, machine: machine::describe(), ..Run::default() };
    let mut present = Vec::new();
    for subject in subjects {
        if let Some(reason) = subject.missing(&context.places) {
            note(&format!("{} is left out: {reason}", subject.name));
            record.left_out.insert(subject.name.clone(), reason);
        } else {
            let version = machine::version(subject, &context.places);
            record.versions.insert(subject.name.clone(), version);
            present.push(*subject);
        }
    }
    pin(options.generator_core)?;
    let mut whole = true;
    for round in 1..=options.rounds {
        for measure in measures.iter().filter(|measure| round <= measure.rounds_max) {
            for subject in present.iter().filter(|subject| (measure.subjects)(subject.kind)) {
                whole &= take(context, measure, subject, round, &mut record);
            }
        }
        if let Some(path) = &options.json {
            record.write(path)?;
        }
    }
    Ok((record, whole))
}

fn merged(files: &[PathBuf]) -> Result<Run, String> {
    let mut runs = files.iter().map(|path| Run::read(path));
    let mut merged = runs.next().unwrap_or_else(|| Ok(Run::default()))?;
    for run in runs {
        merged.absorb(run?);
    }
    Ok(merged)
}

/// Takes one sample and says so; false when it failed.
fn take(
    context: &Context,
    measure: &Measure,
    subject: &Subject,
    round: u32,
    record: &mut Run,
) -> bool {
    let name = format!("round {round} {:<16} {:<12}", measure.name, subject.name);
    match (measure.take)(context, subject) {
        Ok(values) => {
            let text: Vec<String> =
                values.iter().map(|(name, value)| format!("{name}={value:.3}")).collect();
            note(&format!("{name} {}", text.join(" ")));
            let (measure, subject) = (measure.name.to_owned(), subject.name.clone());
            record.samples.push(Sample { measure, subject, round, values });
            true
        }
        Err(error) => {
            note(&format!("{name} FAILED: {error}"));
            false
        }
    }
}

fn table(record: &Run, measures: &[&Measure], subjects: &[&Subject]) -> String {
    let row = |head: String, cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>12}")).collect();
        format!("{head:<52} {}\n", cells.join(" "))
    };
    let names = subjects.iter().map(|subject| subject.name.clone()).collect();
    let mut text = row("median of the rounds".to_owned(), names);
    for measure in measures {
        let medians = subjects.iter().map(|subject| {
            let median = record.median(measure.name, &subject.name, measure.value);
            median.map_or("-".to_owned(), |value| format!("{value:.2}"))
        });
        text += &row(format!("{} [{}]", measure.title, measure.value), medians.collect());
    }
    text
}

fn context(options: &Options) -> Result<Context, String> {
    let here = std::env::current_dir().map_err(|error| format!("current folder: {error}"))?;
    let servers = here.join("loadtest/peers/servers");
    if !servers.is_dir() {
        return Err("run it from the top of the repository".to_owned());
    }
    let cache = here.join(".cache/peers");
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let own = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
    let binaries = own.parent().map(PathBuf::from).unwrap_or_default();
    if options.seconds.is_nan() || options.seconds <= 0.0 || options.seconds > 600.0 {
        return Err("--seconds must be between 0 and 600".to_owned());
    }
    Ok(Context {
        loadtest: binaries.join("archmesh-loadtest"),
        places: Places { cache, servers, binaries },
        server_core: options.server_core,
        seconds: Duration::from_secs_f64(options.seconds),
    })
}

fn pin(core: usize) -> Result<(), String> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores)
        .map_err(|error| format!("pinning the generator to core {core}: {error}"))
}

fn chosen<'a, T>(
    all: &'a [T],
    names: &[String],
    name_of: impl Fn(&T) -> &str,
    flag: &str,
) -> Result<Vec<&'a T>, String> {
    for name in names {
        if !all.iter().any(|one| name_of(one) == name) {
            let known: Vec<&str> = all.iter().map(&name_of).collect();
            return Err(format!("{flag} {name}: there are {}", known.join(", ")));
        }
    }
    let wanted = |one: &&T| names.is_empty() || names.iter().any(|name| name == name_of(one));
    Ok(all.iter().filter(wanted).collect())
}

/// Arguments as they would be given to `make bench-peers`.
fn arguments() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() { String::new() } else { format!(" ARGS=\"{}\"", arguments.join(" ")) }
}

fn list(subjects: &[Subject]) {
    for measure in MEASURES {
        print(&format!("measure {:<16} {}\n", measure.name, measure.title));
    }
    for subject in subjects {
        print(&format!("subject {:<16} {}\n", subject.name, Subject::title(subject.kind)));
    }
}
