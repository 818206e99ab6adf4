//! Every publication of the load, from its scheduled time to its answer, and what stands where in each channel.
//!
//! Of a run in several processes each has a ledger of its own. The number of a publication tells whose it is; of those of
//! the others a ledger knows only where they stand, and that nobody saw anything else there.

use gateway_core::message::Epoch;

use crate::checker::{Violation, Violations};
use crate::schedule::Nanos;
use crate::wire::Delivered;

/// Offsets of one channel that are remembered; far more than a run makes.
const OFFSETS_MAX: u64 = 100_000_000;

/// Bits of a publication's number that count; above them is the process.
const NUMBER_BITS: u32 = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sent,
    Acknowledged,
    Refused,
}

/// One publication.
#[derive(Clone, Copy, Debug)]
struct Publication {
    scheduled: Nanos,
    channel: u32,
    state: State,
    /// Whether its latency counts (it is not part of the warm-up).
    recorded: bool,
}

/// One channel as far as it is known.
#[derive(Clone, Debug, Default)]
struct ChannelLog {
    /// Offset before the first one of the load, from the first subscription.
    base: Option<(Epoch, u64)>,
    /// Publication number plus one by offset after `base`; 0 = not known yet.
    numbers: Vec<u64>,
    top: u64,
}

impl ChannelLog {
    /// Notes that `number` stands at `offset`; answers whether that agrees with everything known.
    fn note(&mut self, epoch: Epoch, offset: u64, number: u64) -> bool {
        let (first, base) = *self.base.get_or_insert((epoch, offset.saturating_sub(1)));
        if first != epoch || offset <= base || offset - base > OFFSETS_MAX {
            return false;
        }
        let index = (offset - base - 1) as usize;
        if self.numbers.len() <= index {
            self.numbers.resize(index + 1, 0);
        }
        let known = std::mem::replace(&mut self.numbers[index], number + 1);
        known == 0 || known == number + 1
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    /// Number of the first publication.
    first: u64,
    publications: Vec<Publication>,
    channels: Vec<ChannelLog>,
    /// Sent and not answered yet.
    pub(crate) outstanding: u64,
    /// Answered with a position.
    pub(crate) acknowledged: u64,
}

impl Ledger {
    /// An empty ledger of so many channels, of this process of the run.
    pub(crate) fn new(channels: u32, process: u32) -> Self {
        Self {
            first: u64::from(process) << NUMBER_BITS,
            publications: Vec::new(),
            channels: vec![ChannelLog::default(); channels as usize],
            outstanding: 0,
            acknowledged: 0,
        }
    }

    /// Publications sent.
    pub(crate) fn sent(&self) -> u64 {
        self.publications.len() as u64
    }

    /// Enters a publication that was due at `scheduled` and answers its number.
    pub(crate) fn enter(&mut self, channel: u32, scheduled: Nanos, recorded: bool) -> u64 {
        let state = State::Sent;
        self.publications.push(Publication { scheduled, channel, state, recorded });
        self.outstanding += 1;
        self.first + self.sent() - 1
    }

    /// Place of a publication of this process.
    fn index(&self, number: u64) -> Option<usize> {
        number.checked_sub(self.first).map(|index| index as usize)
    }

    fn is_foreign(&self, number: u64) -> bool {
        number >> NUMBER_BITS != self.first >> NUMBER_BITS
    }

    /// Channels with their largest acknowledged offset.
    pub(crate) fn tops(&self) -> Vec<(u32, u64)> {
        let tops = (0..).zip(self.channels.iter().map(|log| log.top));
        tops.filter(|(_, top)| *top > 0).collect()
    }

    /// Another process has had this offset acknowledged.
    pub(crate) fn raise_top(&mut self, channel: u32, offset: u64) {
        if let Some(log) = self.channels.get_mut(channel as usize) {
            log.top = log.top.max(offset);
        }
    }

    /// A subscription found the channel at this position, before anything of the load that it does not know.
    pub(crate) fn begin(&mut self, channel: u32, epoch: Epoch, offset: u64) {
        if let Some(log) = self.channels.get_mut(channel as usize) {
            log.base.get_or_insert((epoch, offset));
        }
    }

    /// The publication was acknowledged. Answers when it was due, if that counts.
    pub(crate) fn acknowledge(
        &mut self,
        number: u64,
        (epoch, offset): (Epoch, u64),
        violations: &mut Violations,
    ) -> Option<Nanos> {
        let index = self.index(number)?;
        let publication = self.publications.get_mut(index)?;
        let (channel, again) = (publication.channel, publication.state != State::Sent);
        publication.state = State::Acknowledged;
        let due = publication.recorded.then_some(publication.scheduled);
        if again {
            violations.add(Violation::BadAcknowledgement, 1, || {
                format!("publication {number} was answered twice")
            });
            return None;
        }
        self.outstanding -= 1;
        self.acknowledged += 1;
        let log = &mut self.channels[channel as usize];
        log.top = log.top.max(offset);
        if !log.note(epoch, offset, number) {
            violations.add(Violation::BadAcknowledgement, 1, || {
                format!(
                    "publication {number} and another one at offset {offset} of channel {channel}"
                )
            });
        }
        due
    }

