//! Events as they are read: by the API, and by the endpoints.

use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Events;
use crate::config::sections::EventKind;
use crate::store::{Arg, Row, StoreError};

/// Columns in the order of [`Event::read`].
pub(super) const COLUMNS: &str = "id, at, node, kind, user_id, session, address, channel, detail";

/// An event of the log.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Event {
    /// Place in the log of the cluster, by which it is known: nothing has the same id.
    pub id: i64,
    /// What happened: `connected`, `disconnected`, `authentication_failed`, `channel_occupied`, `channel_vacated`, `message`,
    /// `revoked` or `admin_action`.
    #[serde(rename = "type")]
    #[schema(example = "connected")]
    pub kind: String,
    /// When, in Unix milliseconds.
    pub at: i64,
    /// `node.name` of the node where it happened.
    pub node: String,
    /// User id; absent for anonymous ones, and where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Public session id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Address of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// What else there is to say, by type.
    #[schema(value_type = Object)]
    pub data: Box<RawValue>,
}

/// Which events to read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Of this kind.
    pub kind: Option<EventKind>,
    /// Of this user.
    pub user: Option<String>,
    /// Of this session.
    pub session: Option<String>,
    /// In this channel.
    pub channel: Option<String>,
    /// Not before, in Unix milliseconds.
    pub from: Option<i64>,
    /// Before, in Unix milliseconds.
    pub to: Option<i64>,
    /// Before this one in the log.
    pub before: Option<i64>,
    /// After this one in the log; then the oldest come first.
    pub after: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

impl Event {
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        let detail = RawValue::from_string(row.text(8)?);
        Ok(Self {
            id: row.int(0)?,
            at: row.int(1)?,
            node: row.text(2)?,
            kind: row.text(3)?,
            user_id: row.maybe_text(4)?,
            session: row.maybe_text(5)?,
            address: row.maybe_text(6)?,
            channel: row.maybe_text(7)?,
            data: detail.map_err(|_| StoreError::Unexpected("an event that is no JSON"))?,
        })
    }

    /// Roughly the length of its JSON form.
    pub(super) fn bytes(&self) -> usize {
        let texts = [&self.user_id, &self.session, &self.address, &self.channel];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        150 + texts + self.node.len() + self.data.get().len()
    }
}

impl Events {
    /// Events that fit, the newest first, or after [`Filter::after`] the oldest first.
    pub(crate) async fn find(&self, filter: &Filter) -> Result<Vec<Event>, StoreError> {
        let texts = [
            ("kind", filter.kind.map(EventKind::as_str)),
            ("user_id", filter.user.as_deref()),
            ("session", filter.session.as_deref()),
            ("channel", filter.channel.as_deref()),
        ];
        let numbers = [
            ("at >=", filter.from),
            ("at <", filter.to),
            ("id <", filter.before),
            ("id >", filter.after),
        ];
        let mut args: Vec<Arg<'_>> = vec![Arg::Int(i64::from(filter.limit))];
        let mut wheres = vec!["true".to_owned()];
        for (column, text) in texts {
            if let Some(text) = text {
                args.push(Arg::Text(text));
                wheres.push(format!("{column} = ${}", args.len()));
            }
        }
        for (comparison, number) in numbers {
            if let Some(number) = number {
                args.push(Arg::Int(number));
                wheres.push(format!("{comparison} ${}", args.len()));
            }
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM archmesh_events WHERE {} ORDER BY id {} LIMIT $1",
            wheres.join(" AND "),
            if filter.after.is_some() { "ASC" } else { "DESC" }
        );
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let rows = transaction.fetch(sql, &args).await?;
            transaction.commit().await?;
            rows.iter().map(Event::read).collect()
        };
        self.store.run(read).await
    }
}

/// The JSON body of a batch for an endpoint.
pub(super) fn body(events: &[Event]) -> Result<String, StoreError> {
    serde_json::to_string(&json!({"events": events}))
        .map_err(|_| StoreError::Unexpected("an event that has no JSON form"))
}
