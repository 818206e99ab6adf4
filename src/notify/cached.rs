//! What is kept of the store between requests: preferences and addresses of users, with Redis as the second level.
//!
//! A change through any node makes all nodes forget: this one and Redis at once, the others when they are told. One that misses
//! the message reads the old value until `cache.store_ttl` is over.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::contacts::{self, Contact};
use crate::cache::{Cache, CacheError, HeapBytes, Region, RegionName, RegionSpec};
use crate::config::Config;
use crate::store::{Arg, Store, StoreError};

/// The regions.
#[derive(Debug)]
pub(super) struct Cached {
    preferences: Region<str, String, StoreError>,
    contacts: Region<str, Vec<Contact>, StoreError>,
}

impl HeapBytes for Contact {
    fn heap_bytes(&self) -> usize {
        self.user.heap_bytes() + self.address.heap_bytes()
    }
}

impl Cached {
    /// Empty regions of a cache.
    pub(super) fn new(config: &Config, cache: &Cache) -> Result<Self, CacheError> {
        let section = &config.cache;
        let spec = RegionSpec {
            negative_ttl: Some(section.store_ttl),
            stale_if_error: section.store_ttl,
            load_timeout: config.database.query_timeout,
            second_level: section.store_shared,
            ..RegionSpec::new(section.store_ttl)
        };
        Ok(Self {
            preferences: cache.region(RegionName::Preferences, spec.clone())?,
            contacts: cache.region(RegionName::Contacts, spec)?,
        })
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
