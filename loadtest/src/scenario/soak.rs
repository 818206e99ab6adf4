//! Everything at once and for long: open-loop publications, while connections are cut off or leave politely and come back
//! after a while, each to recover what it missed. The server's memory and descriptors are looked at all the time, so
//! that a trend can be told from noise.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::fanout::Fanout;
use super::{CHECK_INTERVAL, Middle};
use crate::fleet::{Fleet, Next};
use crate::load::{Load, Notice};
use crate::schedule::{Clock, Nanos, SECOND, Schedule};
use crate::server::{self, Sample};
use crate::target::Target;

/// Samples of a load.
const SAMPLES: u64 = 120;

/// Asks the server again and again, on a thread of its own: the load does not wait for the answers.
#[derive(Debug)]
struct Sampler {
    stop: SyncSender<()>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Sampler {
    fn start(target: Target, clock: Clock, interval: Duration) -> Self {
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                samples.extend(server::sample(&target, clock.now()));
            }
            samples
        });
        Self { stop, thread }
    }

    fn finish(self) -> Vec<Sample> {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub(super) struct Soak {
    fanout: Fanout,
    cuts: Option<Schedule>,
    /// Who is next to go, counted from the first that does not publish.
    next: u32,
    /// Members that are away, in the order in which they come back.
    away: VecDeque<(Nanos, u32)>,
    /// Members that have said goodbye and wait for the answer.
    leaving: u32,
    cut_off: u64,
    returned: u64,
    /// From when to when the measured load lasts.
    measured: (Nanos, Nanos),
    sampler: Option<Sampler>,
}

impl Soak {
    /// One connection goes: every other one is cut off with a reset, the others say goodbye.
    fn cut(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) {
        let first = load.plan.publishers;
        let member = first + self.next % (load.plan.connections - first);
        self.next = self.next.wrapping_add(1);
        // One that is still on its way back has its turn the next time.
        if !load.is_ready(member) {
            return;
        }
        self.cut_off += 1;
        if self.cut_off.is_multiple_of(2) {
            load.leave(fleet, member);
            self.leaving += 1;
        } else {
            load.cut_off(fleet, member..member + 1);
            self.away.push_back((now + load.plan.away, member));
        }
    }
}

impl Middle for Soak {
    fn begin(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) {
        self.fanout.begin(load, fleet, now);
        let plan = &load.plan;
        let begin = self.fanout.measured_from();
        self.measured = (begin, begin + plan.duration);
        self.cuts = Some(Schedule::new(now, plan.churn_rate, self.measured.1 - now));
        if load.crew.is_first() {
            let interval = Duration::from_nanos((plan.duration / SAMPLES).max(SECOND / 2));
            let metrics = load.environment.metrics.clone();
            self.sampler = Some(Sampler::start(metrics, fleet.clock, interval));
        }
    }

    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        let published = self.fanout.tick(load, fleet, now);
        while self.cuts.as_mut().is_some_and(|cuts| cuts.poll(now).is_some()) {
            self.cut(load, fleet, now);
        }
        while let Some((_, member)) = self.away.front().copied().filter(|(at, _)| *at <= now) {
            self.away.pop_front();
            load.connect(member..member + 1);
        }
        let dial_at = load.dial(fleet, now);
        let cut_at = self.cuts.as_ref().and_then(Schedule::next_at);
        let back_at = self.away.front().map(|(at, _)| *at);
        let at = match published {
            Next::Until(at) => at,
            Next::Done if self.leaving == 0 && back_at.is_none() && load.is_joined() => {
                return Next::Done;
            }
            Next::Done if load.is_stuck(now) => {
                load.give_up_joining(fleet);
                return Next::Done;
            }
            Next::Done => now + CHECK_INTERVAL,
        };
        let times = [Some(at), dial_at, cut_at, back_at];
        Next::Until(times.into_iter().flatten().min().unwrap_or(now))
    }

    fn notice(&mut self, load: &mut Load, _: &mut Fleet, notice: Notice, now: Nanos) {
        match notice {
            Notice::Ended(member) => {
                self.leaving = self.leaving.saturating_sub(1);
                // One that a server does not let in any more is not waited for without an end.
                if now < self.measured.1 + load.environment.patience {
                    self.away.push_back((now + load.plan.away, member));
                }
            }
            Notice::Ready(_) => self.returned += 1,
            _ => {}
        }
    }

    fn finish(&mut self) -> (Vec<(&'static str, u64)>, Vec<Sample>) {
        let counts = vec![("cut_off", self.cut_off), ("returned", self.returned)];
        let samples = self.sampler.take().map(Sampler::finish).unwrap_or_default();
        // What fills during the warm-up is no trend, and neither is what is given back after the load.
        let measured = |sample: &Sample| (self.measured.0..self.measured.1).contains(&sample.at);
        (counts, samples.into_iter().filter(measured).collect())
    }
}
