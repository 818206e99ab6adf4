//! Small things that all tests share: waiting, streams, tokens, numbers of a process.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gateway_core::auth::{KeyAlgorithm, SigningKey, mint};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// How long a test waits for something that should take milliseconds on an idle machine.
pub const WAIT: Duration = Duration::from_secs(30);
/// How long one blocking read may take before its caller looks at its deadline again.
pub const READ_SLICE: Duration = Duration::from_millis(50);
/// Shared secret of the tests' gateways.
pub const SECRET: &str = "a shared secret of the end-to-end tests, long enough for HS512 as well";
/// API key of the tests' gateways.
pub const API_KEY: &str = "an-api-key-of-the-end-to-end-tests";

/// Looks at `check` until it gives something, and fails after [`WAIT`] with `what`.
pub fn eventually<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    within(WAIT, what, check)
}

/// Like [`eventually`] with another limit.
pub fn within<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        // Gives the other processes the core before looking again; nothing depends on its length.
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Tests that load the whole machine take turns, also without nextest's test groups.
pub fn heavy() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A token for `user` that is good for an hour.
pub fn token(user: &str) -> String {
    token_with(user, json!({}))
}

/// A token for `user` with further claims; a claim given as null is left out.
pub fn token_with(user: &str, claims: Value) -> String {
    let key = SigningKey::from_secret(KeyAlgorithm::Hs256, SECRET.as_bytes()).unwrap();
    mint(&key, &claims_of(user, claims)).unwrap()
}

/// Claims of a token for `user`, with `more` on top.
pub fn claims_of(user: &str, more: Value) -> Value {
    let mut claims = json!({"sub": user, "iat": unix_now(), "exp": unix_now() + 3600});
    for (name, value) in more.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// A program of the test environment: the variable's value, or the first candidate that exists.
///
/// # Panics
/// When there is none; a missing program must never look like a passed test.
pub fn tool(variable: &str, candidates: &[&str]) -> PathBuf {
    let given = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = given.into_iter().chain(candidates.iter().flat_map(|name| {
        let here = root().join(name);
        std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .chain([here])
            .collect::<Vec<_>>()
    }));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{candidates:?} not found; `make test` installs it, or set {variable}")
    })
}

/// A plain or encrypted connection with short blocking reads.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Connects; with a TLS configuration the handshake is done on first use.
    pub fn connect(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        Self::connect_from(None, address, tls)
    }

    /// As [`Self::connect`], from an address of this host.
    pub fn connect_from(
        from: Option<IpAddr>,
        address: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Self> {
        let socket = match from {
            None => connect(address)?,
            Some(from) => {
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                socket.bind(&SocketAddr::new(from, 0).into())?;
                socket.connect_timeout(&address.into(), WAIT)?;
                prepare(socket.into())?
            }
        };
        Ok(match tls {
            None => Self::Plain(socket),
            Some(config) => {
                let name = ServerName::from(address.ip());
                let session = ClientConnection::new(Arc::clone(config), name).unwrap();
                Self::Tls(Box::new(StreamOwned::new(session, socket)))
            }
        })
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A TCP connection with short blocking reads.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    prepare(TcpStream::connect_timeout(&address, WAIT)?)
}

fn prepare(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_read_timeout(Some(READ_SLICE))?;
    socket.set_write_timeout(Some(WAIT))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Whether a blocking read only ran out of its slice.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Reads until the peer closes, within `limit`. `None` when it has not closed by then. A reset counts as closed.
pub fn read_to_end(stream: &mut impl Read, limit: Duration) -> Option<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while Instant::now() < deadline {
        match stream.read(&mut buffer) {
            Ok(0) => return Some(all),
            Ok(length) => all.extend_from_slice(&buffer[..length]),
            Err(error) if is_timeout(&error) => {}
            Err(_) => return Some(all),
        }
    }
    None
}

/// Lets files that a process writes grow to so many bytes and no further; `None` ends that. `false`: there is no such process.
pub fn limit_files(mut prlimit: Command, pid: u32, bytes: Option<u64>) -> bool {
    let size = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let (pid, limit) = (pid.to_string(), format!("--fsize={size}:unlimited"));
    let status = prlimit.args(["--pid", &pid, &limit]).status();
    status.expect("prlimit belongs to util-linux").success()
}

/// Sends a signal, such as `TERM`. The kernel is asked through a shell, because only the engine may have unsafe code.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status().unwrap();
    assert!(status.success(), "process {pid} takes the signal {name}");
    if name == "STOP" {
        // Threads that run on other cores go on for a moment, long enough to answer somebody.
        eventually("all threads stand still", || is_stopped(pid).then_some(()));
    }
}

/// Whether every thread is stopped, but for those that the kernel lends to an io_uring.
fn is_stopped(pid: u32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.flatten().all(|task| {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { return true };
        let state = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        stat.contains("(iou-") || state.starts_with(['T', 't', 'Z', 'X'])
    })
}

/// Raises this process's soft limit of open files to the hard one.
pub fn raise_files_limit() {
    let pid = std::process::id();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard = line.split_whitespace().nth(4).unwrap();
    let status = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={hard}:{hard}")])
        .status()
        .expect("prlimit belongs to util-linux");
    assert!(status.success(), "the limit of open files is raised to {hard}");
}

/// What the kernel says about a process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessNumbers {
    pub rss_kib: u64,
    pub files: usize,
}

impl ProcessNumbers {
    /// Reads them now.
    pub fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            rss_kib: rss.trim().trim_end_matches(" kB").trim().parse().unwrap(),
            files: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        }
    }
}
