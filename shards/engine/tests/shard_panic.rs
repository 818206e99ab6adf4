//! A panic outside the handling of a connection ends the process, so that its supervisor starts it again: a node with
//! a dead shard would answer nobody for that shard's channels. The process that dies is a second run of this binary.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

#[path = "it/node.rs"]
#[allow(dead_code)]
mod node;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use node::start;
use tungstenite::Message;

const VICTIM: &str = "ENGINE_TEST_SHARD_PANIC_VICTIM";

#[test]
fn a_dead_shard_aborts_the_process() {
    if std::env::var_os(VICTIM).is_some() {
        let node = start(2);
        let mut client = node.websocket("/ws?token=");
        let fault = r#"{"type":"fault","id":"1","data":{"kind":"panic_shard"}}"#;
        client.send(Message::text(fault)).unwrap();
        // Nobody ends the engine in order: only the abort ends this process.
        node.engine.join().unwrap();
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_dead_shard_aborts_the_process"])
        .env(VICTIM, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(6), "SIGABRT: {status}");
}
