//! Bodies of requests about notifications. Unknown fields are refused by name.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::notify::NotificationRequest;

/// Several notifications.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotificationsRequest {
    /// At most `api.batch_max`.
    pub notifications: Vec<NotificationRequest>,
}

/// Which part of a user's inbox.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InboxRequest {
    /// User id.
    pub user: String,
    /// Page size, at most `notifications.page_max`; 0 asks for the counters only.
    pub limit: Option<u32>,
    /// Items older than this `seq`.
    pub before: Option<u64>,
    /// Items newer than this `seq`.
    pub after: Option<u64>,
    /// Unread items only.
    #[serde(default)]
    pub unread: bool,
    /// Archived items instead of the others.
    #[serde(default)]
    pub archived: bool,
    /// Items of this category only.
    pub category: Option<String>,
}

/// What has become of items.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MarkName {
    /// Shown.
    Seen,
    /// Read, and so seen.
    Read,
    /// Received by a device.
    Acked,
    /// Put away.
    Archived,
}

/// Marks items of a user's inbox.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MarkRequest {
    /// User id.
    pub user: String,
    /// The mark.
    pub state: MarkName,
    /// Notification ids, at most `notifications.page_max`.
    pub ids: Option<Vec<String>>,
    /// All items up to `up_to`, instead of `ids`.
    #[serde(default)]
    pub all: bool,
    /// `seq`; the newest when left out.
    pub up_to: Option<u64>,
}

/// Reads or changes preferences.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PreferencesRequest {
    /// User id.
    pub user: String,
    /// Merged into the user's preferences (RFC 7396); null removes a member.
    #[schema(value_type = Option<Object>)]
    pub patch: Option<Value>,
}

/// A member that is absent, null, or there.
#[allow(clippy::option_option, reason = "absent leaves an address, null forgets it")]
fn maybe_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Reads or changes a user's addresses. Members that are left out stay as they are.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContactsRequest {
    /// User id.
    pub user: String,
    /// Mail address; null forgets it.
    #[serde(default, deserialize_with = "maybe_null")]
    #[schema(value_type = Option<String>)]
    #[allow(clippy::option_option, reason = "absent leaves an address, null forgets it")]
    pub email: Option<Option<String>>,
    /// Phone number; null forgets it.
    #[serde(default, deserialize_with = "maybe_null")]
    #[schema(value_type = Option<String>)]
    #[allow(clippy::option_option, reason = "absent leaves an address, null forgets it")]
    pub phone: Option<Option<String>>,
    /// A browser's push subscription, as `PushSubscription.toJSON()` gives it.
    #[schema(value_type = Option<Object>)]
    pub web_push: Option<Value>,
    /// `endpoint` of a subscription that has ended.
    pub web_push_removed: Option<String>,
}

/// Stores a template.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateStoreRequest {
    /// The template (docs/notifications.md). A changed one gets the next version, an equal one none.
    #[schema(value_type = Object)]
    pub document: Value,
}

/// Lists templates.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplatesRequest {
    /// All versions of this name; the newest version of every name when left out.
    pub name: Option<String>,
}

/// Shows what a template makes for each delivery channel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PreviewRequest {
    /// A template that need not be stored.
    #[schema(value_type = Option<Object>)]
    pub document: Option<Value>,
    /// Name of a stored one.
    pub name: Option<String>,
    /// Its version; the newest when left out.
    pub version: Option<u64>,
    /// Language; the template's fallback when left out.
    pub locale: Option<String>,
    /// Values; the template's samples and defaults stand in for what is left out.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub variables: Map<String, Value>,
}

/// Asks what became of a notification.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatusRequest {
    /// Notification.
    pub notification_id: String,
}

/// Lists deliveries that were given up, the newest first.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeadLettersRequest {
    /// Page size, at most `notifications.page_max`.
    pub limit: Option<u32>,
    /// `next` of the page before.
    pub before: Option<u64>,
}

/// Tries given-up deliveries again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetryRequest {
    /// Ids of deliveries.
    pub ids: Option<Vec<u64>>,
    /// All of them, instead of `ids`.
    #[serde(default)]
    pub all: bool,
}

/// Asks for sums.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnalyticsRequest {
    /// Unix milliseconds, included.
    #[serde(default)]
    pub from: u64,
    /// Unix milliseconds, not included; now when left out.
    pub to: Option<u64>,
}
