//! Setup: a gateway with a database of its own, users with several devices, and a backend that sends notifications.
//!
//! Must hold on PostgreSQL and on SQLite: what was answered is in the inboxes once and reaches all devices of the user, what one
//! device does the others learn, and the numbers of an inbox are those of its rows.

pub mod backup;
pub mod database;
mod devices;
mod faults;
mod inbox;
mod outbox;
mod sending;
mod service;
mod timing;
mod wishes;

use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::socket::Socket;
use database::{Database, on_both_databases};

on_both_databases!(
    sending::one_user_gets_it_and_nobody_else,
    sending::the_largest_one_reaches_the_devices,
    sending::many_users_get_it,
    sending::a_batch_answers_one_by_one,
    sending::everybody_online_gets_it,
    sending::a_repeated_key_sends_once,
    sending::a_repeated_key_sends_once_also_at_the_same_time,
    sending::a_collapse_key_keeps_the_newest,
    sending::bad_requests_are_told_and_named,
    devices::marks_by_id_reach_the_other_device,
    devices::marks_of_all_stop_where_they_should,
    devices::unknown_ids_change_nothing,
    devices::counters_are_those_of_the_rows_after_anything,
    inbox::what_was_missed_comes_after_the_welcome,
    inbox::a_strange_name_hurts_nobody_else,
    inbox::many_large_ones_do_not_end_the_connection,
    inbox::pages_hold_everything_once,
    inbox::filters_leave_out_the_rest,
    inbox::strangers_have_no_inbox,
    timing::an_expired_item_is_hidden_at_once_and_removed_later,
    timing::old_items_leave,
    timing::a_scheduled_one_waits,
    timing::quiet_hours_hold_and_release,
    timing::what_expired_while_it_waited_is_not_shown,
    timing::a_digest_is_one_notification,
    wishes::what_is_not_wanted_is_not_sent,
    wishes::preferences_are_read_and_changed_both_ways,
    wishes::wrong_preferences_are_refused_with_the_field,
    outbox::what_an_application_writes_arrives_in_order,
    outbox::rows_that_can_never_be_published_are_passed_over,
    backup::a_backup_fills_an_empty_store,
    service::a_restart_keeps_everything,
    service::numbers_and_health_show_it,
    service::two_connections_are_enough,
    service::an_old_schema_is_told_with_the_mend,
);

/// A notification to a user.
fn note(user: &str, title: &str) -> Value {
    json!({"user": user, "title": title, "message": "text", "category": "user_action"})
}

/// `value` with more members.
fn with(mut value: Value, more: Value) -> Value {
    for (name, member) in more.as_object().unwrap() {
        value[name] = member.clone();
    }
    value
}

/// Sends a notification that must be taken.
fn send(gateway: &Gateway, notification: Value) -> Value {
    gateway.result("v1/notifications", &notification)
}

/// Sends a notification that must be taken; answers its id.
fn sent(gateway: &Gateway, notification: Value) -> String {
    send(gateway, notification)["notification_id"].as_str().unwrap().to_owned()
}

/// A page of an inbox.
fn list(gateway: &Gateway, user: &str, more: Value) -> Value {
    gateway.result("v1/notifications/list", &with(json!({"user": user}), more))
}

/// Titles of a page.
fn titles(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["title"].as_str().unwrap()).collect()
}

/// Changes preferences.
fn prefer(gateway: &Gateway, user: &str, patch: Value) -> Value {
    gateway.result("v1/notifications/preferences", &json!({"user": user, "patch": patch}))
}

/// Waits for a notification on a device; what it has besides is kept.
fn shown(socket: &mut Socket, id: &str) -> Value {
    let found = socket.wait_for(&format!("notification {id}"), |message| {
        message["type"] == "notification" && message["data"]["notification_id"] == id
    });
    found["data"].clone()
}

/// Waits for the push that tells of a change.
fn told(socket: &mut Socket, state: &str) -> Value {
    let found = socket.wait_for(&format!("update {state}"), |message| {
        message["type"] == "notification_update" && message["data"]["state"] == state
    });
    found["data"].clone()
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}
