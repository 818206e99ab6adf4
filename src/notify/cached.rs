//! What is kept of the store between requests: preferences and addresses of users, with Redis as the second level.
//!
//! A change through any node makes all nodes forget: this one and Redis at once, the others when they are told. One that misses
//! the message reads the old value until `cache.store_ttl` is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::contacts::{self, Contact};
use super::{Notifications, now_ms};
use crate::api::everywhere::{self, Question};
use crate::cache::{
    Cache, CacheError, CacheOptions, HeapBytes, Region, RegionName, RegionSpec, SecondLevel,
    SecondOptions,
};
use crate::config::Config;
use crate::plane::SharedPlane;
use crate::redis::{CacheLevel, Redis};
use crate::store::{Arg, Store, StoreError};

/// Between two removals of what has expired.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Longest call of Redis; the store is not much slower.
const SECOND_TIMEOUT: Duration = Duration::from_millis(50);
/// How long nothing is written to Redis where a value was changed.
const HOLD: Duration = Duration::from_secs(5);
/// Longest value that goes into Redis.
const SHARED_BYTES_MAX: usize = 256 << 10;

/// The regions.
#[derive(Debug)]
pub(super) struct Cached {
    cache: Arc<Cache>,
    preferences: Region<str, String, StoreError>,
    contacts: Region<str, Vec<Contact>, StoreError>,
}

impl HeapBytes for Contact {
    fn heap_bytes(&self) -> usize {
        self.user.heap_bytes() + self.address.heap_bytes()
    }
}

impl Cached {
    /// Empty regions within the configured budget.
    pub(super) fn new(config: &Config, redis: Option<Arc<Redis>>) -> Result<Self, CacheError> {
        let section = &config.cache;
        let second = redis.filter(|_| section.store_shared).map(|redis| {
            let options = SecondOptions {
                prefix: format!("{}:cache:", config.redis.prefix),
                timeout: SECOND_TIMEOUT,
                hold: HOLD,
                compress_above: section.compression_bytes_min,
                value_max: SHARED_BYTES_MAX,
                clock: Arc::new(|| now_ms() as u64),
            };
            (Arc::new(CacheLevel::new(redis)) as Arc<dyn SecondLevel>, options)
        });
        let options = CacheOptions { memory_max: section.store_bytes(), shares: Vec::new() };
        let cache = Cache::new(&options, second)?;
        let spec = RegionSpec {
            negative_ttl: Some(section.store_ttl),
            stale_if_error: section.store_ttl,
            load_timeout: config.database.query_timeout,
            second_level: section.store_shared,
            ..RegionSpec::new(section.store_ttl)
        };
        let preferences = cache.region(RegionName::Preferences, spec.clone())?;
        let contacts = cache.region(RegionName::Contacts, spec)?;
        Ok(Self { cache: Arc::new(cache), preferences, contacts })
    }

    /// Everything, for its numbers.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Makes the other nodes forget what is changed here.
    pub(super) fn tell_others(&self, plane: &SharedPlane) {
        if plane.broker.is_none() {
            return;
        }
        let plane = Arc::clone(plane);
        self.cache.on_invalidate(move |region, key| {
            let question =
                Question::Forget { region: region.as_str().to_owned(), key: key.to_owned() };
            let plane = Arc::clone(&plane);
            tokio::spawn(async move {
                // Who does not answer reads the old value for a while; the second level is right at once.
                let (_answers, _missing) = everywhere::ask_others::<bool>(&plane, &question).await;
            });
        });
    }

    /// Another node has changed something.
    pub(super) fn forget_here(&self, region: &str, key: &str) {
        if let Some(region) = RegionName::parse(region) {
            self.cache.invalidate_local(region, key);
        }
    }

    /// Documents of users, in their order.
    pub(super) async fn preferences(
        &self,
        store: &Store,
        users: &[String],
    ) -> Result<Vec<Option<Arc<String>>>, StoreError> {
        let keys: Vec<&str> = users.iter().map(String::as_str).collect();
        let load = |missing: Vec<&str>| {
            let missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
            read_preferences(store, missing)
        };
        Ok(self.preferences.get_many_or_load(&keys, load).await?)
    }

    /// The document of one user.
    pub(super) async fn preferences_of_one(
        &self,
        store: &Store,
        user: &str,
    ) -> Result<Option<Arc<String>>, StoreError> {
        let load = async || {
            let mut found = read_preferences(store, vec![user.to_owned()]).await?;
            Ok(found.pop().flatten())
        };
        Ok(self.preferences.get_or_load(user, load).await?)
    }

    /// Addresses of users, in their order.
    pub(super) async fn contacts(
        &self,
        store: &Store,
        users: &[String],
    ) -> Result<Vec<Option<Arc<Vec<Contact>>>>, StoreError> {
        let load = async |missing: Vec<&str>| {
            let read = async {
                let mut transaction = store.begin_read().await?;
                let found = contacts::of_users(&mut transaction, &missing).await?;
                transaction.commit().await?;
                Ok(found)
            };
            let mut found = store.run(read).await?;
            Ok(missing.iter().map(|user| found.remove(*user)).collect())
        };
        let keys: Vec<&str> = users.iter().map(String::as_str).collect();
        Ok(self.contacts.get_many_or_load(&keys, load).await?)
    }

    /// A user's preferences have changed.
    pub(super) async fn forget_preferences(&self, user: &str) {
        if let Err(error) = self.preferences.invalidate(user).await {
            tracing::warn!(category = "database", event = "cache_not_invalidated", region = "preferences", %error);
        }
    }

    /// A user's addresses have changed.
    pub(super) async fn forget_contacts(&self, user: &str) {
        if let Err(error) = self.contacts.invalidate(user).await {
            tracing::warn!(category = "database", event = "cache_not_invalidated", region = "contacts", %error);
        }
    }
}

/// Documents of users, in their order.
async fn read_preferences(
    store: &Store,
    users: Vec<String>,
) -> Result<Vec<Option<String>>, StoreError> {
    let sql = format!(
        "SELECT user_id, document FROM archmesh_preferences WHERE user_id IN {}",
        store.dialect().texts("$1")
    );
    let rows = store.read(sql, &[Arg::Text(&json!(users).to_string())]).await?;
    let found = rows.iter().map(|row| Ok((row.text(0)?, row.text(1)?)));
    let mut found = found.collect::<Result<HashMap<_, _>, StoreError>>()?;
    Ok(users.iter().map(|user| found.remove(user)).collect())
}

/// Removes what has expired, until the future is dropped.
pub(super) async fn sweep(notifications: Arc<Notifications>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        notifications.cached.cache.sweep();
    }
}

impl Notifications {
    /// Another node has changed something that is kept here.
    pub(crate) fn forget(&self, region: &str, key: &str) {
        self.cached.forget_here(region, key);
    }
}
