//! Message rates of users across nodes, local first: every node decides by its own counters at once, and nodes tell each
//! other what their busiest users sent, so that it counts everywhere.
//!
//! A user whose messages on a node stay below a tenth of the rate is not told. So over all nodes together a user may exceed
//! the rate by that tenth for each node, and by what is sent within one interval.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway_core::admission::Admission;
use gateway_core::settings::Settings;

use crate::bridge::Bridge;
use crate::plane::SharedPlane;

/// Most users of one report; the others are told with the next.
const USERS_MAX: usize = 10_000;

/// User and messages since the last report.
pub(super) type Report = Vec<(String, u32)>;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Rates {
    admission: Arc<Admission>,
    bridge: Bridge,
    busy: Mutex<HashSet<Arc<str>>>,
    charged: AtomicU64,
}

impl Rates {
    pub(super) fn new(admission: Arc<Admission>, bridge: Bridge) -> Self {
        Self { admission, bridge, busy: Mutex::default(), charged: AtomicU64::new(0) }
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<Arc<str>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages of other nodes that were counted here.
    pub(super) fn charged(&self) -> u64 {
        self.charged.load(Ordering::Relaxed)
    }

    /// A shard names a user who sends much.
    pub(super) fn note_busy(&self, user: Arc<str>) {
        let mut busy = self.busy();
        if busy.len() < USERS_MAX {
            busy.insert(user);
        }
    }

    /// What is to be told to other nodes; counting begins anew.
    pub(super) fn report(&self) -> Report {
        let busy = std::mem::take(&mut *self.busy());
        let count = |user: Arc<str>| (user.to_string(), self.admission.take_reported(&user));
        let report: Report = busy.into_iter().map(count).collect();
        self.admission.clear_reported();
        report
    }

    /// What another node told.
    pub(super) fn charge(&self, report: &Report, settings: &Settings) {
        let now = self.bridge.shards().now().mono;
        for (user, messages) in report {
            self.admission.charge(now, user, *messages, &settings.limits);
            self.charged.fetch_add(u64::from(*messages), Ordering::Relaxed);
        }
    }
}

/// Between two reports; `None` when rates are not shared.
pub(super) fn interval(plane: &SharedPlane, configured: Duration) -> Option<Duration> {
    let is_limited = plane.settings.load().limits.messages_shared_min > 0;
    (is_limited && !configured.is_zero()).then_some(configured)
}
