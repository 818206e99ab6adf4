//! Members join and leave channels with presence, at scheduled times; some leave with a reset and come back as another
//! connection. The watchers, the first members, stay. What they are told of joins and leaves must add up to who is there
//! at the end, and so must the list that the server gives.

use std::collections::BTreeSet;

use super::{CHECK_INTERVAL, Middle};
use crate::checker::Violation;
use crate::fleet::{Fleet, Next};
use crate::load::{Change, Load, Notice};
use crate::schedule::{Nanos, Schedule};
use crate::server::Sample;

/// A member that comes and goes.
#[derive(Clone, Copy, Debug, Default)]
struct Churner {
    /// Whether its last change is not answered yet.
    busy: bool,
    present: bool,
    /// Whether it joined the last time, and when that was due, if it counts.
    change: Option<(bool, Option<Nanos>)>,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Churning,
    /// Waits until everybody has been told, at most until then.
    Telling(Nanos),
    /// Waits for so many lists, at most until then.
    Listing(u32, Nanos),
}

#[derive(Debug, Default)]
pub(super) struct Churning {
    step: Step,
    schedule: Option<Schedule>,
    measured_from: Nanos,
    churners: Vec<Churner>,
    /// Where to look for the next one to leave, and to join.
    next: [usize; 2],
    /// Connections of churners that each watcher knows of.
    seen: Vec<BTreeSet<u64>>,
    joins: u64,
    leaves: u64,
}

impl Churning {
    /// Whether the next change is a join: two of three until half of the members are there, then every other one.
    fn joins_next(&self) -> bool {
        let present = self.churners.iter().filter(|churner| churner.present).count();
        let changes = self.joins + self.leaves;
        if present < self.churners.len() / 2 {
            !changes.is_multiple_of(3)
        } else {
            changes.is_multiple_of(2)
        }
    }

    /// The next member that is not busy joins or leaves; which of the two it is may depend on who is free.
    fn change(&mut self, load: &mut Load, fleet: &mut Fleet, due: Nanos) {
        let (count, joins) = (self.churners.len(), self.joins_next());
        let from = self.next[usize::from(joins)];
        let free = |nth: &usize| !self.churners[*nth].busy;
        let turn = || (0..count).map(|nth| (from + nth) % count);
        let fitting = turn().find(|nth| free(nth) && self.churners[*nth].present != joins);
        let Some(nth) = fitting.or_else(|| turn().find(free)) else {
            // Everybody is on the way: the server is slower than the schedule, which the latency of the others shows.
            return;
        };
        self.next[usize::from(joins)] = nth + 1;
        let member = load.plan.watching() + nth as u32;
        let churner = &mut self.churners[nth];
        churner.present = !churner.present;
        churner.busy = true;
        let recorded = (due >= self.measured_from).then_some(due);
        churner.change = Some((churner.present, recorded));
        if recorded.is_some() {
            load.latencies.behind.record(due, fleet.clock.now());
        }
        let every = u64::from(load.plan.abort_every);
        if churner.present {
            self.joins += 1;
            load.set_present(fleet, member, true);
        } else {
            self.leaves += 1;
            if every > 0 && self.leaves.is_multiple_of(every) {
                load.cut_off(fleet, member..member + 1);
                load.want_nothing(member);
                load.connect(member..member + 1);
            } else {
                load.set_present(fleet, member, false);
            }
        }
    }

    /// What a watcher should know of.
    fn expected(&self, load: &Load, watcher: u32) -> BTreeSet<u64> {
        let (first, channel) = (load.plan.watching(), load.plan.channel_of(watcher));
        let members = (first..).zip(&self.churners);
        let present = members.filter(|(member, churner)| {
            churner.present && load.plan.channel_of(*member) == channel
        });
        present.map(|(member, _)| load.session(member)).collect()
    }

    /// Differences between what the watchers were told and who is there.
    fn differences(&self, load: &Load) -> u64 {
        let watchers = (0..).zip(&self.seen);
        let differ = |(watcher, seen): (u32, &BTreeSet<u64>)| {
            self.expected(load, watcher).symmetric_difference(seen).count() as u64
        };
        watchers.map(differ).sum()
    }

