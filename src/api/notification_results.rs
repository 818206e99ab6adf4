//! Results of calls about notifications.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::error::ErrorBody;

/// A notification was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NotificationResult {
    /// Its id, or that of the first one with the same idempotency key.
    pub notification_id: String,
    /// Whether nothing was done, because it had been done before with the same idempotency key.
    pub duplicate: bool,
    /// Users who have it in their inbox now.
    pub delivered: usize,
    /// Users who get it into their inbox later: by `deliver_at`, quiet hours or a digest.
    pub held: usize,
    /// Deliveries by other ways than the inbox: mails, push messages, webhooks.
    pub queued: usize,
    /// Users whose preferences do not want it, or who cannot be reached because the delivery channels are switched off.
    pub opted_out: usize,
    /// Users who want it and have no address for the delivery channels that could bring it.
    pub no_address: usize,
    /// With `audience`: whether a node did not say in time who is online there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Outcome of one of several notifications.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NotificationReply {
    /// It was taken.
    Result(NotificationResult),
    /// It was not.
    Error(ErrorBody),
}

/// Outcomes in the order of the notifications.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NotificationsResult {
    /// One per notification.
    pub responses: Vec<NotificationReply>,
}

/// How an inbox stands.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CountersResult {
    /// Items that are neither read nor archived.
    pub unread: i64,
    /// Items that no device has shown yet.
    pub unseen: i64,
    /// Grows with every change of the inbox.
    pub revision: i64,
}

/// A page of an inbox, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InboxResult {
    /// Items as in the WebSocket protocol.
    #[schema(value_type = Vec<Object>)]
    pub items: Vec<Box<RawValue>>,
    /// Give it as `before` for the next page; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<i64>,
    /// How the inbox stands.
    #[serde(flatten)]
    pub counters: CountersResult,
}

/// Items were marked.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MarkedResult {
    /// Items that had not been so before.
    pub changed: usize,
    /// How the inbox stands.
    #[serde(flatten)]
    pub counters: CountersResult,
}

/// A user's preferences.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreferencesResult {
    /// The user's own.
    #[schema(value_type = Object)]
    pub preferences: Value,
    /// What holds where the user's own say nothing.
    #[schema(value_type = Object)]
    pub defaults: Value,
}

/// A user's addresses.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ContactsResult {
    /// Mail address.
    pub email: Option<String>,
    /// Phone number.
    pub phone: Option<String>,
    /// Browsers that get push messages.
    pub browsers: usize,
}

/// A template was stored.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateVersionResult {
    /// Its version, which an equal document had already.
    pub version: i64,
}

/// A stored template.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateEntry {
    /// Name.
    pub name: String,
    /// Version, from 1.
    pub version: i64,
    /// SHA-256 of the document.
    pub digest: String,
    /// Unix milliseconds.
    pub created_at: i64,
    /// The template.
    #[schema(value_type = Object)]
    pub document: Box<RawValue>,
}

/// Templates by name, the newest version first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplatesResult {
    /// Templates.
    pub templates: Vec<TemplateEntry>,
}

/// What a template makes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreviewResult {
    /// Texts by delivery channel, or `error`.
    #[schema(value_type = Object)]
    pub channels: Value,
}

/// Items of inboxes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InboxSum {
    /// Category.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<&'static str>,
    /// How many.
    pub items: i64,
    /// Seen.
    pub seen: i64,
    /// Read.
    pub read: i64,
    /// Confirmed by a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acked: Option<i64>,
    /// Archived.
    pub archived: i64,
}

/// Deliveries by other ways than the inbox, and held items.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeliverySum {
    /// Delivery channel.
    pub channel: String,
    /// Category.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<&'static str>,
    /// `pending`, `sending`, `retrying`, `sent`, `delivered`, `failed` or `dead`.
    pub status: String,
    /// How many.
    pub count: i64,
}

/// A delivery.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeliveryEntry {
    /// Its id.
    pub id: i64,
    /// Notification.
    pub notification_id: String,
    /// User.
    pub user: String,
    /// Delivery channel.
    pub channel: String,
    /// `pending`, `sending`, `retrying`, `sent`, `delivered`, `failed` or `dead`.
    pub status: String,
    /// Attempts so far.
    pub attempts: i64,
    /// Why the last one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Unix milliseconds of the last change.
    pub updated_at: i64,
}

/// What became of a notification.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StatusResult {
    /// Its items in inboxes.
    pub inbox: InboxSum,
    /// Deliveries by channel and status.
    pub deliveries: Vec<DeliverySum>,
    /// The first 200 deliveries.
    pub listed: Vec<DeliveryEntry>,
}

/// Deliveries that were given up.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLettersResult {
    /// The newest first.
    pub deliveries: Vec<DeliveryEntry>,
    /// Give it as `before` for the next page; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<i64>,
}

/// Deliveries are tried again.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RetriedResult {
    /// How many.
    pub retried: u64,
}

/// Sums over a time.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnalyticsResult {
    /// Items of inboxes by category and priority.
    pub inbox: Vec<InboxSum>,
    /// Deliveries by channel, category, priority and status.
    pub deliveries: Vec<DeliverySum>,
}
