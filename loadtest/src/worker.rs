//! A process of a run in several processes: what it has to do, and how it keeps step with the others.
//!
//! The process that was started by people starts the workers, each with a share of the plan. At a few places, the
//! *meetings*, a worker waits until all the others are there. It says so in a line of JSON on its standard output, with
//! what it has had acknowledged in each channel, and reads on its standard input what all of them together have had
//! acknowledged. So `acknowledged means delivered` holds over all processes: a worker's subscriptions must reach the
//! largest offset that any worker was given. Each second it says how it goes. The last line of a worker is its [`Parcel`].

use std::collections::HashSet;
use std::io::BufRead as _;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use serde::{Deserialize, Serialize};

use crate::checker::Violations;
use crate::fleet::Traffic;
use crate::latencies::Latencies;
use crate::output;
use crate::schedule::Nanos;
use crate::series::Status;
use crate::server::Sample;

/// Lines from the parent that wait to be looked at; there is one per meeting.
const LINES_MAX: usize = 64;

/// Channel and largest acknowledged offset.
pub(crate) type Top = (u32, u64);

/// What a worker says, a line each.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    /// It has come to a meeting.
    Here {
        /// Name of the meeting.
        meeting: String,
        /// What it has had acknowledged.
        tops: Vec<Top>,
    },
    /// How it goes, each second and at its end.
    Second {
        /// When.
        at: Nanos,
        /// Counts since the start, latencies since the second before.
        status: Status,
    },
    /// It is done.
    Done(Box<Parcel>),
    /// It could not do its part.
    Failed(String),
}

/// What a worker is told: everybody has come to a meeting.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Told {
    /// Name of the meeting.
    pub(crate) meeting: String,
    /// What all together have had acknowledged.
    pub(crate) tops: Vec<Top>,
}

/// What came of a worker's share.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Parcel {
    /// What went wrong.
    pub(crate) violations: Violations,
    /// How long things took.
    pub(crate) latencies: Latencies,
    /// Counts by name.
    pub(crate) counts: Vec<(String, u64)>,
    /// Lengths of the phases.
    pub(crate) phases: Vec<(String, Nanos)>,
    /// Server figures by moment.
    pub(crate) samples: Vec<(String, Sample)>,
    /// Server figures during the load.
    pub(crate) trend: Vec<Sample>,
    /// Server figures each second, of the worker that asks for them.
    pub(crate) heard: Vec<Sample>,
    /// What went over the wire.
    pub(crate) traffic: Traffic,
    /// CPU seconds of the worker.
    pub(crate) cpu_seconds: f64,
}

/// The value of `--worker`: which process this is, of which run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// Index of the process.
    pub(crate) index: u32,
    /// Which of the plans.
    pub(crate) plan: usize,
    /// Number of the run.
    pub(crate) run: u64,
    /// Base of the clock.
    pub(crate) clock: Nanos,
}

impl std::fmt::Display for Assigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}:{}", self.index, self.plan, self.run, self.clock)
    }
}

impl FromStr for Assigned {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<u64> = text.split(':').filter_map(|part| part.parse().ok()).collect();
        let [index, plan, run, clock] = parts[..] else {
            return Err("only the generator itself starts workers".into());
        };
        Ok(Self { index: index as u32, plan: plan as usize, run, clock })
    }
}

/// Keeps step with the other processes; without any it never waits.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    index: u32,
    told: Option<Receiver<Told>>,
    announced: HashSet<&'static str>,
    passed: HashSet<String>,
    waiting: bool,
}

/// How it stands with a meeting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    /// Not everybody is there.
    Waiting,
    /// Everybody has come, just now: what all have had acknowledged.
    Complete(Vec<Top>),
    /// It is over.
    Over,
}

impl Crew {
    /// The worker with this index, whose parent speaks on the standard input.
    pub(crate) fn worker(index: u32) -> Self {
        let (sender, told) = sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            let lines = std::io::stdin().lock().lines().map_while(Result::ok);
            for told in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                if sender.send(told).is_err() {
                    return;
                }
            }
        });
        Self { index, told: Some(told), ..Self::default() }
    }

    /// Whether this process does what only one of them should.
    pub(crate) fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Whether there are others.
    pub(crate) fn has_others(&self) -> bool {
        self.told.is_some()
    }

    /// Whether it waits for the others at a meeting.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Comes to a meeting; ask again until it does not say `Waiting`.
    pub(crate) fn meet(
        &mut self,
        meeting: &'static str,
        tops: impl FnOnce() -> Vec<Top>,
    ) -> Meeting {
        let Some(told) = &self.told else { return Meeting::Over };
        if self.passed.contains(meeting) {
            return Meeting::Over;
        }
        if self.announced.insert(meeting) {
            say(&Said::Here { meeting: meeting.to_owned(), tops: tops() });
        }
        self.waiting = true;
        loop {
            match told.try_recv() {
                Ok(told) if told.meeting == meeting => {
                    self.waiting = false;
                    self.passed.insert(told.meeting);
                    return Meeting::Complete(told.tops);
                }
                // Meetings have an order, so that an earlier one has nothing more to say.
                Ok(_) => {}
                Err(TryRecvError::Empty) => return Meeting::Waiting,
                // Without a parent nobody is interested any more; the run ends by itself.
                Err(TryRecvError::Disconnected) => return Meeting::Over,
            }
        }
    }
}

/// Says something to the parent.
pub(crate) fn say(said: &Said) {
    let line = serde_json::to_string(said).expect("plain data is JSON");
    output::report(&(line + "\n"));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_survives_the_command_line() {
        let assigned = Assigned { index: 3, plan: 1, run: u64::MAX, clock: 77 };
        assert_eq!(assigned.to_string().parse::<Assigned>().unwrap(), assigned);
        assert!("1:2:3".parse::<Assigned>().is_err());
    }

    #[test]
    fn alone_nobody_is_waited_for() {
        let mut crew = Crew::default();
        assert_eq!(crew.meet("joined", || panic!("nobody asks")), Meeting::Over);
        assert!(crew.is_first() && !crew.is_waiting());
    }

    #[test]
    fn a_meeting_is_complete_once() {
        let (sender, told) = sync_channel(4);
        let mut crew = Crew { told: Some(told), ..Crew::default() };
        assert_eq!(crew.meet("joined", Vec::new), Meeting::Waiting);
        assert!(crew.is_waiting());
        sender.send(Told { meeting: "joined".into(), tops: vec![(1, 2)] }).unwrap();
        assert_eq!(crew.meet("joined", || panic!("said once")), Meeting::Complete(vec![(1, 2)]));
        assert_eq!(crew.meet("joined", Vec::new), Meeting::Over);
        assert!(!crew.is_waiting());
    }
}
