//! Sending publications, through the sockets of the publishing members or through the server API.

use super::Load;
use super::members::Stage;
use crate::checker::Violation;
use crate::fleet::Fleet;
use crate::schedule::Nanos;
use crate::wire::{self, Content};

impl Load {
    /// Publishes in `channel` what was due at `due`, through the member (or the API when that is used).
    pub(crate) fn publish(
        &mut self,
        fleet: &mut Fleet,
        (channel, member): (u32, u32),
        due: Nanos,
        recorded: bool,
    ) {
        let number = self.ledger.enter(channel, due, recorded);
        // Whoever has published knows when it was due.
        let due_for_others = (recorded && self.crew.has_others()).then_some(due);
        let content = Content { number, due: due_for_others, bytes: self.plan.payload_bytes };
        let now = fleet.clock.now();
        if let Some(api) = &mut self.api {
            let body = wire::api_publish(&self.names, channel, content);
            api.publish(fleet, number, &body);
        } else {
            let sender = &self.members[member as usize];
            let Some(id) = sender.connection.filter(|_| sender.stage == Stage::Ready) else {
                self.ledger.refuse(number);
                self.violations.add(Violation::Refused, 1, || {
                    format!("publication {number} was not sent: its publisher {member} is gone")
                });
                return;
            };
            fleet.send(id, &wire::publish(&self.names, channel, content));
        }
        if recorded {
            self.latencies.behind.record(due, now);
        }
    }

    /// The `nth` publication of an open loop: channels and publishers take turns. Several processes begin at different
    /// channels.
    pub(crate) fn publish_nth(&mut self, fleet: &mut Fleet, nth: u64, due: Nanos, recorded: bool) {
        let channel = self.channel_nth(nth);
        let publisher = (nth % u64::from(self.plan.publishers)) as u32;
        self.publish(fleet, (channel, publisher), due, recorded);
    }

    fn channel_nth(&self, nth: u64) -> u32 {
        let channels = u64::from(self.plan.busy_channels);
        let (index, count) = self.plan.process;
        ((nth + u64::from(index) * channels / u64::from(count)) % channels) as u32
    }

    /// Publishes so many times in every channel.
    pub(crate) fn publish_everywhere(&mut self, fleet: &mut Fleet, times: u32, now: Nanos) {
        for _ in 0..times {
            for nth in 0..self.plan.channels {
                self.publish_nth(fleet, u64::from(nth), now, false);
            }
        }
    }
}
