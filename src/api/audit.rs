//! Who changed what: every call that changes something is recorded as `admin_action`, and revocations as `revoked` too.
//!
//! One layer sees all calls, so no method can forget it. It keeps what a call is about ([`TARGET`]) and nothing else of its body.
//! A call whose caller goes away in the middle is recorded as well, with an unknown outcome.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::Response;
use axum::middleware::Next;
use axum::response::IntoResponse;
use gateway_core::error::ErrorCode;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Map, Value, json};

use super::ApiError;
use super::error::TransportStatus;
use super::key::KeyName;
use crate::config::sections::EventKind;
use crate::events::{Entry, Events};
use crate::http::ClientAddress;
use crate::plane::SharedPlane;

/// Calls that change something, with their names as commands of a batch.
pub(super) const CHANGES: [(&str, &str); 11] = [
    ("/api/subscribe", "subscribe"),
    ("/api/unsubscribe", "unsubscribe"),
    ("/api/disconnect", "disconnect"),
    ("/api/revoke", "revoke"),
    ("/api/history_remove", "history_remove"),
    ("/api/v1/notifications/mark", "mark_inbox"),
    ("/api/v1/notifications/preferences", "preferences"),
    ("/api/v1/notifications/contacts", "contacts"),
    ("/api/v1/notifications/templates/store", "store_template"),
    ("/api/v1/notifications/retry", "retry_deliveries"),
    ("/api/v1/webhooks/{name}/dead/retry", "retry_webhook"),
];
const BATCH: &str = "/api/batch";

/// Fields of a body that say what a call is about. None of them is secret or personal beyond an id.
const TARGET: [&str; 14] = [
    "user",
    "session",
    "client",
    "channel",
    "token_id",
    "issued_before",
    "expires_at",
    "reconnect",
    "name",
    "ids",
    "all",
    "state",
    "up_to",
    "version",
];
/// Fields without which these calls only read.
const PATCHES: [(&str, &[&str]); 2] = [
    ("preferences", &["patch"]),
    ("contacts", &["email", "phone", "web_push", "web_push_removed"]),
];

/// A change under way.
#[derive(Debug)]
struct Action {
    name: &'static str,
    target: Map<String, Value>,
    /// Its place in a batch.
    index: usize,
}

/// Changes of one call; what is left of them when it ends early is recorded then.
struct Actions {
    list: Vec<Action>,
    events: Arc<Events>,
    key: String,
    address: Option<String>,
}

impl Action {
    /// `None` when the call changes nothing.
    fn new(name: &str, body: &Value, index: usize) -> Option<Self> {
        let (_, name) = CHANGES.into_iter().find(|(_, known)| *known == name)?;
        let needed = PATCHES.into_iter().find(|(known, _)| *known == name);
        if needed.is_some_and(|(_, fields)| fields.iter().all(|field| body[field].is_null())) {
            return None;
        }
        let mut target = Map::new();
        for field in TARGET {
            if let Some(value) = body.get(field).filter(|value| !value.is_null()) {
                target.insert(field.to_owned(), value.clone());
            }
        }
        if let Some(name) = body["document"]["name"].as_str() {
            target.insert("name".to_owned(), name.into());
        }
        Some(Self { name, target, index })
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.target.get(field)?.as_str()
    }
}

impl Actions {
    /// Records all of them; `outcome` says whether one was carried out, when that is known.
    fn record(&mut self, outcome: impl Fn(&Action) -> Option<bool>) {
        for action in std::mem::take(&mut self.list) {
            let ok = outcome(&action);
            let detail =
                json!({"action": action.name, "key": self.key, "target": action.target, "ok": ok});
            self.events.record(self.entry(&action, EventKind::AdminAction, &detail));
            if action.name == "revoke" && ok != Some(false) {
                let mut detail = Value::Object(action.target.clone());
                detail["key"] = self.key.as_str().into();
                self.events.record(self.entry(&action, EventKind::Revoked, &detail));
            }
        }
    }

    fn entry(&self, action: &Action, kind: EventKind, detail: &Value) -> Entry {
        let mut entry = Entry::new(kind, detail);
        if let Some(user) = action.text("user") {
            entry = entry.user(user);
        }
        if let Some(session) = action.text("session").or_else(|| action.text("client")) {
            entry = entry.session(session);
        }
        if let Some(channel) = action.text("channel") {
            entry = entry.channel(channel);
        }
        match &self.address {
            Some(address) => entry.address(address),
            None => entry,
        }
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        self.record(|_| None);
    }
}

