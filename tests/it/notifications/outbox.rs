//! Publications that an application writes into the outbox, inside its own transaction.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Database, note, sent, shown};
use crate::gateway::Setup;
use crate::postgres::{Postgres, PostgresDatabase};
use crate::socket::Socket;

/// Rows of the test of order.
const ROWS: usize = 700;
/// From a commit to the arrival of what it published.
const ARRIVAL_MAX: Duration = Duration::from_secs(1);

fn insert(channel: &str, data: &Value) -> String {
    format!(
        "INSERT INTO archmesh_outbox (channel, type, data) VALUES ('{channel}', 'news', '{data}')"
    )
}

pub fn what_an_application_writes_arrives_in_order(database: &Database) {
    let gateway = database.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    for channel in ["feed:a", "feed:b"] {
        ada.subscribe(channel);
    }
    let rows: Vec<String> = (0..ROWS)
        .map(|n| insert(if n % 3 == 0 { "feed:b" } else { "feed:a" }, &json!({"n": n})))
        .collect();
    database.query(&rows.join(";"));
    let began = Instant::now();
    for (channel, expected) in [
        ("feed:a", (0..ROWS).filter(|n| n % 3 != 0).collect::<Vec<_>>()),
        ("feed:b", (0..ROWS).filter(|n| n % 3 == 0).collect()),
    ] {
        for n in expected {
            let message = ada.wait_for("a row", |message| message["channel"] == channel);
            assert_eq!((&message["data"]["n"], &message["type"]), (&json!(n), &json!("news")));
        }
    }
    assert!(began.elapsed() < ARRIVAL_MAX * 5, "{:?}", began.elapsed());
    database.await_published();
    gateway.await_metric("archmesh_outbox_published_total", &[], |rows| rows == ROWS as f64);
    // Once only.
    assert!(ada.settled("news").is_empty());
}

pub fn rows_that_can_never_be_published_are_passed_over(database: &Database) {
    // Two megabytes take a loaded disk its time, and a commit that was given up is not counted.
    let setup = database.setup().set("database.query_timeout", "30s");
    let gateway = setup.set("database.backlog_interval", "100ms").start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("feed:a");
    // Made by the database: it is too large for a command line.
    let large = match database {
        Database::Postgres(_) => "repeat('7', 2000000)",
        Database::Sqlite(_) => "replace(hex(zeroblob(1000000)), '0', '7')",
    };
    let odd = |columns: &str, values: &str| {
        format!("INSERT INTO archmesh_outbox (channel, {columns}) VALUES ('feed:a', {values})")
    };
    let rows = [
        insert("nowhere:a", &json!(1)),
        insert("", &json!(1)),
        odd("data", "'no JSON'"),
        odd("data", "''"),
        odd("data", large),
        odd("data, priority", "'1', 'urgent'"),
        odd("data, type", "'1', 'welcome'"),
        odd("data, type", "'1', 'two words'"),
        insert("feed:a", &json!("good")),
    ];
    let bad = rows.len() - 1;
    for row in &rows {
        database.query(row);
    }
    let good = ada.wait_for("the good row", |message| message["channel"] == "feed:a");
    assert_eq!(good["data"], "good", "{good}");
    database.await_published();
    let failed =
        database.query("SELECT channel, failed_at, error FROM archmesh_outbox ORDER BY id");
    assert_eq!(failed.len(), bad, "{failed:?}");
    for row in &failed {
        assert!(row[1].parse::<u64>().is_ok() && !row[2].is_empty(), "{row:?}");
    }
    assert!(failed[0][2].contains("nowhere"), "{failed:?}");
    gateway.await_metric("archmesh_outbox_failed_total", &[], |failed| failed == bad as f64);
    gateway.await_metric("archmesh_outbox_failed", &[], |failed| failed == bad as f64);
    gateway.await_metric("archmesh_outbox_waiting", &[], |waiting| waiting == 0.0);
    crate::support::eventually("every one is told", || {
        (gateway.log.events("outbox_row_failed").len() >= bad).then_some(())
    });
    assert_eq!(gateway.log.events("outbox_row_failed").len(), bad, "and once");
    let id = sent(&gateway, note("ada", "t"));
    shown(&mut ada, &id);
    assert_eq!(gateway.get("/health").json()["status"], "healthy");
}

/// A transaction of an application, which lasts until it is told what to do.
struct Application {
    child: std::process::Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Application {
    fn begin(database: &PostgresDatabase) -> Self {
        let mut command = database.psql();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("psql runs");
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut application = Self { child, output };
        application.run("BEGIN");
        application
    }

    /// Runs statements and waits for their end.
    fn run(&mut self, sql: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{sql};\n\\echo done").unwrap();
        let mut line = String::new();
        while !line.contains("done") {
            assert!(self.output.read_line(&mut line).unwrap() > 0, "psql has ended: {line}");
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The gateway would look by itself only once a minute, so it is woken.
fn woken(url: &str) -> Setup {
    Setup::new().set("database.url", url).set("database.poll_interval", "1m")
}

#[test]
fn a_commit_publishes_at_once_and_a_rollback_never() {
    let database = Postgres::shared().database();
    let gateway = woken(&database.url()).start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("feed:a");
    let mut kept = Application::begin(&database);
    let mut undone = Application::begin(&database);
    for n in 0..10 {
        kept.run(&insert("feed:a", &json!({"kept": n})));
        undone.run(&insert("feed:a", &json!({"undone": n})));
    }
    // What others commit meanwhile arrives, so the relay has looked.
    let marker = Instant::now();
    database.query(&insert("feed:a", &json!({"marker": true})));
    let first = ada.wait_for("a row", |message| message["channel"] == "feed:a");
    assert_eq!(first["data"], json!({"marker": true}), "nothing comes before its commit");
    assert!(marker.elapsed() < ARRIVAL_MAX, "{:?}", marker.elapsed());
    assert!(ada.settled("news").is_empty());
    undone.run("ROLLBACK");
    kept.run("COMMIT");
    let committed = Instant::now();
    for n in 0..10 {
        let message = ada.wait_for("a row", |message| message["channel"] == "feed:a");
        assert_eq!(message["data"], json!({"kept": n}));
    }
    assert!(committed.elapsed() < ARRIVAL_MAX, "{:?}", committed.elapsed());
    database.query(&insert("feed:a", &json!({"marker": 2})));
    let last = ada.wait_for("a row", |message| message["channel"] == "feed:a");
    assert_eq!(last["data"], json!({"marker": 2}), "what was rolled back never comes");
}

#[test]
fn the_relay_is_woken_again_after_its_connection_was_lost() {
    let database = Postgres::shared().database();
    let gateway = Setup::new()
        .set("database.url", database.url())
        .set("database.poll_interval", "3s")
        .start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("feed:a");
    let listener = "query LIKE 'LISTEN%' AND datname = current_database()";
    let count = format!("SELECT count(*) FROM pg_stat_activity WHERE {listener}");
    let listening = || database.query(&count)[0][0] == "1";
    crate::support::eventually("the gateway listens", || listening().then_some(()));
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    database.query(end);
    crate::support::eventually("the gateway listens again", || listening().then_some(()));
    for n in 0..5 {
        let began = Instant::now();
        database.query(&insert("feed:a", &json!(n)));
        let message = ada.wait_for("a row", |message| message["channel"] == "feed:a");
        assert_eq!(message["data"], n);
        assert!(began.elapsed() < ARRIVAL_MAX, "{:?}", began.elapsed());
    }
}
