//! The parent of a run in several processes: starts the workers, lets them meet, adds up what came of them.
//!
//! What a worker checks by itself: that each of its subscriptions gets every offset once and in order, from whomever; that
//! no two of its subscribers see different publications at one offset; that its own publications are answered once and
//! stand where they were acknowledged. Over all workers: that every acknowledged publication has reached every live
//! subscription. That what a subscription got at an offset is what a publisher *in another process* was acknowledged
//! there is not checked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::checker::Violations;
use crate::fleet::Traffic;
use crate::latencies::Latencies;
use crate::output::Progress;
use crate::plan::Plan;
use crate::scenario::{Outcome, compared, known_name};
use crate::schedule::Nanos;
use crate::series::{Gathering, Status};
use crate::server::Sample;
use crate::worker::{Assigned, Parcel, Said, Told};

/// Lines of all workers that wait to be looked at.
const LINES_MAX: usize = 1024;

/// A meeting that not everybody has come to.
#[derive(Debug, Default)]
struct Open {
    present: BTreeSet<usize>,
    tops: BTreeMap<u32, u64>,
}

/// The workers; they are killed when something goes wrong.
#[derive(Debug)]
struct Workers {
    children: Vec<Child>,
    inputs: Vec<ChildStdin>,
    parcels: Vec<Option<Parcel>>,
    meetings: HashMap<String, Open>,
    seconds: Gathering,
}

/// What came of all workers.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// The outcome of the whole plan.
    pub(crate) outcome: Outcome,
    /// CPU seconds of the workers.
    pub(crate) cpu_seconds: f64,
    /// What the server told each second.
    pub(crate) heard: Vec<Sample>,
}

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended cannot be killed, which is as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Workers {
    fn start(assigned: Assigned, count: u32) -> Result<(Self, Receiver<(usize, String)>), String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let (sender, lines) = sync_channel(LINES_MAX);
        let parcels = (0..count).map(|_| None).collect();
        let (children, inputs) = (Vec::new(), Vec::new());
        let (meetings, seconds) = (HashMap::new(), Gathering::new(count as usize));
        let mut workers = Self { children, inputs, parcels, meetings, seconds };
        for index in 0..count {
            let mut child = Command::new(&program)
                .args(std::env::args_os().skip(1))
                .arg("--worker")
                .arg(Assigned { index, ..assigned }.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
            let pipes = (child.stdin.take(), child.stdout.take());
            workers.children.push(child);
            let (Some(input), Some(output)) = pipes else {
                return Err("a worker without pipes".into());
            };
            workers.inputs.push(input);
            forward(index as usize, output, sender.clone());
        }
        Ok((workers, lines))
    }

    fn hear(&mut self, index: usize, said: Said, progress: &mut Progress) -> Result<(), String> {
        match said {
            Said::Failed(why) => return Err(format!("process {index}: {why}")),
            Said::Second { at, status } => {
                self.second(index, (at, status), progress);
                return Ok(());
            }
            Said::Done(parcel) => self.parcels[index] = Some(*parcel),
            Said::Here { meeting, tops } => {
                let open = self.meetings.entry(meeting).or_default();
                open.present.insert(index);
                for (channel, offset) in tops {
                    let top = open.tops.entry(channel).or_default();
                    *top = (*top).max(offset);
                }
            }
        }
        self.close_meetings()
    }

    /// A second of the run is over when everybody has told of it, or somebody tells of the next one.
    fn second(&mut self, index: usize, (at, status): (Nanos, Status), progress: &mut Progress) {
        if self.seconds.has(index) {
            self.show(progress);
        }
        self.seconds.add(index, at, status);
        if self.seconds.is_complete(&self.running()) {
            self.show(progress);
        }
    }

    fn show(&mut self, progress: &mut Progress) {
        if let Some((at, sum)) = self.seconds.take() {
            progress.show(at, sum);
        }
    }

    fn running(&self) -> BTreeSet<usize> {
        let running = self.parcels.iter().enumerate().filter(|(_, parcel)| parcel.is_none());
        running.map(|(index, _)| index).collect()
    }

    /// Tells everybody of the meetings to which all have come that still run.
    fn close_meetings(&mut self) -> Result<(), String> {
        let running = self.running();
        let complete: Vec<String> = self
            .meetings
            .iter()
            .filter(|(_, open)| open.present.is_superset(&running))
            .map(|(name, _)| name.clone())
            .collect();
        for meeting in complete {
            let Some(open) = self.meetings.remove(&meeting) else { continue };
            let told = Told { meeting, tops: open.tops.into_iter().collect() };
            let line = serde_json::to_string(&told).map_err(|error| error.to_string())? + "\n";
            for index in open.present.intersection(&running) {
                self.inputs[*index]
                    .write_all(line.as_bytes())
                    .map_err(|error| format!("process {index} is gone: {error}"))?;
            }
        }
        Ok(())
    }

    fn done(&self) -> usize {
        self.parcels.iter().flatten().count()
    }
}

/// Hands on the lines of a worker; an empty one is its end.
fn forward(
    index: usize,
    output: impl std::io::Read + Send + 'static,
    sender: SyncSender<(usize, String)>,
) {
    std::thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        for line in lines.filter(|line| !line.is_empty()).chain([String::new()]) {
            if sender.send((index, line)).is_err() {
                return;
            }
        }
    });
}

