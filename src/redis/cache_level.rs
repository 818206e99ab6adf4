//! Redis as the second level of the cache.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Redis;
use crate::cache::{SecondLevel, SecondLevelError, When, Write};

/// Values under their keys in the node's Redis, each with a time to live.
pub(crate) struct CacheLevel(Arc<Redis>);

impl CacheLevel {
    /// In this Redis.
    pub(crate) fn new(redis: Arc<Redis>) -> Self {
        Self(redis)
    }

    async fn command(
        &self,
        name: &'static str,
        arguments: Vec<Value>,
    ) -> Result<Value, SecondLevelError> {
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        self.0
            .call_on_keys(async |client| client.custom(command, arguments).await)
            .await
            .map_err(|error| SecondLevelError(error.to_string()))
    }
}

impl SecondLevel for CacheLevel {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Bytes>, SecondLevelError>> {
        async move {
            let value = self.command("GET", vec![Value::Bytes(key.to_vec().into())]).await?;
            Ok(value.into_bytes())
        }
        .boxed()
    }

    fn set<'a>(
        &'a self,
        key: &'a [u8],
        write: Write,
    ) -> BoxFuture<'a, Result<(), SecondLevelError>> {
        async move {
            let ttl = write.ttl.max(Duration::from_millis(1)).as_millis() as i64;
            let mut arguments = vec![
                Value::Bytes(key.to_vec().into()),
                Value::Bytes(write.bytes),
                Value::from_static_str("PX"),
                Value::Integer(ttl),
            ];
            if write.when == When::Absent {
                arguments.push(Value::from_static_str("NX"));
            }
            self.command("SET", arguments).await.map(|_| ())
        }
        .boxed()
    }
}
