//! What callers send, and the checks that make a notification of it.

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::kinds::{Category, DeliveryChannel, Priority};
use crate::config::sections::NotificationsSection;

/// Bytes of an id or a key.
const KEY_BYTES_MAX: usize = 255;
/// Bytes of a user id, whose channel is `user:` and the id.
const USER_BYTES_MAX: usize = KEY_BYTES_MAX - 5;
/// Bytes of a label or a URL.
const ACTION_BYTES_MAX: usize = 2048;

/// What a user can do about a notification.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ActionRequest {
    /// Text of the button.
    pub label: String,
    /// Where it leads: `https:` or `http:`, or a path of the application that begins with `/`.
    pub url: String,
}

/// Who gets a notification that names no users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Audience {
    /// Every signed-in user who has a connection now, to any node.
    Online,
}

/// A notification to one user, to many, or to everybody who is online.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotificationRequest {
    /// User id.
    pub user: Option<String>,
    /// User ids, at most `notifications.recipients_max`.
    #[serde(default)]
    pub users: Vec<String>,
    /// Instead of users.
    pub audience: Option<Audience>,
    /// First line; not with `template`.
    pub title: Option<String>,
    /// Text; not with `template`.
    pub message: Option<String>,
    /// Instead of `title`, `message` and `action`: texts in the language of each user.
    pub template: Option<TemplateRequest>,
    /// What it is about; preferences go by it: `workflow_update`, `workflow_complete`, `workflow_failed`, `system_alert`,
    /// `user_action`, or a name of your own. A template may have it.
    pub category: Option<String>,
    /// `low`, `normal` (the default), `high` or `critical`, which waits for nothing. A template may have it.
    pub priority: Option<String>,
    /// Delivery channels that may be used: `in_app`, `email`, `web_push`, `webhook`, `sms`; all that are switched on when
    /// left out. Preferences decide which of them are.
    pub channels: Option<Vec<String>>,
    /// What the user can do about it.
    pub action: Option<ActionRequest>,
    /// Any JSON object, passed on as it is.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Box<RawValue>>,
    /// Unix milliseconds from which on it is no longer in the inbox.
    pub expires_at: Option<u64>,
    /// Unix milliseconds before which it is not shown.
    pub deliver_at: Option<u64>,
    /// It replaces the unread notification of the same user and key.
    pub collapse_key: Option<String>,
    /// Sending again with the same key answers the first notification, as long as that is kept.
    pub idempotency_key: Option<String>,
}

/// A stored template and what to put into it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateRequest {
    /// Name.
    pub name: String,
    /// The newest one when left out.
    pub version: Option<u64>,
    /// Values by the names that the template declares.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub variables: serde_json::Map<String, serde_json::Value>,
}

/// Where the texts come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// From the caller: `title`, `message` and, when given, `action`.
    Given(serde_json::Value),
    /// From a template.
    Template(TemplateRequest),
}

/// A checked request.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Texts.
    pub source: Source,
    /// JSON text of an object.
    pub metadata: Option<String>,
    /// What it is about; that of the template when absent.
    pub category: Option<Category>,
    /// How urgent it is; that of the template, or normal, when absent.
    pub priority: Option<Priority>,
    /// Delivery channels that may be used.
    pub channels: Option<Vec<DeliveryChannel>>,
    /// It replaces the unread item of the same key.
    pub collapse_key: Option<String>,
    /// Sending again with the same key answers the first notification.
    pub idempotency_key: Option<String>,
    /// Unix milliseconds.
    pub expires_at: Option<i64>,
    /// To whom, each once; empty with `online`.
    pub users: Vec<String>,
    /// To everybody who is online.
    pub online: bool,
    /// Unix milliseconds before which it is not shown.
    pub deliver_at: Option<i64>,
}

fn check_text(field: &str, text: &str, bytes_max: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > bytes_max {
        return Err(format!("`{field}` must be 1 to {bytes_max} bytes long"));
    }
    if text.contains('\0') {
        return Err(format!("`{field}` holds the character U+0000, which cannot be stored"));
    }
    Ok(())
}

impl NotificationRequest {
    /// Checks everything; the error says what would be right.
    pub(crate) fn check(self, limits: &NotificationsSection, now_ms: i64) -> Result<Draft, String> {
        let source = source(&self, limits)?;
        for (field, key) in
            [("collapse_key", &self.collapse_key), ("idempotency_key", &self.idempotency_key)]
        {
            key.as_deref().map_or(Ok(()), |key| check_text(field, key, KEY_BYTES_MAX))?;
        }
        let category = self.category.as_deref().map(str::parse).transpose();
        let category = category.map_err(|error| format!("`category`: {error}"))?;
        if category.is_none() && matches!(source, Source::Given(_)) {
            return Err("missing field `category`".to_owned());
        }
        let priority = self.priority.as_deref().map(str::parse).transpose();
        let priority = priority.map_err(|error| format!("`priority`: {error}"))?;
        let channels = self.channels.as_deref().map(delivery_channels).transpose()?;
        let (expires_at, deliver_at) =
            check_times((self.expires_at, self.deliver_at), limits, now_ms)?;
        let online = self.audience == Some(Audience::Online);
        let users = recipients(self.user, self.users, online, limits.recipients_max as usize)?;
        let metadata = self.metadata.as_ref().map(|metadata| metadata.get());
        if let Some(metadata) = metadata {
            check_metadata(metadata, limits.metadata_bytes_max)?;
        }
        Ok(Draft {
            source,
            metadata: metadata.map(str::to_owned),
            category,
            priority,
            channels,
            collapse_key: self.collapse_key,
            idempotency_key: self.idempotency_key,
            expires_at,
            users,
            online,
            deliver_at,
        })
    }
}

