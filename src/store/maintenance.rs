//! What backups need of the store. None of it has the deadline of requests: a large database takes its time.

use std::path::Path;

use super::{Arg, Pools, Store, StoreError, migrations};

/// More than an inbox changes between a backup and its restore.
const REVISIONS_SKIPPED: i64 = 1_000_000;

impl Store {
    /// How many migrations the schema has.
    pub(crate) async fn migrations_applied(&self) -> Result<i64, StoreError> {
        let mut transaction = self.begin_read().await?;
        let sql = format!("SELECT count(*) FROM {}", migrations::TABLE);
        let rows = transaction.fetch(sql, &[]).await?;
        transaction.commit().await?;
        rows.first().map_or(Ok(0), |row| row.int(0))
    }

    /// Whether anybody has used it.
    pub(crate) async fn has_notifications(&self) -> Result<bool, StoreError> {
        let mut transaction = self.begin_read().await?;
        let sql = "SELECT 1 FROM archmesh_notifications UNION ALL SELECT 1 FROM archmesh_inboxes \
                   UNION ALL SELECT 1 FROM archmesh_preferences UNION ALL SELECT 1 FROM archmesh_templates \
                   UNION ALL SELECT 1 FROM archmesh_contacts UNION ALL SELECT 1 FROM archmesh_outbox \
                   UNION ALL SELECT 1 FROM archmesh_streams UNION ALL SELECT 1 FROM archmesh_event_counter \
                   UNION ALL SELECT 1 FROM archmesh_event_nodes UNION ALL SELECT 1 FROM archmesh_webhook_cursors LIMIT $1";
        let rows = transaction.fetch(sql, &[Arg::Int(1)]).await?;
        transaction.commit().await?;
        Ok(!rows.is_empty())
    }

    /// Lets counters count on from far above: clients leave out what has a lower revision than they have seen.
    pub(crate) async fn advance_revisions(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let sql = "UPDATE archmesh_inboxes SET revision = revision + $1";
        transaction.execute(sql, &[Arg::Int(REVISIONS_SKIPPED)]).await?;
        transaction.commit().await
    }

    /// Lets durable streams begin anew when they are used next: what was published after the backup had the same places.
    pub(crate) async fn begin_streams_anew(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        transaction.execute("UPDATE archmesh_streams SET incarnation = ''", &[]).await?;
        transaction.commit().await
    }

    /// Copies a file of SQLite as it is at one moment, while it is in use; `to` must not exist.
    pub(crate) async fn copy_sqlite(&self, to: &Path) -> Result<(), StoreError> {
        let Pools::Sqlite { read, .. } = &self.pools else {
            return Err(StoreError::Unexpected("a copy of another database than SQLite"));
        };
        let to = to.display().to_string();
        sqlx::query("VACUUM INTO $1").bind(to).execute(read).await?;
        Ok(())
    }
}
