//! Values that are replaced instead of invalidated: how good one must be is for the caller to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::*;
use super::support::*;

/// Asks for a value not below `least`; the source, if it is asked, has `source`.
async fn at_least(
    region: &TestRegion,
    least: &str,
    source: Result<&str, Down>,
) -> (Outcome<String, Down>, bool) {
    let asked = AtomicUsize::new(0);
    let load = || {
        asked.fetch_add(1, Ordering::Relaxed);
        async { source.map(|value| Some(value.to_owned())) }
    };
    let outcome = region.get_good_or_load("k", |value| value.as_str() >= least, load).await;
    (outcome, asked.into_inner() > 0)
}

async fn value_of(region: &TestRegion, least: &str, source: &str) -> (String, bool) {
    let (outcome, asked) = at_least(region, least, Ok(source)).await;
    ((*outcome.unwrap().unwrap()).clone(), asked)
}

fn text(value: &str, asked: bool) -> (String, bool) {
    (value.to_owned(), asked)
}

#[tokio::test]
async fn what_is_good_enough_is_taken_and_the_rest_replaced_everywhere() {
    let second = Memory::new();
    let (_here, here) = node(&second, spec());
    let (_there, there) = node(&second, spec());
    assert_eq!(value_of(&here, "1", "1").await, text("1", true));
    assert_eq!(value_of(&there, "1", "x").await, text("1", false), "from the second level");
    assert_eq!(value_of(&here, "1", "x").await, text("1", false), "from the local level");
    assert_eq!(value_of(&here, "2", "2").await, text("2", true));
    assert_eq!(value_of(&there, "2", "x").await, text("2", false), "the newer one was there");
    assert_eq!(value_of(&there, "3", "0").await, text("0", true), "what is loaded is taken");
}

#[tokio::test]
async fn the_newest_that_is_kept_is_found_without_the_source() {
    let second = Memory::new();
    let (_here, here) = node(&second, spec());
    let (_there, there) = node(&second, spec());
    assert_eq!(here.kept("k").await, None);
    value_of(&here, "1", "1").await;
    value_of(&there, "2", "2").await;
    assert_eq!(here.kept("k").await.as_deref(), Some(&"2".to_owned()), "not its own older one");
    second.set_mood(Mood::Failing);
    assert_eq!(here.kept("k").await.as_deref(), Some(&"1".to_owned()));
}

#[tokio::test]
async fn a_source_that_fails_takes_nothing_away() {
    let second = Memory::new();
    let (_here, here) = node(&second, spec());
    value_of(&here, "1", "1").await;
    let (outcome, _) = at_least(&here, "2", Err(Down)).await;
    assert!(matches!(outcome, Err(LoadError::Failed(_))), "{outcome:?}");
    assert_eq!(here.kept("k").await.as_deref(), Some(&"1".to_owned()));
    assert_eq!(value_of(&here, "1", "x").await, text("1", false));
}

#[tokio::test(start_paused = true)]
async fn slow_loads_are_shared_too() {
    let second = Memory::new();
    let (_here, here) = node(&second, spec());
    let load = || async {
        tokio::time::sleep(HOLD).await;
        Ok(Some("1".to_owned()))
    };
    here.get_good_or_load("k", |_| true, load).await.unwrap();
    assert!(second.stored("k").is_some(), "nothing was invalidated that could come back");
    tokio::time::advance(TTL * 2).await;
    assert_eq!(here.kept("k").await, None, "its time is over");
}

#[tokio::test]
async fn many_who_want_a_better_one_load_it_once() {
    let (cache, region) = local(RegionSpec::new(TTL));
    value_of(&region, "1", "1").await;
    let gate = Gate::new();
    let loads = Arc::new(AtomicUsize::new(0));
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (region, gate, loads) = (region.clone(), Arc::clone(&gate), Arc::clone(&loads));
            tokio::spawn(async move {
                let load = || async {
                    loads.fetch_add(1, Ordering::Relaxed);
                    gate.pass().await;
                    Ok(Some("2".to_owned()))
                };
                region.get_good_or_load("k", |value| value == "2", load).await
            })
        })
        .collect();
    gate.reached_by(1).await;
    until(|| stats(&cache).coalesced == 9).await;
    gate.let_through(10);
    for call in calls {
        let found = tokio::time::timeout(Duration::from_secs(10), call).await.unwrap().unwrap();
        assert_eq!(found.unwrap().as_deref(), Some(&"2".to_owned()));
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}