/// The texts, or the template that makes them.
fn source(request: &NotificationRequest, limits: &NotificationsSection) -> Result<Source, String> {
    match (&request.title, &request.message, &request.template) {
        (Some(title), Some(message), None) => {
            check_texts(title, message, limits.text_bytes_max)?;
            let mut content = json!({"title": title, "message": message});
            if let Some(action) = &request.action {
                check_action(action)?;
                content["action"] = json!({"label": action.label, "url": action.url});
            }
            Ok(Source::Given(content))
        }
        (None, None, Some(template)) if request.action.is_none() => {
            Ok(Source::Template(template.clone()))
        }
        _ => {
            Err("give `title` and `message`, with or without `action`, or `template` alone"
                .to_owned())
        }
    }
}

/// What a request names: these, or all (`None`).
pub(crate) fn ids_or_all<T>(ids: Option<Vec<T>>, all: bool) -> Result<Option<Vec<T>>, String> {
    match (ids, all) {
        (Some(ids), false) => Ok(Some(ids)),
        (None, true) => Ok(None),
        _ => Err("give either `ids` or `\"all\": true`".to_owned()),
    }
}

fn check_texts(title: &str, message: &str, bytes_max: usize) -> Result<(), String> {
    check_text("title", title, bytes_max)?;
    check_text("message", message, bytes_max)?;
    if title.len() + message.len() > bytes_max {
        return Err(format!(
            "`title` and `message` together are larger than {bytes_max} bytes (notifications.text_bytes_max)"
        ));
    }
    Ok(())
}

fn delivery_channels(names: &[String]) -> Result<Vec<DeliveryChannel>, String> {
    if names.is_empty() {
        return Err("`channels` is empty; leave it out for all delivery channels".to_owned());
    }
    let channels = names.iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>();
    channels.map_err(|error| format!("`channels`: {error}"))
}

fn check_times(
    (expires_at, deliver_at): (Option<u64>, Option<u64>),
    limits: &NotificationsSection,
    now_ms: i64,
) -> Result<(Option<i64>, Option<i64>), String> {
    let signed = |field: &str, value: Option<u64>| {
        value
            .map(i64::try_from)
            .transpose()
            .map_err(|_| format!("`{field}` is no time: give milliseconds since 1970"))
    };
    let (expires_at, deliver_at) =
        (signed("expires_at", expires_at)?, signed("deliver_at", deliver_at)?);
    if expires_at.is_some_and(|at| at <= now_ms.max(deliver_at.unwrap_or(0))) {
        return Err("`expires_at` lies before the notification would be shown; give milliseconds since 1970".to_owned());
    }
    let latest = now_ms.saturating_add(limits.schedule_max.as_millis() as i64);
    if deliver_at.is_some_and(|at| at > latest) {
        return Err("`deliver_at` is later than notifications.schedule_max allows; give milliseconds since 1970".to_owned());
    }
    Ok((expires_at, deliver_at.filter(|at| *at > now_ms)))
}

/// Checks a user id that comes from outside.
pub(crate) fn check_user(user: &str) -> Result<(), String> {
    check_text("user", user, USER_BYTES_MAX)?;
    let channel = format!("user:{user}");
    if gateway_core::proto::is_channel_name(&channel, KEY_BYTES_MAX) {
        Ok(())
    } else {
        Err("`user` holds white space, a control character, `*` or `?`, so it has no channel"
            .to_owned())
    }
}

/// Checks the name of a category that comes from outside.
pub(crate) fn check_category(name: &str) -> Result<(), String> {
    name.parse::<Category>().map(|_| ()).map_err(|error| format!("`category`: {error}"))
}

/// Checks a list of notification ids.
pub(crate) fn check_ids(ids: &[String], max: usize) -> Result<(), String> {
    if ids.is_empty() || ids.len() > max {
        return Err(format!("`ids` must hold 1 to {max} notification ids"));
    }
    ids.iter().try_for_each(|id| check_text("ids", id, KEY_BYTES_MAX))
}

fn recipients(
    user: Option<String>,
    mut users: Vec<String>,
    online: bool,
    max: usize,
) -> Result<Vec<String>, String> {
    users.extend(user);
    if online != users.is_empty() {
        return Err("give `user`, `users`, or `audience`, and only one of the last two".to_owned());
    }
    users.sort_unstable();
    users.dedup();
    if users.len() > max {
        return Err(format!(
            "more than {max} users (notifications.recipients_max); send several notifications"
        ));
    }
    users.iter().try_for_each(|user| check_user(user))?;
    Ok(users)
}

