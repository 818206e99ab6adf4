//! What stands outside of the gateway: a mail server, a browser that opens push messages, the database file.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Row, SqliteConnection};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::receiver::{Arrived, Receiver};
use crate::gateway::BINARY;
use crate::support::{eventually, root, tool};

/// A Python program of `tests/clients` that answers lines with lines; ended when dropped.
pub struct Program {
    child: Child,
    answers: BufReader<ChildStdout>,
    /// The first line that it said.
    pub hello: Value,
}

impl Program {
    /// Starts it with one argument, and waits for its first line.
    pub fn start(name: &str, options: &Value) -> Self {
        let python = tool("ARCHMESH_TEST_PYTHON", &[".cache/venv/bin/python"]);
        let mut child = Command::new(python)
            .arg(root().join("tests/clients").join(name))
            .arg(options.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, answers, hello: Value::Null };
        program.hello = program.line();
        program
    }

    /// Says a line and waits for the answer.
    pub fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.child.stdin.as_mut().unwrap(), "{question}").expect("the program runs");
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
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// aiosmtpd.
pub struct MailServer(Program);

impl MailServer {
    /// Without TLS and login.
    pub fn start() -> Self {
        Self(Program::start("smtp_server.py", &json!({})))
    }

    /// Configuration of a gateway that sends its mails here.
    pub fn toml(&self) -> String {
        format!(
            "[email]\nhost = \"127.0.0.1\"\nport = {}\nsecurity = \"none\"\n\
             from = \"ArchMesh <gateway@example.com>\"\nreply_to = \"help@example.com\"\n\
             unsubscribe_url = \"https://app.example.com/unsubscribe\"\n",
            self.0.hello
        )
    }

    /// What it has taken.
    pub fn mails(&mut self) -> Vec<Value> {
        self.0.ask(&json!("mails"))["mails"].as_array().unwrap().clone()
    }

    /// Waits until it has taken so many.
    pub fn await_mails(&mut self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} mails"), || {
            Some(self.mails()).filter(|mails| mails.len() >= count)
        })
    }
}

/// Value of a header of a mail.
pub fn mail_header<'a>(mail: &'a Value, name: &str) -> &'a str {
    let headers = mail["headers"].as_array().unwrap();
    let found = headers.iter().find(|header| header[0] == name);
    found.and_then(|header| header[1].as_str()).unwrap_or_else(|| panic!("{name} in {mail}"))
}

/// A webhook that checks signatures with the standard library of Python, over HTTPS.
pub struct HttpsWebhook(Program);

impl HttpsWebhook {
    /// With a certificate that nobody knows, and its key.
    pub fn start(certificate: &Path, key: &Path, secret: &str) -> Self {
        let options = json!({"cert": certificate, "key": key, "secret": secret});
        Self(Program::start("webhook_receiver.py", &options))
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/hook", self.0.hello)
    }

    /// Waits until so many requests came.
    pub fn await_arrived(&mut self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} webhooks"), || {
            let arrived = self.0.ask(&json!(null)).as_array().unwrap().clone();
            Some(arrived).filter(|arrived| arrived.len() >= count)
        })
    }
}

/// A browser with its keys, subscribed at a push service.
pub struct Browser(Program);

impl Browser {
    /// With new keys.
    pub fn start() -> Self {
        Self(Program::start("web_push_receiver.py", &json!({})))
    }

    /// What `PushSubscription.toJSON()` would give.
    pub fn subscription(&self, service: &Receiver, path: &str) -> Value {
        json!({"endpoint": service.url(path), "expirationTime": null, "keys": self.0.hello})
    }

    /// Opens a push message and checks the sender's token: `plaintext`, `signed`, `claims`.
    pub fn open(&mut self, arrived: &Arrived) -> Value {
        self.0.ask(&json!({
            "body": STANDARD.encode(&arrived.body),
            "authorization": arrived.header("authorization"),
        }))
    }
}

/// Output of a subcommand that must succeed.
pub fn run(arguments: &[&str]) -> String {
    let output = Command::new(BINARY).args(arguments).env_clear().output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Configuration of Web Push with a new key pair, as `archmesh vapid` prints it.
pub fn web_push_toml() -> String {
    run(&["vapid"]) + "contact = \"mailto:ops@example.com\"\n"
}

/// The database file of a gateway, which outlives it.
pub struct Database {
    folder: TempDir,
    runtime: Runtime,
}

impl Database {
    /// A path where none is yet.
    pub fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        Self { folder: tempfile::tempdir().unwrap(), runtime }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("test.db")
    }

    fn with<T>(&self, work: impl AsyncFnOnce(&mut SqliteConnection) -> sqlx::Result<T>) -> T {
        let done = self.runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(self.path());
            let mut connection = options.connect().await?;
            work(&mut connection).await
        });
        done.expect("the database does it")
    }

    /// Changes rows; tells how many.
    pub fn execute(&self, sql: &str) -> u64 {
        self.with(async |connection| {
            let done = sqlx::query(AssertSqlSafe(sql)).execute(connection).await?;
            Ok(done.rows_affected())
        })
    }

    /// The first column of all rows, a number.
    pub fn numbers(&self, sql: &str) -> Vec<i64> {
        self.with(async |connection| {
            let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
            rows.iter().map(|row| row.try_get(0)).collect()
        })
    }

    /// Nobody else can write while `run` runs.
    pub fn locked(&self, run: impl FnOnce()) {
        self.with(async |connection| {
            sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
            run();
            sqlx::query("ROLLBACK").execute(connection).await?;
            Ok(())
        });
    }

    /// Makes all deliveries due that wait, as if their time had come.
    pub fn let_time_pass(&self) -> u64 {
        self.execute(
            "UPDATE archmesh_deliveries SET due_at = 0 WHERE status IN ('pending', 'retrying')",
        )
    }
}
