//! A running gateway: the built binary with a configuration of its own, on ports the kernel chose.
//!
//! It is killed when dropped; a failing test shows the last lines of its log.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ClientConfig;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Answer, Http};
use crate::support::{API_KEY, ProcessNumbers, SECRET, eventually, limit_files, signal};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_archmesh");

/// What every gateway of the tests has in common; a test puts its own file on top.
const BASE: &str = r#"
[node]
name = "test-node"
environment = "development"
size = "medium"
[listen]
public = ["127.0.0.1:0"]
[auth]
secret = "SECRET"
[[api.keys]]
name = "tests"
key = "API_KEY"
[engine]
shards = 2
[rate_limits]
handshakes_per_second = 0
connection_messages_per_second = 0
user_messages_per_second = 0
[log]
format = "json"
sample_per_second = 0
[[namespaces]]
name = "chat"
subscribe = "signed_in"
publish = "signed_in"
presence = true
join_leave = true
history_size = 1000
history_ttl = "10m"
history_access = true
recovery = true
[[namespaces]]
name = "feed"
subscribe = "signed_in"
publish = "signed_in"
[[namespaces]]
name = "private"
subscribe = "token"
publish = "token"
"#;

thread_local! {
    static MORE: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// Every gateway that is started meanwhile by this thread keeps its channels in this Redis.
pub fn with_redis(url: &str, run: impl FnOnce()) {
    with_settings(&[("redis.url", url)], run);
}

/// Every gateway that is started meanwhile by this thread has these settings as well.
pub fn with_settings(settings: &[(&str, &str)], run: impl FnOnce()) {
    let owned = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    MORE.with(|more| more.borrow_mut().extend(owned));
    run();
    MORE.with(|more| more.borrow_mut().clear());
}

/// A configuration on the way to a gateway.
#[derive(Debug, Default)]
pub struct Setup {
    toml: String,
    arguments: Vec<String>,
    variables: BTreeMap<String, String>,
    internal: bool,
    tls: Option<Arc<ClientConfig>>,
    files_max: Option<u64>,
    namespace: Option<String>,
    full_disk: bool,
}

impl Setup {
    /// The base configuration.
    pub fn new() -> Self {
        Self::default()
    }

    /// A configuration file on top; it can be replaced later by [`Gateway::rewrite`].
    #[must_use]
    pub fn toml(mut self, text: &str) -> Self {
        text.clone_into(&mut self.toml);
        self
    }

    /// One key, as a flag above all files.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.arguments.extend(["--set".to_owned(), format!("{key}={}", value.to_string())]);
        self
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(self, shards: u16) -> Self {
        self.set("engine.shards", shards)
    }

    /// An environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With an internal listener.
    #[must_use]
    pub fn internal(mut self) -> Self {
        self.internal = true;
        self.set("listen.internal", "127.0.0.1:0")
    }

    /// With TLS on the public listener, trusted by `client`.
    #[must_use]
    pub fn tls(mut self, certificate: &Path, key: &Path, client: Arc<ClientConfig>) -> Self {
        self.tls = Some(client);
        self.set("tls.enabled", true)
            .set("tls.certificate_path", certificate.display())
            .set("tls.key_path", key.display())
    }

    /// With a limit of open files.
    #[must_use]
    pub fn files_max(mut self, files: u64) -> Self {
        self.files_max = Some(files);
        self
    }

    /// In a network namespace.
    #[must_use]
    pub fn inside(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// With failing writes, instead of a signal that ends it, when [`Gateway::limit_files`] says so.
    #[must_use]
    pub fn full_disk(mut self) -> Self {
        self.full_disk = true;
        self
    }

    /// Starts the gateway and waits until it is ready.
    pub fn start(mut self) -> Gateway {
        let more = MORE.with(|more| more.borrow().clone());
        for (key, value) in &more {
            self = self.set(key, value);
        }
        let mut gateway = self.spawn();
        gateway.await_ready();
        if more.iter().any(|(key, _)| key == "redis.url") {
            gateway.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
        }
        gateway
    }

    /// Starts the process only.
    pub fn spawn(self) -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        let (base, extra) = (folder.path().join("base.toml"), folder.path().join("test.toml"));
        fs::write(&base, BASE.replace("SECRET", SECRET).replace("API_KEY", API_KEY)).unwrap();
        fs::write(&extra, &self.toml).unwrap();
        let mut command = match (self.files_max, &self.namespace) {
            (None, None) if self.full_disk => {
                let mut deaf = Command::new("sh");
                deaf.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", BINARY]);
                deaf
            }
            (None, None) => Command::new(BINARY),
            (Some(files), _) => {
                let mut limited = Command::new("prlimit");
                limited.arg(format!("--nofile={files}:{files}")).arg(BINARY);
                limited
            }
            (None, Some(namespace)) => {
                let mut inside = Command::new("ip");
                inside.args(["netns", "exec", namespace, BINARY]);
                inside
            }
        };
        command.arg("serve").arg("--config").arg(&base).arg("--config").arg(&extra);
        command.args(&self.arguments).current_dir(folder.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(&self.variables);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the gateway's process starts");
        let log = Log::default();
        let readers = vec![
            log.follow(child.stdout.take().unwrap()),
            log.follow(child.stderr.take().unwrap()),
        ];
        Gateway {
            public: SocketAddr::from(([127, 0, 0, 1], 0)),
            internal: None,
            tls: self.tls,
            log,
            child,
            readers,
            wants_internal: self.internal,
            extra,
            folder,
        }
    }
}

/// Lines that the process wrote, on both streams.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Takes in what comes from a stream, until its end.
    pub fn follow(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = Arc::clone(&self.0);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).into_owned();
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        })
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All lines so far, as one text.
    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// How many records of an event there are.
    pub fn count(&self, event: &str) -> usize {
        let wanted = format!("\"event\":\"{event}\"");
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.contains(&wanted)).count()
    }

    /// The records of an event.
    pub fn events(&self, event: &str) -> Vec<Value> {
        let records = self.lines().into_iter().filter_map(|line| serde_json::from_str(&line).ok());
        records.filter(|record: &Value| record["event"] == event).collect()
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Address of the public listener.
    pub public: SocketAddr,
    /// Address of the internal listener.
    pub internal: Option<SocketAddr>,
    /// Set when the public listener speaks TLS.
    pub tls: Option<Arc<ClientConfig>>,
    pub log: Log,
    child: Child,
    readers: Vec<JoinHandle<()>>,
    wants_internal: bool,
    extra: PathBuf,
    folder: TempDir,
}

