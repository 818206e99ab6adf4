//! Many keys at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::*;
use super::support::*;

/// The value of every key is the key with a mark.
fn marked(keys: &[&str]) -> Vec<Option<String>> {
    keys.iter().map(|key| Some(format!("{key}!"))).collect()
}

fn texts(values: Vec<Known<String>>) -> Vec<Option<String>> {
    values.into_iter().map(|value| value.map(|value| (*value).clone())).collect()
}

#[tokio::test]
async fn missing_keys_are_loaded_with_one_call() {
    let second = Memory::new();
    let (_other, far) = node(&second, spec());
    get(&far, "b", "b!").await;
    let (cache, region) = node(&second, spec());
    get(&region, "a", "a!").await;
    let asked = Mutex::new(Vec::new());
    let load = |keys: Vec<&'static str>| {
        asked.lock().unwrap().push(keys.clone());
        async move { Ok(marked(&keys)) }
    };
    let values = region.get_many_or_load(&["c", "a", "b", "d", "c"], load).await.unwrap();
    assert_eq!(texts(values), marked(&["c", "a", "b", "d", "c"]));
    assert_eq!(*asked.lock().unwrap(), [vec!["c", "d"]]);
    let stats = stats(&cache);
    assert_eq!((stats.loads, stats.second_hits, stats.hits, stats.entries), (2, 1, 1, 4));
    assert!(second.stored("c").is_some() && second.stored("d").is_some());
    let values = region.get_many_or_load(&["d", "c"], |_| async { panic!("it loads") }).await;
    assert_eq!(texts(values.unwrap()), marked(&["d", "c"]));
    let none: &[&str] = &[];
    assert!(
        region.get_many_or_load(none, |_| async { panic!("it loads") }).await.unwrap().is_empty()
    );
}

#[tokio::test]
async fn values_that_do_not_exist_have_their_place() {
    let (_cache, region) = local(RegionSpec { negative_ttl: Some(TTL), ..spec() });
    let load = |_| async { Ok(vec![None, Some("b!".to_owned())]) };
    let values = region.get_many_or_load(&["a", "b"], load).await.unwrap();
    assert_eq!(texts(values), [None, Some("b!".to_owned())]);
    assert_eq!(region.get("a"), Some(None));
}

#[tokio::test]
async fn an_error_or_a_wrong_count_fails_the_batch() {
    let (cache, region) = local(spec());
    let outcome = region.get_many_or_load(&["a", "b"], |_| async { Err(Down) }).await;
    assert!(matches!(outcome, Err(LoadError::Failed(error)) if *error == Down));
    let outcome = region.get_many_or_load(&["a", "b"], |_| async { Ok(vec![None]) }).await;
    assert!(matches!(outcome, Err(LoadError::WrongCount { asked: 2, given: 1 })));
    assert_eq!((stats(&cache).entries, stats(&cache).load_errors), (0, 2));
}

#[tokio::test]
async fn batches_with_keys_in_common_do_not_wait_for_each_other() {
    let (cache, region) = local(spec());
    let gate = Gate::new();
    let start = |keys: [&'static str; 3]| {
        let (region, gate) = (region.clone(), gate.clone());
        tokio::spawn(async move {
            let load = |keys: Vec<&'static str>| {
                let gate = gate.clone();
                async move {
                    gate.pass().await;
                    Ok(marked(&keys))
                }
            };
            texts(region.get_many_or_load(&keys, load).await.unwrap())
        })
    };
    let one = start(["a", "b", "c"]);
    gate.reached_by(1).await;
    let two = start(["d", "c", "b"]);
    gate.reached_by(2).await;
    let three = start(["b", "d", "a"]);
    until(|| stats(&cache).coalesced == 5).await;
    gate.let_through(2);
    assert_eq!(one.await.unwrap(), marked(&["a", "b", "c"]));
    assert_eq!(two.await.unwrap(), marked(&["d", "c", "b"]));
    assert_eq!(three.await.unwrap(), marked(&["b", "d", "a"]));
    assert_eq!((stats(&cache).loads, gate.arrived()), (2, 2));
}

#[tokio::test]
async fn keys_of_a_dropped_call_are_loaded_by_the_batch() {
    let (cache, region) = local(spec());
    let leader = tokio::spawn({
        let region = region.clone();
        async move { region.get_or_load("b", std::future::pending).await }
    });
    until(|| stats(&cache).loads == 1).await;
    let batch = tokio::spawn({
        let region = region.clone();
        async move {
            let calls = Arc::new(AtomicUsize::new(0));
            let load = |keys: Vec<&'static str>| {
                calls.fetch_add(1, Ordering::Relaxed);
                async move { Ok(marked(&keys)) }
            };
            let values = region.get_many_or_load(&["a", "b"], load).await.unwrap();
            (texts(values), calls.load(Ordering::Relaxed))
        }
    });
    until(|| stats(&cache).coalesced == 1).await;
    leader.abort();
    assert_eq!(batch.await.unwrap(), (marked(&["a", "b"]), 2));
}

#[tokio::test(start_paused = true)]
async fn a_second_level_that_hangs_costs_a_batch_its_timeout_once() {
    let second = Memory::new();
    let (_cache, region) = node(&second, spec());
    second.set_mood(Mood::Hanging);
    let keys: Vec<String> = (0..500).map(|key| key.to_string()).collect();
    let began = tokio::time::Instant::now();
    let load = |keys: Vec<String>| async { Ok(keys.into_iter().map(Some).collect()) };
    assert_eq!(region.get_many_or_load(&keys, load).await.unwrap().len(), 500);
    assert_eq!(began.elapsed(), Duration::from_millis(100));
}
