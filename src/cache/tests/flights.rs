//! One load for all who want the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::*;
use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tasks_cause_one_load() {
    let (cache, region) = local(spec());
    let (loads, gate) = (Arc::new(AtomicUsize::new(0)), Gate::new());
    let mut tasks = JoinSet::new();
    for _ in 0..1_000 {
        let (region, loads, gate) = (region.clone(), loads.clone(), gate.clone());
        tasks.spawn(async move {
            let load = || async {
                loads.fetch_add(1, Ordering::Relaxed);
                gate.pass().await;
                Ok(Some("value".to_owned()))
            };
            region.get_or_load("k", load).await.unwrap().unwrap()
        });
    }
    until(|| stats(&cache).coalesced == 999).await;
    gate.let_through(1);
    let values = tasks.join_all().await;
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    assert!(values.iter().all(|value| Arc::ptr_eq(value, &values[0])), "all have the same value");
    let stats = stats(&cache);
    assert_eq!((stats.loads, stats.misses, stats.entries), (1, 1_000, 1));
}

#[tokio::test]
async fn a_cancelled_leader_is_replaced_by_one_follower() {
    let (cache, region) = local(spec());
    let leader = tokio::spawn({
        let region = region.clone();
        async move { region.get_or_load("k", std::future::pending).await }
    });
    until(|| stats(&cache).loads == 1).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let mut followers = JoinSet::new();
    for _ in 0..100 {
        let (region, loads) = (region.clone(), loads.clone());
        followers.spawn(async move {
            let load = || async {
                loads.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok(Some("value".to_owned()))
            };
            region.get_or_load("k", load).await.unwrap().unwrap()
        });
    }
    until(|| stats(&cache).coalesced == 100).await;
    assert_eq!(loads.load(Ordering::Relaxed), 0);
    leader.abort();
    let values = followers.join_all().await;
    assert!(values.iter().all(|value| **value == "value"));
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}

/// Starts a call that waits at a gate and then ends as `end` does, and another call that waits for it.
async fn both<F>(cache: &Cache, region: &TestRegion, end: F) -> [Outcome<String, Down>; 2]
where
    F: FnOnce() -> Result<Option<String>, Down> + Send + 'static,
{
    let gate = Gate::new();
    let before = stats(cache).coalesced;
    let leader = tokio::spawn({
        let (region, gate) = (region.clone(), gate.clone());
        async move {
            let load = || async {
                gate.pass().await;
                end()
            };
            region.get_or_load("k", load).await
        }
    });
    gate.reached_by(1).await;
    let follower = tokio::spawn({
        let region = region.clone();
        async move { region.get_or_load("k", || async { panic!("it loads itself") }).await }
    });
    until(|| stats(cache).coalesced == before + 1).await;
    gate.let_through(1);
    [leader.await.unwrap(), follower.await.unwrap()]
}

#[tokio::test]
async fn errors_go_to_all_and_are_not_kept() {
    let (cache, region) = local(spec());
    for outcome in both(&cache, &region, || Err(Down)).await {
        assert!(matches!(outcome, Err(LoadError::Failed(error)) if *error == Down));
    }
    let stats = stats(&cache);
    assert_eq!((stats.loads, stats.load_errors, stats.entries), (1, 1, 0));
    assert_eq!(get(&region, "k", "value").await, (Some("value".to_owned()), true));
}

#[tokio::test]
async fn a_panic_goes_to_all_and_is_not_kept() {
    let (cache, region) = local(spec());
    for outcome in both(&cache, &region, || panic!("as the test wants it")).await {
        assert!(matches!(outcome, Err(LoadError::Panicked)));
    }
    assert_eq!(stats(&cache).load_errors, 1);
    assert_eq!(get(&region, "k", "value").await, (Some("value".to_owned()), true));
}

#[tokio::test(start_paused = true)]
async fn a_load_has_a_deadline() {
    let spec = RegionSpec { load_timeout: Duration::from_secs(2), ..spec() };
    let (cache, region) = local(spec);
    let began = Instant::now();
    let leader = region.get_or_load("k", std::future::pending);
    let follower = region.get_or_load("k", std::future::pending);
    let (leader, follower) = tokio::join!(leader, follower);
    assert!(matches!(leader, Err(LoadError::TimedOut)));
    assert!(matches!(follower, Err(LoadError::TimedOut)));
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert_eq!(stats(&cache).loads, 1);
    assert_eq!(get(&region, "k", "value").await, (Some("value".to_owned()), true));
}

#[tokio::test]
async fn who_missed_a_value_that_has_come_since_does_not_load_it_again() {
    let (_cache, region) = local(spec());
    get(&region, "k", "value").await;
    assert!(matches!(region.core.join("k", region::Terms::any()), flight::Seat::Found(Some(_))));
    assert!(matches!(region.core.join("other", region::Terms::any()), flight::Seat::Lead(_)));
}

#[tokio::test]
async fn calls_are_bounded() {
    let (cache, region) = local(RegionSpec { calls_max: 2, ..spec() });
    let gate = Gate::new();
    let mut tasks = JoinSet::new();
    for key in ["a", "a"] {
        let (region, gate) = (region.clone(), gate.clone());
        tasks.spawn(async move {
            let load = || async {
                gate.pass().await;
                Ok(Some(String::new()))
            };
            region.get_or_load(key, load).await.unwrap();
        });
    }
    until(|| stats(&cache).coalesced == 1).await;
    let third = region.get_or_load("b", || async { Ok(None) }).await;
    assert!(matches!(third, Err(LoadError::Busy)));
    let third = region.get_many_or_load(&["b"], |_| async { Ok(vec![None]) }).await;
    assert!(matches!(third, Err(LoadError::Busy)));
    assert_eq!(stats(&cache).refused, 2);
    gate.let_through(1);
    tasks.join_all().await;
    assert!(region.get_or_load("b", || async { Ok(None) }).await.is_ok());
}

#[tokio::test]
async fn long_keys_are_refused() {
    let (_cache, region) = local(spec());
    let key = "k".repeat(KEY_BYTES_MAX + 1);
    let outcome = region.get_or_load(&key, || async { panic!("it loads") }).await;
    assert!(matches!(outcome, Err(LoadError::Key(KeyTooLong { bytes: 513 }))));
    assert_eq!(region.invalidate(&key).await, Err(InvalidateError::Key(KeyTooLong { bytes: 513 })));
    assert!(region.get(&key).is_none());
}
