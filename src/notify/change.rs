//! What can happen to inboxes, and what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kinds::{Category, DeliveryChannel, Priority};

/// A notification, checked, as it is stored once for all its recipients.
#[derive(Clone, Debug)]
pub(crate) struct Notification {
    /// Ours: time-ordered.
    pub id: String,
    /// Sending again with the same key answers the first one.
    pub idempotency_key: Option<String>,
    /// What it is about.
    pub category: Category,
    /// How urgent it is.
    pub priority: Priority,
    /// JSON object with `title`, `message` and, when given, `action` and `metadata`.
    pub content: String,
    /// The same in other languages, by locale.
    pub texts: BTreeMap<String, String>,
    /// JSON of the template that it was made of: `name`, `version`, `variables`.
    pub template: Option<String>,
    /// It replaces the unread item of the same key.
    pub collapse_key: Option<String>,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Unix milliseconds.
    pub expires_at: Option<i64>,
}

impl Notification {
    /// Its content for a reader.
    pub(super) fn content_in(&self, locale: Option<&str>) -> &str {
        locale.and_then(|locale| self.texts.get(locale)).unwrap_or(&self.content)
    }
}

/// Who gets a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipient {
    /// User id.
    pub user: String,
    /// Locale of the text that is for them, when it is not the content.
    pub locale: Option<Arc<str>>,
}

/// What reaches a user later than now, or by another way than the inbox.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Whose.
    pub recipient: Recipient,
    /// By which way.
    pub channel: DeliveryChannel,
    /// Row of the address; 0 where none is needed.
    pub contact: i64,
    /// Unix milliseconds from which on it may be shown.
    pub due_at: i64,
    /// Items of the same user and key are shown as one.
    pub digest_key: Option<String>,
}

/// What a user or a device has done with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It was shown.
    Seen,
    /// It was read; that includes seen.
    Read,
    /// It has arrived on a device.
    Acked,
    /// It was put away.
    Archived,
}

impl Mark {
    /// Name of the state on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Read => "read",
            Self::Acked => "acked",
            Self::Archived => "archived",
        }
    }

    /// Columns that it sets where they are empty; the first one says whether it has happened already.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Seen => &["seen_at", "acked_at"],
            Self::Read => &["read_at", "seen_at", "acked_at"],
            Self::Acked => &["acked_at"],
            Self::Archived => &["archived_at", "acked_at"],
        }
    }
}

/// Which items of an inbox.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    /// By notification id.
    Ids(Vec<String>),
    /// All up to this place; all there are without one.
    UpTo(Option<i64>),
}

/// One change, done whole or not at all.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A notification goes to users.
    Send {
        /// What.
        notification: Arc<Notification>,
        /// Who gets it into the inbox now, each named once.
        now: Vec<Recipient>,
        /// What goes out later, or by other ways.
        later: Vec<Held>,
    },
    /// Held items are due.
    Release(Vec<Due>),
    /// Held items are due that are shown as one.
    Digest {
        /// Rows of the deliveries.
        done: Vec<i64>,
        /// Whose.
        recipient: Recipient,
        /// What is shown.
        notification: Arc<Notification>,
    },
    /// Items get a mark.
    Mark {
        /// Whose.
        user: String,
        /// Which mark.
        mark: Mark,
        /// Which items.
        which: Which,
    },
    /// Items that have expired, or are older than `created_before`, leave an inbox.
    Clean {
        /// Whose.
        user: String,
        /// Unix milliseconds.
        created_before: i64,
    },
}

/// A held item whose time has come.
#[derive(Clone, Debug)]
pub(crate) struct Due {
    /// Row of the delivery.
    pub delivery: i64,
    /// Whose.
    pub recipient: Recipient,
    /// What.
    pub notification: Arc<Notification>,
}

impl Due {
    /// Whether it is too late to show it.
    pub(super) fn has_expired(&self, now_ms: i64) -> bool {
        self.notification.expires_at.is_some_and(|at| at <= now_ms)
    }
}

impl Change {
    /// Users whose inboxes it touches.
    pub(super) fn users(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Send { now, .. } => Box::new(now.iter().map(|to| to.user.as_str())),
            Self::Release(due) => Box::new(due.iter().map(|due| &*due.recipient.user)),
            Self::Digest { recipient, .. } => Box::new(std::iter::once(&*recipient.user)),
            Self::Mark { user, .. } | Self::Clean { user, .. } => {
                Box::new(std::iter::once(&**user))
            }
        }
    }

    /// Rows that it may write, about.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Send { now, later, .. } => 1 + now.len() + later.len(),
            Self::Release(due) => due.len(),
            Self::Digest { .. } | Self::Mark { .. } | Self::Clean { .. } => 1,
        }
    }

    /// The notification that it brings.
    pub(super) fn notification(&self) -> Option<&Arc<Notification>> {
        match self {
            Self::Send { notification, .. } | Self::Digest { notification, .. } => {
                Some(notification)
            }
            Self::Release(_) | Self::Mark { .. } | Self::Clean { .. } => None,
        }
    }
}

/// Numbers of an inbox. A higher revision is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Counters {
    /// Place of the newest item that ever was.
    #[serde(skip)]
    pub last_seq: i64,
    /// Items that are neither read nor archived.
    pub unread: i64,
    /// Items that were not shown and are not archived.
    pub unseen: i64,
    /// Items that no device has confirmed and that are not archived.
    #[serde(skip)]
    pub unacked: i64,
    /// Grows with every change.
    pub revision: i64,
}

impl Counters {
    /// As members of a message.
    pub(super) fn put_into(self, message: &mut serde_json::Value) {
        message["unread"] = self.unread.into();
        message["unseen"] = self.unseen.into();
        message["revision"] = self.revision.into();
    }
}

/// What came of a change.
#[derive(Clone, Debug)]
pub(crate) enum Applied {
    /// To [`Change::Send`]: the id that stands, which is another one's when the idempotency key was used before.
    Sent {
        /// Notification.
        id: String,
        /// Whether nothing was done, because it had been done before.
        duplicate: bool,
    },
    /// To [`Change::Release`] and [`Change::Digest`].
    Released,
    /// To [`Change::Mark`] and [`Change::Clean`]: so many items changed, and how the inbox stands now.
    Changed(usize, Counters),
}
