//! Open-loop publications while some connections stop reading. For the first quarter of the time nobody does, so that
//! there is something to compare with. Then the slow ones stop, each for another time, up to the whole pause: the first
//! ones are back before anything overflows and must have missed nothing; the others must be told what they lost, or
//! be disconnected and come back. Publications go on until they all are back.

use std::collections::HashSet;

use super::fanout::Fanout;
use super::{CHECK_INTERVAL, Middle};
use crate::fleet::{Fleet, Next};
use crate::load::{Load, Notice};
use crate::schedule::{Nanos, SECOND};

/// After the last one reads again: time to find that its connection is over.
const FIND_OUT: Nanos = SECOND;

#[derive(Debug, Default)]
pub(super) struct Slow {
    fanout: Fanout,
    stop_at: Nanos,
    started: bool,
    /// When each of the slow ones reads again; in that order.
    wakes: Vec<(Nanos, u32)>,
    awake: usize,
    /// Slow ones whose connection has ended and that have not been dialed again.
    ended: HashSet<u32>,
    /// Those that have been dialed again and are not ready.
    back: HashSet<u32>,
}

impl Slow {
    fn start(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) {
        let slow = load.slow_members.clone();
        load.calm = false;
        for (nth, member) in (1..).zip(&slow) {
            load.pause(fleet, *member);
            self.wakes.push((now + load.plan.pause * nth / slow.len() as u64, *member));
        }
    }

    /// Wakes whom it is time for; answers when the next one is due.
    fn wake(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Option<Nanos> {
        while let Some((at, member)) = self.wakes.get(self.awake).copied() {
            if at > now {
                return Some(at);
            }
            self.awake += 1;
            load.resume(fleet, member);
        }
        None
    }
}

impl Middle for Slow {
    fn begin(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) {
        load.calm = true;
        self.fanout.begin(load, fleet, now);
        self.stop_at = self.fanout.measured_from() + load.plan.duration / 4;
    }

    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        let published = self.fanout.tick(load, fleet, now);
        if now < self.stop_at {
            let Next::Until(at) = published else { return Next::Until(self.stop_at) };
            return Next::Until(at.min(self.stop_at));
        }
        if !std::mem::replace(&mut self.started, true) {
            self.start(load, fleet, now);
        }
        let wake_at = self.wake(load, fleet, now);
        for member in std::mem::take(&mut self.ended) {
            load.connect(member..member + 1);
        }
        let dial_at = load.dial(fleet, now);
        let found_out = self.wakes.last().is_none_or(|(at, _)| now >= at + FIND_OUT);
        let at = match published {
            Next::Until(at) => at,
            Next::Done if found_out && load.is_joined() => return Next::Done,
            Next::Done if found_out && load.is_stuck(now) => {
                load.give_up_joining(fleet);
                now
            }
            Next::Done => now + CHECK_INTERVAL,
        };
        Next::Until(at.min(wake_at.unwrap_or(Nanos::MAX)).min(dial_at.unwrap_or(Nanos::MAX)))
    }

    fn notice(&mut self, load: &mut Load, _: &mut Fleet, notice: Notice, now: Nanos) {
        match notice {
            // One that does not even come back is counted as that, and not dialed for ever.
            Notice::Ended(member)
                if load.slow_members.contains(&member) && self.back.insert(member) =>
            {
                self.ended.insert(member);
            }
            Notice::Ready(member) if self.started => {
                self.back.remove(&member);
                let woken = self.wakes.iter().find(|(_, slow)| *slow == member);
                if let Some((at, _)) = woken {
                    load.latencies.recover.record((*at).min(now), now);
                }
            }
            _ => {}
        }
    }
}
