//! What happens when the other side does not take a message.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::outside::{Browser, Database, MailServer, web_push_toml};
use super::receiver::{Arrived, Receiver, Reply};
use super::{EVERYTHING, Notifying, hook_toml, setup, with_hook};
use crate::support::eventually;

fn ids(arrived: &[Arrived]) -> BTreeSet<&str> {
    arrived.iter().map(|one| one.header("webhook-id")).collect()
}

#[test]
fn what_is_not_taken_now_is_tried_again() {
    let database = Database::new();
    let mut tries = 0;
    let hook = Receiver::with(move |_| {
        tries += 1;
        if tries < 3 { Reply::Later(503, 1) } else { Reply::Status(200) }
    });
    let gateway = with_hook(&database, &hook).set("delivery.retry_max", "5s").start();
    let sent = gateway.notify("ann", "t", json!({}));
    let waiting = gateway.await_deliveries(&sent, "retrying").remove(0);
    assert!(waiting["error"].as_str().unwrap().contains("HTTP 503"), "{waiting}");
    let done = gateway.await_deliveries(&sent, "delivered").remove(0);
    assert_eq!(done["attempts"], 3, "{done}");
    assert!(done["error"].is_null(), "{done}");
    let arrived = hook.arrived();
    assert_eq!((arrived.len(), ids(&arrived).len()), (3, 1), "one id for all attempts");
    for pair in arrived.windows(2) {
        assert!(pair[1].at - pair[0].at >= Duration::from_secs(1), "Retry-After is heeded");
        assert!(
            pair[0].is_signed_with(super::HOOK_SECRET)
                && pair[1].is_signed_with(super::HOOK_SECRET)
        );
    }
    assert_eq!(gateway.metric("archmesh_delivery_attempts_total", &[("outcome", "retrying")]), 2.0);
    assert_eq!(gateway.metric("archmesh_delivery_attempts_total", &[("outcome", "sent")]), 1.0);
}

#[test]
fn what_is_refused_is_not_tried_again_unless_asked_for() {
    let (database, hook) = (Database::new(), Receiver::with(|_| Reply::Status(400)));
    let gateway = with_hook(&database, &hook).start();
    let sent = gateway.notify("ann", "t", json!({}));
    let failed = gateway.await_deliveries(&sent, "failed").remove(0);
    assert_eq!(failed["attempts"], 1);
    assert!(failed["error"].as_str().unwrap().contains("HTTP 400"), "{failed}");
    let listed = gateway.call("dead_letters", json!({}));
    assert_eq!(listed["deliveries"], json!([failed]), "{listed}");
    let retried = gateway.call("retry", json!({"ids": [failed["id"]]}));
    assert_eq!(retried["retried"], 1);
    hook.await_arrived(2);
    gateway.await_deliveries(&sent, "failed");
    hook.answer(|_| Reply::Status(204));
    assert_eq!(gateway.call("retry", json!({"ids": [failed["id"], 4711]}))["retried"], 1);
    assert_eq!(
        gateway.await_deliveries(&sent, "delivered")[0]["attempts"],
        1,
        "from the first one on"
    );
    assert_eq!(gateway.call("retry", json!({"all": true}))["retried"], 0);
    let arrived = hook.arrived();
    assert_eq!((arrived.len(), ids(&arrived).len()), (3, 1));
    eventually("it is told", || gateway.log.events("delivery_failed").pop());
    for wrong in [json!({}), json!({"ids": [1], "all": true})] {
        assert!(gateway.refusal("retry", wrong).contains("either `ids`"));
    }
}