    /// The publication was answered with an error.
    pub(crate) fn refuse(&mut self, number: u64) {
        if let Some(index) = self.index(number)
            && let Some(publication) = self.publications.get_mut(index)
            && publication.state == State::Sent
        {
            publication.state = State::Refused;
            self.outstanding -= 1;
        }
    }

    /// A publication was delivered. Answers when it was due, if that counts.
    pub(crate) fn deliver(
        &mut self,
        delivered: &Delivered,
        violations: &mut Violations,
    ) -> Option<Nanos> {
        let number = delivered.number?;
        let foreign = self.is_foreign(number);
        let publication =
            self.index(number).and_then(|index| self.publications.get(index)).copied();
        let known = |publication: Publication| publication.channel == delivered.channel;
        let fits = (foreign || publication.is_some_and(known))
            && self
                .channels
                .get_mut(delivered.channel as usize)
                .is_some_and(|log| log.note(delivered.epoch, delivered.offset, number));
        if !fits {
            violations.add(Violation::WrongContent, 1, || {
                format!(
                    "publication {number} came at offset {} of channel {}",
                    delivered.offset, delivered.channel
                )
            });
            return None;
        }
        if foreign {
            return delivered.due;
        }
        publication.filter(|publication| publication.recorded).map(|p| p.scheduled)
    }

    /// Largest acknowledged offset of a channel; 0 when there is none.
    pub(crate) fn top(&self, channel: u32) -> u64 {
        self.channels.get(channel as usize).map_or(0, |log| log.top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const E: Epoch = Epoch(*b"aaaaaaaa");

    fn delivered(offset: u64, number: u64) -> Delivered {
        Delivered { channel: 1, offset, epoch: E, number: Some(number), due: None }
    }

    #[test]
    fn a_publication_from_schedule_to_delivery() {
        let (mut ledger, mut violations) = (Ledger::new(2, 0), Violations::default());
        ledger.begin(1, E, 40);
        let number = ledger.enter(1, 77, true);
        let unrecorded = ledger.enter(1, 78, false);
        assert_eq!(ledger.outstanding, 2);
        // The delivery may come before the answer.
        assert_eq!(ledger.deliver(&delivered(41, number), &mut violations), Some(77));
        assert_eq!(ledger.acknowledge(number, (E, 41), &mut violations), Some(77));
        assert_eq!(ledger.acknowledge(unrecorded, (E, 42), &mut violations), None);
        assert_eq!((ledger.top(1), ledger.top(0)), (42, 0));
        assert_eq!((ledger.outstanding, ledger.acknowledged), (0, 2));
        assert_eq!(violations.total(), 0);
    }

    #[test]
    fn what_does_not_agree_is_found() {
        let (mut ledger, mut violations) = (Ledger::new(2, 0), Violations::default());
        let (a, b) = (ledger.enter(1, 1, true), ledger.enter(1, 2, true));
        ledger.acknowledge(a, (E, 1), &mut violations);
        ledger.acknowledge(b, (E, 1), &mut violations);
        assert_eq!(violations.counts()[&Violation::BadAcknowledgement], 1, "one offset for two");
        ledger.acknowledge(a, (E, 1), &mut violations);
        assert_eq!(violations.counts()[&Violation::BadAcknowledgement], 2, "answered twice");
        let mut violations = Violations::default();
        let c = ledger.enter(1, 3, true);
        ledger.acknowledge(c, (E, 2), &mut violations);
        ledger.deliver(&delivered(2, b), &mut violations);
        assert_eq!(violations.counts()[&Violation::WrongContent], 1, "another at the offset");
        ledger.deliver(&delivered(3, 999), &mut violations);
        assert_eq!(violations.counts()[&Violation::WrongContent], 2, "never sent");
        let other = ledger.enter(0, 4, true);
        ledger.deliver(&delivered(4, other), &mut violations);
        assert_eq!(violations.counts()[&Violation::WrongContent], 3, "another channel");
    }

    #[test]
    fn refused_publications_are_answered() {
        let mut ledger = Ledger::new(1, 0);
        let number = ledger.enter(0, 1, true);
        ledger.refuse(number);
        ledger.refuse(number);
        assert_eq!((ledger.outstanding, ledger.acknowledged), (0, 0));
    }

    #[test]
    fn publications_of_other_processes_keep_their_place() {
        let mut violations = Violations::default();
        let (mut ours, mut theirs) = (Ledger::new(2, 0), Ledger::new(2, 1));
        let (our, their) = (ours.enter(1, 5, true), theirs.enter(1, 7, true));
        assert_ne!(our, their);
        theirs.acknowledge(their, (E, 1), &mut violations);
        let foreign = Delivered { due: Some(7), ..delivered(1, their) };
        assert_eq!(ours.deliver(&foreign, &mut violations), Some(7));
        ours.acknowledge(our, (E, 2), &mut violations);
        assert_eq!(violations.total(), 0);
        assert_eq!((ours.tops(), theirs.tops()), (vec![(1, 2)], vec![(1, 1)]));
        theirs.raise_top(1, 2);
        assert_eq!(theirs.top(1), 2);
        // Nothing else may ever be seen at an offset that one of the others published at.
        ours.deliver(&delivered(1, our), &mut violations);
        assert_eq!(violations.counts()[&Violation::WrongContent], 1);
    }
}
