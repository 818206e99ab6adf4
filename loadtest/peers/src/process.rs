//! A server under load: started on its core, watched through /proc, stopped at the end. Its figures are those of the
//! whole process tree.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// CPU time by thread, in nanoseconds.
pub type ThreadTimes = BTreeMap<u32, u64>;

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts `command` on the cores of the list `cores` and waits until it accepts connections. What it prints goes to
    /// the file `log`.
    pub fn start(
        command: &Command,
        cores: &str,
        address: SocketAddr,
        log: &Path,
    ) -> Result<Self, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = fs::File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let copy = file.try_clone().map_err(|error| format!("{}: {error}", log.display()))?;
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", cores]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            pinned.env(key, value.unwrap_or_default());
        }
        if let Some(folder) = command.get_current_dir() {
            pinned.current_dir(folder);
        }
        let child = pinned.stdin(Stdio::null()).stdout(file).stderr(copy).spawn();
        let child = child.map_err(|error| format!("taskset (util-linux) with {name}: {error}"))?;
        let mut server = Self { child, name, address };
        let begun = Instant::now();
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            let ended = server.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > START_TIMEOUT {
                let text = fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(15).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(format!("{} did not start; the end of its log:\n{tail}", server.name));
            }
            park_timeout(POLL);
        }
        Ok(server)
    }

    fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.child.id()];
        let mut at = 0;
        while at < pids.len() {
            let pid = pids[at];
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            at += 1;
        }
        pids
    }

    /// CPU time of every thread of the tree so far.
    pub fn times(&self) -> ThreadTimes {
        let mut times = ThreadTimes::new();
        for pid in self.pids() {
            for thread in threads(pid) {
                let path = format!("/proc/{pid}/task/{thread}/schedstat");
                let text = fs::read_to_string(path).unwrap_or_default();
                let spent = text.split_whitespace().next().and_then(|field| field.parse().ok());
                times.extend(spent.map(|spent| (thread, spent)));
            }
        }
        times
    }

    /// Threads whose name begins with `prefix`.
    pub fn threads_named(&self, prefix: &str) -> Vec<u32> {
        let mut found = Vec::new();
        for pid in self.pids() {
            for thread in threads(pid) {
                let name = fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
                let name = name.unwrap_or_default();
                if name.starts_with(prefix) {
                    found.push(thread);
                }
            }
        }
        found
    }

    /// Resident memory of the tree in bytes.
    pub fn rss_bytes(&self) -> u64 {
        self.pids().iter().map(|pid| rss_bytes(*pid)).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > STOP_TIMEOUT {
                let _ = self.child.kill();
            }
            park_timeout(POLL);
        }
    }
}

fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect()
}

fn rss_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// CPU time spent between two looks. A thread that ended in between is not counted, one that began is.
pub fn spent(before: &ThreadTimes, after: &ThreadTimes) -> Duration {
    let spent = after
        .iter()
        .map(|(thread, now)| now.saturating_sub(before.get(thread).copied().unwrap_or_default()));
    Duration::from_nanos(spent.sum())
}

/// A TCP port of the loopback that is free at this moment.
pub fn free_address() -> Result<SocketAddr, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0");
    listener.and_then(|listener| listener.local_addr()).map_err(|error| format!("no port: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_spent_in_between_counts() {
        let before = ThreadTimes::from([(1, 1_000), (2, 500)]);
        let after = ThreadTimes::from([(1, 4_000), (3, 700)]);
        assert_eq!(spent(&before, &after), Duration::from_nanos(3_700));
    }

    #[test]
    fn figures_of_a_process_are_readable() {
        let own = std::process::id();
        assert!(rss_bytes(own) > 100_000);
        assert!(!threads(own).is_empty());
    }
}