fn check_action(action: &ActionRequest) -> Result<(), String> {
    check_text("action.label", &action.label, ACTION_BYTES_MAX)?;
    check_text("action.url", &action.url, ACTION_BYTES_MAX)?;
    let url = &action.url;
    let is_path = url.starts_with('/') && !url.starts_with("//") && !url.starts_with("/\\");
    let is_web = reqwest::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "https" | "http"));
    if url.chars().any(|c| c.is_control() || c.is_whitespace()) || !(is_path || is_web) {
        return Err("`action.url` must begin with https:// or http://, or be a path that begins with one `/`".to_owned());
    }
    Ok(())
}

fn check_metadata(text: &str, bytes_max: usize) -> Result<(), String> {
    if !text.starts_with('{') {
        return Err("`metadata` must be a JSON object".to_owned());
    }
    if text.len() > bytes_max {
        return Err(format!(
            "`metadata` is larger than {bytes_max} bytes (notifications.metadata_bytes_max)"
        ));
    }
    if text.contains("\\u0000") {
        return Err("`metadata` holds the character U+0000, which cannot be stored".to_owned());
    }
    if gateway_core::proto::json::depth(text.as_bytes()) > 64 {
        return Err("`metadata` is nested deeper than 64".to_owned());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::{Config, Sources};

    const NOW: i64 = 1_800_000_000_000;

    fn check(body: &Value) -> Result<Draft, String> {
        let limits = Config::load(&Sources::default()).unwrap().config.notifications;
        let text = body.to_string();
        let request: NotificationRequest =
            serde_json::from_str(&text).map_err(|error| error.to_string())?;
        request.check(&limits, NOW)
    }

    fn with(member: &str, value: Value) -> Value {
        let mut body =
            json!({"user": "alice", "title": "t", "message": "m", "category": "user_action"});
        body[member] = value;
        body
    }

    #[test]
    fn a_request_becomes_a_notification() {
        let draft = check(&json!({
            "users": ["bob", "alice", "bob"], "title": "t\"", "message": "m", "category": "workflow_failed",
            "priority": "medium", "action": {"label": "Open", "url": "/w/7"}, "metadata": {"n": 1},
            "deliver_at": NOW + 5, "expires_at": NOW + 6,
        }))
        .unwrap();
        assert_eq!(draft.users, ["alice", "bob"]);
        assert_eq!(draft.priority, Some(Priority::Normal));
        assert_eq!(draft.deliver_at, Some(NOW + 5));
        let Source::Given(content) = draft.source else { panic!("the texts were given") };
        assert_eq!((&content["title"], &content["action"]["url"]), (&json!("t\""), &json!("/w/7")));
        assert_eq!(draft.metadata.as_deref(), Some(r#"{"n":1}"#));
        assert_eq!(check(&with("deliver_at", json!(5))).unwrap().deliver_at, None, "that is now");
    }

    #[test]
    fn wrong_requests_are_told_what_is_wrong() {
        for (member, value, expected) in [
            ("title", json!(""), "`title` must be 1 to"),
            ("message", json!("a\0b"), "U+0000"),
            ("message", json!("x".repeat(20_000)), "`message` must be 1 to"),
            ("category", json!("Big News"), "category"),
            ("priority", json!("urgent"), "low, normal"),
            ("action", json!({"label": "x", "url": "javascript:alert(1)"}), "https://"),
            ("action", json!({"label": "x", "url": "//evil.example"}), "https://"),
            ("action", json!({"label": "x", "url": "/a b"}), "https://"),
            ("metadata", json!([1]), "JSON object"),
            ("metadata", json!({"a": "b\0"}), "U+0000"),
            ("metadata", json!({"a": "x".repeat(40_000)}), "metadata_bytes_max"),
            ("expires_at", json!(5), "`expires_at` lies before"),
            ("deliver_at", json!(u64::MAX), "no time"),
            ("deliver_at", json!(NOW * 2), "schedule_max"),
            ("users", json!(["a b"]), "white space"),
            ("audience", json!("online"), "only one"),
            ("idempotency_key", json!(""), "`idempotency_key`"),
            ("channels", json!([]), "`channels` is empty"),
            ("channels", json!(["pigeon"]), "no delivery channel"),
            ("template", json!({"name": "x"}), "or `template` alone"),
            ("title", json!(null), "give `title` and `message`"),
            ("category", json!(null), "missing field `category`"),
            ("tittle", json!("x"), "unknown field `tittle`"),
        ] {
            let error = check(&with(member, value)).unwrap_err();
            assert!(error.contains(expected), "{member}: {error}");
        }
        let nobody = json!({"title": "t", "message": "m", "category": "user_action"});
        assert!(check(&nobody).unwrap_err().contains("give `user`"));
    }
}