/// The layer: records what a call changes.
pub(super) async fn record(
    State(plane): State<SharedPlane>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let wanted = |events: &&Arc<Events>| {
        events.records(EventKind::AdminAction) || events.records(EventKind::Revoked)
    };
    let Some(events) = plane.events.as_ref().filter(wanted) else { return next.run(request).await };
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path = path.unwrap_or_default();
    let change = CHANGES.into_iter().find(|(known, _)| *known == path);
    if change.is_none() && path != BATCH {
        return next.run(request).await;
    }
    let key = request.extensions().get::<KeyName>().map(|name| name.0.to_string());
    let address = request.extensions().get::<ClientAddress>().map(|address| address.0.to_string());
    let (parts, body) = request.into_parts();
    let body = match read(&plane, body).await {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    let list = match change {
        Some((_, "retry_webhook")) => {
            let name = parts.uri.path().split('/').nth(4).unwrap_or_default();
            let mut json = json.clone();
            json["name"] = name.into();
            Action::new("retry_webhook", &json, 0).into_iter().collect()
        }
        Some((_, name)) => Action::new(name, &json, 0).into_iter().collect(),
        None => of_batch(&json),
    };
    let is_batch = change.is_none() && !list.is_empty();
    let key = key.unwrap_or_default();
    let mut actions = Actions { list, events: Arc::clone(events), key, address };
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let is_error = response.extensions().get::<TransportStatus>().is_some();
    if !is_batch || is_error {
        actions.record(|_| Some(!is_error));
        return response;
    }
    let (parts, body) = response.into_parts();
    // It was made in memory, so it arrives whole.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    actions.record(|action| {
        let reply = json["result"]["replies"].get(action.index)?;
        Some(reply.get("error").is_none())
    });
    Response::from_parts(parts, Body::from(body))
}

fn of_batch(json: &Value) -> Vec<Action> {
    let commands = json["commands"].as_array().map(Vec::as_slice).unwrap_or_default();
    let one = |(index, command): (usize, &Value)| {
        let (name, body) = command.as_object()?.iter().next()?;
        Action::new(name, body, index)
    };
    commands.iter().enumerate().filter_map(one).collect()
}

/// The whole body, within the bounds of the API.
async fn read(plane: &SharedPlane, body: Body) -> Result<Bytes, ApiError> {
    let policy = plane.api.load_full();
    let max = policy.body_bytes_max;
    let whole = tokio::time::timeout(policy.timeout, Limited::new(body, max).collect()).await;
    match whole {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the body is larger than `api.body_bytes_max`, {max}");
            Err(ApiError::new(ErrorCode::MessageTooLarge, message))
        }
        Ok(Err(_)) => Err(ApiError::bad_request("the body did not arrive whole")),
        Err(_) => {
            let message = "the call took longer than `api.timeout`";
            Err(ApiError::new(ErrorCode::ConnectionTimeout, message))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_target_holds_no_more_than_ids() {
        let body = json!({"user": "ann", "email": "ann@example.com", "phone": null});
        let action = Action::new("contacts", &body, 0).unwrap();
        assert_eq!(Value::Object(action.target), json!({"user": "ann"}));
        let body = json!({"document": {"name": "welcome", "subject": "Dear {{ name }}"}});
        let action = Action::new("store_template", &body, 0).unwrap();
        assert_eq!(Value::Object(action.target), json!({"name": "welcome"}));
    }

    #[test]
    fn reading_is_no_change() {
        assert!(Action::new("preferences", &json!({"user": "ann"}), 0).is_none());
        assert!(Action::new("preferences", &json!({"user": "ann", "patch": {}}), 0).is_some());
        assert!(Action::new("contacts", &json!({"user": "ann", "email": null}), 0).is_none());
        assert!(Action::new("publish", &json!({"channel": "chat:a"}), 0).is_none());
    }

    #[test]
    fn commands_of_a_batch_keep_their_places() {
        let batch = json!({"commands": [
            {"publish": {"channel": "a"}}, {"disconnect": {"user": "ann"}}, {"history_remove": {"channel": "b"}},
        ]});
        let found = of_batch(&batch);
        let found: Vec<_> = found.iter().map(|action| (action.name, action.index)).collect();
        assert_eq!(found, [("disconnect", 1), ("history_remove", 2)]);
    }

    /// A method that is new must be put on one of the lists.
    #[test]
    fn every_method_is_known_to_change_something_or_not() {
        const OTHERS: [&str; 24] = [
            "/api/batch",
            "/api/publish",
            "/api/broadcast",
            "/api/large_data",
            "/api/user_status",
            "/api/presence",
            "/api/presence_stats",
            "/api/history",
            "/api/channels",
            "/api/connections",
            "/api/connection",
            "/api/info",
            "/api/v1/notifications",
            "/api/v1/notifications/batch",
            "/api/v1/notifications/list",
            "/api/v1/notifications/templates",
            "/api/v1/notifications/templates/preview",
            "/api/v1/notifications/status",
            "/api/v1/notifications/dead_letters",
            "/api/v1/notifications/analytics",
            "/api/v1/events",
            "/api/v1/users/{id}/sessions",
            "/api/v1/webhooks",
            "/api/v1/webhooks/{name}/dead",
        ];
        let document = serde_json::to_value(super::super::openapi::document()).unwrap();
        for path in document["paths"].as_object().unwrap().keys() {
            if !path.starts_with("/api/") {
                continue;
            }
            let changes = CHANGES.iter().any(|(known, _)| known == path);
            assert!(changes != OTHERS.contains(&path.as_str()), "{path}");
        }
    }
}
