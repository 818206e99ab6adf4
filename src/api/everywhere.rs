//! Questions that concern all nodes of the cluster, and what each node answers about itself. Without a cluster there is only
//! this node.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::{connections, notifications, reads, users};
use crate::broker::orders::{self, Order};
use crate::cache::RegionName;
use crate::plane::SharedPlane;

/// What a node may be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Question {
    /// To do something to connections; answers how many.
    Order(Order),
    /// How large it is.
    Info,
    /// Which channels it has.
    Channels {
        /// Only names with this prefix.
        prefix: String,
        /// At most so many.
        limit: u32,
    },
    /// A page of its connections.
    Connections {
        /// Only of this user.
        user: Option<String>,
        /// Shard and slot to begin with.
        from: (u16, u32),
        /// At most so many.
        limit: u32,
    },
    /// Whether it has this connection.
    Connection {
        /// Public session id.
        session: String,
    },
    /// Who is online there.
    UserStatus {
        /// User ids.
        users: Vec<String>,
    },
    /// Which users are online there.
    Users,
    /// To forget what it keeps of the store, because it has changed; answers whether it keeps anything.
    Forget {
        /// Region of the cache.
        region: String,
        /// Key in it.
        key: String,
    },
}

/// This node's answer, and whether something is missing in it; `None` when it has none.
pub(crate) async fn answer(
    plane: &SharedPlane,
    question: Question,
) -> Option<(Box<RawValue>, bool)> {
    let answer = match question {
        Question::Order(order) => {
            let affected = orders::carry_out(&plane.bridge, &order).await;
            (to_raw_value(&affected), affected.partial)
        }
        Question::Info => {
            let info = connections::own_info(plane).await;
            (to_raw_value(&info), info.partial)
        }
        Question::Channels { prefix, limit } => {
            (to_raw_value(&reads::own_channels(plane, &prefix, limit).await.ok()?), false)
        }
        Question::Connections { user, from, limit } => {
            let page = connections::own_connections(plane, user, from, limit).await.ok()?;
            (to_raw_value(&page), false)
        }
        Question::Connection { session } => {
            let (found, partial) = connections::own_connection(plane, &session).await.ok()?;
            // One or none.
            (to_raw_value(&Vec::from_iter(found)), partial)
        }
        Question::UserStatus { users } => {
            (to_raw_value(&users::own_statuses(plane, users).await.ok()?), false)
        }
        Question::Users => {
            let (users, partial) = notifications::own_users(plane).await.ok()?;
            (to_raw_value(&users), partial)
        }
        Question::Forget { region, key } => {
            let region = RegionName::parse(&region);
            if let Some(region) = region {
                plane.cache.invalidate_local(region, &key);
            }
            (to_raw_value(&region.is_some()), false)
        }
    };
    Some((answer.0.ok()?, answer.1))
}

/// Answers of all other nodes, and whether one is missing.
pub(crate) async fn ask_others<T: DeserializeOwned>(
    plane: &SharedPlane,
    question: &Question,
) -> (Vec<T>, bool) {
    match &plane.broker {
        Some(broker) => broker.ask_others(question).await.read(),
        None => (Vec::new(), false),
    }
}

/// Answer of one other node.
pub(super) async fn ask_one<T: DeserializeOwned>(
    plane: &SharedPlane,
    node: u64,
    question: &Question,
) -> Option<T> {
    let broker = plane.broker.as_ref()?;
    let (answers, _) = broker.ask_one(node, question).await.read();
    answers.into_iter().next()
}

/// Whether nobody can know which other nodes there are.
pub(super) fn is_stale(plane: &SharedPlane) -> bool {
    plane.cluster.as_ref().is_some_and(|cluster| cluster.is_stale())
}

/// Numbers of all nodes, in order, and this one's.
pub(super) fn nodes(plane: &SharedPlane) -> (Vec<u64>, u64) {
    plane.broker.as_ref().map_or_else(|| (vec![0], 0), |broker| broker.node_numbers())
}
