//! Whether what came is what the gateway promises: per subscription every offset once and in order, and every
//! acknowledged publication delivered with the content that was acknowledged.

use std::collections::BTreeMap;

use gateway_core::message::Epoch;
use serde::{Deserialize, Serialize};

/// Descriptions of violations that are kept; all are counted.
const EXAMPLES_MAX: usize = 8;

/// What went wrong, by kind.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Violation {
    /// A publication that came before, or came after a later one.
    Duplicate,
    /// Publications that were left out; counted each.
    Gap,
    /// The stream began anew.
    EpochChanged,
    /// The publication at an offset is another one than was acknowledged or than others got there.
    WrongContent,
    /// Two publications were acknowledged with one offset, or one publication twice.
    BadAcknowledgement,
    /// Acknowledged and never delivered to a live subscription; counted per subscription and publication.
    Undelivered,
    /// Never answered.
    Unanswered,
    /// A publication that came on a connection without that subscription.
    Unsubscribed,
    /// The server said that publications were lost.
    ToldLost,
    /// A connection that never got its `welcome` and subscriptions.
    ConnectFailed,
    /// A connection that ended although nobody wanted it to.
    Disconnected,
    /// An `error`, or a refusal of the server API.
    Refused,
    /// `recovered: false`, or a recovery that is not exactly what was missed.
    NotRecovered,
    /// No answer to a ping.
    Silent,
    /// Joins, leaves or a list of members that do not agree with who is there.
    WrongPresence,
    /// Something that is not the protocol.
    Malformed,
}

impl Violation {
    /// Whether an operation failed and said so, or was not answered. Everything else is a promise that was broken.
    pub(crate) fn is_error(self) -> bool {
        matches!(
            self,
            Self::Unanswered
                | Self::ConnectFailed
                | Self::Disconnected
                | Self::Refused
                | Self::Silent
        )
    }
}

/// Counts of violations, with a few described.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Violations {
    counts: BTreeMap<Violation, u64>,
    examples: Vec<String>,
}

impl Violations {
    /// Counts `count` of a kind.
    pub(crate) fn add(
        &mut self,
        violation: Violation,
        count: u64,
        describe: impl FnOnce() -> String,
    ) {
        if count == 0 {
            return;
        }
        *self.counts.entry(violation).or_default() += count;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{violation:?}: {}", describe()));
        }
    }

    /// All kinds together.
    pub(crate) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Operations that failed.
    pub(crate) fn errors(&self) -> u64 {
        let errors = self.counts.iter().filter(|(violation, _)| violation.is_error());
        errors.map(|(_, count)| count).sum()
    }

    /// Adds those of another process.
    pub(crate) fn merge(&mut self, other: Self) {
        for (violation, count) in other.counts {
            *self.counts.entry(violation).or_default() += count;
        }
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }

    /// Counts by kind.
    pub(crate) fn counts(&self) -> &BTreeMap<Violation, u64> {
        &self.counts
    }

    /// The first few, described.
    pub(crate) fn examples(&self) -> &[String] {
        &self.examples
    }
}

/// What a publication means to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The next one.
    InOrder,
    /// Not newer than what was seen.
    Duplicate,
    /// So many between it and the last one did not come.
    Gap(u64),
    /// Of another epoch.
    EpochChanged,
}

/// One connection's view of one channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscription {
    /// Index of the channel.
    pub(crate) channel: u32,
    /// Newest position seen; none before the first `subscribed`.
    pub(crate) position: Option<(Epoch, u64)>,
    /// Whether `subscribed` has come on the present connection.
    pub(crate) live: bool,
    /// Whether the connection subscribes when it is welcomed.
    pub(crate) wanted: bool,
}

impl Subscription {
    /// A subscription that is not made yet.
    pub(crate) fn new(channel: u32) -> Self {
        Self { channel, position: None, live: false, wanted: true }
    }

    /// Judges a publication and moves on to it, unless it is old.
    pub(crate) fn accept(&mut self, epoch: Epoch, offset: u64) -> Verdict {
        let Some((current, last)) = self.position else {
            self.position = Some((epoch, offset));
            return Verdict::InOrder;
        };
        if epoch == current && offset <= last {
            return Verdict::Duplicate;
        }
        self.position = Some((epoch, offset));
        if epoch != current {
            Verdict::EpochChanged
        } else if offset == last + 1 {
            Verdict::InOrder
        } else {
            Verdict::Gap(offset - last - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Epoch = Epoch(*b"aaaaaaaa");
    const B: Epoch = Epoch(*b"bbbbbbbb");

    fn check(offsets: &[(Epoch, u64)], expected: &[Verdict]) {
        let mut subscription = Subscription { position: Some((A, 10)), ..Subscription::new(0) };
        let verdicts: Vec<_> =
            offsets.iter().map(|(epoch, offset)| subscription.accept(*epoch, *offset)).collect();
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn every_way_to_be_wrong_is_seen() {
        use Verdict::{Duplicate, EpochChanged, Gap, InOrder};
        check(&[(A, 11), (A, 12)], &[InOrder, InOrder]);
        check(&[(A, 11), (A, 11)], &[InOrder, Duplicate]);
        check(&[(A, 10)], &[Duplicate]);
        check(&[(A, 14), (A, 15)], &[Gap(3), InOrder]);
        // Swapped: the gap shows first, then the one that was left out comes as old.
        check(&[(A, 12), (A, 11), (A, 13)], &[Gap(1), Duplicate, InOrder]);
        check(&[(B, 11), (B, 12)], &[EpochChanged, InOrder]);
    }

    #[test]
    fn violations_are_counted_beyond_the_examples() {
        let mut violations = Violations::default();
        for n in 0..100 {
            violations.add(Violation::Gap, 2, || format!("{n}"));
        }
        violations.add(Violation::Refused, 0, || "never".into());
        assert_eq!(violations.total(), 200);
        assert_eq!(violations.counts().len(), 1);
        assert_eq!(violations.examples().len(), EXAMPLES_MAX);
    }

    #[test]
    fn those_of_another_process_are_added() {
        let (mut ours, mut theirs) = (Violations::default(), Violations::default());
        ours.add(Violation::Gap, 2, || "a".into());
        theirs.add(Violation::Gap, 1, || "b".into());
        theirs.add(Violation::Refused, 4, || "c".into());
        let text = serde_json::to_string(&theirs).expect("plain data");
        ours.merge(serde_json::from_str(&text).expect("what was just written"));
        assert_eq!((ours.total(), ours.errors()), (7, 4));
        assert_eq!(ours.counts()[&Violation::Gap], 3);
        assert_eq!(ours.examples().len(), 3);
    }
}
