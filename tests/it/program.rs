//! A foreign client program that speaks JSON lines; see `tests/clients/README.md`.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{root, tool};

/// Starting Chromium on a loaded machine takes its time.
const LIMIT: Duration = Duration::from_secs(90);

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NpmWs,
    PyPiWebsockets,
    Chromium,
    /// No client: a page in Chromium.
    Page,
    /// The example page of notifications, driven through a whole story.
    Notifications,
}

/// A running client program.
#[derive(Debug)]
pub struct Program {
    kind: Kind,
    child: Child,
    input: ChildStdin,
    lines: Receiver<Value>,
    seen: VecDeque<Value>,
    last_id: u64,
}

impl Program {
    /// Starts a client with the options of `tests/clients/README.md`.
    pub fn start(kind: Kind, url: &str, options: &[&str]) -> Self {
        let clients = root().join("tests/clients");
        let (program, script) = match kind {
            Kind::NpmWs => (node(), "ws_client.mjs"),
            Kind::Chromium => (node(), "browser.mjs"),
            Kind::Page => (node(), "page.mjs"),
            Kind::Notifications => (node(), "notifications.mjs"),
            Kind::PyPiWebsockets => {
                (tool("ARCHMESH_TEST_PYTHON", &[".cache/venv/bin/python"]), "websockets_client.py")
            }
        };
        let mut command = Command::new(program);
        command.arg(clients.join(script)).arg(url).args(options).current_dir(&clients);
        if matches!(kind, Kind::Chromium | Kind::Page | Kind::Notifications) {
            let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
            command.env("CHROMIUM", tool("CHROMIUM", &names));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the client program starts");
        let (sender, lines) = sync_channel(100_000);
        let (output, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                let parsed = serde_json::from_str(&line).unwrap_or_else(|_| json!({"text": line}));
                if sender.send(parsed).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = BufReader::new(errors).read_to_string(&mut text);
            if !text.trim().is_empty() {
                eprintln!("--- a client wrote ---\n{text}");
            }
        });
        let input = child.stdin.take().unwrap();
        Self { kind, child, input, lines, seen: VecDeque::new(), last_id: 0 }
    }

    /// Gives the program a line.
    pub fn order(&mut self, order: &Value) {
        writeln!(self.input, "{order}").expect("the client program reads its orders");
    }

    /// Sends a command of the native protocol and waits for its answer.
    pub fn call(&mut self, kind: &str, fields: Value) -> Value {
        self.last_id += 1;
        let id = format!("p{}", self.last_id);
        let mut order = fields;
        order["op"] = json!(kind);
        order["id"] = json!(id);
        self.order(&order);
        self.message(&format!("an answer to {kind}"), |message| message["reply_to"] == *id)
    }

    /// Waits for a message of the gateway.
    pub fn message(&mut self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let event =
            self.event(what, |event| event["event"] == "message" && matches(&event["data"]));
        event["data"].clone()
    }

    /// Waits for an event of the program.
    pub fn event(&mut self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.iter().position(&matches) {
                return self.seen.remove(at).expect("just found");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push_back(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{:?} gave no {what}; seen: {:?}", self.kind, self.seen)
                }
            }
        }
    }

    /// Waits for the event of that name.
    pub fn named(&mut self, name: &str) -> Value {
        self.event(name, |event| event["event"] == name)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The browser's program ends Chromium when it is asked to stop, which a kill would leave behind.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            crate::support::signal(self.child.id(), "TERM");
        }
        let _ = self.child.wait();
    }
}

fn node() -> PathBuf {
    let modules = root().join("tests/clients/node_modules/ws");
    assert!(modules.is_dir(), "npm `ws` is not installed; `make test` installs it");
    tool("ARCHMESH_TEST_NODE", &["node"])
}
