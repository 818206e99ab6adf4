//! The gateway and its database: starting, starting again, and what operators see.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Database, list, note, prefer, send, sent, shown, titles, with};
use crate::gateway::Setup;
use crate::postgres::Postgres;
use crate::socket::Socket;

const EXIT_MAX: Duration = Duration::from_secs(20);

pub fn a_restart_keeps_everything(database: &Database) {
    let mut gateway = database.setup().start();
    let keyed = with(note("ada", "keyed"), json!({"idempotency_key": "k"}));
    let first = sent(&gateway, keyed.clone());
    let ids: Vec<String> = (0..5).map(|n| sent(&gateway, note("ada", &format!("{n}")))).collect();
    prefer(&gateway, "ada", json!({"locale": "de"}));
    let mark = json!({"user": "ada", "state": "read", "ids": ids[..2]});
    gateway.result("v1/notifications/mark", &mark);
    let before = list(&gateway, "ada", json!({}));
    gateway.signal("TERM");
    assert!(gateway.await_exit(EXIT_MAX).success());
    let gateway = database.setup().start();
    assert_eq!(list(&gateway, "ada", json!({})), before);
    let again = send(&gateway, keyed);
    assert_eq!((&again["notification_id"], &again["duplicate"]), (&json!(first), &json!(true)));
    let mut ada = Socket::connect(&gateway, "ada");
    let next = sent(&gateway, note("ada", "next"));
    assert_eq!(shown(&mut ada, &next)["seq"], 7, "places go on where they were");
    let own = gateway.result("v1/notifications/preferences", &json!({"user": "ada"}));
    assert_eq!(own["preferences"], json!({"locale": "de"}));
    database.check_counters();
}

pub fn numbers_and_health_show_it(database: &Database) {
    let gateway = database.setup().start();
    prefer(&gateway, "bob", json!({"channels": {"in_app": false}}));
    let body = json!({"users": ["ada", "bob"], "title": "t", "message": "m", "category": "system"});
    send(&gateway, body);
    send(&gateway, with(note("ada", "t"), json!({"deliver_at": super::now_ms() + 60_000})));
    database.await_published();
    let expect = |name: &str, labels: &[(&str, &str)], value: f64| {
        gateway.await_metric(name, labels, |now| (now - value).abs() < 1e-9);
    };
    expect("archmesh_notifications_total", &[], 2.0);
    for (decision, count) in [("now", 1.0), ("held", 1.0), ("opted_out", 1.0)] {
        expect("archmesh_notification_recipients_total", &[("decision", decision)], count);
    }
    expect("archmesh_inbox_writes_total", &[], 2.0);
    expect("archmesh_inbox_writes_waiting", &[], 0.0);
    expect("archmesh_outbox_published_total", &[], 1.0);
    expect("archmesh_database_up", &[], 1.0);
    expect("archmesh_database_breaker_state", &[], 0.0);
    let ok = gateway.metric("archmesh_database_requests_total", &[("outcome", "ok")]);
    assert!(ok >= 3.0, "{ok}");
    assert_eq!(gateway.metric("archmesh_database_requests_total", &[("outcome", "error")]), 0.0);
    let health = gateway.operators().get("/health/detailed").unwrap().json();
    let shown = &health["components"]["database"];
    assert_eq!((&health["status"], &shown["status"]), (&json!("healthy"), &json!("healthy")));
    let kind = match database {
        Database::Postgres(_) => "postgresql",
        Database::Sqlite(_) => "sqlite",
    };
    assert_eq!((&shown["kind"], &shown["writes_waiting"]), (&json!(kind), &json!(0)), "{shown}");
    assert_eq!((&shown["breaker"], &shown["last_error"]), (&json!("closed"), &Value::Null));
}

