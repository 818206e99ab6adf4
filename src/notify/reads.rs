//! What can be read of inboxes.

use serde_json::json;

use super::apply::{counters_of, read_counters};
use super::change::Counters;
use super::item;
use crate::store::{Arg, StoreError, Transaction};

/// Which part of an inbox.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    /// At most so many items.
    pub limit: u32,
    /// Items older than this place.
    pub before: Option<i64>,
    /// Items newer than this place.
    pub after: Option<i64>,
    /// Unread items only.
    pub unread: bool,
    /// Archived items instead of the others.
    pub archived: bool,
    /// Items of this category only.
    pub category: Option<String>,
    /// At most so many bytes of items, but one at least.
    pub bytes_max: usize,
}

/// A page of an inbox, newest first.
#[derive(Clone, Debug)]
pub(crate) struct InboxPage {
    /// JSON texts of the items.
    pub items: Vec<String>,
    /// Where the next page begins.
    pub next: Option<i64>,
    /// How the inbox stands.
    pub counters: Counters,
}

impl InboxPage {
    /// JSON object with `items`, `next` and the counters.
    pub(crate) fn to_json(&self) -> String {
        let next = self.next.map(|next| format!(",\"next\":{next}")).unwrap_or_default();
        let counters = json!(self.counters).to_string();
        let counters = counters.trim_start_matches('{');
        format!("{{\"items\":[{}]{next},{counters}", self.items.join(","))
    }
}

/// Bytes of items that go to a client at once, when a message has `message_bytes_max`: what was missed and a page after it
/// must find room in the connection's outbox, which holds one message at least.
pub(super) fn bytes_at_once(message_bytes_max: usize) -> usize {
    message_bytes_max / 4
}

/// How many of `items`, from the first one on, fit into so many bytes; one does always.
pub(super) fn fitting<'a>(items: impl Iterator<Item = &'a String>, bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = items.take_while(|item| {
        bytes += item.len();
        bytes <= bytes_max
    });
    fits.count().max(1)
}

/// Reads a page of `user`'s inbox.
pub(crate) async fn page(
    transaction: &mut Transaction,
    user: &str,
    page: &Page,
    now_ms: i64,
) -> Result<InboxPage, StoreError> {
    let counters = read_counters(transaction, user).await?;
    let archived = if page.archived { "IS NOT NULL" } else { "IS NULL" };
    let unread = if page.unread { "AND i.read_at IS NULL" } else { "" };
    let sql = format!(
        "SELECT {} FROM archmesh_inbox i {} \
         WHERE i.user_id = $1 AND i.seq < $2 AND i.seq > $3 AND i.archived_at {archived} {unread} \
         AND (i.expires_at IS NULL OR i.expires_at > $4) AND ($5 = '' OR n.category = $5) \
         ORDER BY i.seq DESC LIMIT $6",
        item::COLUMNS,
        item::JOIN
    );
    let args = [
        Arg::Text(user),
        Arg::Int(page.before.unwrap_or(i64::MAX)),
        Arg::Int(page.after.unwrap_or(0)),
        Arg::Int(now_ms),
        Arg::Text(page.category.as_deref().unwrap_or("")),
        // One more tells whether there is another page.
        Arg::Int(i64::from(page.limit) + 1),
    ];
    let mut rows = if page.limit == 0 { Vec::new() } else { transaction.fetch(sql, &args).await? };
    let found = rows.len();
    rows.truncate(page.limit as usize);
    let mut items = rows.iter().map(item::stored).collect::<Result<Vec<_>, _>>()?;
    items.truncate(fitting(items.iter(), page.bytes_max));
    let next = match items.len().checked_sub(1) {
        Some(last) if items.len() < found => Some(rows[last].int(0)?),
        _ => None,
    };
    Ok(InboxPage { items, next, counters })
}

/// Items of several users that no device has confirmed, up to `limit` of each, the oldest first; with the user's place in
/// `users`.
pub(crate) async fn unacked(
    transaction: &mut Transaction,
    users: &[&str],
    limit: u32,
    now_ms: i64,
) -> Result<Vec<(String, String)>, StoreError> {
    let sql = format!(
        "SELECT {} FROM (SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY seq DESC) AS place \
         FROM archmesh_inbox WHERE acked_at IS NULL AND archived_at IS NULL \
         AND (expires_at IS NULL OR expires_at > $2) AND user_id IN {}) i \
         {} WHERE i.place <= $3 ORDER BY i.user_id, i.seq",
        item::COLUMNS,
        transaction.dialect().texts("$1"),
        item::JOIN
    );
    let users = json!(users).to_string();
    let args = [Arg::Text(&users), Arg::Int(now_ms), Arg::Int(i64::from(limit))];
    let rows = transaction.fetch(sql, &args).await?;
    rows.iter().map(|row| Ok((row.text(2)?, item::stored(row)?))).collect()
}

/// Counters of several users; those without an inbox are left out.
pub(crate) async fn counters(
    transaction: &mut Transaction,
    users: &[&str],
) -> Result<Vec<(String, Counters)>, StoreError> {
    let sql = format!(
        "SELECT last_seq, unread, unseen, unacked, revision, user_id FROM archmesh_inboxes WHERE user_id IN {}",
        transaction.dialect().texts("$1")
    );
    let users = json!(users).to_string();
    let rows = transaction.fetch(sql, &[Arg::Text(&users)]).await?;
    rows.iter().map(|row| Ok((row.text(5)?, counters_of(row, 0)?))).collect()
}