    fn told(&mut self, load: &mut Load, watcher: u32, change: Change, now: Nanos) {
        let first = load.plan.watching();
        let (Some(nth), Some(seen)) =
            (change.subject.checked_sub(first), self.seen.get_mut(watcher as usize))
        else {
            return;
        };
        let Change { session, joined, .. } = change;
        let news = if joined { seen.insert(session) } else { seen.remove(&session) };
        load.violations.add(Violation::WrongPresence, u64::from(!news), || {
            format!("watcher {watcher} was told twice that a member has joined={joined}")
        });
        let last = self.churners.get(nth as usize).and_then(|churner| churner.change);
        if let Some((expected, Some(due))) = last
            && expected == joined
        {
            load.latencies.presence.record(due, now);
        }
    }

    /// Compares the list of a channel with who is there.
    fn compare(load: &mut Load, channel: u32) {
        let expected = load.present_in(channel);
        let count = expected.len() as u64;
        let fits = load
            .listed(channel)
            .is_some_and(|listed| listed.sessions == expected && listed.counts == (count, count));
        let listed = load.listed(channel).map(|listed| listed.counts);
        load.violations.add(Violation::WrongPresence, u64::from(!fits), || {
            format!("channel {channel} has {count} members, listed are {listed:?} (clients, users)")
        });
    }

    fn churn(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        let dial_at = load.dial(fleet, now).unwrap_or(Nanos::MAX);
        while let Some((_, due)) = self.schedule.as_mut().and_then(|schedule| schedule.poll(now)) {
            self.change(load, fleet, due);
        }
        if let Some(next) = self.schedule.as_ref().and_then(Schedule::next_at) {
            return Next::Until(next.min(dial_at));
        }
        let busy = self.churners.iter().filter(|churner| churner.busy).count() as u64;
        if load.is_stuck(now) {
            load.violations.add(Violation::Unanswered, busy, || {
                format!("{busy} joins and leaves were never answered")
            });
            load.give_up_joining(fleet);
        } else if busy > 0 {
            return Next::Until((now + CHECK_INTERVAL).min(dial_at));
        }
        self.step = Step::Telling(now + load.environment.patience);
        Next::Until(now)
    }

    fn telling(&mut self, load: &mut Load, fleet: &mut Fleet, until: Nanos, now: Nanos) -> Next {
        let differences = self.differences(load);
        if differences > 0 && now < until {
            return Next::Until(now + CHECK_INTERVAL);
        }
        load.violations.add(Violation::WrongPresence, differences, || {
            format!("{differences} members are there or not, other than watchers were told")
        });
        for watcher in 0..load.plan.channels {
            load.ask_presence(fleet, watcher);
        }
        self.step = Step::Listing(0, now + load.environment.patience);
        Next::Until(now)
    }
}

impl Middle for Churning {
    fn begin(&mut self, load: &mut Load, _: &mut Fleet, now: Nanos) {
        let plan = &load.plan;
        let watching = plan.watching();
        self.churners = vec![Churner::default(); (plan.connections - watching) as usize];
        self.seen = vec![BTreeSet::new(); watching as usize];
        self.measured_from = now + plan.warmup;
        self.schedule = Some(Schedule::new(now, plan.churn_rate, plan.warmup + plan.duration));
    }

    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next {
        match self.step {
            Step::Churning => self.churn(load, fleet, now),
            Step::Telling(until) => self.telling(load, fleet, until, now),
            Step::Listing(lists, until) if lists < load.plan.channels && now < until => {
                Next::Until(now + CHECK_INTERVAL)
            }
            Step::Listing(..) => {
                for channel in 0..load.plan.channels {
                    Self::compare(load, channel);
                }
                Next::Done
            }
        }
    }

    fn notice(&mut self, load: &mut Load, _: &mut Fleet, notice: Notice, now: Nanos) {
        match notice {
            Notice::Presence(watcher, change) => self.told(load, watcher, change, now),
            Notice::Listed(_) => {
                if let Step::Listing(lists, _) = &mut self.step {
                    *lists += 1;
                }
            }
            Notice::Subscribed(member, _) | Notice::Ready(member) => {
                let nth = member.checked_sub(load.plan.watching());
                if let Some(churner) = nth.and_then(|nth| self.churners.get_mut(nth as usize)) {
                    churner.busy = false;
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self) -> (Vec<(&'static str, u64)>, Vec<Sample>) {
        let changes = self.joins + self.leaves;
        (vec![("changes", changes), ("joins", self.joins), ("leaves", self.leaves)], Vec::new())
    }
}
