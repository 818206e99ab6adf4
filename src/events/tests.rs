//! Two nodes that write into one file.
//!
//! Must hold: a batch is written once however often it is tried; a channel is told to be occupied and vacated once, whoever does
//! it first or last; what a dead node leaves behind ends once, and a node that comes back has everything again; an endpoint gets
//! every event in order, once when nothing fails.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::json;

use super::queue::{Batch, Occupancy};
use super::write::Written;
use super::*;
use crate::cache::{Cache, CacheOptions};
use crate::config::{Config, Sources};

fn flag(key: &str, text: &str) -> crate::config::FlagValue {
    crate::config::FlagValue {
        key: key.to_owned(),
        text: text.to_owned(),
        flag: "--set".to_owned(),
    }
}

/// A node with the file of the folder; its tasks do not run.
async fn node(folder: &Path, more: &[(&str, &str)]) -> Arc<Events> {
    let path = folder.join("test.db").display().to_string();
    let kinds = "connected,disconnected,channel_occupied,channel_vacated,message";
    let given = [
        ("database.sqlite_path", path.as_str()),
        ("events.record", kinds),
        ("events.channels", "*"),
        ("events.sessions", "true"),
    ];
    let flags = given.iter().chain(more).map(|(key, text)| flag(key, text)).collect();
    let config = Config::load(&Sources { flags, ..Sources::default() }).unwrap().config;
    let store = Arc::new(Store::open(&config.database).unwrap());
    store.migrate().await.unwrap();
    let options = CacheOptions { memory_max: config.cache.store_bytes(), shares: Vec::new() };
    let cache = Cache::new(&options, None).unwrap();
    let last_seen = open_last_seen(&config, &cache).unwrap();
    let events = Events::new(&config, store, last_seen).unwrap().unwrap();
    events.prepare().await.unwrap();
    events.join(events.node(), None).await.unwrap();
    events
}

fn occupancy(channel: &str, watched: bool) -> Batch {
    let change = Occupancy { channel: channel.into(), watched, at: 1 };
    Batch { channels: vec![change], ..Batch::default() }
}

fn session(kind: EventKind, session: &str) -> Batch {
    let detail = json!({"reason": "closed_by_client"});
    let entry = Entry::new(kind, &detail).user("ann").session(session).address("192.0.2.1");
    Batch { entries: vec![entry], ..Batch::default() }
}

async fn written(events: &Events, number: i64, batch: &Batch) -> Vec<&'static str> {
    match events.write_batch(number, batch).await.unwrap() {
        Written::Done(counts) => counts.into_keys().collect(),
        Written::Fenced => vec!["fenced"],
    }
}

async fn log(events: &Events) -> Vec<String> {
    let filter = Filter { after: Some(0), limit: 1000, ..Filter::default() };
    let found = events.find(&filter).await.unwrap();
    let ids: Vec<i64> = found.iter().map(|event| event.id).collect();
    assert_eq!(
        ids,
        (1..=i64::try_from(ids.len()).unwrap()).collect::<Vec<_>>(),
        "no id is left out"
    );
    let subject = |event: &Event| event.channel.clone().or_else(|| event.session.clone());
    found.iter().map(|event| format!("{} {}", event.kind, subject(event).unwrap())).collect()
}

#[tokio::test]
async fn a_batch_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let events = node(folder.path(), &[]).await;
    let batch = session(EventKind::Connected, "s1");
    assert_eq!(written(&events, 1, &batch).await, ["connected"]);
    assert!(written(&events, 1, &batch).await.is_empty(), "it is there already");
    assert!(written(&events, 2, &Batch::default()).await.is_empty(), "a sign of life");
    assert_eq!(
        written(&events, 3, &session(EventKind::Disconnected, "s1")).await,
        ["disconnected"]
    );
    assert_eq!(log(&events).await, ["connected s1", "disconnected s1"]);
}

#[tokio::test]
async fn a_channel_is_occupied_once_and_vacated_once() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (node(folder.path(), &[]).await, node(folder.path(), &[]).await);
    assert_eq!(written(&a, 1, &occupancy("room", true)).await, ["channel_occupied"]);
    assert!(written(&b, 1, &occupancy("room", true)).await.is_empty());
    assert!(written(&a, 2, &occupancy("room", false)).await.is_empty());
    assert!(written(&a, 3, &occupancy("room", false)).await.is_empty(), "told twice");
    assert_eq!(written(&b, 2, &occupancy("room", false)).await, ["channel_vacated"]);
    assert_eq!(log(&a).await, ["channel_occupied room", "channel_vacated room"]);
}

#[tokio::test]
async fn nodes_that_race_for_a_channel_agree() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (node(folder.path(), &[]).await, node(folder.path(), &[]).await);
    for number in 1..=40 {
        let batch = occupancy("room", number % 2 == 1);
        let (one, other) = tokio::join!(written(&a, number, &batch), written(&b, number, &batch));
        assert_eq!(one.len() + other.len(), 1, "round {number}: {one:?} {other:?}");
    }
    assert_eq!(log(&a).await.len(), 40);
}

