//! What is done to a user's connections on all nodes: an order goes to every node, each answers how many it affected.
//!
//! Whoever gives an order waits for the answers of the nodes that the cluster lists, up to a deadline; one that does not
//! answer makes the result partial, which the caller is told. Revocations are kept in Redis as well until they may be
//! forgotten, so that a node that was cut off, or starts later, learns of them with its next connection.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::interfaces::LuaInterface;
use gateway_core::error::Disconnect;
use gateway_core::message::{ChannelName, Revocation, ShardOp, ShardOutcome, Target};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::nodes::Nodes;
use super::subscriber::Subscriber;
use crate::bridge::Bridge;
use crate::redis::{Redis, RedisError};

const KEEP: &str = include_str!("lua/revoke.lua");
/// How long a revocation of a user, or of all tokens before a time, is kept: longer than tokens live.
const RETENTION: Duration = Duration::from_secs(30 * 86_400);

/// Something done to connections on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub(crate) enum Order {
    /// End connections.
    Disconnect { whom: Whom, reconnect: bool },
    /// Subscribe connections.
    Subscribe { whom: Whom, channel: String },
    /// Unsubscribe connections.
    Unsubscribe { whom: Whom, channel: String },
    /// Refuse tokens of a user.
    RevokeUser { user: String, issued_before: u64 },
    /// Refuse one token.
    RevokeToken { token_id: String, expires_at: u64 },
    /// Refuse all tokens issued before.
    RevokeBefore { issued_before: u64 },
}

/// Connections that an order is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Whom {
    /// All connections of a user.
    User(String),
    /// One connection, by public session id.
    Session(String),
}

impl Whom {
    fn target(&self) -> Target {
        match self {
            Self::User(user) => Target::User(user.as_str().into()),
            Self::Session(session) => Target::Session(session.as_str().into()),
        }
    }
}

impl Order {
    /// What a shard is asked.
    fn op(&self) -> ShardOp {
        match self {
            Self::Disconnect { whom, reconnect } => ShardOp::Disconnect {
                target: whom.target(),
                reason: if *reconnect {
                    Disconnect::ForceReconnect
                } else {
                    Disconnect::ForceNoReconnect
                },
            },
            Self::Subscribe { whom, channel } => ShardOp::Subscribe {
                target: whom.target(),
                channel: ChannelName::from(channel.as_str()),
            },
            Self::Unsubscribe { whom, channel } => ShardOp::Unsubscribe {
                target: whom.target(),
                channel: ChannelName::from(channel.as_str()),
            },
            Self::RevokeUser { user, issued_before } => ShardOp::Revoke(Revocation::User {
                user: user.as_str().into(),
                issued_before: Duration::from_secs(*issued_before),
            }),
            Self::RevokeToken { token_id, expires_at } => ShardOp::Revoke(Revocation::TokenId {
                token_id: token_id.as_str().into(),
                expires_at: Duration::from_secs(*expires_at),
            }),
            Self::RevokeBefore { issued_before } => {
                ShardOp::Revoke(Revocation::IssuedBefore(Duration::from_secs(*issued_before)))
            }
        }
    }

    /// Until when it is kept for nodes that do not hear it now (Unix); `None` when it is for now only.
    fn kept_until(&self, now: Duration) -> Option<Duration> {
        match self {
            Self::RevokeUser { .. } | Self::RevokeBefore { .. } => Some(now + RETENTION),
            Self::RevokeToken { expires_at, .. } => Some(Duration::from_secs(*expires_at)),
            _ => None,
        }
    }
}

/// Result of an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Affected {
    /// Connections.
    pub count: u64,
    /// Whether an answer is missing.
    pub partial: bool,
}

/// Carries an order out on this node.
pub(crate) async fn carry_out(bridge: &Bridge, order: &Order) -> Affected {
    let Ok(gathered) = bridge.ask_all(|| order.op()).await else {
        return Affected { count: 0, partial: true };
    };
    let mut affected = Affected { count: 0, partial: gathered.partial };
    for (_, outcome) in gathered.answers {
        match outcome {
            ShardOutcome::Affected(count) => affected.count += u64::from(count),
            _ => affected.partial = true,
        }
    }
    affected
}

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    id: u64,
    from: u64,
    /// Pub/sub channel of the answer.
    answer_to: String,
    order: Order,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    id: u64,
    from: u64,
    count: u64,
    partial: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Orders {
    redis: Arc<Redis>,
    subscriber: Arc<Subscriber>,
    nodes: Arc<Nodes>,
    bridge: Bridge,
    /// Pub/sub channel of all nodes.
    topic: String,
    /// Pub/sub channel of the answers to this node.
    answers: String,
    revocations_key: String,
    deadline: Duration,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
}

