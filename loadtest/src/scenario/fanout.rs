//! Open loop: publications leave at their scheduled times, whatever became of the earlier ones. Other scenarios have it
//! run beside what they do.

use super::Middle;
use crate::fleet::{Fleet, Next};
use crate::load::{Load, Notice};
use crate::schedule::{Nanos, Schedule};

#[derive(Debug, Default)]
pub(super) struct Fanout {
    schedule: Option<Schedule>,
    measured_from: Nanos,
}

impl Fanout {
    /// When the warm-up is over.
    pub(super) fn measured_from(&self) -> Nanos {
        self.measured_from
    }
}

impl Middle for Fanout {
    fn begin(&mut self, load: &mut Load, _: &mut Fleet, now: Nanos) {
        let plan = &load.plan;
        self.measured_from = now + plan.warmup;
        self.schedule = Some(Schedule::new(now, plan.rate, plan.warmup + plan.duration));
    }

    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        let Some(schedule) = &mut self.schedule else { return Next::Done };
        while let Some((nth, due)) = schedule.poll(now) {
            load.publish_nth(fleet, nth, due, due >= self.measured_from);
        }
        schedule.next_at().map_or(Next::Done, Next::Until)
    }

    fn notice(&mut self, _: &mut Load, _: &mut Fleet, _: Notice, _: Nanos) {}
}
