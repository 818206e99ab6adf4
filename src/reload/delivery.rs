//! New settings on their way to the shards.
//!
//! A shard whose mailbox is full is kept in mind and tried again until it has the settings, or until newer ones replace
//! them: no shard stays with old keys because it was busy for a moment.

use std::sync::Arc;
use std::time::Duration;

use gateway_core::ids::ShardId;
use gateway_core::message::ShardOp;
use gateway_core::settings::Settings;
use tokio::time::{Instant, sleep};

use crate::bridge::Bridge;

/// Between two tries to reach a shard whose mailbox is full.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Settings and the shards that do not have them yet.
#[derive(Debug)]
pub(super) struct Delivery {
    settings: Arc<Settings>,
    left: Vec<ShardId>,
}

impl Delivery {
    /// For all shards.
    pub(super) fn new(settings: Arc<Settings>, bridge: &Bridge) -> Self {
        Self { settings, left: bridge.shard_ids().collect() }
    }

    /// Tries each shard that is left once; `true` when none is left then.
    pub(super) fn try_once(&mut self, bridge: &Bridge) -> bool {
        self.left.retain(|shard| {
            bridge.tell(*shard, ShardOp::Reconfigure(Arc::clone(&self.settings))).is_err()
        });
        self.left.is_empty()
    }

    /// Tries until no shard is left or `timeout` is over; `true` in the first case.
    pub(super) async fn deliver(&mut self, bridge: &Bridge, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.try_once(bridge) {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(RETRY_INTERVAL).await;
        }
        true
    }

    /// The shards without the settings, for a message.
    pub(super) fn left(&self) -> String {
        self.left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gateway_core::message::ShardMessage;

    use super::*;
    use crate::plane::testing::plane;

    #[tokio::test]
    async fn a_busy_shard_is_tried_until_it_has_the_settings() {
        let (shards, plane) = plane();
        let filler = || ShardOp::Channels { prefix: "".into(), limit: 1 };
        while plane.bridge.tell(ShardId(1), filler()).is_ok() {}
        let settings = plane.settings.load_full();
        let mut delivery = Delivery::new(settings, &plane.bridge);
        assert!(!delivery.deliver(&plane.bridge, RETRY_INTERVAL).await);
        assert_eq!(delivery.left(), "1", "only the busy one is left");
        let is_reconfigure = |message: ShardMessage| {
            let ShardMessage::Control(request) = message else { return false };
            matches!(request.op, ShardOp::Reconfigure(_))
        };
        assert!(shards.take(0).is_some_and(is_reconfigure));
        shards.take(1).unwrap();
        assert!(delivery.try_once(&plane.bridge));
        assert!(shards.take(0).is_none(), "who has them is left alone");
        assert!(std::iter::from_fn(|| shards.take(1)).last().is_some_and(is_reconfigure));
    }
}
