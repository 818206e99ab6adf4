//! A real redis-server of the test's own: on a free port, with its data in a temporary folder, killed when dropped.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{WAIT, eventually, signal, tool};

/// Ports that are tried; another process may take one between finding it free and using it.
const TRIES: usize = 10;

/// Name of the configuration file; a Sentinel writes to it.
const CONFIG: &str = "redis.conf";

/// A running redis-server.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    address: SocketAddr,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Redis {
    /// Starts one with nothing kept on disk, and more arguments of its command line.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with("save \"\"", arguments)
    }

    /// A Sentinel that watches `master` under the name `main` and decides alone.
    pub fn sentinel(master: &Self) -> Self {
        let (host, port) = (master.address.ip(), master.address.port());
        let lines = format!(
            "sentinel monitor main {host} {port} 1\n\
             sentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000"
        );
        Self::start_with(&lines, &["--sentinel"])
    }

    fn start_with(lines: &str, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        for _ in 0..TRIES {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let (path, port) = (folder.path().display(), free.port());
            let text = format!("bind 127.0.0.1\nport {port}\ndir {path}\n{lines}\n");
            fs::write(folder.path().join(CONFIG), text).unwrap();
            let child = spawn(&folder, &arguments);
            let mut redis = Self { child, address: free, arguments: arguments.clone(), folder };
            if redis.await_ready() {
                return redis;
            }
        }
        panic!("redis-server did not start on {TRIES} ports");
    }

    /// `false` when the process has ended, for example because its port was taken.
    fn await_ready(&mut self) -> bool {
        eventually("redis-server answers", || {
            if self.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let answer = self.try_ask("PING")?;
            (answer == "+PONG" || answer.starts_with("-NOAUTH")).then_some(true)
        })
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// URL without credentials.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    fn try_ask(&self, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(WAIT)).ok()?;
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    }

    /// First line of the answer to a command.
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|| panic!("redis-server answers {command}"))
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Kills it; it does not come back by itself.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on its port, with what it had kept on disk.
    pub fn restart(&mut self) {
        self.child = spawn(&self.folder, &self.arguments);
        assert!(self.await_ready(), "redis-server starts again on its port");
    }
}

fn spawn(folder: &TempDir, arguments: &[String]) -> Child {
    let mut command =
        Command::new(tool("REDIS_SERVER", &["redis-server", ".cache/bin/redis-server"]));
    command.arg(folder.path().join(CONFIG)).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server starts")
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
