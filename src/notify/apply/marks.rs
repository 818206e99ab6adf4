//! Marks on items, and items that leave.

use serde_json::json;

use super::super::change::{Applied, Mark, Which};
use super::Batch;
use crate::store::{Arg, StoreError};

/// How many items a condition meets, and what they count for.
struct Matching {
    items: i64,
    unread: i64,
    unseen: i64,
    unacked: i64,
}

impl Batch<'_> {
    pub(super) async fn mark(
        &mut self,
        user: &str,
        mark: Mark,
        which: &Which,
    ) -> Result<Applied, StoreError> {
        let columns = mark.columns();
        let condition = format!("{} IS NULL", columns[0]);
        let newest = self.counters.get(user).map_or(0, |counters| counters.last_seq);
        let (condition, parameter) = match which {
            Which::Ids(ids) => {
                let ids_in = self.transaction.dialect().texts("$2");
                (format!("{condition} AND notification_id IN {ids_in}"), Ok(json!(ids).to_string()))
            }
            Which::UpTo(seq) => {
                (format!("{condition} AND seq <= $2"), Err(seq.unwrap_or(newest).min(newest)))
            }
        };
        let parameter = match &parameter {
            Ok(ids) => Arg::Text(ids),
            Err(seq) => Arg::Int(*seq),
        };
        let found = self.count_matching(user, &condition, parameter).await?;
        if found.items == 0 {
            return Ok(Applied::Changed(0, self.counters.get(user).copied().unwrap_or_default()));
        }
        let set: Vec<String> =
            columns.iter().map(|column| format!("{column} = coalesce({column}, $3)")).collect();
        let sql = format!(
            "UPDATE archmesh_inbox SET {} WHERE user_id = $1 AND {condition}",
            set.join(", ")
        );
        self.transaction.execute(sql, &[Arg::Text(user), parameter, Arg::Int(self.now_ms)]).await?;
        let counters = self.counters.entry(user.to_owned()).or_default();
        if matches!(mark, Mark::Read | Mark::Archived) {
            counters.unread -= found.unread;
        }
        if matches!(mark, Mark::Seen | Mark::Read | Mark::Archived) {
            counters.unseen -= found.unseen;
        }
        counters.unacked -= found.unacked;
        let counters = self.touch(user);
        let what = match which {
            Which::Ids(ids) => json!({"state": mark.as_str(), "ids": ids}),
            Which::UpTo(seq) => {
                json!({"state": mark.as_str(), "all": true, "up_to": seq.unwrap_or(newest).min(newest)})
            }
        };
        self.tell_update(user, what, counters);
        Ok(Applied::Changed(found.items as usize, counters))
    }

    pub(super) async fn clean(
        &mut self,
        user: &str,
        created_before: i64,
    ) -> Result<Applied, StoreError> {
        let condition = "(created_at < $2 OR expires_at <= $3)";
        let sql = format!(
            "DELETE FROM archmesh_inbox WHERE user_id = $1 AND {condition} \
             RETURNING notification_id, seen_at, read_at, acked_at, archived_at"
        );
        let args = [Arg::Text(user), Arg::Int(created_before), Arg::Int(self.now_ms)];
        let rows = self.transaction.fetch(sql, &args).await?;
        let mut ids = Vec::new();
        let counters = self.counters.entry(user.to_owned()).or_default();
        for row in &rows {
            if row.maybe_int(4)?.is_none() {
                counters.unseen -= i64::from(row.maybe_int(1)?.is_none());
                counters.unread -= i64::from(row.maybe_int(2)?.is_none());
                counters.unacked -= i64::from(row.maybe_int(3)?.is_none());
                ids.push(row.text(0)?);
            }
        }
        if rows.is_empty() {
            return Ok(Applied::Changed(0, *counters));
        }
        let counters = self.touch(user);
        self.tell_update(user, json!({"state": "removed", "ids": ids}), counters);
        Ok(Applied::Changed(rows.len(), counters))
    }

    /// Counts the items that a condition meets; archived ones are in no counter.
    async fn count_matching(
        &mut self,
        user: &str,
        condition: &str,
        parameter: Arg<'_>,
    ) -> Result<Matching, StoreError> {
        let sql = format!(
            "SELECT count(*), \
             count(*) FILTER (WHERE read_at IS NULL AND archived_at IS NULL), \
             count(*) FILTER (WHERE seen_at IS NULL AND archived_at IS NULL), \
             count(*) FILTER (WHERE acked_at IS NULL AND archived_at IS NULL) \
             FROM archmesh_inbox WHERE user_id = $1 AND {condition}"
        );
        let rows = self.transaction.fetch(sql, &[Arg::Text(user), parameter]).await?;
        let row = rows.first().ok_or(StoreError::Unexpected("a count without a row"))?;
        Ok(Matching {
            items: row.int(0)?,
            unread: row.int(1)?,
            unseen: row.int(2)?,
            unacked: row.int(3)?,
        })
    }
}
