//! What the gateway says about itself: CPU, memory and descriptors from its `/metrics`.
//!
//! One blocking request with short time-outs, made between the phases of a scenario, and each second by `scraper` on a
//! thread of its own. A server that has no such endpoint, or no room for one more connection, is no fault: the figures
//! are then left out.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::schedule::Nanos;
use crate::target::Target;

const TIMEOUT: Duration = Duration::from_secs(2);
const BODY_BYTES_MAX: u64 = 16 << 20;

static TURN: Mutex<()> = Mutex::new(());

/// The figures at one moment; absent ones were not told.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// When, on the generator's clock.
    #[serde(rename = "at_nanos", default)]
    pub(crate) at: Nanos,
    /// User and system CPU seconds of the process.
    pub(crate) cpu_seconds: Option<f64>,
    /// Resident memory in bytes.
    pub(crate) resident_bytes: Option<f64>,
    /// Open descriptors.
    pub(crate) open_fds: Option<f64>,
}

impl Sample {
    fn parse(text: &str, at: Nanos) -> Self {
        Self {
            at,
            cpu_seconds: value(text, "process_cpu_seconds_total"),
            resident_bytes: value(text, "process_resident_memory_bytes"),
            open_fds: value(text, "process_open_fds"),
        }
    }
}

/// Value of a metric in the Prometheus text format; the sum over its label sets.
fn value(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = match rest.as_bytes().first()? {
            b' ' => rest,
            b'{' => rest.rsplit_once('}')?.1,
            _ => return None,
        };
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// Asks once; `None` when there is no usable answer.
pub(crate) fn sample(target: &Target, at: Nanos) -> Option<Sample> {
    // Every request is a descriptor of the server: two at a time would see each other.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stream = target.open(TIMEOUT).ok()?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: archmesh-loadtest\r\nConnection: close\r\n\r\n",
        target.path, target.host
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    match stream.take(BODY_BYTES_MAX).read_to_end(&mut answer) {
        // Without the polite end of a TLS session an answer is still an answer.
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return None,
        _ => {}
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.split_whitespace().nth(1)?;
    (status == "200").then(|| Sample::parse(&text, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_the_text_format() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# TYPE process_cpu_seconds_total counter\n\
                    process_cpu_seconds_total 12.5\nprocess_resident_memory_bytes 1.5e7\n\
                    process_open_fds{shard=\"0\"} 3\nprocess_open_fds{shard=\"1\"} 4 1700000000\n\
                    process_open_fds_limit 99\n";
        let sample = Sample::parse(text, 7);
        assert_eq!(sample.cpu_seconds, Some(12.5));
        assert_eq!(sample.resident_bytes, Some(15_000_000.0));
        assert_eq!(sample.open_fds, Some(7.0));
        assert_eq!(Sample::parse("", 7), Sample { at: 7, ..Sample::default() });
    }

    #[test]
    fn a_server_that_is_not_there_is_no_fault() {
        // Port 1 of the loopback answers with a refusal at once.
        let target: Target = "http://127.0.0.1:1/metrics".parse().expect("an address");
        assert_eq!(sample(&target, 0), None);
    }
}