/// Runs a plan in `count` processes.
pub(crate) fn run(
    plan: Plan,
    (number, count): (usize, u32),
    run: u64,
    progress: &mut Progress,
) -> Result<Gathered, String> {
    for index in 0..count {
        plan.share(index, count)?;
    }
    let assigned = Assigned { index: 0, plan: number, run, clock: progress.clock.base() };
    let (mut workers, lines) = Workers::start(assigned, count)?;
    while workers.done() < count as usize {
        let (index, line) = lines.recv().map_err(|_| "all workers are gone".to_owned())?;
        if line.is_empty() {
            if workers.parcels[index].is_none() {
                return Err(format!("process {index} ended before it was done"));
            }
            continue;
        }
        let said: Said = serde_json::from_str(&line)
            .map_err(|error| format!("process {index} said something odd: {error}"))?;
        workers.hear(index, said, progress)?;
    }
    workers.show(progress);
    let parcels = workers.parcels.iter_mut().filter_map(Option::take).collect();
    merge(plan, parcels)
}

/// Adds by name, in the order in which the names first came.
fn collect(
    into: &mut Vec<(&'static str, u64)>,
    from: Vec<(String, u64)>,
    join: fn(u64, u64) -> u64,
) -> Result<(), String> {
    for (name, value) in from {
        let name = known_name(&name).ok_or_else(|| format!("nobody knows the figure {name}"))?;
        match into.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = join(*sum, value),
            None => into.push((name, value)),
        }
    }
    Ok(())
}

fn merge(plan: Plan, parcels: Vec<Parcel>) -> Result<Gathered, String> {
    let mut outcome = Outcome {
        compared: compared(plan.kind),
        plan,
        violations: Violations::default(),
        latencies: Latencies::default(),
        counts: Vec::new(),
        phases: Vec::new(),
        samples: Vec::new(),
        trend: Vec::new(),
        traffic: Traffic::default(),
    };
    let (mut cpu_seconds, mut heard) = (0.0, Vec::new());
    for parcel in parcels {
        outcome.violations.merge(parcel.violations);
        outcome.latencies.add(&parcel.latencies);
        collect(&mut outcome.counts, parcel.counts, |a, b| a + b)?;
        // They go through the phases together; the slowest says how long one was.
        collect(&mut outcome.phases, parcel.phases, Nanos::max)?;
        for (moment, sample) in parcel.samples {
            let moment = known_name(&moment).ok_or_else(|| format!("nobody knows {moment}"))?;
            outcome.samples.push((moment, sample));
        }
        outcome.trend.extend(parcel.trend);
        outcome.traffic.bytes_in += parcel.traffic.bytes_in;
        outcome.traffic.bytes_out += parcel.traffic.bytes_out;
        outcome.traffic.pings += parcel.traffic.pings;
        outcome.traffic.inflated += parcel.traffic.inflated;
        cpu_seconds += parcel.cpu_seconds;
        heard.extend(parcel.heard);
    }
    Ok(Gathered { outcome, cpu_seconds, heard })
}

/// The line that a worker ends with.
pub(crate) fn parcel(outcome: Outcome, cpu_seconds: f64, heard: Vec<Sample>) -> Parcel {
    fn owned<T>(list: Vec<(&'static str, T)>) -> Vec<(String, T)> {
        list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
    Parcel {
        violations: outcome.violations,
        latencies: outcome.latencies,
        counts: owned(outcome.counts),
        phases: owned(outcome.phases),
        samples: owned(outcome.samples),
        trend: outcome.trend,
        traffic: outcome.traffic,
        cpu_seconds,
        heard,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checker::Violation;
    use crate::plan::{Scenario, Size};
    use crate::schedule::MILLISECOND;
    use crate::values::Values;

    fn some(delivered: u64, load: Nanos, ms: u64) -> Parcel {
        let mut parcel = Parcel {
            counts: vec![("delivered".into(), delivered)],
            phases: vec![("load".into(), load)],
            cpu_seconds: 1.5,
            heard: vec![Sample::default()],
            ..Parcel::default()
        };
        parcel.latencies.deliver.record(0, ms * MILLISECOND);
        parcel.violations.add(Violation::Gap, 1, || "x".into());
        // As it comes over the pipe.
        serde_json::from_str(&serde_json::to_string(&parcel).unwrap()).unwrap()
    }

    fn plan() -> Plan {
        Scenario::load("fanout").unwrap().plan("fanout", Size::Small, &Values::default()).unwrap()
    }

    #[test]
    fn what_came_of_the_workers_adds_up() {
        let Gathered { outcome, cpu_seconds, heard } =
            merge(plan(), vec![some(3, 10, 5), some(4, 12, 50)]).unwrap();
        assert_eq!((outcome.count("delivered"), outcome.load_length()), (7, 12));
        let summary = outcome.latencies.deliver.summary().unwrap();
        assert_eq!(summary.count, 2);
        assert!(summary.max > 49.0 && summary.p50 < 6.0);
        assert_eq!(outcome.violations.total(), 2);
        assert!((cpu_seconds - 3.0).abs() < 1e-9);
        assert_eq!(heard.len(), 2);
        let odd = Parcel { counts: vec![("odd".into(), 1)], ..Parcel::default() };
        assert!(merge(plan(), vec![odd]).unwrap_err().contains("odd"));
    }
}
