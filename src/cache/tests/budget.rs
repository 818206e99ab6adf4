//! Bytes: who may take how many, and who goes first.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;

use super::super::*;
use super::support::*;

#[tokio::test]
async fn shares_must_add_up() {
    let make = |memory_max, shares: &[(RegionName, u8)]| {
        Cache::new(&CacheOptions { memory_max, shares: shares.to_vec() }, None).map(|_| ())
    };
    let (contacts, preferences) = (RegionName::Contacts, RegionName::Preferences);
    assert_eq!(make(MIB, &[(contacts, 40), (preferences, 50)]), Ok(()));
    assert_eq!(make(MIB, &[(contacts, 50), (preferences, 50)]), Err(CacheError::Shares(100)));
    assert_eq!(make(MIB, &[(contacts, 9), (contacts, 9)]), Err(CacheError::ShareTwice(contacts)));
    assert_eq!(make(MIB, &[(contacts, 1)]), Err(CacheError::Budget(10_485)));
}

#[tokio::test]
async fn a_region_is_opened_once() {
    let (cache, _region) = local(spec());
    let again = cache.region::<str, u64, Down>(RegionName::Contacts, spec());
    assert_eq!(again.map(|_| ()).unwrap_err(), CacheError::Opened(RegionName::Contacts));
}

#[tokio::test]
async fn the_budget_holds_after_every_insertion() {
    let cache = Cache::new(&options(MIB), None).unwrap();
    let region: TestRegion = cache.region(RegionName::Contacts, spec()).unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    for key in 0..5_000 {
        get(&region, &key.to_string(), &"v".repeat(random.usize(0..20_000))).await;
        assert!(stats(&cache).bytes <= MIB, "{} bytes", stats(&cache).bytes);
    }
    let stats = stats(&cache);
    assert!(stats.bytes > MIB * 3 / 4, "{} bytes are used", stats.bytes);
    assert_eq!(stats.evicted_by_size + stats.entries, 5_000);
}

#[tokio::test]
async fn what_is_too_large_is_given_out_but_not_kept() {
    let cache = Cache::new(&options(MIB), None).unwrap();
    let region: TestRegion = cache.region(RegionName::Contacts, spec()).unwrap();
    let large = "v".repeat(200_000);
    assert_eq!(get(&region, "k", &large).await, (Some(large.clone()), true));
    assert!(get(&region, "k", &large).await.1);
    assert_eq!((stats(&cache).too_large, stats(&cache).entries, stats(&cache).bytes), (2, 0, 0));
}

#[tokio::test]
async fn a_share_is_not_pushed_out_by_others() {
    let shares = vec![(RegionName::Preferences, 50)];
    let cache = Cache::new(&CacheOptions { memory_max: 2 * MIB, shares }, None).unwrap();
    let contacts: TestRegion = cache.region(RegionName::Contacts, spec()).unwrap();
    let preferences: TestRegion = cache.region(RegionName::Preferences, spec()).unwrap();
    for region in [&contacts, &preferences] {
        for key in 0..100 {
            get(region, &key.to_string(), "value").await;
        }
    }
    // Used twice, so that they are worth more than what was used once.
    for key in 0..20_000 {
        get(&contacts, &format!("more-{}", key / 2), "value").await;
    }
    let kept =
        |region: &TestRegion| (0..100).filter(|key| region.get(&key.to_string()).is_some()).count();
    assert_eq!(kept(&preferences), 100);
    assert!(kept(&contacts) < 100, "the others share their part");
    let all = cache.stats().iter().map(|(_, stats)| stats.bytes).sum::<u64>();
    assert!(all <= 2 * MIB, "{all} bytes");
}

#[tokio::test]
async fn another_budget_holds_at_once() {
    let shares = vec![(RegionName::Preferences, 50)];
    let cache = Cache::new(&CacheOptions { memory_max: 8 * MIB, shares }, None).unwrap();
    let contacts: TestRegion = cache.region(RegionName::Contacts, spec()).unwrap();
    let preferences: TestRegion = cache.region(RegionName::Preferences, spec()).unwrap();
    let value = "v".repeat(2_000);
    let fill = async |from: usize| {
        for region in [&contacts, &preferences] {
            for key in from..from + 4_000 {
                get(region, &key.to_string(), &value).await;
            }
        }
    };
    let bytes = || cache.stats().iter().map(|(_, stats)| stats.bytes).collect::<Vec<_>>();
    fill(0).await;
    assert!(bytes().iter().all(|bytes| (3 * MIB..=4 * MIB).contains(bytes)), "{:?}", bytes());
    let evicted = stats(&cache).evicted_by_size;
    cache.resize(2 * MIB);
    assert!(bytes().iter().all(|bytes| (MIB / 2..=MIB).contains(bytes)), "{:?}", bytes());
    assert!(stats(&cache).evicted_by_size > evicted + 500);
    cache.resize(8 * MIB);
    fill(10_000).await;
    assert!(bytes().iter().all(|bytes| (3 * MIB..=4 * MIB).contains(bytes)), "{:?}", bytes());
}

#[tokio::test]
async fn a_hot_set_survives_a_scan() {
    let cache = Cache::new(&options(MIB), None).unwrap();
    let region: TestRegion = cache.region(RegionName::Contacts, spec()).unwrap();
    let value = "v".repeat(400);
    // Half of what fits, used again and again, while twenty times as much comes by once.
    let hot: Vec<String> = (0..600).map(|key| format!("hot:{key}")).collect();
    let mut scanned = 0;
    let mut loads = 0;
    for round in 0..100 {
        for key in &hot {
            loads += usize::from(get(&region, key, &value).await.1 && round >= 10);
        }
        for _ in 0..400 {
            get(&region, &format!("scan:{scanned}"), &value).await;
            scanned += 1;
        }
    }
    let before = loads;
    for _ in 0..20_000 {
        get(&region, &format!("scan:{scanned}"), &value).await;
        scanned += 1;
    }
    let left = hot.iter().filter(|key| region.get(key).is_some()).count();
    assert!(before < 54_000 / 50, "{before} of 54,000 lookups of hot keys missed");
    assert!(left > 570, "{left} of 600 hot entries are left after the scan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gauges_come_back_to_zero() {
    let cache = Arc::new(Cache::new(&options(MIB), None).unwrap());
    let region: TestRegion = cache.region(RegionName::Contacts, spec()).unwrap();
    let loads = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let (cache, region, loads) = (cache.clone(), region.clone(), loads.clone());
        tasks.spawn(async move {
            let mut random = fastrand::Rng::with_seed(task);
            for round in 0..20_000 {
                let key = random.u32(0..3_000).to_string();
                match random.u32(0..100) {
                    0..90 => {
                        let (_, loaded) =
                            get(&region, &key, &"v".repeat(random.usize(0..2_000))).await;
                        loads.fetch_add(usize::from(loaded), Ordering::Relaxed);
                    }
                    90..99 => region.invalidate_local(&key),
                    _ if round % 50 == 0 => cache.sweep(),
                    _ => region.invalidate(&key).await.unwrap(),
                }
            }
        });
    }
    tasks.join_all().await;
    let busy = stats(&cache);
    assert!(busy.evicted_by_size > 0 && busy.entries > 0 && busy.bytes <= MIB, "{busy:?}");
    assert!(busy.loads <= loads.load(Ordering::Relaxed) as u64);
    cache.clear_local();
    assert_eq!((stats(&cache).entries, stats(&cache).bytes), (0, 0));
}
