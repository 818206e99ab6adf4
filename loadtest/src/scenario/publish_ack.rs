//! Closed loop: each connection keeps a number of publications in flight. Latency is from sending, not from a schedule,
//! because there is none; use `fanout` to see what users feel when the gateway is loaded.

use super::Middle;
use crate::fleet::{Fleet, Next};
use crate::load::{Load, Notice};
use crate::schedule::Nanos;

#[derive(Debug, Default)]
pub(super) struct PublishAck {
    measured_from: Nanos,
    until: Nanos,
}

impl PublishAck {
    fn publish(&self, load: &mut Load, fleet: &mut Fleet, member: u32, now: Nanos) {
        if now < self.until && load.is_ready(member) {
            let channel = load.plan.channel_of(member);
            load.publish(fleet, (channel, member), now, now >= self.measured_from);
        }
    }
}

impl Middle for PublishAck {
    fn begin(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) {
        self.measured_from = now + load.plan.warmup;
        self.until = self.measured_from + load.plan.duration;
        for member in 0..load.plan.connections {
            for _ in 0..load.plan.in_flight {
                self.publish(load, fleet, member, now);
            }
        }
    }

    fn tick(&mut self, _: &mut Load, _: &mut Fleet, now: Nanos) -> Next {
        if now < self.until { Next::Until(self.until) } else { Next::Done }
    }

    fn notice(&mut self, load: &mut Load, fleet: &mut Fleet, notice: Notice, now: Nanos) {
        if let Notice::Answered(member) = notice {
            self.publish(load, fleet, member, now);
        }
    }
}
