//! Invalidations win against everything that is under way.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use super::super::*;
use super::support::*;

/// Starts a call whose source has read `value` and waits at the gate with it.
async fn started(
    region: &TestRegion,
    gate: &Arc<Gate>,
    value: &'static str,
) -> JoinHandle<Option<String>> {
    let arrived = gate.arrived();
    let call = tokio::spawn({
        let (region, gate) = (region.clone(), gate.clone());
        async move {
            let load = || async {
                gate.pass().await;
                Ok(Some(value.to_owned()))
            };
            region.get_or_load("k", load).await.unwrap().map(|value| (*value).clone())
        }
    });
    gate.reached_by(arrived + 1).await;
    call
}

fn some(value: &str) -> Option<String> {
    value.to_owned().into()
}

#[tokio::test]
async fn a_load_that_was_under_way_is_not_kept() {
    let (cache, region) = local(spec());
    let gate = Gate::new();
    let old = started(&region, &gate, "old").await;
    region.invalidate("k").await.unwrap();
    gate.let_through(1);
    assert_eq!(old.await.unwrap(), some("old"), "it began before the invalidation");
    assert_eq!(region.get("k"), None);
    assert_eq!(get(&region, "k", "new").await, (some("new"), true));
    assert_eq!(stats(&cache).invalidations, 1);
}

#[tokio::test]
async fn who_comes_after_an_invalidation_does_not_join_the_old_load() {
    let (_cache, region) = local(spec());
    let gate = Gate::new();
    let old = started(&region, &gate, "old").await;
    region.invalidate_local("k");
    assert_eq!(get(&region, "k", "new").await, (some("new"), true));
    gate.let_through(1);
    old.await.unwrap();
    assert_eq!(get(&region, "k", "newest").await, (some("new"), false), "the old load came last");
}

#[tokio::test]
async fn a_message_and_a_clearing_have_the_same_effect() {
    let (cache, region) = local(spec());
    let gate = Gate::new();
    let old = started(&region, &gate, "old").await;
    cache.invalidate_local(RegionName::Preferences, "k");
    cache.invalidate_local(RegionName::Contacts, "k");
    gate.let_through(1);
    old.await.unwrap();
    assert_eq!(region.get("k"), None);
    let old = started(&region, &gate, "old").await;
    cache.clear_local();
    gate.let_through(1);
    old.await.unwrap();
    assert_eq!(region.get("k"), None);
}

#[tokio::test(start_paused = true)]
async fn a_load_of_another_node_does_not_reach_the_second_level() {
    let second = Memory::new();
    let (_here, here) = node(&second, spec());
    let (_there, there) = node(&second, spec());
    let gate = Gate::new();
    let old = started(&there, &gate, "old").await;
    here.invalidate("k").await.unwrap();
    // The message of the invalidation is late.
    gate.let_through(1);
    assert_eq!(old.await.unwrap(), some("old"));
    assert_eq!(get(&here, "k", "new").await, (some("new"), true));
    there.invalidate_local("k");
    assert_eq!(get(&there, "k", "new").await, (some("new"), true));
    tokio::time::advance(HOLD).await;
    there.invalidate_local("k");
    assert_eq!(get(&there, "k", "new").await, (some("new"), true));
    here.invalidate_local("k");
    assert_eq!(get(&here, "k", "x").await, (some("new"), false), "the hold is over");
}

#[tokio::test]
async fn a_load_that_was_under_way_is_not_written() {
    let second = Memory::new();
    let (_cache, region) = node(&second, spec());
    let gate = Gate::new();
    let old = started(&region, &gate, "old").await;
    region.invalidate_local("k");
    gate.let_through(1);
    old.await.unwrap();
    assert_eq!(second.stored("k"), None);
}

#[tokio::test]
async fn nothing_is_written_where_a_hold_stands() {
    let second = Memory::new();
    let (_cache, region) = node(&second, spec());
    region.invalidate("k").await.unwrap();
    let calls = second.calls.load(Ordering::Relaxed);
    assert_eq!(get(&region, "k", "new").await, (some("new"), true));
    assert_eq!(second.calls.load(Ordering::Relaxed), calls + 1, "it is only read");
}

#[tokio::test(start_paused = true)]
async fn a_load_longer_than_a_hold_is_not_written() {
    let second = Memory::new();
    let (cache, region) = node(&second, spec());
    let gate = Gate::new();
    let slow = started(&region, &gate, "value").await;
    tokio::time::advance(HOLD).await;
    gate.let_through(1);
    slow.await.unwrap();
    assert_eq!(second.stored("k"), None);
    assert_eq!(stats(&cache).second_skipped, 1);
    assert!(region.get("k").is_some());
}

#[tokio::test]
async fn a_read_of_the_second_level_that_was_under_way_is_not_kept() {
    let second = Memory::new();
    let (_other, other) = node(&second, spec());
    get(&other, "k", "old").await;
    let (_cache, region) = node(&second, spec());
    let gate = Gate::new();
    second.set_mood(Mood::SlowReads(gate.clone()));
    let call = tokio::spawn({
        let region = region.clone();
        async move { get(&region, "k", "none").await }
    });
    gate.reached_by(1).await;
    region.invalidate("k").await.unwrap();
    gate.let_through(1);
    assert_eq!(call.await.unwrap(), (some("old"), false));
    assert_eq!(region.get("k"), None);
    second.set_mood(Mood::Well);
    assert_eq!(get(&region, "k", "new").await, (some("new"), true));
}

#[tokio::test]
async fn what_is_read_while_the_hold_is_on_its_way_is_not_kept() {
    let second = Memory::new();
    let (_cache, region) = node(&second, spec());
    get(&region, "k", "old").await;
    let gate = Gate::new();
    second.set_mood(Mood::SlowWrites(gate.clone()));
    let invalidation = tokio::spawn({
        let region = region.clone();
        async move { region.invalidate("k").await }
    });
    gate.reached_by(1).await;
    assert_eq!(get(&region, "k", "new").await, (some("old"), false), "it is still there");
    gate.let_through(1);
    assert_eq!(invalidation.await.unwrap(), Ok(()));
    assert_eq!(region.get("k"), None);
    assert_eq!(get(&region, "k", "new").await, (some("new"), true));
}

#[tokio::test]
async fn other_nodes_hear_of_it_once_both_levels_have_forgotten() {
    let second = Memory::new();
    let (cache, region) = node(&second, spec());
    get(&region, "k", "old").await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let tell = {
        let (heard, second, region) = (heard.clone(), second.clone(), region.clone());
        let written = second.stored("k");
        move |name: RegionName, key: &str| {
            assert_ne!(second.stored(key), written);
            assert!(region.get(key).is_none());
            heard.lock().unwrap().push((name, key.to_owned()));
        }
    };
    assert!(cache.on_invalidate(tell));
    assert!(!cache.on_invalidate(|_, _| ()), "only one");
    region.invalidate("k").await.unwrap();
    region.invalidate_local("k");
    assert_eq!(*heard.lock().unwrap(), [(RegionName::Contacts, "k".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_second_level_that_is_away_is_reported() {
    let second = Memory::new();
    let (_cache, region) = node(&second, spec());
    get(&region, "k", "old").await;
    for mood in [Mood::Failing, Mood::Hanging] {
        second.set_mood(mood);
        assert_eq!(region.invalidate("k").await, Err(InvalidateError::SecondLevel));
        assert_eq!(region.get("k"), None, "the local level has forgotten it");
    }
    second.set_mood(Mood::Well);
    assert_eq!(region.invalidate("k").await, Ok(()));
    assert_eq!(get(&region, "k", "new").await, (some("new"), true));
}