#[test]
fn what_is_never_taken_is_given_up() {
    let (database, hook) = (Database::new(), Receiver::with(|_| Reply::Status(503)));
    let gateway = with_hook(&database, &hook).set("delivery.attempts_max", 3).start();
    let sent: Vec<Value> =
        (0..5).map(|n| gateway.notify(&format!("user{n}"), "t", json!({}))).collect();
    for one in &sent {
        assert_eq!(gateway.await_deliveries(one, "dead")[0]["attempts"], 3);
    }
    assert_eq!(hook.arrived().len(), 15);
    let mut listed = Vec::new();
    let mut page = json!({"limit": 2});
    loop {
        let answer = gateway.call("dead_letters", page.clone());
        listed.extend(answer["deliveries"].as_array().unwrap().clone());
        if answer["next"].is_null() {
            break;
        }
        page["before"] = answer["next"].clone();
    }
    let newest_first: Vec<i64> = listed.iter().map(|one| one["id"].as_i64().unwrap()).collect();
    assert_eq!(newest_first.len(), 5, "{listed:?}");
    assert!(newest_first.windows(2).all(|pair| pair[0] > pair[1]), "{newest_first:?}");
    hook.answer(|_| Reply::Status(200));
    assert_eq!(gateway.call("retry", json!({"ids": [newest_first[0]]}))["retried"], 1);
    gateway.await_deliveries(&sent[4], "delivered");
    assert_eq!(gateway.sums("dead"), 4);
    assert_eq!(gateway.call("retry", json!({"all": true}))["retried"], 4);
    for one in &sent {
        gateway.await_deliveries(one, "delivered");
    }
    assert_eq!(gateway.call("dead_letters", json!({}))["deliveries"], json!([]));
}

