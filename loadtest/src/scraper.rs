//! Asks the gateway for its figures again and again, on a thread of its own: the load's schedule waits for nobody.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::schedule::Clock;
use crate::server::{Sample, sample};
use crate::target::Target;

/// The running thread.
#[derive(Debug)]
pub(crate) struct Scraper {
    stop: SyncSender<()>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Scraper {
    /// Begins to ask; `None` when `interval` is zero or there can be no thread.
    pub(crate) fn start(target: Target, clock: Clock, interval: Duration) -> Option<Self> {
        if interval.is_zero() {
            return None;
        }
        let (stop, stopped) = sync_channel::<()>(1);
        let ask = move || {
            let mut samples = Vec::new();
            loop {
                let asked = Instant::now();
                samples.extend(sample(&target, clock.now()));
                let rest = interval.saturating_sub(asked.elapsed());
                if stopped.recv_timeout(rest) != Err(RecvTimeoutError::Timeout) {
                    return samples;
                }
            }
        };
        let thread = Builder::new().name("scraper".into()).spawn(ask).ok()?;
        Some(Self { stop, thread })
    }

    /// Ends it: what was told, in the order of time.
    pub(crate) fn finish(self) -> Vec<Sample> {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn it_asks_again_and_ends_when_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        let scraper = Scraper::start(target, Clock::start(), Duration::from_millis(1)).unwrap();
        for cpu in 1..=2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            write!(stream, "HTTP/1.1 200 OK\r\n\r\nprocess_cpu_seconds_total {cpu}\n").unwrap();
        }
        let samples = scraper.finish();
        let cpu: Vec<_> = samples.iter().filter_map(|sample| sample.cpu_seconds).collect();
        assert!(cpu.starts_with(&[1.0]), "{samples:?}");
        assert!(samples.is_sorted_by_key(|sample| sample.at));
    }
}
