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

/// Name of its log.
const LOG: &str = "redis.log";

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
            let text =
                format!("bind 127.0.0.1\nport {port}\ndir {path}\nlogfile {path}/{LOG}\n{lines}\n");
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

    fn send(&self, command: &str) -> Option<BufReader<TcpStream>> {
        send(self.address, command)
    }

    /// As [`Self::ask`], of a server that may close connections: a Sentinel closes all clients of the one it promotes.
    pub fn try_ask(&self, command: &str) -> Option<String> {
        read_line(&mut self.send(command)?)
    }

    /// First line of the answer to a command.
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|| panic!("redis-server answers {command}"))
    }

    /// The texts and numbers of a whole answer, in order.
    pub fn ask_all(&self, command: &str) -> Vec<String> {
        let mut texts = Vec::new();
        let read = self.send(command).and_then(|mut answer| read_answer(&mut answer, &mut texts));
        read.unwrap_or_else(|| panic!("redis-server answers {command}"));
        texts
    }

    /// Lines of its log that contain a text.
    pub fn logged(&self, text: &str) -> usize {
        let log = fs::read(self.folder.path().join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().filter(|line| line.contains(text)).count()
    }

    /// Stops the process and waits until it stands; its sockets stay.
    pub fn stop(&self) {
        self.signal("STOP");
        eventually("redis-server stands", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
            stat.contains(") T ").then_some(())
        });
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
        self.restart_with(&[]);
    }

    /// As [`Self::restart`], with more arguments for this time.
    pub fn restart_with(&mut self, more: &[&str]) {
        let more = more.iter().map(|&text| text.to_owned());
        let arguments: Vec<String> = self.arguments.iter().cloned().chain(more).collect();
        self.child = spawn(&self.folder, &arguments);
        assert!(self.await_ready(), "redis-server starts again on its port");
    }

    /// Removes what a killed one has kept on disk.
    pub fn forget_data(&self) {
        // Without a log there is none.
        let _ = fs::remove_dir_all(self.folder.path().join("appendonlydir"));
    }
}

/// First line of the answer of any Redis, if there is one.
pub fn ask_at(address: SocketAddr, command: &str) -> Option<String> {
    read_line(&mut send(address, command)?)
}

fn send(address: SocketAddr, command: &str) -> Option<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(WAIT)).ok()?;
    stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
    Some(BufReader::new(stream))
}

fn read_line(answer: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    answer.read_line(&mut line).ok()?;
    Some(line.trim_end().to_owned())
}

fn read_answer(answer: &mut impl BufRead, texts: &mut Vec<String>) -> Option<()> {
    let line = read_line(answer)?;
    let (kind, rest) = line.split_at_checked(1)?;
    match kind {
        "*" => {
            for _ in 0..rest.parse().ok()? {
                read_answer(answer, texts)?;
            }
        }
        "$" => {
            let mut text = vec![0; rest.parse::<usize>().ok()? + 2];
            answer.read_exact(&mut text).ok()?;
            texts.push(String::from_utf8(text).ok()?.trim_end().to_owned());
        }
        _ => texts.push(line),
    }
    Some(())
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
