//! What the tests of several senders share: a message, foreign programs to talk to, an HTTP service that is told what
//! to answer.
//!
//! The programs are in `tests/clients` and run in a Python with PyPI `aiosmtpd`, `http-ece` and `py-vapid`, found by
//! the variable `ARCHMESH_TEST_PYTHON` or at the usual place.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::message::{Action, DeliveryId, Outgoing, Priority, RenderedEmail, Target};
use super::outbound::HttpSettings;

/// Time of all attempts.
pub(super) const NOW: Duration = Duration::from_millis(1_764_000_000_500);
/// Longer than anything takes on a busy machine.
pub(super) const LONG: Duration = Duration::from_mins(1);
/// Where a Python with the packages may be, below the folder of the crate.
const PYTHON: &str = ".cache/venv/bin/python";

/// A message with everything in it.
pub(super) fn outgoing(id: &str) -> Outgoing {
    Outgoing {
        delivery: DeliveryId::parse(id).expect("tests use good ids"),
        notification: "n1".to_owned(),
        user: "user-7".to_owned(),
        category: "workflow_failed".to_owned(),
        priority: Priority::High,
        title: "Run 7 failed".to_owned(),
        message: "Step \"build\" ended with an error \u{2013} see the log.".to_owned(),
        action: Some(Action {
            label: "Open".to_owned(),
            url: "https://app.example/runs/7".to_owned(),
        }),
        metadata: serde_json::value::to_raw_value(&serde_json::json!({"run": 7})).ok(),
        email: Some(RenderedEmail {
            subject: "Run 7 failed \u{2013} build".to_owned(),
            text: "Step build ended with an error.\n.\nS\u{e9}e the log.\n".to_owned(),
            html: Some("<p>Step <b>build</b> ended with an \u{e9}rror.</p>\n".to_owned()),
        }),
        collapse_key: None,
        target: Target::None,
    }
}

/// Everything allowed, nothing in a hurry.
pub(super) fn http_settings() -> HttpSettings {
    HttpSettings {
        deadline: LONG,
        allow_http: true,
        allow_private_addresses: true,
        retry_after_max: Duration::from_hours(1),
        answer_bytes_max: 64 * 1024,
        ca_file: None,
    }
}

/// A certificate for `localhost` and its key, as files.
pub(super) struct TestCertificate {
    folder: TempDir,
}

impl TestCertificate {
    /// A new one.
    pub(super) fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
        for (name, pem) in
            [("cert.pem", made.cert.pem()), ("key.pem", made.signing_key.serialize_pem())]
        {
            std::fs::write(folder.path().join(name), pem).expect("a writable folder");
        }
        Self { folder }
    }

    /// PEM file of the certificate.
    pub(super) fn certificate(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// PEM file of the key.
    pub(super) fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }
}

/// A Python program that answers lines with lines; ended when dropped.
pub(super) struct Program {
    child: Child,
    answers: BufReader<ChildStdout>,
    /// What it said first.
    pub hello: Value,
}

impl Program {
    /// Starts a program of `tests/clients` and waits until it says that it is ready.
    pub(super) fn start(name: &str, options: &Value) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let given = std::env::var_os("ARCHMESH_TEST_PYTHON").map(PathBuf::from);
        let python = given.unwrap_or_else(|| root.join(PYTHON));
        assert!(
            python.is_file(),
            "no Python at {python:?}; run scripts/deps-test.sh, or set ARCHMESH_TEST_PYTHON"
        );
        let mut child = Command::new(python)
            .arg(root.join("tests/clients").join(name))
            .arg(options.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let answers = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut program = Self { child, answers, hello: Value::Null };
        program.hello = program.line();
        program
    }

    /// The port that a server said first.
    pub(super) fn port(&self) -> u16 {
        self.hello.as_u64().and_then(|port| port.try_into().ok()).expect("a server says its port")
    }

    /// Asks and waits for the answer.
    pub(super) fn ask(&mut self, question: &Value) -> Value {
        let input = self.child.stdin.as_mut().expect("its input is piped");
        writeln!(input, "{question}").expect("the program runs");
        self.line()
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the program runs");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the program said {line:?}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    /// Path and query.
    pub path: String,
    /// All of them.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

/// What is answered next; 200 when nothing is left.
type Replies = VecDeque<(u16, Vec<(&'static str, String)>)>;

#[derive(Default)]
struct Shared {
    arrived: Mutex<Vec<Arrived>>,
    replies: Mutex<Replies>,
}

/// An HTTP service on the loopback interface.
pub(super) struct Service {
    /// `http://127.0.0.1:port`.
    pub url: String,
    shared: Arc<Shared>,
}

impl Service {
    /// Listens until the runtime ends.
    pub(super) async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let router = Router::new().fallback(arrive).with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, shared }
    }

    /// Adds an answer.
    pub(super) fn reply(&self, status: u16, headers: &[(&'static str, &str)]) {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.shared.replies.lock().expect("no test panics in it").push_back((status, headers));
    }

    /// What arrived so far.
    pub(super) fn arrived(&self) -> Vec<Arrived> {
        self.shared.arrived.lock().expect("no test panics in it").clone()
    }
}

async fn arrive(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap) {
    let arrived = Arrived { path: uri.to_string(), headers, body };
    shared.arrived.lock().expect("no test panics in it").push(arrived);
    let reply = shared.replies.lock().expect("no test panics in it").pop_front();
    let (status, headers) = reply.unwrap_or((200, Vec::new()));
    let headers = headers.iter().map(|(name, value)| {
        let value = HeaderValue::from_str(value).expect("tests answer good headers");
        (HeaderName::from_static(name), value)
    });
    (StatusCode::from_u16(status).expect("tests answer good statuses"), headers.collect())
}
