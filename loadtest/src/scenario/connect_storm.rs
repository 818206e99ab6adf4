//! Open loop of connects: each is begun at its scheduled time, whatever became of the earlier ones, so that a server that
//! cannot keep up shows it in the latency. Afterwards a publication in every channel shows that who was told to be
//! subscribed is.

use super::{CHECK_INTERVAL, Middle};
use crate::fleet::{Fleet, Next};
use crate::load::{Load, Notice};
use crate::schedule::{Nanos, SECOND, Schedule};

#[derive(Debug, Default)]
pub(super) struct ConnectStorm {
    schedule: Option<Schedule>,
    measured_from: Nanos,
    connected: u64,
    published: bool,
}

impl Middle for ConnectStorm {
    const CONNECTED: bool = false;

    fn begin(&mut self, load: &mut Load, _: &mut Fleet, now: Nanos) {
        let plan = &load.plan;
        let length = f64::from(plan.connections) / plan.connect_rate * SECOND as f64;
        self.measured_from = now + plan.warmup;
        self.schedule = Some(Schedule::new(now, plan.connect_rate, length.ceil() as Nanos));
    }

    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        let Some(schedule) = &mut self.schedule else { return Next::Done };
        while let Some((nth, due)) = schedule.poll(now) {
            if nth < u64::from(load.plan.connections) {
                load.dial_due(fleet, nth as u32, due, due >= self.measured_from);
            }
        }
        if let Some(next) = schedule.next_at() {
            return Next::Until(next);
        }
        if load.is_stuck(now) {
            load.give_up_joining(fleet);
        }
        if !load.is_joined() || !load.meet("stormed") {
            return Next::Until(now + CHECK_INTERVAL);
        }
        if !std::mem::replace(&mut self.published, true) {
            load.publish_everywhere(fleet, 1, now);
        }
        Next::Done
    }

    fn notice(&mut self, _: &mut Load, _: &mut Fleet, notice: Notice, _: Nanos) {
        if let Notice::Ready(_) = notice {
            self.connected += 1;
        }
    }

    fn finish(&mut self) -> (Vec<(&'static str, u64)>, Vec<crate::server::Sample>) {
        (vec![("connected", self.connected)], Vec::new())
    }
}
