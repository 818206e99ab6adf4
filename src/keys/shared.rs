//! Key sets in the cache, where all nodes find them.
//!
//! What one node has fetched serves the others for as long as a node may wait between two fetches, so that keys which rotate
//! are not fetched once by each of many nodes. For longer, and only for nodes without any key of the URL, it stands in for a
//! key server that does not answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::remote::{FetchError, Remote};
use crate::cache::{Cache, CacheError, HeapBytes, LoadError, Region, RegionName, RegionSpec};
use crate::store::now_ms;

/// Beyond the longest fetch, which ends by itself: the breaker must hear of its end.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// A key set as its server gave it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Document {
    /// The JSON Web Key Set.
    pub(super) text: String,
    /// Unix milliseconds.
    fetched_at: i64,
}

impl HeapBytes for Document {
    fn heap_bytes(&self) -> usize {
        self.text.heap_bytes()
    }
}

impl Document {
    /// Of a document from the future, by another node's clock, how far that is: it is no newer than one from the past.
    fn age(&self) -> Duration {
        Duration::from_millis(now_ms().abs_diff(self.fetched_at))
    }
}

/// Documents by their URL.
#[derive(Clone, Debug)]
pub(crate) struct SharedKeySets(Region<str, Document, FetchError>);

impl SharedKeySets {
    /// Documents are kept for `ttl`.
    pub(crate) fn open(cache: &Cache, ttl: Duration) -> Result<Self, CacheError> {
        let spec =
            RegionSpec { load_timeout: LOAD_TIMEOUT, second_level: true, ..RegionSpec::new(ttl) };
        Ok(Self(cache.region(RegionName::KeySets, spec)?))
    }

    /// A document that a node has fetched within `age_max`, else the one that `fetch` brings.
    pub(super) async fn get<Fut>(
        &self,
        remote: &Remote,
        age_max: Duration,
        fetch: impl FnOnce() -> Fut,
    ) -> Result<String, LoadError<FetchError>>
    where
        Fut: Future<Output = Result<String, FetchError>>,
    {
        let good = |document: &Document| {
            document.age() < age_max && remote.keys_in(&document.text).is_ok()
        };
        let load = || async {
            let text = fetch().await?;
            Ok(Some(Document { text, fetched_at: now_ms() }))
        };
        let found = self.0.get_good_or_load(remote.url(), good, load).await?;
        Ok(found.map(|document| document.text.clone()).unwrap_or_default())
    }

    /// The document that was fetched last, and how long ago.
    pub(super) async fn last(&self, remote: &Remote) -> Option<(String, Duration)> {
        let document = self.0.kept(remote.url()).await?;
        Some((document.text.clone(), document.age()))
    }
}