#[test]
fn a_subscription_that_is_gone_is_forgotten() {
    let (database, browser) = (Database::new(), Browser::start());
    let push = Receiver::with(|arrived| match arrived.path.as_str() {
        "/push/410" => Reply::Status(410),
        "/push/404" => Reply::Status(404),
        "/push/429" => Reply::Status(429),
        _ => Reply::Status(201),
    });
    let gateway =
        setup(&database, &[&web_push_toml(), EVERYTHING]).set("delivery.attempts_max", 2).start();
    for path in ["/push/201", "/push/410", "/push/404", "/push/429"] {
        let subscription = browser.subscription(&push, path);
        gateway.call("contacts", json!({"user": "ann", "web_push": subscription}));
    }
    let sent = gateway.notify("ann", "t", json!({}));
    assert_eq!(sent["queued"], 4);
    gateway.await_rest();
    let mut listed: Vec<String> = gateway.status(&sent)["listed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["status"].as_str().unwrap().to_owned())
        .collect();
    listed.sort();
    assert_eq!(listed, ["dead", "failed", "failed", "sent"]);
    let left = gateway.call("contacts", json!({"user": "ann"}));
    assert_eq!(left["browsers"], 2, "the busy one stays");
    assert_eq!(gateway.notify("ann", "t", json!({}))["queued"], 2);
    gateway.await_rest();
    let count = |path: &str| push.arrived().iter().filter(|one| one.path == path).count();
    assert_eq!([count("/push/410"), count("/push/404"), count("/push/201")], [1, 1, 2]);
}

#[test]
fn a_mail_server_says_who_is_gone() {
    let (database, mut mail) = (Database::new(), MailServer::start());
    let gateway =
        setup(&database, &[&mail.toml(), EVERYTHING]).set("delivery.breaker_failures", 3).start();
    for user in ["gone", "policy", "later", "full", "ann"] {
        gateway.call("contacts", json!({"user": user, "email": format!("{user}@example.net")}));
    }
    let send = |user: &str| gateway.notify(user, "t", json!({"channels": ["email"]}));
    let failed = gateway.await_deliveries(&send("gone"), "failed").remove(0);
    assert!(failed["error"].as_str().unwrap().contains("SMTP 550 5.1.1"), "{failed}");
    assert!(!failed.to_string().contains("example.net"), "no address: {failed}");
    let email = |user: &str| gateway.call("contacts", json!({"user": user}))["email"].clone();
    assert_eq!(email("gone"), Value::Null, "a dead address is forgotten");
    gateway.await_deliveries(&send("policy"), "failed");
    assert_eq!(email("policy"), "policy@example.net", "that is not the address's fault");
    let later = gateway.await_deliveries(&send("later"), "sent").remove(0);
    assert_eq!(later["attempts"], 2, "greylisted once");
    gateway.await_deliveries(&send("full"), "dead");
    let lost = gateway.log.events("delivery_channel_lost");
    assert!(lost.is_empty(), "a full mailbox is not a dead server: {lost:?}");
    gateway.await_deliveries(&send("ann"), "sent");
    assert_eq!(mail.mails().len(), 2);
}

#[test]
fn a_receiver_that_hangs_does_not_hold_up_what_presses() {
    let (database, mut mail) = (Database::new(), MailServer::start());
    let hook = Receiver::with(|_| Reply::Hang);
    let gateway = setup(&database, &[&hook_toml(&hook.url("/")), &mail.toml(), EVERYTHING])
        .set("delivery.timeout", "4s")
        .set("delivery.workers_max", 8)
        .set("delivery.breaker_failures", 6)
        .set("delivery.breaker_open", "500ms")
        .start();
    gateway.call("contacts", json!({"user": "ann", "email": "ann@example.net"}));
    let hanging: Vec<Value> =
        (0..60).map(|n| gateway.notify(&format!("user{n}"), "t", json!({}))).collect();
    // Three quarters of the workers, of which one may not be there yet.
    hook.await_arrived(5);
    let begun = Instant::now();
    let mail_only =
        |priority| gateway.notify("ann", "t", json!({"channels": ["email"], "priority": priority}));
    let (normal, high) = (mail_only("normal"), mail_only("high"));
    gateway.await_deliveries(&high, "sent");
    assert!(begun.elapsed() < Duration::from_secs(3), "it waited for {:?}", begun.elapsed());
    // Others wait for no more than what was under way: then the webhook is left alone.
    gateway.await_deliveries(&normal, "sent");
    assert!(begun.elapsed() < Duration::from_secs(6), "it waited for {:?}", begun.elapsed());
    assert_eq!(mail.mails().len(), 2);
    let waiting = gateway.await_deliveries(&hanging[0], "retrying").remove(0);
    assert!(waiting["error"].as_str().unwrap().contains("deadline"), "{waiting}");
    hook.answer(|_| Reply::Status(200));
    for one in &hanging {
        gateway.await_deliveries(one, "delivered");
    }
}

#[test]
fn a_dead_webhook_is_left_alone_until_it_is_back() {
    let (database, is_back) = (Database::new(), Arc::new(AtomicBool::new(false)));
    let of_hook = Arc::clone(&is_back);
    let hook = Receiver::with(move |_| {
        if of_hook.load(Ordering::Relaxed) { Reply::Status(200) } else { Reply::Status(500) }
    });
    let gateway = with_hook(&database, &hook)
        .set("delivery.breaker_failures", 3)
        .set("delivery.breaker_open", "500ms")
        .set("delivery.attempts_max", 1000)
        .start();
    let sent: Vec<Value> =
        (0..40).map(|n| gateway.notify(&format!("user{n}"), "t", json!({}))).collect();
    let state = [("channel", "webhook")];
    gateway.await_metric("archmesh_delivery_channel_breaker_state", &state, |state| state == 2.0);
    let attempts =
        |outcome| gateway.metric("archmesh_delivery_attempts_total", &[("outcome", outcome)]);
    eventually("deliveries are left alone", || (attempts("left_alone") >= 40.0).then_some(()));
    let shown = eventually("the health says so", || {
        let health = gateway.get("/health/detailed").json().to_string();
        health.contains("\"webhook\":\"open\"").then_some(health)
    });
    assert!(shown.contains("\"delivery_channels\""), "{shown}");
    eventually("it is told", || gateway.log.events("delivery_channel_lost").pop());
    assert_eq!(gateway.sums("dead"), 0);
    is_back.store(true, Ordering::Relaxed);
    for one in &sent {
        gateway.await_deliveries(one, "delivered");
    }
    gateway.await_metric("archmesh_delivery_channel_breaker_state", &state, |state| state == 0.0);
    eventually("it is told", || gateway.log.events("delivery_channel_back").pop());
    let told =
        ["delivery_channel_lost", "delivery_channel_back"].map(|event| gateway.log.count(event));
    assert_eq!(told, [1, 1]);
    let good = hook.arrived().len() as f64 - attempts("retrying");
    assert_eq!((good, attempts("sent")), (40.0, 40.0), "each was taken once");
    // Being left alone is no attempt.
    let counted: f64 =
        sent.iter().map(|one| gateway.status(one)["listed"][0]["attempts"].as_f64().unwrap()).sum();
    assert_eq!(counted, attempts("sent") + attempts("retrying"));
}
