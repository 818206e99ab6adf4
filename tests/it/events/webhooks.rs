//! What endpoints are told.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{CHAT, Database, Recorded, await_told, events_of, hook_toml, recording, told, types};
use crate::delivery::outside::HttpsWebhook;
use crate::delivery::receiver::{Receiver, Reply};
use crate::gateway::{Gateway, Setup};
use crate::socket::Socket;
use crate::support::{WAIT, eventually};
use crate::tls::Authority;

const MESSAGES: &str = "\"message\"";
const ALL: &str =
    "\"connected\", \"disconnected\", \"channel_occupied\", \"channel_vacated\", \"message\"";

fn setup(database: &Database, hook: &Receiver, kinds: &str, more: &str) -> Setup {
    recording(database, "").toml(&format!("{CHAT}{}", hook_toml(&hook.url("/hook"), kinds, more)))
}

fn publish(gateway: &Gateway, numbers: std::ops::Range<i64>) {
    let mut ada = Socket::connect(gateway, "ada");
    for n in numbers {
        ada.publish("chat:room", json!(n));
    }
}

fn numbers(events: &[Value]) -> Vec<i64> {
    events.iter().map(|event| event["data"]["data"].as_i64().unwrap()).collect()
}

fn state(gateway: &Gateway) -> Value {
    gateway.found("/api/v1/webhooks")["webhooks"][0].clone()
}

pub fn events_arrive_signed_and_in_order(database: &Database) {
    let hook = Receiver::start();
    let gateway = setup(database, &hook, ALL, "channels = [\"chat:\"]")
        .set("events.channels", "chat:,feed:")
        .start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("feed:room");
    ada.subscribe("chat:room");
    // A channel that comes and goes between two batches is not told.
    gateway.await_events("type=channel_occupied", 2);
    for n in 0..50 {
        ada.publish("chat:room", json!(n));
    }
    ada.close();
    let events = await_told(&hook, 54);
    assert_eq!(
        hook.arrived().iter().map(|one| events_of(one).len()).sum::<usize>(),
        54,
        "each once"
    );
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    assert_eq!(types(&events)[..2], ["connected", "channel_occupied"]);
    assert_eq!((of("disconnected").len(), of("channel_vacated").len()), (1, 1));
    assert_eq!(of("channel_occupied")[0]["channel"], "chat:room", "not of the feed");
    let messages: Vec<Value> = of("message").into_iter().cloned().collect();
    assert_eq!(numbers(&messages), (0..50).collect::<Vec<_>>());
    eventually("the endpoint is done with everything", || {
        (state(&gateway)["last_id"] == state(&gateway)["newest_id"]).then_some(())
    });
    assert_eq!(gateway.metric("archmesh_webhook_events_sent_total", &[("webhook", "app")]), 54.0);
    gateway.await_metric("archmesh_webhook_lag_events", &[("webhook", "app")], |lag| lag == 0.0);
    let health = gateway.operators().get("/health/detailed").unwrap().json();
    assert_eq!(health["components"]["events"]["webhooks"]["app"]["breaker"], "closed");
}

pub fn a_receiver_that_is_down_loses_nothing(database: &Database) {
    let hook = Receiver::with(|_| Reply::Status(503));
    let gateway = setup(database, &hook, MESSAGES, "batch_max = 4\nattempts_max = 1000").start();
    publish(&gateway, 0..10);
    hook.await_arrived(3);
    let state = eventually("the failure is told", || {
        Some(state(&gateway)).filter(|state| state["attempts"].as_i64() >= Some(2))
    });
    assert!(state["last_error"].as_str().unwrap().contains("503"), "{state}");
    publish(&gateway, 10..20);
    hook.answer(|_| Reply::Status(200));
    let events = await_told(&hook, 20);
    assert_eq!(numbers(&events), (0..20).collect::<Vec<_>>());
    let mut batches: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for one in hook.arrived() {
        let events = events_of(&one);
        assert!(events.len() <= 4);
        let id = one.header("webhook-id").to_owned();
        assert_eq!(
            *batches.entry(id).or_insert_with(|| events.clone()),
            events,
            "a batch stays as it was"
        );
    }
    assert_eq!(gateway.metric("archmesh_webhook_batches_dead_total", &[]), 0.0);
}

