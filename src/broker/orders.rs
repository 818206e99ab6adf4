//! What is done to a user's connections on all nodes: an order goes to every node (`calls`), each answers how many it affected.
//!
//! Revocations are kept in Redis as well until they may be forgotten, so that a node that was cut off, was too slow, or starts
//! later, learns of them: it reads all of them whenever it may have missed one, again and again until that has succeeded.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fred::interfaces::LuaInterface;
use gateway_core::error::Disconnect;
use gateway_core::message::{ChannelName, Revocation, ShardOp, ShardOutcome, Target};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::bridge::Bridge;
use crate::redis::{Redis, RedisError};

const KEEP: &str = include_str!("lua/revoke.lua");
/// How long a revocation of a user, or of all tokens before a time, is kept: longer than tokens live.
const RETENTION: Duration = Duration::from_secs(30 * 86_400);

/// First and longest wait before kept revocations are read again when that failed.
const LEARN_INTERVAL_MIN: Duration = Duration::from_millis(100);
const LEARN_INTERVAL_MAX: Duration = Duration::from_secs(1);

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// Revocations that nodes learn of later.
#[derive(Debug)]
pub(super) struct Kept {
    redis: Arc<Redis>,
    bridge: Bridge,
    key: String,
    /// Since when some may have been missed, as a number; what was read before that says nothing.
    missed: AtomicU64,
    /// The newest of these that was made good.
    learned: AtomicU64,
    more: Notify,
}

impl Kept {
    pub(super) fn new(redis: Arc<Redis>, bridge: Bridge, prefix: &str) -> Self {
        let key = format!("{prefix}:{{revocations}}");
        // Nothing is known before the first answer.
        let (missed, learned) = (AtomicU64::new(1), AtomicU64::new(0));
        Self { redis, bridge, key, missed, learned, more: Notify::new() }
    }

    /// Keeps an order that others must hear of later too.
    pub(super) async fn keep(&self, order: &Order) -> Result<(), RedisError> {
        let now = super::unix_now();
        let Some(until) = order.kept_until(now) else { return Ok(()) };
        let text = serde_json::to_string(order).unwrap_or_default();
        self.call(vec![now.as_secs().to_string(), until.as_secs().to_string(), text])
            .await
            .map(|_| ())
    }

    async fn call(&self, arguments: Vec<String>) -> Result<Vec<String>, RedisError> {
        let keys = vec![self.key.clone()];
        self.redis.call(async |client| client.eval(KEEP, keys, arguments).await).await
    }

    /// Some may have been missed.
    pub(super) fn may_have_missed(&self) {
        self.missed.fetch_add(1, Ordering::AcqRel);
        self.more.notify_one();
    }

    /// Whether some may be unknown to this node.
    pub(super) fn is_behind(&self) -> bool {
        self.learned.load(Ordering::Acquire) < self.missed.load(Ordering::Acquire)
    }

    /// Learns of what may have been missed until the future is dropped.
    pub(super) async fn run(&self) {
        let mut known = HashSet::new();
        loop {
            self.more.notified().await;
            let (mut pause, mut is_told) = (LEARN_INTERVAL_MIN, false);
            while self.is_behind() {
                let missed = self.missed.load(Ordering::Acquire);
                match self.catch_up(&mut known).await {
                    Ok(new) => {
                        self.learned.fetch_max(missed, Ordering::AcqRel);
                        if is_told || new > 0 {
                            tracing::info!(category = "security", event = "revocations_read", new);
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut is_told, true) {
                            tracing::warn!(category = "security", event = "revocations_unread", %error);
                        }
                        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                        pause = (pause * 2).min(LEARN_INTERVAL_MAX);
                    }
                }
            }
        }
    }

    /// Carries out what is kept and not yet among the `known`. Answers how many these were.
    async fn catch_up(&self, known: &mut HashSet<String>) -> Result<usize, CatchUpError> {
        let kept = self.call(vec![super::unix_now().as_secs().to_string()]).await?;
        let (old, new): (Vec<String>, Vec<String>) =
            kept.into_iter().partition(|text| known.contains(text));
        *known = old.into_iter().collect();
        let count = new.len();
        for text in new {
            match serde_json::from_str::<Order>(&text) {
                Ok(order) if carry_out(&self.bridge, &order).await.partial => {
                    return Err(CatchUpError::Shards);
                }
                Ok(_) => {}
                Err(_) => tracing::warn!(category = "error", event = "revocation_unreadable"),
            }
            known.insert(text);
        }
        Ok(count)
    }
}

/// Why revocations could not be learned.
#[derive(Debug, thiserror::Error)]
enum CatchUpError {
    #[error("a shard did not take them")]
    Shards,
    #[error(transparent)]
    Redis(#[from] RedisError),
}
