//! An item of an inbox as JSON: in the push when it is new, in pages of the inbox afterwards.
//!
//! The stored content is a JSON object; its members are put beside ours without being read.

use serde_json::json;

use super::change::{Counters, Notification, Recipient};
use super::kinds::Priority;
use crate::store::{Row, StoreError};

/// Columns that [`stored`] reads, in their order; `i` is the item and `n` its notification.
pub(super) const COLUMNS: &str = "i.seq, i.notification_id, i.user_id, n.category, n.priority, coalesce(t.content, n.content), \
    i.collapse_key, i.created_at, i.expires_at, i.seen_at, i.read_at, i.acked_at, i.archived_at";

/// Notifications of items, with the text in the language of each.
pub(super) const JOIN: &str = "JOIN archmesh_notifications n ON n.id = i.notification_id \
    LEFT JOIN archmesh_notification_texts t ON t.notification_id = n.id AND t.locale = i.locale";

/// `data` of the `notification` push: the item, and how the inbox stands with it.
pub(super) fn pushed(
    to: &Recipient,
    (seq, created_at): (i64, i64),
    notification: &Notification,
    counters: Counters,
) -> String {
    let mut head = json!({
        "notification_id": notification.id, "user_id": to.user, "seq": seq,
        "category": notification.category.as_str(), "priority": notification.priority.as_str(),
        "created_at": created_at, "unread": counters.unread, "unseen": counters.unseen,
        "revision": counters.revision,
    });
    put(&mut head, "collapse_key", notification.collapse_key.as_deref());
    put(&mut head, "expires_at", notification.expires_at);
    joined(&head.to_string(), notification.content_in(to.locale.as_deref()))
}

/// An item that was read with [`COLUMNS`].
pub(super) fn stored(row: &Row) -> Result<String, StoreError> {
    let priority =
        Priority::from_number(row.int(4)?).ok_or(StoreError::Unexpected("a priority"))?;
    let mut head = json!({
        "notification_id": row.text(1)?, "user_id": row.text(2)?, "seq": row.int(0)?,
        "category": row.text(3)?, "priority": priority.as_str(), "created_at": row.int(7)?,
    });
    put(&mut head, "collapse_key", row.maybe_text(6)?);
    for (column, name) in [(8, "expires_at"), (9, "seen_at"), (10, "read_at"), (11, "acked_at")] {
        put(&mut head, name, row.maybe_int(column)?);
    }
    put(&mut head, "archived_at", row.maybe_int(12)?);
    Ok(joined(&head.to_string(), &row.text(5)?))
}

fn put<T: Into<serde_json::Value>>(object: &mut serde_json::Value, name: &str, value: Option<T>) {
    if let Some(value) = value {
        object[name] = value.into();
    }
}

/// One object with the members of two, of which neither is empty.
fn joined(head: &str, content: &str) -> String {
    let head = head.trim_end_matches('}');
    format!("{head},{}", content.trim_start_matches('{'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_push_has_the_content_beside_the_rest() {
        let notification = Notification {
            id: "n1".to_owned(),
            idempotency_key: None,
            category: "user_action".parse().unwrap(),
            priority: Priority::High,
            content: r#"{"title":"a}","message":"{b","metadata":{"n":1.50}}"#.to_owned(),
            texts: BTreeMap::from([("de".to_owned(), r#"{"title":"ä","message":"m"}"#.to_owned())]),
            template: None,
            collapse_key: Some("k".to_owned()),
            created_at: 5,
            expires_at: None,
        };
        let counters = Counters { last_seq: 7, unread: 2, unseen: 1, unacked: 1, revision: 9 };
        let mut to = Recipient { user: "alice".to_owned(), locale: Some("fr".into()) };
        let text = pushed(&to, (7, 6), &notification, counters);
        let item: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(item["title"], "a}");
        assert_eq!(item["message"], "{b");
        assert_eq!(
            (&item["seq"], &item["created_at"], &item["unread"]),
            (&7.into(), &6.into(), &2.into())
        );
        assert_eq!((&item["priority"], &item["collapse_key"]), (&"high".into(), &"k".into()));
        assert!(item.get("expires_at").is_none());
        to.locale = Some("de".into());
        assert!(pushed(&to, (7, 6), &notification, counters).contains(r#""title":"ä""#));
        assert!(text.contains(r#""metadata":{"n":1.50}"#), "as it was given: {text}");
    }
}
