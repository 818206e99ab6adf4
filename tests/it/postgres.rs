//! A real PostgreSQL of the tests' own: on a free port, with its data in a temporary folder, gone with the test.
//!
//! PostgreSQL refuses to run as root, so root runs it as another user. Writes are synced as in production. A keeper, a shell
//! that waits for the end of this process, ends the server and removes the folder even when nobody here can any more.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::support::{eventually, limit_files, signal, tool};

/// Ports that are tried; another process may take one between finding it free and using it.
const TRIES: usize = 10;
/// Those who may run the server when the tests run as root.
const USERS: [&str; 2] = ["postgres", "nobody"];
/// Between fields and between rows of an answer of psql; no text of a test holds them.
const SEPARATORS: [&str; 2] = ["\u{1f}", "\u{1e}"];
/// Lines of the server's log that a failure shows.
const LOG_LINES: usize = 20;

const SETTINGS: &str = "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 100\n\
    shared_buffers = 32MB\njit = off\nautovacuum_naptime = 5s\n";

/// Ends what the folder's `postmaster.pid` names, which may be stopped, and removes the folder.
const KEEPER: &str = r#"
read -r nothing
if pid=$(head -n 1 "$1/data/postmaster.pid") && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; then
    kill -KILL "$pid" $(cat "/proc/$pid/task/$pid/children")
fi
until rm -rf "$1"; do :; done
"#;

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
    /// The keeper works when this is closed.
    keeper: Option<(Child, ChildStdin)>,
}

/// A database of a test on some server.
#[derive(Clone, Debug)]
pub struct PostgresDatabase {
    address: SocketAddr,
    name: String,
}

impl Postgres {
    /// Starts a server with an empty cluster.
    pub fn start() -> Self {
        let folder = TempDir::new().unwrap().keep();
        let (keeper, input) = keep(&folder);
        copy_cluster(&folder.join("data"));
        for _ in 0..TRIES {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut child = spawn(&folder, free);
            if await_ready(&mut child, free) {
                return Self { child, address: free, folder, keeper: Some((keeper, input)) };
            }
        }
        panic!("postgres did not start on {TRIES} ports; its log ends with:\n{}", log(&folder));
    }

    /// One for all tests of this process that do it no harm.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Makes an empty database.
    pub fn database(&self) -> PostgresDatabase {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.server().query(&format!("CREATE DATABASE {name}"));
        PostgresDatabase { address: self.address, name }
    }

    /// The database that every server has.
    pub fn server(&self) -> PostgresDatabase {
        PostgresDatabase { address: self.address, name: "postgres".to_owned() }
    }

    /// Sends a signal to the server and all its processes.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        signal(pid, name);
        // Without its first process, which is stopped or gone, there will be no new ones.
        for child in fs::read_to_string(path).unwrap_or_default().split_whitespace() {
            let _ended = Command::new("kill").args([&format!("-{name}"), child]).output();
        }
    }

    /// Lets files grow to so many bytes and no further, as on a disk that is full; `None` ends that. Segments of the log
    /// have 16 MiB.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let prlimit = || by_its_user(Path::new("prlimit"));
        assert!(limit_files(prlimit(), pid, bytes), "files are limited");
        for child in fs::read_to_string(path).unwrap().split_whitespace() {
            let _ended_meanwhile = limit_files(prlimit(), child.parse().unwrap(), bytes);
        }
    }

    /// Kills all its processes; nothing of what is under way is finished.
    pub fn kill(&mut self) {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        signal(pid, "STOP");
        let children = fs::read_to_string(path).unwrap_or_default();
        self.child.kill().unwrap();
        for child in children.split_whitespace() {
            let _ended = Command::new("kill").args(["-KILL", child]).output();
        }
        self.child.wait().unwrap();
    }

    /// Starts it again on its port, with what it had written.
    pub fn restart(&mut self) {
        eventually("postgres starts again on its port", || {
            self.child = spawn(&self.folder, self.address);
            await_ready(&mut self.child, self.address).then_some(())
        });
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some((mut keeper, input)) = self.keeper.take() {
            drop(input);
            // Both fail only when there is nothing to wait for.
            let _ = self.child.wait();
            let _ = keeper.wait();
        }
    }
}

