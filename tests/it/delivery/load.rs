//! Many deliveries: order by priority, slow receivers, and what is counted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::outside::{Browser, Database, MailServer, web_push_toml};
use super::receiver::{Arrived, Receiver, Reply};
use super::{EVERYTHING, Notifying, hook_toml, notification, setup, with_hook};
use crate::gateway::Gateway;
use crate::socket::Socket;

/// Sends so many in one request, to as many users.
fn send_many(gateway: &Gateway, count: usize, priority: &str) {
    let one = |n| {
        let more = json!({"priority": priority, "channels": ["webhook"]});
        notification(&format!("{priority}{n}"), priority, more)
    };
    let requests: Vec<Value> = (0..count).map(one).collect();
    let answer = gateway.call("batch", json!({"notifications": requests}));
    for one in answer["responses"].as_array().unwrap() {
        assert_eq!(one["result"]["queued"], 1, "{one}");
    }
}

fn await_waiting(gateway: &Gateway, priority: &str, count: usize) {
    let labels = [("priority", priority)];
    gateway.await_metric("archmesh_delivery_jobs_waiting", &labels, |n| n >= count as f64);
}

fn priorities(arrived: &[Arrived]) -> Vec<String> {
    arrived.iter().map(Arrived::title).collect()
}

#[test]
fn what_presses_overtakes_what_can_wait() {
    let (database, hook) = (Database::new(), Receiver::with(|_| Reply::Gate));
    let gateway = with_hook(&database, &hook).set("delivery.workers_max", 4).start();
    send_many(&gateway, 500, "low");
    await_waiting(&gateway, "low", 450);
    hook.await_arrived(2);
    // Half of the workers are kept from low ones, so nobody has to be waited for.
    send_many(&gateway, 1, "critical");
    let arrived = hook.await_arrived(3);
    assert_eq!(priorities(&arrived), ["low", "low", "critical"]);
    hook.open();
    let arrived = hook.await_arrived(501);
    gateway.await_rest();
    assert_eq!((arrived.len(), gateway.sums("delivered")), (501, 501));
}

#[test]
fn what_can_wait_is_not_forgotten() {
    let (database, hook) = (Database::new(), Receiver::with(|_| Reply::Gate));
    let gateway = with_hook(&database, &hook)
        .set("delivery.workers_min", 1)
        .set("delivery.workers_max", 1)
        .start();
    send_many(&gateway, 1, "normal");
    hook.await_arrived(1);
    send_many(&gateway, 300, "critical");
    send_many(&gateway, 10, "low");
    await_waiting(&gateway, "critical", 300);
    await_waiting(&gateway, "low", 10);
    hook.open();
    let order = priorities(&hook.await_arrived(311));
    let last_low = order.iter().rposition(|priority| priority == "low").unwrap();
    let last_critical = order.iter().rposition(|priority| priority == "critical").unwrap();
    assert!(last_low < last_critical, "low ones waited for all critical ones: {order:?}");
    let first_low = order.iter().position(|priority| priority == "low").unwrap();
    assert!((2..=20).contains(&first_low), "the first low one was number {first_low}");
}

#[test]
fn a_slow_receiver_gets_everything_once() {
    let database = Database::new();
    let hook = Receiver::with(|_| {
        // The receiver's own work; nothing is waited for.
        std::thread::park_timeout(Duration::from_millis(30));
        Reply::Status(200)
    });
    let gateway = with_hook(&database, &hook)
        .set("delivery.workers_min", 1)
        .set("delivery.workers_max", 1)
        .set("delivery.timeout", "500ms")
        .set("delivery.lease_slack", "1s")
        .start();
    send_many(&gateway, 150, "normal");
    gateway.await_rest();
    gateway.await_metric("archmesh_delivery_jobs_waiting", &[], |jobs| jobs == 0.0);
    gateway.await_metric("archmesh_delivery_workers", &[("state", "busy")], |busy| busy == 0.0);
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for one in hook.arrived() {
        *times.entry(one.header("webhook-id").to_owned()).or_default() += 1;
    }
    let more: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(more.is_empty(), "{} came more than once: {more:?}", more.len());
    assert_eq!(times.len(), 150);
    let sql = "SELECT count(*) FROM archmesh_deliveries WHERE attempts <> 1";
    assert_eq!(database.numbers(sql), [0], "each took one attempt");
}