impl Gateway {
    /// With the base configuration.
    pub fn start() -> Self {
        Setup::new().start()
    }

    fn listening(&self, listener: &str) -> Option<SocketAddr> {
        let mut lines = self.log.events("listening").into_iter();
        let line = lines.find(|line| line["listener"] == listener)?;
        line["address"].as_str()?.parse().ok()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Folder for files of the test; gone with the gateway.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until the gateway says where it listens.
    pub fn await_address(&mut self) {
        let (public, internal) = eventually("the gateway says where it listens", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the gateway ended at once: {status}");
            }
            self.log.events("node_started").pop()?;
            Some((self.listening("public")?, self.listening("internal")))
        });
        self.public = public;
        self.internal = internal;
        assert_eq!(self.internal.is_some(), self.wants_internal);
    }

    /// Waits until the gateway says where it listens and answers `/ready`.
    pub fn await_ready(&mut self) {
        self.await_address();
        eventually("/ready is 200", || {
            self.try_get("/ready").filter(|answer| answer.status == 200)
        });
    }

    /// A new HTTP connection to the public listener.
    pub fn http(&self) -> Http {
        Http::connect(self.public, self.tls.as_ref()).expect("the public listener accepts")
    }

    /// A new HTTP connection to where operators' paths are served.
    pub fn operators(&self) -> Http {
        match self.internal {
            Some(address) => Http::connect(address, None).expect("the internal listener accepts"),
            None => self.http(),
        }
    }

    /// `GET` on a connection of its own.
    pub fn get(&self, path: &str) -> Answer {
        self.http().get(path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    fn try_get(&self, path: &str) -> Option<Answer> {
        Http::connect(self.public, self.tls.as_ref()).ok()?.get(path).ok()
    }

    /// Calls a method of the server API and answers the whole body.
    pub fn api(&self, method: &str, body: &Value) -> Value {
        let headers = [format!("X-API-Key: {API_KEY}"), "Content-Type: application/json".into()];
        let path = format!("/api/{method}");
        let answer = self.operators().request("POST", &path, &headers, body.to_string().as_bytes());
        let answer = answer.unwrap_or_else(|error| panic!("POST {path}: {error}"));
        assert_eq!(answer.status, 200, "{method}: {}", answer.text());
        answer.json()
    }

    /// Calls a method that must succeed and answers its `result`.
    pub fn result(&self, method: &str, body: &Value) -> Value {
        let answer = self.api(method, body);
        assert!(answer["error"].is_null() && !answer["result"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Publishes over HTTP; answers the position.
    pub fn publish(&self, channel: &str, data: Value) -> Value {
        self.result("publish", &json!({"channel": channel, "data": data}))
    }

    /// All connections that the API lists.
    pub fn connections(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let mut cursor = Value::Null;
        loop {
            let mut request = json!({"limit": 1000});
            if !cursor.is_null() {
                request["cursor"] = cursor;
            }
            let page = self.result("connections", &request);
            all.extend(page["connections"].as_array().unwrap().iter().cloned());
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                return all;
            }
        }
    }

    /// Text of `/metrics`.
    pub fn metrics_text(&self) -> String {
        let answer = self.operators().get("/metrics").expect("a scrape");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// Sum of all series of a metric that carry all the given labels; 0 when there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum_of(&self.metrics_text(), name, labels)
    }

    /// Waits until a metric is as wanted.
    pub fn await_metric(&self, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) {
        eventually(&format!("{name} {labels:?} is as wanted"), || {
            wanted(self.metric(name, labels)).then_some(())
        });
    }

    /// What the kernel says about the process.
    pub fn numbers(&self) -> ProcessNumbers {
        ProcessNumbers::of(self.pid())
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Lets files grow to so many bytes and no further, as on a disk that is full; `None` ends that.
    pub fn limit_files(&self, bytes: Option<u64>) {
        assert!(limit_files(Command::new("prlimit"), self.pid(), bytes), "files are limited");
    }

    /// Replaces the test's configuration file; nothing is reloaded yet.
    pub fn rewrite(&self, toml: &str) {
        fs::write(&self.extra, toml).unwrap();
    }

    /// Waits for the process to end by itself, and for the rest of its log.
    pub fn await_exit(&mut self, limit: Duration) -> ExitStatus {
        let status =
            crate::support::within(limit, "the gateway ends", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let lines = self.log.lines();
            let shown = std::env::var("LOG_LINES").ok().and_then(|text| text.parse().ok());
            let from = lines.len().saturating_sub(shown.unwrap_or(60));
            eprintln!("--- last lines of the gateway ---\n{}\n---", lines[from..].join("\n"));
        }
    }
}

/// Sum of all series of a metric in a scrape that carry all the given labels; 0 when there is none.
pub fn sum_of(scrape: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let mut sum = 0.0;
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("series and value");
        let (found, text) = series.split_once('{').unwrap_or((series, ""));
        let labelled = |(key, value): &(&str, &str)| text.contains(&format!("{key}=\"{value}\""));
        if found == name && labels.iter().all(labelled) {
            sum += value.parse::<f64>().expect("a number");
        }
    }
    sum
}
