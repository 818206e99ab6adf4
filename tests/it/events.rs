//! Setup: gateways that record what happens, on either database, with receivers of the test's own, alone or with a real Redis.
//!
//! Must hold: what happened is in the log once and in order, and reaches every endpoint that wants it, signed, in order and at
//! least once, whatever dies meanwhile; a channel is told to be occupied and vacated once for all nodes together.

mod audit;
mod cluster;
mod log;
mod webhooks;

use serde_json::Value;

use crate::delivery::receiver::{Arrived, Receiver};
use crate::gateway::{Gateway, Setup};
use crate::notifications::database::{Database, on_both_databases};
use crate::support::{API_KEY, eventually};

/// Secret that signs webhooks.
const HOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAAAAA=";

/// Clients' messages in `chat` are told.
const CHAT: &str = "[[namespaces]]\nname = \"chat\"\nwebhook_messages = true\n";

on_both_databases!(
    audit::changes_are_recorded_with_who_made_them,
    log::sessions_come_and_go,
    log::pages_hold_everything_once,
    log::strangers_read_nothing,
    log::a_restarted_node_ends_what_it_left,
    webhooks::events_arrive_signed_and_in_order,
    webhooks::a_receiver_that_is_down_loses_nothing,
    webhooks::a_batch_that_is_given_up_can_be_sent_again,
    webhooks::a_killed_gateway_sends_the_rest,
);

/// A gateway that records these kinds and looks often.
fn recording(database: &Database, kinds: &str) -> Setup {
    database
        .setup()
        .set("database.poll_interval", "20ms")
        .set("events.node_ttl", "1s")
        .set("events.record", kinds)
}

/// Configuration of an endpoint.
fn hook_toml(url: &str, kinds: &str, more: &str) -> String {
    format!(
        "[[webhooks]]\nname = \"app\"\nurl = \"{url}\"\nsecrets = [\"{HOOK_SECRET}\"]\nevents = [{kinds}]\n\
         allow_insecure = true\nretry_base = \"20ms\"\nretry_max = \"200ms\"\nbreaker_failures = 1000\n{more}\n"
    )
}

/// Calls with the API key that everything of this log is read with.
trait Recorded {
    /// The body of a GET.
    fn read(&self, path: &str) -> Value;
    /// The `result` of a GET that must succeed.
    fn found(&self, path: &str) -> Value;
    /// Events by query, the oldest first.
    fn events(&self, query: &str) -> Vec<Value>;
    /// Waits until there are so many, and no more.
    fn await_events(&self, query: &str, count: usize) -> Vec<Value>;
}

impl Recorded for Gateway {
    fn read(&self, path: &str) -> Value {
        let headers = [format!("X-API-Key: {API_KEY}")];
        let answer = self.operators().request("GET", path, &headers, &[]);
        let answer = answer.unwrap_or_else(|error| panic!("GET {path}: {error}"));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    fn found(&self, path: &str) -> Value {
        let answer = self.read(path);
        assert!(!answer["result"].is_null(), "{path}: {answer}");
        answer["result"].clone()
    }

    fn events(&self, query: &str) -> Vec<Value> {
        self.found(&format!("/api/v1/events?after=0&{query}"))["events"].as_array().unwrap().clone()
    }

    fn await_events(&self, query: &str, count: usize) -> Vec<Value> {
        // The database may be away still.
        let path = format!("/api/v1/events?after=0&{query}");
        let events = eventually(&format!("{count} events {query}"), || {
            let answer = self.read(&path);
            let events = answer["result"]["events"].as_array()?.clone();
            (events.len() >= count).then_some(events)
        });
        assert_eq!(events.len(), count, "{events:?}");
        events
    }
}

/// `type` of each event.
fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

/// Events of a request.
fn events_of(arrived: &Arrived) -> Vec<Value> {
    assert!(arrived.is_signed_with(HOOK_SECRET), "{arrived:?}");
    arrived.json()["events"].as_array().unwrap().clone()
}

/// Events that have come, each once, in the order in which they came first, which must be that of their ids.
fn told(hook: &Receiver) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for event in hook.arrived().iter().flat_map(events_of) {
        if !all.iter().any(|known| known["id"] == event["id"]) {
            all.push(event);
        }
    }
    let ids: Vec<i64> = all.iter().map(|event| event["id"].as_i64().unwrap()).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    all
}

/// Waits until so many different ones have come.
fn await_told(hook: &Receiver, count: usize) -> Vec<Value> {
    eventually(&format!("{count} events are told"), || {
        Some(told(hook)).filter(|events| events.len() >= count)
    })
}