impl Orders {
    pub(super) fn new(
        (redis, subscriber): (Arc<Redis>, Arc<Subscriber>),
        nodes: Arc<Nodes>,
        bridge: Bridge,
        prefix: &str,
        deadline: Duration,
    ) -> Self {
        let answers = format!("{prefix}:answers:{{{:016x}}}", nodes.own());
        Self {
            redis,
            subscriber,
            nodes,
            bridge,
            topic: format!("{prefix}:orders:{{all}}"),
            answers,
            revocations_key: format!("{prefix}:{{revocations}}"),
            deadline,
            waiting: Mutex::default(),
        }
    }

    /// Pub/sub channels to be subscribed.
    pub(super) fn topics(&self) -> [String; 2] {
        [self.topic.clone(), self.answers.clone()]
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries an order out here and on all other nodes.
    pub(super) async fn give(&self, order: &Order) -> Affected {
        let (here, there) = tokio::join!(carry_out(&self.bridge, order), self.ask_others(order));
        Affected { count: here.count + there.count, partial: here.partial || there.partial }
    }

    async fn ask_others(&self, order: &Order) -> Affected {
        let kept = self.keep(order).await;
        let others = self.nodes.others();
        if others.is_empty() && kept.is_ok() {
            return Affected::default();
        }
        let id = RandomState::new().hash_one("order");
        let (sender, mut answers) = mpsc::channel(others.len().max(1));
        self.waiting().insert(id, sender);
        let message = Message {
            id,
            from: self.nodes.own(),
            answer_to: self.answers.clone(),
            order: order.clone(),
        };
        let sent = match serde_json::to_string(&message) {
            Ok(text) => self.subscriber.send(&self.redis, &self.topic, text).await.is_ok(),
            Err(_) => false,
        };
        let mut affected = Affected { count: 0, partial: !sent || kept.is_err() };
        let mut missing = others;
        let deadline = Instant::now() + self.deadline;
        while sent && !missing.is_empty() {
            let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.recv()).await else {
                break;
            };
            missing.retain(|node| *node != answer.from);
            affected.count += answer.count;
            affected.partial |= answer.partial;
        }
        self.waiting().remove(&id);
        affected.partial |= !missing.is_empty();
        affected
    }

    async fn keep(&self, order: &Order) -> Result<(), RedisError> {
        let now = super::unix_now();
        let Some(until) = order.kept_until(now) else { return Ok(()) };
        let text = serde_json::to_string(order).unwrap_or_default();
        self.revocations(vec![now.as_secs().to_string(), until.as_secs().to_string(), text])
            .await
            .map(|_| ())
    }

    async fn revocations(&self, arguments: Vec<String>) -> Result<Vec<String>, RedisError> {
        let keys = vec![self.revocations_key.clone()];
        self.redis.call(async |client| client.eval(KEEP, keys, arguments).await).await
    }

    /// Learns of revocations that were made while this node did not listen.
    pub(super) async fn catch_up(&self) {
        let now = super::unix_now().as_secs().to_string();
        // The breaker logs a failure; the next connection brings another try.
        let Ok(kept) = self.revocations(vec![now]).await else { return };
        for text in kept {
            if let Ok(order) = serde_json::from_str::<Order>(&text) {
                carry_out(&self.bridge, &order).await;
            } else {
                tracing::warn!(category = "error", event = "revocation_unreadable");
            }
        }
    }

    /// A message arrived on one of [`Self::topics`]. `None` when it cannot be read; `Some(false)` when it is not for this part.
    pub(super) fn handle(self: &Arc<Self>, topic: &str, body: &[u8]) -> Option<bool> {
        if topic == self.answers {
            let answer: Answer = serde_json::from_slice(body).ok()?;
            if let Some(sender) = self.waiting().get(&answer.id) {
                // A node that answers twice finds no room.
                let _full = sender.try_send(answer);
            }
            return Some(true);
        }
        if topic != self.topic {
            return Some(false);
        }
        let message: Message = serde_json::from_slice(body).ok()?;
        if self.nodes.is_own(message.from) {
            return Some(true);
        }
        let orders = Arc::clone(self);
        tokio::spawn(async move {
            let Affected { count, partial } = carry_out(&orders.bridge, &message.order).await;
            let answer = Answer { id: message.id, from: orders.nodes.own(), count, partial };
            if let Ok(text) = serde_json::to_string(&answer) {
                // Without it the other node says that its result is partial.
                let _sent = orders.subscriber.send(&orders.redis, &message.answer_to, text).await;
            }
        });
        Some(true)
    }
}