#[tokio::test]
async fn what_a_dead_node_leaves_ends_once() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (node(folder.path(), &[]).await, node(folder.path(), &[]).await);
    written(&a, 1, &session(EventKind::Connected, "s1")).await;
    written(&a, 2, &occupancy("alone", true)).await;
    written(&a, 3, &occupancy("both", true)).await;
    written(&b, 1, &occupancy("both", true)).await;
    let dead = a.node();
    assert!(!b.end_node(dead, Some(2)).await.unwrap(), "it has written since");
    assert!(b.end_node(dead, Some(3)).await.unwrap());
    assert!(!b.end_node(dead, Some(3)).await.unwrap());
    let told = log(&b).await;
    assert_eq!(told[3..], ["disconnected s1", "channel_vacated alone"]);
    let (sessions, seen) = b.sessions("ann", i64::MAX, 10).await.unwrap();
    assert_eq!(sessions[0].reason.as_deref(), Some("node_lost"));
    assert_eq!(seen, sessions[0].disconnected_at);

    // It was only away, and comes back.
    assert_eq!(written(&a, 4, &Batch::default()).await, ["fenced"]);
    let new = nodes::new_id();
    assert!(a.join(new, Some(dead)).await.unwrap().is_empty());
    a.node.store(new, Ordering::Relaxed);
    assert_eq!(log(&b).await[5..], ["connected s1"], "the session goes on");
    assert!(b.sessions("ann", i64::MAX, 10).await.unwrap().0[0].disconnected_at.is_none());
    assert_eq!(written(&a, 5, &occupancy("alone", true)).await, ["channel_occupied"]);
    assert_eq!(written(&a, 6, &session(EventKind::Disconnected, "s1")).await, ["disconnected"]);
}

/// Taken for gone, but back before everything was ended.
#[tokio::test]
async fn a_node_that_comes_back_keeps_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let a = node(folder.path(), &[]).await;
    written(&a, 1, &occupancy("room", true)).await;
    let (old, new) = (a.node(), nodes::new_id());
    for _ in 0..2 {
        let rows = a.join(new, Some(old)).await.unwrap();
        assert_eq!(
            rows.into_iter().collect::<Vec<_>>(),
            ["room"],
            "also when it is not known what came of it"
        );
    }
    assert!(a.end_node(old, None).await.unwrap());
    assert_eq!(log(&a).await, ["channel_occupied room"]);
}

#[tokio::test]
async fn old_events_and_sessions_leave() {
    let folder = tempfile::tempdir().unwrap();
    let events = node(folder.path(), &[("events.retention", "1h")]).await;
    let mut old = session(EventKind::Connected, "s1");
    old.entries[0].at -= 7_200_000;
    written(&events, 1, &old).await;
    let mut ended = session(EventKind::Disconnected, "s1");
    ended.entries[0].at -= 7_100_000;
    written(&events, 2, &ended).await;
    written(&events, 3, &session(EventKind::Connected, "s2")).await;
    assert_eq!(events.remove_old().await.unwrap(), 2);
    let filter = Filter { limit: 10, ..Filter::default() };
    let left = events.find(&filter).await.unwrap();
    assert_eq!(left.iter().map(|event| event.id).collect::<Vec<_>>(), [3]);
    assert_eq!(events.sessions("ann", i64::MAX, 10).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn pages_of_sessions_hold_each_once() {
    let folder = tempfile::tempdir().unwrap();
    let events = node(folder.path(), &[]).await;
    let mut batch = Batch::default();
    for n in 0..7 {
        let mut one = session(EventKind::Connected, &format!("s{n}")).entries.remove(0);
        // Three of them begin together.
        one.at = 1000 + if (2..=4).contains(&n) { 2 } else { n };
        batch.entries.push(one);
    }
    written(&events, 1, &batch).await;
    let (mut before, mut found) = (i64::MAX, Vec::new());
    loop {
        let page = events.sessions("ann", before, 2).await.unwrap().0;
        let Some(last) = page.last() else { break };
        before = last.connected_at;
        found.extend(page.into_iter().map(|session| session.id));
    }
    found.sort();
    assert_eq!(found, (0..7).map(|n| format!("s{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn when_a_user_was_last_seen_is_kept_until_it_changes_here() {
    let folder = tempfile::tempdir().unwrap();
    let events = node(folder.path(), &[("cache.last_seen_ttl", "1h")]).await;
    let ended = |name: &str, at: i64| {
        let mut batch = session(EventKind::Disconnected, name);
        batch.entries[0].at = at;
        batch
    };
    let seen = async || events.last_seen(&["ann".to_owned(), "bob".to_owned()]).await.unwrap();
    written(&events, 1, &session(EventKind::Connected, "s1")).await;
    written(&events, 2, &session(EventKind::Connected, "s2")).await;
    written(&events, 3, &session(EventKind::Connected, "s3")).await;
    assert_eq!(seen().await, [None, None]);
    // As another node would.
    written(&events, 4, &ended("s1", 100)).await;
    assert_eq!(seen().await, [None, None], "it is not read again");
    events.write_patiently(&mut 4, ended("s2", 200)).await;
    assert_eq!(seen().await, [Some(200), None]);
    events.write_patiently(&mut 5, ended("s3", 300)).await;
    assert_eq!(seen().await, [Some(300), None]);
}
