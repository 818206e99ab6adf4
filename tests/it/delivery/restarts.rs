//! The gateway dies, or is stopped, while deliveries are under way.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::outside::Database;
use super::receiver::{Receiver, Reply};
use super::{Notifying, with_hook};
use crate::gateway::Gateway;
use crate::support::{WAIT, eventually};

const USERS: u16 = 200;

fn send_all(gateway: &Gateway) {
    let requests = (0..USERS).map(|n| super::notification(&format!("user{n}"), "t", json!({})));
    let requests: Vec<_> = requests.collect();
    let answer = gateway.call("batch", json!({"notifications": requests}));
    for one in answer["responses"].as_array().unwrap() {
        assert_eq!(one["result"]["queued"], 1, "{one}");
    }
}

/// Requests by webhook id, and who they were for.
fn by_id(hook: &Receiver) -> BTreeMap<String, (usize, String)> {
    let mut all: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for one in hook.arrived() {
        let user = one.json()["data"]["user_id"].as_str().unwrap().to_owned();
        let entry = all.entry(one.header("webhook-id").to_owned()).or_insert((0, user.clone()));
        entry.0 += 1;
        assert_eq!(entry.1, user, "an id belongs to one delivery");
    }
    all
}

fn check_all_came(hook: &Receiver) {
    let users: BTreeSet<String> = by_id(hook).into_values().map(|(_, user)| user).collect();
    assert_eq!((by_id(hook).len(), users.len()), (usize::from(USERS), usize::from(USERS)));
}

#[test]
fn a_killed_gateway_loses_nothing() {
    let database = Database::new();
    let mut taken = 0;
    let hook = Receiver::with(move |_| {
        taken += 1;
        if taken <= 60 { Reply::Status(200) } else { Reply::Hang }
    });
    let setup = || {
        with_hook(&database, &hook)
            .set("delivery.timeout", "3s")
            .set("delivery.lease_slack", "1s")
            .set("delivery.workers_max", 8)
    };
    let mut gateway = setup().start();
    send_all(&gateway);
    hook.await_arrived(62);
    gateway.signal("KILL");
    gateway.await_exit(WAIT);
    let sending = "SELECT count(*) FROM archmesh_deliveries WHERE status = 'sending'";
    assert!(database.numbers(sending)[0] > 0, "it died while it was sending");
    let before = hook.arrived().len();
    hook.answer(|_| Reply::Status(200));
    let gateway = setup().start();
    gateway.await_rest();
    assert_eq!(gateway.sums("delivered"), i64::from(USERS));
    assert_eq!(database.numbers(sending), [0]);
    check_all_came(&hook);
    // Again came only what was under way or not yet written down.
    let again = hook.arrived().len() - usize::from(USERS);
    assert!(again >= 2 && again <= before - 60 + 8, "{again} came twice of {before}");
}

#[test]
fn a_stopped_gateway_gives_back_what_it_has_not_done() {
    let database = Database::new();
    let mut taken = 0;
    let hook = Receiver::with(move |_| {
        taken += 1;
        if taken <= 20 { Reply::Status(200) } else { Reply::Hang }
    });
    let setup = || {
        with_hook(&database, &hook)
            .set("delivery.timeout", "700ms")
            .set("delivery.workers_max", 8)
            .set("delivery.jobs_max", 50)
            .set("delivery.attempts_max", 100)
    };
    for _ in 0..3 {
        let mut gateway = setup().start();
        if by_id(&hook).is_empty() {
            send_all(&gateway);
        }
        let more = hook.arrived().len().max(20) + 2;
        hook.await_arrived(more);
        gateway.signal("TERM");
        let status = gateway.await_exit(WAIT);
        assert!(status.success(), "{status}");
        let by_status = |status: &str| {
            let sql = format!("SELECT count(*) FROM archmesh_deliveries WHERE status = '{status}'");
            database.numbers(&sql)[0]
        };
        assert_eq!(by_status("sending"), 0, "nothing is left to a lease");
        assert_eq!(by_status("delivered"), 20);
        assert_eq!(by_status("pending") + by_status("retrying"), i64::from(USERS) - 20);
        assert!(gateway.log.events("deliveries_not_given_back").is_empty());
    }
    let untouched =
        "SELECT count(*) FROM archmesh_deliveries WHERE status = 'pending' AND attempts <> 0";
    assert_eq!(database.numbers(untouched), [0], "what was not tried counts no attempt");
    hook.answer(|_| Reply::Status(200));
    let gateway = setup().start();
    gateway.await_rest();
    assert_eq!(gateway.sums("delivered"), i64::from(USERS));
    check_all_came(&hook);
}

#[test]
fn a_database_that_stalls_loses_nothing() {
    let (database, hook) = (Database::new(), Receiver::start());
    let gateway = with_hook(&database, &hook)
        .set("delivery.timeout", "1s")
        .set("delivery.lease_slack", "1s")
        .set("database.query_timeout", "300ms")
        .start();
    hook.answer(|_| Reply::Gate);
    let sent: Vec<_> =
        (0..4).map(|n| gateway.notify(&format!("user{n}"), "t", json!({}))).collect();
    hook.await_arrived(4);
    database.locked(|| {
        hook.open();
        eventually("an outcome cannot be written", || {
            let told = gateway.log.events("delivery_outcome_not_written");
            (!told.is_empty()).then_some(())
        });
    });
    gateway.await_metric("archmesh_database_up", &[], |up| up == 1.0);
    for one in &sent {
        gateway.await_deliveries(one, "delivered");
    }
    assert_eq!(by_id(&hook).len(), 4);
    assert!(hook.arrived().len() > 4, "what could not be written down is repeated under its id");
}