pub fn a_batch_that_is_given_up_can_be_sent_again(database: &Database) {
    let mut refused = 0;
    let hook = Receiver::with(move |_| {
        refused += 1;
        Reply::Status(if refused <= 3 { 500 } else { 200 })
    });
    let gateway = setup(database, &hook, MESSAGES, "batch_max = 1\nattempts_max = 3").start();
    publish(&gateway, 0..3);
    let dead = eventually("a batch is given up", || {
        let found = gateway.found("/api/v1/webhooks/app/dead")["batches"].clone();
        found.as_array().unwrap().first().cloned()
    });
    assert_eq!((&dead["attempts"], &dead["events"]), (&json!(3), &json!(1)));
    assert!(dead["error"].as_str().unwrap().contains("500"), "{dead}");
    eventually("the others have come", || (hook.arrived().len() == 5).then_some(()));
    assert_eq!(state(&gateway)["dead"], 1);
    let retry = "v1/webhooks/app/dead/retry";
    assert!(!gateway.api(retry, &json!({}))["error"].is_null());
    assert_eq!(gateway.result(retry, &json!({"ids": [dead["id"]]}))["retried"], 1);
    let arrived = hook.await_arrived(6);
    assert_eq!(arrived[5].header("webhook-id"), arrived[0].header("webhook-id"));
    assert_eq!(numbers(&events_of(&arrived[5])), [0]);
    eventually("it is no dead letter any more", || (state(&gateway)["dead"] == 0).then_some(()));
}

pub fn a_killed_gateway_sends_the_rest(database: &Database) {
    let mut taken = 0;
    let hook = Receiver::with(move |_| {
        taken += 1;
        if taken <= 2 { Reply::Status(200) } else { Reply::Hang }
    });
    let start = || setup(database, &hook, MESSAGES, "batch_max = 3\ntimeout = \"2s\"").start();
    let mut gateway = start();
    publish(&gateway, 0..20);
    gateway.await_metric("archmesh_events_recorded_total", &[("kind", "message")], |n| n == 20.0);
    hook.await_arrived(3);
    gateway.signal("KILL");
    gateway.await_exit(WAIT);
    hook.answer(|_| Reply::Status(200));
    let gateway = start();
    let events = await_told(&hook, 20);
    assert_eq!(numbers(&events), (0..20).collect::<Vec<_>>());
    publish(&gateway, 20..25);
    assert_eq!(numbers(&await_told(&hook, 25)), (0..25).collect::<Vec<_>>());
}

#[test]
fn an_endpoint_over_tls_is_checked_by_somebody_else() {
    let (database, authority) = (Database::sqlite(), Authority::new());
    let mut hook =
        HttpsWebhook::start(&authority.certificate(), &authority.key(), super::HOOK_SECRET);
    let more = format!("ca_path = \"{}\"", authority.ca_file().display());
    let toml = format!("{CHAT}{}", hook_toml(&hook.url(), MESSAGES, &more));
    let gateway = recording(&database, "").toml(&toml).start();
    Socket::connect(&gateway, "ada").publish("chat:room", json!("ü"));
    let arrived = hook.await_arrived(1);
    assert_eq!(arrived[0]["good"], true);
    assert_eq!(arrived[0]["body"]["events"][0]["data"]["data"], "ü");
}

#[test]
fn an_endpoint_inside_is_refused_unless_that_is_meant() {
    let (database, hook) = (Database::sqlite(), Receiver::start());
    let toml = hook_toml(&hook.url("/"), "\"connected\"", "");
    let insecure = toml.replace("allow_insecure = true\n", "");
    let mut gateway = recording(&database, "").toml(&insecure).spawn();
    assert!(!gateway.await_exit(WAIT).success());
    assert!(gateway.log.text().contains("https"), "{}", gateway.log.text());
    let private = insecure.replace("http://", "https://");
    let gateway = recording(&database, "").toml(&private).start();
    let _ada = Socket::connect(&gateway, "ada");
    let state = eventually("it is refused", || {
        Some(state(&gateway)).filter(|state| !state["last_error"].is_null())
    });
    assert!(state["last_error"].as_str().unwrap().contains("public address"), "{state}");
    assert!(hook.arrived().is_empty());
}

/// What is too old to be kept cannot be told any more, and that is said.
#[test]
fn an_endpoint_that_was_away_too_long_is_told_of() {
    let database = Database::sqlite();
    let hook = Receiver::with(|_| Reply::Status(503));
    let gateway = setup(&database, &hook, MESSAGES, "attempts_max = 1000")
        .set("events.retention", "1s")
        .start();
    publish(&gateway, 0..5);
    gateway.await_metric("archmesh_events_recorded_total", &[("kind", "message")], |n| n == 5.0);
    eventually("the events have left the log", || gateway.events("").is_empty().then_some(()));
    hook.answer(|_| Reply::Status(200));
    gateway.await_metric("archmesh_webhook_events_lost_total", &[("webhook", "app")], |n| n == 5.0);
    eventually("it is told", || gateway.log.events("webhook_events_lost").pop());
    let failed = hook.arrived().len();
    publish(&gateway, 5..6);
    let arrived = hook.await_arrived(failed + 1);
    assert_eq!(numbers(&events_of(arrived.last().unwrap())), [5]);
    let _all = told(&hook);
}