pub fn an_old_schema_is_told_with_the_mend(database: &Database) {
    let mut gateway = database.setup().set("database.migrate", false).spawn();
    let status = gateway.await_exit(EXIT_MAX);
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    let log = gateway.log.text();
    assert!(log.contains("has 0 of") && log.contains("database.migrate"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    drop(database.setup().start());
    let gateway = database.setup().set("database.migrate", false).start();
    sent(&gateway, note("ada", "t"));
    assert_eq!(titles(&list(&gateway, "ada", json!({}))), ["t"]);
}

pub fn two_connections_are_enough(database: &Database) {
    let gateway = database.setup().set("database.connections_max", 2).start();
    let mut ada = Socket::connect(&gateway, "ada");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let send = |n| sent(&gateway, note("ada", &format!("{n}")));
        let all: Vec<_> = (0..40).map(|n| scope.spawn(move || send(n))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for id in &ids {
        shown(&mut ada, id);
    }
    assert_eq!(ada.call("notification_read", json!({"all": true}))["data"]["unread"], 0);
    database.check_counters();
}

#[test]
fn two_gateways_start_on_one_empty_database() {
    let database = Database::postgres();
    let mut gateways =
        [database.setup().spawn(), database.setup().spawn(), database.setup().spawn()];
    for gateway in &mut gateways {
        gateway.await_ready();
    }
    for (n, gateway) in gateways.iter().enumerate() {
        sent(gateway, note("ada", &format!("{n}")));
    }
    for gateway in &gateways {
        assert_eq!(titles(&list(gateway, "ada", json!({}))), ["2", "1", "0"]);
    }
    database.check_counters();
    database.await_published();
}

/// A database whose every new table takes longer than a request may.
#[test]
fn a_migration_may_take_longer_than_a_request() {
    let database = Database::postgres();
    database.query(
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.3); END'; \
         CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION slow()",
    );
    let slow = || database.setup().set("database.query_timeout", "200ms").spawn();
    let mut gateways = [slow(), slow()];
    for gateway in &mut gateways {
        gateway.await_ready();
    }
}

#[test]
fn a_database_that_is_not_there_is_told() {
    let server = Postgres::shared().server().url();
    let server = server.strip_suffix("postgres").unwrap();
    for (url, reason) in [
        (format!("{server}no_such_database"), "no_such_database"),
        ("postgres://postgres@127.0.0.1:1/postgres".to_owned(), "127.0.0.1:1"),
    ] {
        for migrate in [true, false] {
            let setup = Setup::new().set("database.url", &url).set("database.migrate", migrate);
            let setup = setup.set("database.start_timeout", "200ms");
            let mut gateway = setup.spawn();
            assert!(!gateway.await_exit(EXIT_MAX).success());
            let log = gateway.log.text();
            assert!(log.contains(reason) && !log.contains("migrations;"), "{log}");
        }
    }
}

#[test]
fn without_notifications_there_is_no_store() {
    let database = Database::sqlite();
    let gateway = database.setup().set("notifications.enabled", false).start();
    for (method, body) in [
        ("v1/notifications", note("ada", "t")),
        ("v1/notifications/list", json!({"user": "ada"})),
        ("v1/notifications/mark", json!({"user": "ada", "state": "read", "all": true})),
        ("v1/notifications/preferences", json!({"user": "ada"})),
    ] {
        let answer = gateway.api(method, &body);
        assert_eq!(answer["error"]["code"], 102, "{method}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("notifications.enabled"), "{message}");
    }
    let mut ada = Socket::connect(&gateway, "ada");
    for kind in ["notifications", "notification_read", "preferences"] {
        let error = ada.call(kind, json!({"all": true}));
        assert_eq!(error["data"]["error_code"], "NOT_FOUND", "{kind}: {error}");
    }
    let health = gateway.operators().get("/health/detailed").unwrap().json();
    assert_eq!(health["components"]["database"]["status"], "not_configured");
    let Database::Sqlite(folder) = &database else { unreachable!() };
    assert!(!folder.path().join("test.db").exists());
}
