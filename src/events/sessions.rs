//! Sessions of users: from the events of their connections, in the same transaction.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Events;
use super::entry::Entry;
use super::write::Writer;
use crate::cache::{Cache, CacheError, Region, RegionName, RegionSpec};
use crate::config::Config;
use crate::config::sections::EventKind;
use crate::store::{Arg, Row, StoreError, Transaction};

/// When users were last seen, in Unix milliseconds, by their ids.
pub(crate) type LastSeen = Region<str, i64, StoreError>;

/// A session as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Public session id.
    pub id: String,
    /// `node.name`.
    pub node: String,
    /// Address of the client.
    pub address: String,
    /// `User-Agent` of the handshake.
    pub user_agent: Option<String>,
    /// Unix milliseconds.
    pub connected_at: i64,
    /// Unix milliseconds; absent while it is open.
    pub disconnected_at: Option<i64>,
    /// Why it has ended.
    pub reason: Option<String>,
}

/// Makes and ends the sessions that the entries tell of.
pub(super) async fn write(
    transaction: &mut Transaction,
    writer: Writer<'_>,
    entries: &[Entry],
) -> Result<(), StoreError> {
    let of = |kind| entries.iter().filter(move |entry| entry.kind == kind);
    let begun: Vec<Value> = of(EventKind::Connected)
        .map(|entry| {
            let detail: Value = serde_json::from_str(&entry.detail).unwrap_or_default();
            json!({
                "session": entry.session, "user_id": entry.user, "address": entry.address,
                "user_agent": detail["user_agent"], "connected_at": entry.at,
            })
        })
        .collect();
    let columns = [
        ("session", true),
        ("user_id", true),
        ("address", true),
        ("user_agent", true),
        ("connected_at", false),
    ];
    if !begun.is_empty() {
        let names = columns.map(|(name, _)| name).join(", ");
        let sql = format!(
            "INSERT INTO archmesh_sessions (node, node_name, {names}) SELECT $2, $3, {names} FROM {} WHERE true \
             ON CONFLICT (session) DO NOTHING",
            transaction.dialect().rows("$1", &columns)
        );
        let begun = Value::Array(begun).to_string();
        let args = [Arg::Text(&begun), Arg::Int(writer.node), Arg::Text(writer.name)];
        transaction.execute(sql, &args).await?;
    }
    let ended: Vec<Value> = of(EventKind::Disconnected)
        .map(|entry| {
            let detail: Value = serde_json::from_str(&entry.detail).unwrap_or_default();
            json!({"session": entry.session, "reason": detail["reason"], "ended_at": entry.at})
        })
        .collect();
    if !ended.is_empty() {
        let columns = [("session", true), ("reason", true), ("ended_at", false)];
        let sql = format!(
            "UPDATE archmesh_sessions SET disconnected_at = r.ended_at, reason = r.reason FROM {} \
             WHERE archmesh_sessions.session = r.session AND archmesh_sessions.disconnected_at IS NULL",
            transaction.dialect().rows("$1", &columns)
        );
        transaction.execute(sql, &[Arg::Text(&Value::Array(ended).to_string())]).await?;
    }
    Ok(())
}

fn session_of(row: &Row) -> Result<Session, StoreError> {
    Ok(Session {
        id: row.text(0)?,
        node: row.text(1)?,
        address: row.text(2)?,
        user_agent: row.maybe_text(3)?,
        connected_at: row.int(4)?,
        disconnected_at: row.maybe_int(5)?,
        reason: row.maybe_text(6)?,
    })
}

impl Events {
    /// Sessions of a user that began before `before`, the newest first: `limit` of them, and those that began together with the
    /// last; and when the user was last seen, unless that is now.
    pub(crate) async fn sessions(
        &self,
        user: &str,
        before: i64,
        limit: u32,
    ) -> Result<(Vec<Session>, Option<i64>), StoreError> {
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let sql = "SELECT session, node_name, address, user_agent, connected_at, disconnected_at, reason \
                       FROM archmesh_sessions WHERE user_id = $1 AND connected_at < $2 AND connected_at >= \
                       (SELECT coalesce(min(connected_at), 0) FROM (SELECT connected_at FROM archmesh_sessions \
                       WHERE user_id = $1 AND connected_at < $2 ORDER BY connected_at DESC LIMIT $3) page) \
                       ORDER BY connected_at DESC, session";
            let args = [Arg::Text(user), Arg::Int(before), Arg::Int(i64::from(limit))];
            let rows = transaction.fetch(sql, &args).await?;
            let sql = "SELECT count(*) - count(disconnected_at), max(disconnected_at) FROM archmesh_sessions \
                       WHERE user_id = $1";
            let seen = transaction.fetch(sql, &[Arg::Text(user)]).await?;
            transaction.commit().await?;
            let seen = match seen.first() {
                Some(row) if row.int(0)? == 0 => row.maybe_int(1)?,
                _ => None,
            };
            let sessions: Result<Vec<Session>, StoreError> = rows.iter().map(session_of).collect();
            Ok((sessions?, seen))
        };
        self.store.run(read).await
    }

    /// When each of `users` was last seen, in Unix milliseconds, in their order; `None` for those without an ended session. What
    /// other nodes have written within `cache.last_seen_ttl` may be missing.
    pub(crate) async fn last_seen(&self, users: &[String]) -> Result<Vec<Option<i64>>, StoreError> {
        let keys: Vec<&str> = users.iter().map(String::as_str).collect();
        let load = |missing: Vec<&str>| {
            let missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
            self.read_last_seen(missing)
        };
        let seen = self.last_seen.get_many_or_load(&keys, load).await?;
        Ok(seen.into_iter().map(|at| at.map(|at| *at)).collect())
    }

    async fn read_last_seen(&self, users: Vec<String>) -> Result<Vec<Option<i64>>, StoreError> {
        let sql = format!(
            "SELECT user_id, max(disconnected_at) FROM archmesh_sessions WHERE user_id IN {} GROUP BY user_id",
            self.store.dialect().texts("$1")
        );
        let rows = self.store.read(sql, &[Arg::Text(&json!(users).to_string())]).await?;
        let found = rows.iter().map(|row| Ok((row.text(0)?, row.maybe_int(1)?)));
        let found = found.collect::<Result<HashMap<_, _>, StoreError>>()?;
        Ok(users.iter().map(|user| found.get(user).copied().flatten()).collect())
    }

    /// Sessions have ended, and this node has written it.
    pub(super) fn forget_last_seen(&self, ended: &[Entry]) {
        let ended = ended.iter().filter(|entry| entry.kind == EventKind::Disconnected);
        for user in ended.filter_map(|entry| entry.user.as_deref()) {
            self.last_seen.invalidate_local(user);
        }
    }
}

/// The region of [`Events::last_seen`]. Not in Redis: every end of a connection would have to invalidate it there.
pub(crate) fn open_last_seen(config: &Config, cache: &Cache) -> Result<LastSeen, CacheError> {
    let ttl = config.cache.last_seen_ttl;
    let spec = RegionSpec {
        negative_ttl: Some(ttl),
        load_timeout: config.database.query_timeout,
        ..RegionSpec::new(ttl)
    };
    cache.region(RegionName::LastSeen, spec)
}
