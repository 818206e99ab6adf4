//! Batches on a real SQLite file.

use std::sync::Arc;

use super::super::change::{Applied, Change, Mark, Notification, Recipient, Which};
use super::super::kinds::Priority;
use super::apply;
use crate::config::sections::DatabaseSection;
use crate::config::{Config, Sources};
use crate::store::Store;

const NOW_MS: i64 = 1_800_000_000_000;

fn section(folder: &std::path::Path) -> DatabaseSection {
    let config = Config::load(&Sources::default()).unwrap().config;
    DatabaseSection { url: None, sqlite_path: folder.join("store"), ..config.database.clone() }
}

fn send(id: &str, collapse_key: Option<&str>) -> Change {
    let notification = Notification {
        id: id.to_owned(),
        idempotency_key: None,
        category: "workflow_failed".parse().unwrap(),
        priority: Priority::Normal,
        content: "{}".to_owned(),
        texts: std::collections::BTreeMap::new(),
        template: None,
        collapse_key: collapse_key.map(str::to_owned),
        created_at: NOW_MS,
        expires_at: None,
    };
    let now = vec![Recipient { user: "ann".to_owned(), locale: None }];
    Change::Send { notification: Arc::new(notification), now, later: Vec::new() }
}

fn read_all() -> Change {
    Change::Mark { user: "ann".to_owned(), mark: Mark::Read, which: Which::UpTo(None) }
}

/// What the marks of the batch came to: items that changed, and up to which place.
async fn marks(store: &Store, changes: &[Change]) -> Vec<(usize, i64)> {
    let work = async {
        let mut transaction = store.begin().await?;
        let applied = apply(&mut transaction, NOW_MS, changes).await?;
        transaction.commit().await?;
        Ok(applied)
    };
    let applied = store.run(work).await.unwrap().into_iter();
    let changed = applied.filter_map(|applied| match applied {
        Applied::Changed(items, counters) => Some((items, counters.last_seq)),
        Applied::Sent { .. } | Applied::Released => None,
    });
    changed.collect()
}

#[tokio::test]
async fn who_marks_everything_means_what_was_there_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&section(folder.path())).unwrap();
    store.migrate().await.unwrap();
    let batch = [send("n1", None), read_all(), send("n2", None), send("n3", None)];
    assert_eq!(marks(&store, &batch).await, [(1, 1)], "n2 and n3 came behind it");
    let batch = [send("n4", None), read_all(), send("n5", None), read_all()];
    assert_eq!(marks(&store, &batch).await, [(3, 4), (1, 5)]);
    assert_eq!(marks(&store, &[read_all()]).await, [(0, 5)]);
    // The newer one of a key takes the older one's place, so the older one is never there.
    let batch = [send("n6", Some("k")), read_all(), send("n7", Some("k"))];
    assert_eq!(marks(&store, &batch).await, [(0, 5)]);
    let sql = "SELECT notification_id FROM archmesh_inbox WHERE read_at IS NULL";
    let unread = store.read(sql, &[]).await.unwrap();
    assert_eq!(unread.iter().map(|row| row.text(0).unwrap()).collect::<Vec<_>>(), ["n7"]);
}

#[tokio::test]
async fn requests_of_one_statement() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&section(folder.path())).unwrap();
    store.migrate().await.unwrap();
    let insert =
        "INSERT INTO archmesh_preferences (user_id, document, updated_at) VALUES ($1, '{}', $2)";
    assert_eq!(store.write(insert, &["ann".into(), 7.into()]).await.unwrap(), 1);
    assert!(store.write(insert, &["ann".into(), 8.into()]).await.is_err(), "it is there");
    let rows = store.read("SELECT updated_at FROM archmesh_preferences", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.int(0).unwrap()).collect::<Vec<_>>(), [7]);
    // A connection whose statement failed is thrown away; the next one is as good.
    assert_eq!(store.write("DELETE FROM archmesh_preferences", &[]).await.unwrap(), 1);
}
