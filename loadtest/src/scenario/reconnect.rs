//! Everybody but the publishers is cut off at once, misses publications, and comes back in a storm while publishing
//! goes on. Each subscription must recover exactly what it missed.

use rustix::process::{Pid, Signal, kill_process};

use super::{CHECK_INTERVAL, Middle};
use crate::fleet::{Fleet, Next};
use crate::latencies::Latency;
use crate::load::{Load, Notice};
use crate::schedule::{Nanos, SECOND, Schedule};

/// Publishing goes on for as long as the storm lasts, at most this long.
const STORM_MAX: Nanos = 600 * SECOND;

#[derive(Debug, Default)]
enum Step {
    /// A first publication in every channel reaches everybody.
    #[default]
    Seeding,
    /// They are away; publications go on.
    Missing,
    /// They come back.
    Returning { since: Nanos, schedule: Option<Schedule> },
}

#[derive(Debug, Default)]
pub(super) struct Reconnect {
    step: Step,
}

impl Reconnect {
    fn returning(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        let Step::Returning { schedule, .. } = &mut self.step else { return Next::Done };
        let again = load.dial(fleet, now);
        if load.is_stuck(now) {
            load.give_up_joining(fleet);
        }
        if load.is_joined() {
            return Next::Done;
        }
        let mut next = again.unwrap_or(Nanos::MAX);
        if let Some(schedule) = schedule {
            while let Some((nth, due)) = schedule.poll(now) {
                load.publish_nth(fleet, nth, due, true);
            }
            next = next.min(schedule.next_at().unwrap_or(Nanos::MAX));
        }
        Next::Until(next)
    }
}

impl Middle for Reconnect {
    fn begin(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) {
        load.publish_everywhere(fleet, 1, now);
    }

    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        let away = load.plan.publishers..load.plan.connections;
        let meeting = match self.step {
            Step::Returning { .. } => return self.returning(load, fleet, now),
            Step::Seeding => "seeded",
            Step::Missing => "missed",
        };
        if load.is_stuck(now) {
            return Next::Done;
        }
        if !load.is_settled_everywhere(meeting) {
            return Next::Until(now + CHECK_INTERVAL);
        }
        match self.step {
            Step::Returning { .. } => {}
            Step::Seeding => {
                if let Some(pid) = load.environment.kill_pid {
                    kill(pid);
                }
                load.cut_off(fleet, away);
                let missed = load.plan.missed;
                load.publish_everywhere(fleet, missed, now);
                self.step = Step::Missing;
            }
            Step::Missing => {
                load.move_elsewhere();
                load.connect(away);
                // The first connects were no storm.
                load.latencies.connect = Latency::default();
                load.latencies.ready = Latency::default();
                let rate = load.plan.rate;
                let schedule = (rate > 0.0).then(|| Schedule::new(now, rate, STORM_MAX));
                self.step = Step::Returning { since: now, schedule };
            }
        }
        Next::Until(now)
    }

    fn notice(&mut self, load: &mut Load, _: &mut Fleet, notice: Notice, now: Nanos) {
        if let (Notice::Ready(_), Step::Returning { since, .. }) = (notice, &self.step) {
            load.latencies.recover.record(*since, now);
        }
    }
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Another process of this run may have been faster.
        let _gone = kill_process(pid, Signal::KILL);
    }
}
