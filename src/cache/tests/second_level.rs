//! With a second level: shared values, damage, failures.

use std::time::Duration;

use tokio::time::Instant;

use super::super::*;
use super::support::*;

#[tokio::test]
async fn nodes_share_values() {
    let second = Memory::new();
    let (here_cache, here) = node(&second, RegionSpec { negative_ttl: Some(TTL), ..spec() });
    let (there_cache, there) = node(&second, RegionSpec { negative_ttl: Some(TTL), ..spec() });
    let long = "a long value ".repeat(200);
    assert_eq!(get(&here, "k", &long).await, (Some(long.clone()), true));
    assert!(second.stored("k").unwrap().len() < long.len() / 4, "it is compressed");
    assert_eq!(get(&there, "k", "other").await, (Some(long), false));
    assert_eq!(here.get_or_load("none", || async { Ok(None) }).await.unwrap(), None);
    assert_eq!(get(&there, "none", "other").await, (None, false));
    let (here, there) = (stats(&here_cache), stats(&there_cache));
    assert_eq!((here.second_hits, here.second_misses, here.loads), (0, 2, 2));
    assert_eq!((there.second_hits, there.second_misses, there.loads), (2, 0, 0));
}

#[tokio::test]
async fn regions_without_it_and_other_schemas_do_not_see_it() {
    let second = Memory::new();
    let (_here, here) = node(&second, spec());
    get(&here, "k", "value").await;
    let calls = second.calls.load(std::sync::atomic::Ordering::Relaxed);
    let (_there, there) = node(&second, RegionSpec { second_level: false, ..spec() });
    assert!(get(&there, "k", "value").await.1);
    assert_eq!(there.invalidate("k").await, Ok(()));
    assert_eq!(second.calls.load(std::sync::atomic::Ordering::Relaxed), calls);
    let (_there, there) = node(&second, RegionSpec { schema: 2, ..spec() });
    assert!(get(&there, "k", "value").await.1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_a_miss_and_is_replaced() {
    let second = Memory::new();
    let (_other, other) = node(&second, spec());
    get(&other, "k", "value").await;
    let good = second.stored("k").unwrap().to_vec();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let wrong_type = envelope::seal_value(b"[1,2]", u64::MAX, 1_000);
    let damaged: [&[u8]; 5] = [&[], b"x", &good[..good.len() - 1], &flipped, &wrong_type];
    for (count, bytes) in damaged.into_iter().enumerate() {
        let (cache, region) = node(&second, spec());
        second.overwrite("k", bytes);
        assert_eq!(get(&region, "k", "new").await, (Some("new".to_owned()), true), "{count}");
        let stats = stats(&cache);
        assert_eq!((stats.second_corrupt, stats.second_hits, stats.load_errors), (1, 0, 0));
        tokio::time::advance(HOLD).await;
        region.invalidate_local("k");
        assert!(get(&region, "k", "new").await.1, "{count}");
        region.invalidate_local("k");
        assert_eq!(get(&region, "k", "x").await, (Some("new".to_owned()), false), "{count}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_it_works_as_without_a_second_level() {
    let second = Memory::new();
    let (cache, region) = node(&second, spec());
    for (key, mood) in [("a", Mood::Failing), ("b", Mood::Hanging)] {
        second.set_mood(mood);
        let began = Instant::now();
        assert_eq!(get(&region, key, "value").await, (Some("value".to_owned()), true));
        assert!(began.elapsed() <= Duration::from_millis(100), "only the read costs its timeout");
        assert!(!get(&region, key, "value").await.1);
    }
    let stats = stats(&cache);
    assert_eq!((stats.second_errors, stats.load_errors, stats.hits), (2, 0, 2));
}

#[tokio::test]
async fn long_values_are_not_written() {
    let second = Memory::new();
    let (cache, region) = node(&second, spec());
    let long = "x".repeat(10_001);
    assert!(get(&region, "k", &long).await.1);
    assert_eq!(second.stored("k"), None);
    assert_eq!(stats(&cache).second_skipped, 1);
    assert!(!get(&region, "k", &long).await.1, "the local level has it");
}