impl PostgresDatabase {
    /// URL for the gateway.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/{}", self.address, self.name)
    }

    /// Runs statements through psql and answers the rows of all of them, as text; NULL is empty.
    pub fn query(&self, sql: &str) -> Vec<Vec<String>> {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`Self::query`]; the error is what psql said.
    pub fn try_query(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        let output = self.psql().args(["-c", sql]).output().expect("psql runs");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8(output.stdout).unwrap();
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let rows = text.split(SEPARATORS[1]).filter(|row| !row.is_empty());
        let rows = rows.map(|row| row.split(SEPARATORS[0]).map(str::to_owned).collect());
        Ok(rows.collect())
    }

    /// A client that takes statements from its input, for transactions that last.
    pub fn psql(&self) -> Command {
        let mut command = Command::new(program("psql"));
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        command.args(["-F", SEPARATORS[0], "-R", SEPARATORS[1]]);
        command.args(["-h", &host, "-p", &port, "-U", "postgres", "-d", &self.name]);
        command.env("PGCONNECT_TIMEOUT", "5").stdin(Stdio::null());
        command
    }
}

/// A program of PostgreSQL: in the folder that the environment names, in PATH, or where Debian keeps the newest.
fn program(name: &str) -> PathBuf {
    let given = std::env::var_os("POSTGRES_BIN").filter(|folder| !folder.is_empty());
    if let Some(folder) = given {
        return PathBuf::from(folder).join(name);
    }
    let mut folders: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    folders.sort();
    let newest = folders.pop().map(|folder| folder.join(name).display().to_string());
    tool("POSTGRES_BIN", &[name, newest.as_deref().unwrap_or("psql")])
}

/// The program, run by a user that it accepts.
fn unprivileged(name: &str) -> Command {
    by_its_user(&program(name))
}

fn by_its_user(program: &Path) -> Command {
    let Some(user) = other_user() else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), &format!("--regid={}", group_of(user))]);
    command.arg("--clear-groups").arg(program);
    command
}

/// Who runs the server instead of root.
fn other_user() -> Option<&'static str> {
    let is_root = rustix::process::geteuid().is_root();
    is_root.then(|| *USERS.iter().find(|user| has_user(user)).expect("every system has a nobody"))
}

fn has_user(user: &str) -> bool {
    Command::new("id").args(["-u", user]).output().is_ok_and(|output| output.status.success())
}

fn group_of(user: &str) -> String {
    let output = Command::new("id").args(["-g", user]).output().expect("id belongs to coreutils");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn give_away(folder: &Path) {
    let Some(user) = other_user() else { return };
    let output = Command::new("chown").arg("-R").arg(user).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An empty cluster in a new folder. Making one takes a second, so the first one is kept as a pattern for all test processes.
fn copy_cluster(to: &Path) {
    let version = Command::new(program("postgres")).arg("--version").output().unwrap().stdout;
    let version = String::from_utf8_lossy(&version).replace(|c: char| !c.is_alphanumeric(), "-");
    let pattern = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster-{version}"));
    if !pattern.is_dir() {
        make_pattern(&pattern);
    }
    let output = Command::new("cp").arg("-r").arg(&pattern).arg(to).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mode = Command::new("chmod").args(["-R", "go="]).arg(to).status().unwrap();
    assert!(mode.success(), "the folder is made private, as PostgreSQL demands");
    give_away(to.parent().unwrap());
}

fn make_pattern(pattern: &Path) {
    let folder = TempDir::new().unwrap();
    give_away(folder.path());
    let data = folder.path().join("data");
    let mut command = unprivileged("initdb");
    command.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"]);
    command.args(["--no-locale", "--wal-segsize=4", "-D"]).arg(&data).current_dir("/");
    let output = command.output().expect("initdb runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::create_dir_all(pattern.parent().unwrap()).unwrap();
    let new = TempDir::new_in(pattern.parent().unwrap()).unwrap();
    let copied = Command::new("cp").arg("-r").arg(&data).arg(new.path()).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    // Another test process may have been faster; then its pattern is as good.
    let _taken = fs::rename(new.path().join("data"), pattern);
    assert!(pattern.is_dir(), "there is a pattern at {}", pattern.display());
}

fn keep(folder: &Path) -> (Child, ChildStdin) {
    let mut command = Command::new("sh");
    command.args(["-c", KEEPER, "keeper"]).arg(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("a shell runs");
    let input = child.stdin.take().unwrap();
    (child, input)
}

fn spawn(folder: &Path, address: SocketAddr) -> Child {
    let data = folder.join("data");
    let settings = format!("{SETTINGS}port = {}\n", address.port());
    fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let mut command = unprivileged("postgres");
    command.arg("-D").arg(&data).current_dir("/").stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().expect("postgres starts")
}

/// `false` when the process has ended, for example because its port was taken.
fn await_ready(child: &mut Child, address: SocketAddr) -> bool {
    let server = PostgresDatabase { address, name: "postgres".to_owned() };
    eventually("postgres answers", || {
        if child.try_wait().unwrap().is_some() {
            return Some(false);
        }
        server.try_query("SELECT 1").ok().map(|_| true)
    })
}

fn log(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
