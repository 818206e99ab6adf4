//! Times to live.

use std::time::Duration;

use tokio::time::advance;

use super::super::*;
use super::support::*;

const NEGATIVE: Duration = Duration::from_secs(10);

async fn nothing(region: &TestRegion) -> Known<String> {
    region.get_or_load("k", || async { Ok(None) }).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn values_live_for_their_time_give_or_take_a_tenth() {
    let (cache, region) = local(spec());
    for key in 0..200 {
        get(&region, &key.to_string(), "old").await;
    }
    let alive = || (0..200).filter(|key| region.get(&key.to_string()).is_some()).count();
    advance(TTL.mul_f64(0.89)).await;
    assert_eq!(alive(), 200);
    advance(TTL.mul_f64(0.11)).await;
    let half = alive();
    assert!((40..160).contains(&half), "{half} of 200 are alive after the time: no jitter");
    advance(TTL.mul_f64(0.11)).await;
    assert_eq!(alive(), 0);
    assert_eq!(get(&region, "1", "new").await, (Some("new".to_owned()), true));
    assert_eq!((stats(&cache).entries, stats(&cache).evicted_by_ttl), (200, 1));
}

#[tokio::test(start_paused = true)]
async fn that_there_is_nothing_is_known_for_a_time_of_its_own() {
    let (cache, region) = local(RegionSpec { negative_ttl: Some(NEGATIVE), ..spec() });
    assert_eq!(nothing(&region).await, None);
    assert_eq!(get(&region, "k", "value").await, (None, false));
    assert_eq!(stats(&cache).hits, 1);
    advance(NEGATIVE.mul_f64(1.11)).await;
    assert_eq!(get(&region, "k", "value").await, (Some("value".to_owned()), true));
}

#[tokio::test(start_paused = true)]
async fn without_such_a_time_it_is_asked_for_again() {
    let (_cache, region) = local(spec());
    get(&region, "k", "value").await;
    advance(TTL * 2).await;
    assert_eq!(nothing(&region).await, None);
    assert_eq!(region.get("k"), None);
    assert_eq!(get(&region, "k", "value").await, (Some("value".to_owned()), true));
}

#[tokio::test(start_paused = true)]
async fn expired_values_stand_in_for_a_source_that_is_down() {
    let spec = RegionSpec { stale_if_error: TTL, negative_ttl: Some(NEGATIVE), ..spec() };
    let (cache, region) = local(spec);
    let down = || region.get_or_load("k", || async { Err(Down) });
    assert!(down().await.is_err(), "nothing is known");
    get(&region, "k", "value").await;
    advance(TTL.mul_f64(1.11)).await;
    cache.sweep();
    assert_eq!(down().await.unwrap().as_deref().map(String::as_str), Some("value"));
    let hung = region.get_or_load("k", std::future::pending).await;
    assert_eq!(hung.unwrap().as_deref().map(String::as_str), Some("value"));
    let many = region.get_many_or_load(&["k", "k"], |_| async { Err(Down) }).await.unwrap();
    assert_eq!(many.len(), 2);
    assert_eq!(stats(&cache).stale_served, 3);
    assert_eq!(stats(&cache).load_errors, 4);
    region.invalidate_local("k");
    assert!(down().await.is_err(), "an invalid value stands in for nothing");
    get(&region, "k", "value").await;
    advance(TTL.mul_f64(2.11)).await;
    assert!(down().await.is_err(), "it is too old");
    nothing(&region).await;
    advance(NEGATIVE * 2).await;
    assert!(down().await.is_err(), "that there was none says nothing of now");
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_gone_stands_in_for_nothing() {
    let (cache, region) = local(RegionSpec { stale_if_error: TTL, ..spec() });
    get(&region, "k", "value").await;
    advance(TTL.mul_f64(1.11)).await;
    assert_eq!(nothing(&region).await, None);
    assert!(region.get_or_load("k", || async { Err(Down) }).await.is_err());
    assert_eq!(stats(&cache).entries, 0);
}

#[tokio::test(start_paused = true)]
async fn expired_values_are_no_answer_where_nobody_wants_them() {
    let (_cache, region) = local(spec());
    get(&region, "k", "value").await;
    advance(TTL * 2).await;
    assert!(region.get_or_load("k", || async { Err(Down) }).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_sweep_removes_what_is_of_no_use() {
    let (cache, region) = local(spec());
    for key in 0..100 {
        get(&region, &key.to_string(), "value").await;
    }
    advance(TTL / 2).await;
    get(&region, "young", "value").await;
    advance(TTL.mul_f64(0.61)).await;
    cache.sweep();
    let swept = stats(&cache);
    assert_eq!((swept.entries, swept.evicted_by_ttl, swept.evicted_by_size), (1, 100, 0));
    region.invalidate_local("young");
    assert_eq!((stats(&cache).entries, stats(&cache).bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn another_node_keeps_a_value_no_longer_than_the_one_that_loaded_it() {
    let second = Memory::new();
    let (_here, here) = node(&second, spec());
    let (there_cache, there) = node(&second, spec());
    get(&here, "k", "old").await;
    advance(TTL.mul_f64(0.8)).await;
    assert_eq!(get(&there, "k", "new").await, (Some("old".to_owned()), false));
    assert_eq!(stats(&there_cache).second_hits, 1);
    advance(TTL.mul_f64(0.4)).await;
    assert_eq!(get(&there, "k", "new").await, (Some("new".to_owned()), true));
}
