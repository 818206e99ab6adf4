//! Setup: a gateway with SQLite, a real mail server, webhooks and push services of the test's own.
//!
//! Must hold: a notification leaves by the ways that are configured, allowed by the request and wanted by the user, with
//! the right texts; what the other side does not take is tried again, as often as configured and under the same id;
//! nothing is lost when the gateway dies, and what cannot be delivered is told.

mod commands;
mod failures;
mod load;
pub mod outside;
pub mod receiver;
mod restarts;
mod template;
mod ways;

use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::support::eventually;
use outside::Database;
use receiver::Receiver;

/// Secret that signs webhooks.
const HOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAAAAA=";

/// Users who say nothing get everything that is switched on.
const EVERYTHING: &str = "[notifications]\ndefault_preferences = \
    '{\"channels\":{\"email\":true,\"web_push\":true,\"webhook\":true,\"sms\":true}}'\n";

/// Configuration of a webhook.
fn hook_toml(url: &str) -> String {
    format!("[webhook]\nurl = \"{url}\"\nsecrets = [\"{HOOK_SECRET}\"]\n")
}

/// A gateway with these parts of a configuration, whose retries come soon.
fn setup(database: &Database, parts: &[&str]) -> Setup {
    Setup::new()
        .toml(&parts.join("\n"))
        .set("database.sqlite_path", database.path().display())
        .set("database.poll_interval", "20ms")
        .set("webhook.allow_insecure", true)
        .set("web_push.allow_insecure", true)
        .set("delivery.retry_base", "20ms")
        .set("delivery.retry_max", "200ms")
        .set("delivery.breaker_failures", 1000)
}

/// A gateway whose only way out is a webhook that everybody wants.
fn with_hook(database: &Database, hook: &Receiver) -> Setup {
    setup(database, &[&hook_toml(&hook.url("/hook")), EVERYTHING])
}

/// A notification to a user with `more` on top.
fn notification(user: &str, title: &str, more: Value) -> Value {
    let mut body =
        json!({"user": user, "title": title, "message": "m", "category": "workflow_failed"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Methods about notifications, by the last part of their paths.
trait Notifying {
    /// Sends one; answers the result.
    fn notify(&self, user: &str, title: &str, more: Value) -> Value;
    /// Calls a method that must succeed.
    fn call(&self, method: &str, body: Value) -> Value;
    /// Calls a method that must be refused; the message.
    fn refusal(&self, method: &str, body: Value) -> String;
    /// What became of a notification.
    fn status(&self, sent: &Value) -> Value;
    /// Waits until the deliveries of a notification are all in `status`; answers them.
    fn await_deliveries(&self, sent: &Value, status: &str) -> Vec<Value>;
    /// Waits until no delivery is under way or waits.
    fn await_rest(&self);
    /// Number of deliveries by status.
    fn sums(&self, status: &str) -> i64;
}

impl Notifying for Gateway {
    fn notify(&self, user: &str, title: &str, more: Value) -> Value {
        self.result("v1/notifications", &notification(user, title, more))
    }

    fn call(&self, method: &str, body: Value) -> Value {
        self.result(&format!("v1/notifications/{method}"), &body)
    }

    fn refusal(&self, method: &str, body: Value) -> String {
        let path = format!("v1/notifications/{method}");
        let answer = self.api(path.trim_end_matches('/'), &body);
        answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    fn status(&self, sent: &Value) -> Value {
        self.call("status", json!({"notification_id": sent["notification_id"]}))
    }

    fn await_deliveries(&self, sent: &Value, status: &str) -> Vec<Value> {
        eventually(&format!("all deliveries are {status}"), || {
            let listed = self.status(sent)["listed"].as_array().unwrap().clone();
            let done = !listed.is_empty() && listed.iter().all(|one| one["status"] == status);
            done.then_some(listed)
        })
    }

    fn await_rest(&self) {
        eventually("no delivery waits", || {
            let sums = self.call("analytics", json!({}))["deliveries"].clone();
            let is_open = |sum: &Value| {
                ["pending", "retrying", "sending"].iter().any(|status| sum["status"] == *status)
            };
            (!sums.as_array().unwrap().iter().any(is_open)).then_some(())
        });
    }

    fn sums(&self, status: &str) -> i64 {
        let sums = self.call("analytics", json!({}))["deliveries"].clone();
        let of_status = sums.as_array().unwrap().iter().filter(|sum| sum["status"] == status);
        of_status.map(|sum| sum["count"].as_i64().unwrap()).sum()
    }
}
