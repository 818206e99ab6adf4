//! Members that stop reading for a while. They may be told of losses, or be disconnected and come back; what they may not
//! is miss something without being told.

use std::collections::BTreeSet;

use super::Load;
use crate::checker::Violation;
use crate::fleet::Fleet;
use crate::wire::{Envelope, Lost};

/// What became of the slow ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlowCounts {
    /// Members that were told of losses or disconnected.
    noticed: BTreeSet<u32>,
    /// Connections that the server ended.
    pub(crate) cut_off: u64,
    /// Publications that were told as lost.
    pub(crate) told_lost: u64,
    /// Subscriptions that came back to a stream that had gone on too far, and were told so.
    pub(crate) unrecovered: u64,
}

impl SlowCounts {
    /// The server has ended the connection of a member that did not read.
    pub(super) fn cut_off(&mut self, index: u32) {
        self.cut_off += 1;
        self.noticed.insert(index);
    }

    /// Members that were told of losses or disconnected.
    pub(crate) fn noticed(&self) -> u64 {
        self.noticed.len() as u64
    }
}

impl Load {
    /// A member reads nothing until [`Self::resume`].
    pub(crate) fn pause(&mut self, fleet: &mut Fleet, index: u32) {
        let member = &mut self.members[index as usize];
        if let Some(id) = member.connection {
            (member.may_end, member.may_lose) = (true, true);
            fleet.pause(id);
        }
    }

    /// A member reads again.
    pub(crate) fn resume(&mut self, fleet: &mut Fleet, index: u32) {
        if let Some(id) = self.members[index as usize].connection {
            fleet.resume(id);
        }
    }

    /// A member is told that publications do not come.
    pub(super) fn lost(&mut self, index: u32, envelope: &Envelope<'_>) {
        let range =
            envelope.typed::<Lost>().and_then(|lost| Some((lost.from_offset?, lost.to_offset?)));
        let channel = envelope.channel.as_deref().and_then(|name| self.names.index(name));
        let member = &mut self.members[index as usize];
        let excused = member.may_lose;
        let subscription = member.subscriptions.iter_mut().find(|s| Some(s.channel) == channel);
        let mut fits = false;
        if let (Some(subscription), Some((from, to))) = (subscription, range)
            && let Some((epoch, last)) = subscription.position
        {
            fits = from == last + 1 && to >= from;
            // What is lost is counted here, and not again when the next one comes.
            subscription.position = Some((epoch, to.max(last)));
            if excused && fits {
                self.slow.told_lost += to - last;
                self.slow.noticed.insert(index);
            }
        }
        let violations = u64::from(!(excused && fits));
        self.violations.add(Violation::ToldLost, violations, || {
            format!("connection {index} lost {range:?} of {:?}", envelope.channel)
        });
    }
}