#[test]
fn what_was_sent_is_counted() {
    let (database, mail) = (Database::new(), MailServer::start());
    let hook = Receiver::with(|arrived| match arrived.title().as_str() {
        "bad" => Reply::Status(400),
        _ => Reply::Status(200),
    });
    let gateway = setup(&database, &[&hook_toml(&hook.url("/")), &mail.toml(), EVERYTHING]).start();
    for user in ["ann", "bob"] {
        gateway.call("contacts", json!({"user": user, "email": format!("{user}@example.net")}));
    }
    let both = json!({
        "users": ["ann", "bob", "cem"], "title": "good", "message": "m", "category": "workflow_failed",
        "priority": "high",
    });
    let good = gateway.result("v1/notifications", &both);
    let bad =
        gateway.notify("ann", "bad", json!({"category": "security", "channels": ["webhook"]}));
    gateway.notify("ann", "in_app", json!({"category": "security", "channels": ["in_app"]}));
    gateway.await_rest();
    let mut socket = Socket::connect(&gateway, "ann");
    let read = socket.call("notification_read", json!({"ids": [good["notification_id"]]}));
    assert_eq!(read["type"], "notification_update", "{read}");

    let status = gateway.status(&good);
    // What was read has been seen and has arrived.
    let inbox = json!({"items": 3, "seen": 1, "read": 1, "acked": 1, "archived": 0});
    assert_eq!(status["inbox"], inbox, "{status}");
    let sums = json!([
        {"channel": "email", "status": "sent", "count": 2}, {"channel": "webhook", "status": "delivered", "count": 3},
    ]);
    assert_eq!(status["deliveries"], sums);
    assert_eq!(status["listed"].as_array().unwrap().len(), 5);
    assert_eq!(gateway.status(&bad)["inbox"]["items"], 0);
    let unknown = gateway.refusal("status", json!({"notification_id": "nothing"}));
    assert!(unknown.contains("no such notification"), "{unknown}");

    let all = gateway.call("analytics", json!({}));
    let inbox = json!([
        {"category": "security", "priority": "normal", "items": 1, "seen": 0, "read": 0, "archived": 0},
        {"category": "workflow_failed", "priority": "high", "items": 3, "seen": 1, "read": 1, "archived": 0},
    ]);
    assert_eq!(all["inbox"], inbox, "{all}");
    let sum = |channel, of: (&str, &str), status, count: u32| {
        let (category, priority) = of;
        json!({"channel": channel, "category": category, "priority": priority, "status": status, "count": count})
    };
    let deliveries = json!([
        sum("email", ("workflow_failed", "high"), "sent", 2),
        sum("webhook", ("security", "normal"), "failed", 1),
        sum("webhook", ("workflow_failed", "high"), "delivered", 3),
    ]);
    assert_eq!(all["deliveries"], deliveries, "{all}");
    let past = gateway.call("analytics", json!({"to": 1000}));
    assert_eq!(past, json!({"inbox": [], "deliveries": []}));

    check_metrics(&gateway);
}

fn check_metrics(gateway: &Gateway) {
    let attempts =
        |outcome| gateway.metric("archmesh_delivery_attempts_total", &[("outcome", outcome)]);
    assert_eq!([attempts("sent"), attempts("failed"), attempts("retrying")], [5.0, 1.0, 0.0]);
    assert_eq!(gateway.metric("archmesh_notifications_total", &[]), 3.0);
    let high = [("priority", "high")];
    for name in ["archmesh_delivery_wait_seconds_count", "archmesh_delivery_run_seconds_count"] {
        assert_eq!(gateway.metric(name, &high), 5.0, "{name}");
    }
    let text = gateway.metrics_text();
    for name in [
        "archmesh_delivery_channel_breaker_state{channel=\"email\"}",
        "archmesh_delivery_channel_breaker_state{channel=\"webhook\"}",
        "archmesh_delivery_jobs_waiting{priority=\"low\"}",
        "archmesh_delivery_jobs_oldest_seconds{priority=\"critical\"}",
        "archmesh_delivery_jobs_refused_total{priority=\"normal\"}",
        "archmesh_delivery_workers{state=\"busy\"}",
        "archmesh_delivery_workers{state=\"idle\"}",
    ] {
        assert!(text.contains(name), "{name}");
    }
}

#[test]
fn a_slow_webhook_takes_nothing_from_mails() {
    let (database, hook) = (Database::new(), Receiver::with(|_| Reply::Gate));
    let mut mails = MailServer::start();
    let parts = [hook_toml(&hook.url("/hook")), mails.toml(), EVERYTHING.to_owned()];
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    // Room and workers for less than the webhook could use.
    let gateway = setup(&database, &parts)
        .set("delivery.jobs_max", 16)
        .set("delivery.workers_min", 1)
        .set("delivery.workers_max", 2)
        .start();
    send_many(&gateway, 100, "high");
    let held = [("channel", "webhook")];
    gateway.await_metric("archmesh_delivery_channel_jobs", &held, |jobs| jobs == 16.0);
    for n in 0..20 {
        let user = format!("u{n}");
        gateway.call("contacts", json!({"user": user, "email": format!("{user}@example.net")}));
        let more = json!({"priority": "high", "channels": ["email"]});
        assert_eq!(gateway.notify(&user, "t", more)["queued"], 1);
    }
    mails.await_mails(20);
    assert!(hook.arrived().len() <= 2, "the webhook still hangs");
    hook.open();
    hook.await_arrived(100);
    gateway.await_rest();
    assert_eq!(gateway.sums("delivered"), 100);
}

#[test]
fn one_push_service_that_is_down_leaves_the_others_alone() {
    let (database, mut browser) = (Database::new(), Browser::start());
    let (down, well) = (Receiver::with(|_| Reply::Status(503)), Receiver::start());
    let gateway = setup(&database, &[&web_push_toml(), EVERYTHING])
        .set("delivery.breaker_failures", 2)
        .set("delivery.breaker_open", "1h")
        .set("delivery.attempts_max", 100)
        .start();
    for (user, service) in [("ann", &down), ("bob", &well)] {
        let subscription = browser.subscription(service, "/push");
        gateway.call("contacts", json!({"user": user, "web_push": subscription}));
    }
    gateway.notify("ann", "t", json!({"channels": ["web_push"]}));
    gateway.await_metric("archmesh_delivery_push_services_open", &[], |open| open == 1.0);
    let sent = gateway.notify("bob", "t", json!({"channels": ["web_push"]}));
    gateway.await_deliveries(&sent, "sent");
    assert!(!browser.open(&well.await_arrived(1)[0]).is_null());
    let labels = [("channel", "web_push")];
    assert_eq!(gateway.metric("archmesh_delivery_channel_breaker_state", &labels), 0.0);
    assert_eq!(down.arrived().len(), 2, "it is left alone");
}
