//! Setup: `scripts/run.sh enterprise` as `make run-enterprise` runs it, with the binary that is tested.
//!
//! Must hold: without a Redis a private one is started, which is said, and ends with the gateway; with one of the
//! configuration none is started.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::gateway::{BINARY, Log};
use crate::http::Http;
use crate::redis::{Redis, ask_at};
use crate::support::{API_KEY, SECRET, eventually, root, signal, tool, within};

/// A gateway ends within its drain, which has nobody to wait for.
const END_MAX: Duration = Duration::from_secs(60);

/// The running script; it ends with the test.
struct Script {
    child: Child,
    log: Log,
    _folder: TempDir,
}

impl Script {
    fn enterprise(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("database.sqlite_path={}/archmesh.db", folder.path().display());
        let server = tool("REDIS_SERVER", &["redis-server", ".cache/bin/redis-server"]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(server.parent().map(Path::to_owned));
        let path = std::env::join_paths(folders).unwrap();
        let variables = BTreeMap::from([("JWT_SECRET", SECRET), ("API_KEY", API_KEY)]);
        let mut command = Command::new(root().join("scripts/run.sh"));
        command.args(["enterprise", "--listen", "127.0.0.1:0", "--shards", "2"]);
        for setting in ["listen.internal=127.0.0.1:0", "limits.connections_max=100", &store] {
            command.args(["--set", setting]);
        }
        command.args(more).env_clear().envs(variables);
        command.env("PATH", path).env("BINARY", BINARY);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the script starts");
        let log = Log::default();
        log.follow(child.stdout.take().unwrap());
        log.follow(child.stderr.take().unwrap());
        Self { child, log, _folder: folder }
    }

    /// What a node answers to its operators about all nodes.
    fn nodes(&self) -> Vec<Value> {
        let address = eventually("the gateway says where it listens", || {
            let lines = self.log.events("listening");
            let line = lines.iter().find(|line| line["listener"] == "internal")?;
            line["address"].as_str()?.parse::<SocketAddr>().ok()
        });
        eventually("the node is listed", || {
            let answer = Http::connect(address, None).ok()?.get("/cluster/nodes").ok()?;
            let nodes = answer.json()["nodes"].as_array()?.clone();
            nodes.iter().any(|node| node["state"] == "up").then_some(nodes)
        })
    }

    fn end(&mut self) -> ExitStatus {
        signal(self.child.id(), "TERM");
        within(END_MAX, "the script ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the script ---\n{}\n---", self.log.text());
        }
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // It ends what it has started.
            signal(self.child.id(), "TERM");
            let _ = self.child.wait();
        }
    }
}

#[test]
fn enterprise_brings_a_redis_along() {
    let mut script = Script::enterprise(&[]);
    let said = eventually("the script says where its Redis is", || {
        script.log.lines().into_iter().find(|line| line.contains("a private redis-server runs at"))
    });
    let url = said.split_whitespace().find_map(|word| word.strip_prefix("redis://"));
    let redis: SocketAddr = url.expect("a URL").parse().unwrap();
    assert_eq!(script.nodes().len(), 1);
    assert_eq!(ask_at(redis, "ZCARD archmesh:{nodes}:leases").as_deref(), Some(":1"));
    assert_eq!(script.end().code(), Some(0));
    assert_eq!(ask_at(redis, "PING"), None, "it has ended too");
}

#[test]
fn enterprise_takes_the_redis_that_it_is_given() {
    let redis = Redis::start(&[]);
    let mut script = Script::enterprise(&["--set", &format!("redis.url={}", redis.url())]);
    assert_eq!(script.nodes().len(), 1);
    assert_eq!(redis.ask("ZCARD archmesh:{nodes}:leases"), ":1");
    assert!(!script.log.text().contains("redis-server runs"), "{}", script.log.text());
    assert_eq!(script.end().code(), Some(0));
}
