//! `archmesh migrate` and `archmesh vapid`.

use std::process::Command;

use serde_json::json;

use super::outside::{Database, run, web_push_toml};
use super::{EVERYTHING, Notifying, setup};
use crate::gateway::BINARY;
use crate::support::WAIT;

#[test]
fn the_schema_can_be_made_beforehand() {
    let database = Database::new();
    let path = format!("database.sqlite_path={}", database.path().display());
    let start = || setup(&database, &[EVERYTHING]).set("database.migrate", false);
    let mut refused = start().spawn();
    assert!(!refused.await_exit(WAIT).success(), "there is no schema");
    assert!(refused.log.text().contains("migrate"), "{}", refused.log.text());
    for _ in 0..2 {
        let told = run(&["migrate", "--set", &path]);
        assert!(told.contains("is up to date: "), "{told}");
    }
    let gateway = start().start();
    assert_eq!(gateway.notify("ann", "t", json!({}))["delivered"], 1);
    // While a gateway runs, it changes nothing.
    run(&["migrate", "--set", &path]);
    assert_eq!(gateway.call("list", json!({"user": "ann"}))["unread"], 1);
}

#[test]
fn a_schema_that_cannot_be_made_is_told() {
    let output = Command::new(BINARY)
        .args(["migrate", "--set", "database.sqlite_path=/proc/nowhere/test.db"])
        .env_clear()
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("database.sqlite_path"), "{told}");
}

#[test]
fn a_key_pair_is_one_of_its_own() {
    let (one, other) = (web_push_toml(), web_push_toml());
    assert_ne!(one, other);
    let database = Database::new();
    setup(&database, &[&one]).start();
    // Halves of different pairs are found at the start.
    let private =
        |toml: &str| toml.lines().find(|line| line.starts_with("private")).unwrap().to_owned();
    let mixed = one.replace(&private(&one), &private(&other));
    let mut gateway = setup(&database, &[&mixed]).spawn();
    assert!(!gateway.await_exit(WAIT).success());
    let log = gateway.log.text();
    assert!(log.contains("VAPID") || log.contains("web_push"), "{log}");
    let secret = private(&other).split('"').nth(1).unwrap().to_owned();
    assert!(!log.contains(&secret), "it is not shown");
}
