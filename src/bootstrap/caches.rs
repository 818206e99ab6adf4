//! The cache of the control plane as it is configured, and what keeps it in order.

use std::sync::Arc;
use std::time::Duration;

use crate::api::everywhere::{self, Question};
use crate::cache::{Cache, CacheError, CacheOptions, SecondLevel, SecondOptions};
use crate::config::Config;
use crate::keys::SharedKeySets;
use crate::plane::SharedPlane;
use crate::redis::{CacheLevel, Redis};
use crate::store::now_ms;

/// Between two removals of what has expired.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Longest call of Redis; the sources are not much slower.
const SECOND_TIMEOUT: Duration = Duration::from_millis(50);
/// How long nothing is written to Redis where a value was changed.
const HOLD: Duration = Duration::from_secs(5);
/// Longest value that goes into Redis.
const SHARED_BYTES_MAX: usize = 512 << 10;

/// Empty, over Redis if there is one.
pub(super) fn open(config: &Config, redis: Option<&Arc<Redis>>) -> Result<Arc<Cache>, CacheError> {
    let section = &config.cache;
    let second = redis.map(|redis| {
        let options = SecondOptions {
            prefix: format!("{}:cache:", config.redis.prefix),
            timeout: SECOND_TIMEOUT,
            hold: HOLD,
            compress_above: section.compression_bytes_min,
            value_max: SHARED_BYTES_MAX,
            clock: Arc::new(|| now_ms() as u64),
        };
        (Arc::new(CacheLevel::new(Arc::clone(redis))) as Arc<dyn SecondLevel>, options)
    });
    let options = CacheOptions { memory_max: section.store_bytes(), shares: Vec::new() };
    Ok(Arc::new(Cache::new(&options, second)?))
}

/// Where key sets are shared with other nodes, if they are.
pub(super) fn key_sets(
    config: &Config,
    cache: &Cache,
) -> Result<Option<SharedKeySets>, CacheError> {
    let ttl = config.auth.jwks_shared_ttl;
    let shared = config.redis.url.is_some() && !ttl.is_zero();
    shared.then(|| SharedKeySets::open(cache, ttl)).transpose()
}

/// Makes the other nodes forget what is changed here. One that misses the message keeps the old value until its time is over.
pub(super) fn tell_others(plane: &SharedPlane) {
    if plane.broker.is_none() {
        return;
    }
    // The cache is a part of the plane and must not keep it alive.
    let whole = Arc::downgrade(plane);
    plane.cache.on_invalidate(move |region, key| {
        let Some(plane) = whole.upgrade() else { return };
        let question = Question::Forget { region: region.as_str().to_owned(), key: key.to_owned() };
        tokio::spawn(async move {
            // Who does not answer reads the old value for a while; the second level is right at once.
            let (_answers, _missing) = everywhere::ask_others::<bool>(&plane, &question).await;
        });
    });
}

/// Removes what has expired, until the future is dropped.
pub(super) async fn sweep(cache: Arc<Cache>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        cache.sweep();
    }
}
