//! How full the node is: what balancers and the other nodes go by.
//!
//! Read from what the shards share, so that it costs nothing and waits for nobody, however busy they are.

use crate::plane::Plane;

/// The node's load at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Open WebSockets.
    pub connections: u64,
    /// Most of them that it takes.
    pub connections_max: u64,
    /// Busy share of its shards in the last second, the mean over all, in thousandths.
    pub busy_permille: u32,
}

impl Load {
    /// The load now.
    pub(crate) fn of(plane: &Plane) -> Self {
        let shards = plane.bridge.shards();
        let busy: u32 = plane.bridge.shard_ids().map(|shard| shards.load_permille(shard)).sum();
        Self {
            connections: plane.admission.sessions(),
            connections_max: plane.settings.load().limits.connections_max,
            busy_permille: busy / u32::from(shards.count().max(1)),
        }
    }

    /// Whether no connection is taken any more.
    pub(crate) fn is_full(&self) -> bool {
        self.connections >= self.connections_max
    }

    /// How full it is in percent, 0 to 100: by its connections or by its shards, whichever is more.
    pub(crate) fn percent(&self) -> u64 {
        let taken = (self.connections * 100).checked_div(self.connections_max).unwrap_or(100);
        taken.max(u64::from(self.busy_permille / 10)).min(100)
    }

    /// Share of new clients that it should get, in percent: what is free. 0 only when it is full.
    pub(crate) fn weight_percent(&self) -> u64 {
        if self.is_full() { 0 } else { (100 - self.percent()).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(connections: u64, busy_permille: u32, percent: u64, weight: u64) {
        let load = Load { connections, connections_max: 200, busy_permille };
        assert_eq!((load.percent(), load.weight_percent()), (percent, weight), "{load:?}");
    }

    #[test]
    fn the_fuller_of_both_counts() {
        check(0, 0, 0, 100);
        check(34, 0, 17, 83);
        check(34, 500, 50, 50);
        check(0, 1_000, 100, 1);
        check(199, 0, 99, 1);
        check(200, 0, 100, 0);
        check(230, 1_000, 100, 0);
    }
}
