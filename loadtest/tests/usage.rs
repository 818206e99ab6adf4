//! The built program as people meet it: its list, what it refuses and how, without any gateway.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::{Command, Output};

fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_archmesh-loadtest")).args(arguments).output().unwrap()
}

fn refused(arguments: &[&str], why: &str) {
    let output = loadtest(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(said.contains(why), "{arguments:?}: {said}");
}

#[test]
fn the_list_names_every_scenario_with_a_sentence() {
    let output = loadtest(&["--list"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.lines().count() >= 10, "{text}");
    for line in text.lines() {
        assert!(line.ends_with('.') && line.len() > 30, "{line}");
    }
}

#[test]
fn wrong_usage_says_what_would_be_right() {
    refused(&["--threshold", "p98_ms_max=1"], "p99_ms_max");
    refused(&["--threshold", "p99_ms_max=fast"], "not a number");
    refused(&["--scenario", "nothing"], "connect_storm");
    refused(&["--scenario", "missing.toml"], "missing.toml");
    refused(&["--url", "http//x"], "ws://host:port/path");
    refused(&["--url", "wss://127.0.0.1/ws", "--ca", "missing.pem"], "missing.pem");
}

#[test]
fn a_run_without_a_server_fails_and_says_so() {
    // Port 1 of the loopback answers with a refusal at once.
    let output = loadtest(&["--url", "ws://127.0.0.1:1/ws", "--connections", "10", "--quiet"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("ConnectFailed: 10") && text.contains("errors_max"), "{text}");
}
