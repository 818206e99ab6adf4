//! Connections that only stay: at the end every one of them must answer a ping of its own.

use std::collections::HashMap;

use super::Middle;
use crate::checker::Violation;
use crate::fleet::{Fleet, Next};
use crate::load::{Load, Notice};
use crate::schedule::Nanos;

#[derive(Debug, Default)]
pub(super) struct Hold {
    until: Nanos,
    /// Next member to be asked.
    next: u32,
    /// Asked, and when.
    asked: HashMap<u32, Nanos>,
}

impl Hold {
    fn ask(&mut self, load: &mut Load, fleet: &mut Fleet) {
        while self.next < load.plan.connections && self.asked.len() < load.plan.concurrency as usize
        {
            let now = fleet.clock.now();
            // One that has ended was counted when it did.
            if load.ping(fleet, self.next) {
                self.asked.insert(self.next, now);
            }
            self.next += 1;
        }
    }
}

impl Middle for Hold {
    fn begin(&mut self, load: &mut Load, _: &mut Fleet, now: Nanos) {
        self.until = now + load.plan.duration;
    }

    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        if now < self.until {
            return Next::Until(self.until);
        }
        self.ask(load, fleet);
        let patience = load.environment.patience;
        let late: Vec<u32> = self
            .asked
            .iter()
            .filter(|(_, asked)| now.saturating_sub(**asked) > patience)
            .map(|(member, _)| *member)
            .collect();
        for member in late {
            self.asked.remove(&member);
            load.violations
                .add(Violation::Silent, 1, || format!("connection {member} answered no ping"));
        }
        let done = self.asked.is_empty() && self.next == load.plan.connections;
        if done { Next::Done } else { Next::Until(Nanos::MAX) }
    }

    fn notice(&mut self, load: &mut Load, _: &mut Fleet, notice: Notice, now: Nanos) {
        match notice {
            Notice::Pong(member) => {
                if let Some(asked) = self.asked.remove(&member) {
                    load.latencies.ping.record(asked, now);
                }
            }
            Notice::Ended(member) => {
                self.asked.remove(&member);
            }
            _ => {}
        }
    }
}
