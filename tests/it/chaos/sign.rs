//! What operators see of a fault: that it shows is how a run knows that the fault took effect. The table in
//! `docs/operations.md` promises these.

use std::time::{Duration, Instant};

use super::{WELL_MAX, World, hold};
use crate::gateway::Gateway;

/// Between two looks; a scrape of a node costs milliseconds.
const LOOK: Duration = Duration::from_millis(50);

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    /// Records of an event in the log.
    Event(&'static str),
    /// A counter, with a label and its value.
    Metric(&'static str, &'static [(&'static str, &'static str)]),
}

/// The nodes on which it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    All,
    Some,
    Node(usize),
    /// All but this one.
    Others(usize),
}

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub struct Sign(pub Mark, pub Who);

pub const SUBSCRIBED: Mark = Mark::Event("redis_subscriber_connected");
pub const SCRIPTS_LOADED: Mark = Mark::Event("redis_scripts_loaded");
pub const DOWN: Mark = Mark::Event("redis_down");
pub const UP: Mark = Mark::Event("redis_up");
pub const PROBE_LOST: Mark = Mark::Event("redis_probe_lost");
pub const READ_ONLY: Mark = Mark::Event("redis_read_only");
pub const SLOTS_MOVED: Mark = Mark::Event("redis_slots_moved");
pub const LEASE_LOST: Mark = Mark::Event("lease_lost");
pub const LEASE_ENDED: Mark = Mark::Event("node_lease_ended");
pub const MEMBERS_LEFT: Mark = Mark::Event("members_left");
pub const LEFT: Mark = Mark::Event("node_left");
pub const JOINED: Mark = Mark::Event("node_joined");
pub const DRAIN: Mark = Mark::Event("drain_started");
pub const MISSED: Mark = Mark::Metric("archmesh_broker_missed_total", &[]);
pub const EPOCHS: Mark = Mark::Metric("archmesh_epochs_changed_total", &[]);
pub const FAILED: Mark = Mark::Metric("archmesh_broker_writes_total", &[("outcome", "failed")]);

impl Mark {
    fn count(self, node: &Gateway) -> f64 {
        match self {
            Self::Event(event) => node.log.count(event) as f64,
            Self::Metric(name, labels) => node.metric(name, labels),
        }
    }
}

/// A sign that is waited for, and what each node had of it before; a node that was replaced had nothing.
#[derive(Debug)]
pub struct Expected {
    sign: Sign,
    before: Vec<(u32, f64)>,
}

impl Expected {
    fn is_shown(&self, nodes: &[Gateway]) -> bool {
        let Sign(mark, who) = self.sign;
        let grows = |index: usize| {
            let (pid, before) = self.before[index];
            let node = &nodes[index];
            mark.count(node) > if node.pid() == pid { before } else { 0.0 }
        };
        let mut all = 0..nodes.len();
        match who {
            Who::All => all.all(grows),
            Who::Some => all.any(grows),
            Who::Node(index) => grows(index),
            Who::Others(index) => all.filter(|other| *other != index).all(grows),
        }
    }
}

impl World {
    /// From now on these signs count.
    pub fn expect(&self, signs: &[Sign]) -> Vec<Expected> {
        let count = |mark: Mark| self.nodes.iter().map(move |node| (node.pid(), mark.count(node)));
        let expect = |sign: &Sign| Expected { sign: *sign, before: count(sign.0).collect() };
        signs.iter().map(expect).collect()
    }

    /// Waits until all of them have come.
    pub fn await_signs(&self, expected: &[Expected]) {
        let began = Instant::now();
        while let Some(missing) = expected.iter().find(|sign| !sign.is_shown(&self.nodes)) {
            assert!(began.elapsed() < WELL_MAX, "the fault does not show: {:?}", missing.sign);
            hold(LOOK);
        }
    }

    /// Does something once a second until all signs have come.
    pub fn repeat_until(&mut self, signs: &[Sign], act: impl Fn(&mut Self)) {
        let expected = self.expect(signs);
        let began = Instant::now();
        loop {
            let acted = Instant::now();
            act(self);
            while acted.elapsed() < Duration::from_secs(1) {
                let Some(missing) = expected.iter().find(|sign| !sign.is_shown(&self.nodes)) else {
                    return;
                };
                assert!(began.elapsed() < WELL_MAX, "the fault does not show: {:?}", missing.sign);
                hold(LOOK);
            }
        }
    }
}
