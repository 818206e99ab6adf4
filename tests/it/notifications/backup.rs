//! A backup fills an empty store, and nothing else.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use super::{Database, list, note, now_ms, prefer, sent, shown, with};
use crate::gateway::BINARY;
use crate::socket::Socket;

/// What must be the same afterwards.
const TABLES: [&str; 6] = [
    "SELECT user_id, seq, notification_id, read_at, seen_at, acked_at FROM archmesh_inbox ORDER BY user_id, seq",
    "SELECT user_id, last_seq, unread, unseen, unacked FROM archmesh_inboxes ORDER BY user_id",
    "SELECT id, idempotency_key, content FROM archmesh_notifications ORDER BY id",
    "SELECT id, notification_id, user_id, channel, status, due_at FROM archmesh_deliveries ORDER BY id",
    "SELECT user_id, document FROM archmesh_preferences ORDER BY user_id",
    "SELECT name, version, document FROM archmesh_templates ORDER BY name, version",
];

/// Runs `archmesh backup` or `archmesh restore` on a folder.
pub fn archmesh(command: &str, folder: (&str, &Path), database: &Database) -> Output {
    let mut run = Command::new(BINARY);
    run.arg(command).arg(folder.0).arg(folder.1).args(database.options());
    run.env_clear().env("PATH", search_path());
    run.output().expect("the binary runs")
}

/// With the programs of PostgreSQL, which Debian keeps apart.
fn search_path() -> String {
    let usual = std::env::var("PATH").unwrap_or_default();
    match std::env::var("POSTGRES_BIN") {
        Ok(folder) => format!("{folder}:{usual}"),
        Err(_) => usual,
    }
}

fn refused(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(why), "{said}");
}

pub fn a_backup_fills_an_empty_store(database: &Database) {
    let gateway = database.setup().start();
    let keyed = with(note("ada", "keyed"), json!({"idempotency_key": "k"}));
    let first = sent(&gateway, keyed.clone());
    sent(&gateway, note("ada", "second"));
    sent(&gateway, with(note("bob", "later"), json!({"deliver_at": now_ms() + 3_600_000})));
    gateway
        .result("v1/notifications/mark", &json!({"user": "ada", "state": "read", "ids": [first]}));
    prefer(&gateway, "ada", json!({"locale": "de"}));
    let texts = json!({"en": {"title": "t", "message": "m"}});
    let template = json!({"name": "t", "locales": texts, "fallback_locale": "en"});
    gateway.result("v1/notifications/templates/store", &json!({"document": template}));
    let before = list(&gateway, "ada", json!({}));

    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    let output = archmesh("backup", ("--to", &backup), database);
    assert!(output.status.success(), "{output:?}");
    refused(&archmesh("backup", ("--to", &backup), database), "must be a new one");
    refused(&archmesh("restore", ("--from", &backup), database), "has notifications already");

    let fresh = database.another();
    let output = archmesh("restore", ("--from", &backup), &fresh);
    assert!(output.status.success(), "{output:?}");
    for table in TABLES {
        assert_eq!(fresh.query(table), database.query(table), "{table}");
    }
    let restored = fresh.setup().start();
    let after = list(&restored, "ada", json!({}));
    assert_eq!(after["items"], before["items"]);
    let revision = |page: &serde_json::Value| page["revision"].as_u64().unwrap();
    assert!(revision(&after) > revision(&before) + 1_000, "clients take the new counters");
    assert_eq!(sent(&restored, keyed), first, "the key is known");
    let mut ada = Socket::connect(&restored, "ada");
    let next = sent(&restored, note("ada", "next"));
    assert_eq!(shown(&mut ada, &next)["seq"], 3, "places go on where they were");
    fresh.check_counters();

    std::fs::write(backup.join("configuration.toml"), "changed").unwrap();
    refused(&archmesh("restore", ("--from", &backup), &database.another()), "checksum");
}
