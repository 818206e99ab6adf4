//! What is measured. Every measure starts a fresh server for every sample, so that none sees what another left behind.

mod connect;
mod exchange;
mod fanout;
mod isolation;
mod memory;
mod scenario;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::process::{Server, ThreadTimes, free_address, spent};
use crate::sample::Values;
use crate::subject::{Kind, Places, Setup, Subject, Talk};
use crate::swarm::Swarm;

/// Bytes of a small payload.
const PAYLOAD_BYTES: usize = 128;
/// Load before a measurement begins, so that just-in-time compilers and caches are warm.
const WARM_UP: Duration = Duration::from_millis(700);
/// Handshakes at one time.
const AT_ONCE: usize = 100;
/// Rounds of measures that take long.
const SLOW_ROUNDS: u32 = 3;

/// What a run has in common.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where things are.
    pub places: Places,
    /// The core of servers.
    pub server_core: usize,
    /// Length of one measurement.
    pub seconds: Duration,
    /// `archmesh-loadtest`, for the measures that are scenarios of it.
    pub loadtest: PathBuf,
}

/// Takes one sample of a subject.
type Take = fn(&Context, &Subject) -> Result<Values, String>;

/// One measure.
#[derive(Clone, Copy)]
pub struct Measure {
    /// For `--measure` and the result file.
    pub name: &'static str,
    /// For tables.
    pub title: &'static str,
    /// The value that tables show.
    pub value: &'static str,
    /// Who takes part.
    pub subjects: fn(Kind) -> bool,
    /// Rounds that are enough for it, because a sample takes long.
    pub rounds_max: u32,
    /// Takes a sample.
    pub take: Take,
}

fn anyone(_: Kind) -> bool {
    true
}

fn gateway(kind: Kind) -> bool {
    kind == Kind::Gateway
}

fn with_tls(kind: Kind) -> bool {
    matches!(kind, Kind::Gateway | Kind::Bun | Kind::Uws | Kind::Tungstenite)
}

fn with_deflate(kind: Kind) -> bool {
    matches!(kind, Kind::Gateway | Kind::Bun | Kind::Uws)
}

/// Those whose numbers of subscribers and bytes tell what the kernel does to the cost of a send.
fn with_many(kind: Kind) -> bool {
    matches!(kind, Kind::Gateway | Kind::Bun | Kind::Raw)
}

/// Those whose user space is small enough for the length of a frame to matter.
fn with_even(kind: Kind) -> bool {
    with_many(kind) || matches!(kind, Kind::Uws | Kind::Socketify)
}

fn with_document(kind: Kind) -> bool {
    with_deflate(kind) || kind == Kind::Raw
}

fn but_nchan(kind: Kind) -> bool {
    kind != Kind::Nchan
}

const fn measure(
    name: &'static str,
    title: &'static str,
    value: &'static str,
    subjects: fn(Kind) -> bool,
    take: Take,
) -> Measure {
    Measure { name, title, value, subjects, rounds_max: u32::MAX, take }
}

/// A measure whose sample takes half a minute.
const fn slow(measure: Measure) -> Measure {
    Measure { rounds_max: SLOW_ROUNDS, ..measure }
}

/// All measures in the order of the tables.
pub const MEASURES: &[Measure] = &[
    measure("fanout-1", "fan-out to 1,000, 1 in flight", "cpu_us", anyone, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 1))
    }),
    measure("fanout-8", "fan-out to 1,000, 8 in flight", "cpu_us", anyone, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 8))
    }),
    measure("even-1", "frames of equal length, 1 in flight", "cpu_us", with_even, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 1).even())
    }),
    measure("even-8", "frames of equal length, 8 in flight", "cpu_us", with_even, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 8).even())
    }),
    measure("echo", "echo, 100 connections", "cpu_us", but_nchan, exchange::echo),
    measure("publish-ack", "publish with reply", "cpu_us", gateway, exchange::publish_ack),
    measure("connect", "connect", "cpu_us", but_nchan, connect::bare),
    measure("connect-fresh", "connect, new token, subscribe", "cpu_us", gateway, connect::fresh),
    measure(
        "connect-cached",
        "connect, known token, subscribe",
        "cpu_us",
        gateway,
        connect::cached,
    ),
    measure("fanout-10k-1", "fan-out to 10,000, 1 in flight", "cpu_us", with_many, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(10_000, 1))
    }),
    measure("fanout-10k-8", "fan-out to 10,000, 8 in flight", "cpu_us", with_many, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(10_000, 8))
    }),
    measure("history-1", "with history and recovery, 1 in flight", "cpu_us", gateway, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 1).kept())
    }),
    measure("history-8", "with history and recovery, 8 in flight", "cpu_us", gateway, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 8).kept())
    }),
    measure("tls-1", "fan-out over TLS, 1 in flight", "cpu_us", with_tls, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 1).tls())
    }),
    measure("tls-8", "fan-out over TLS, 8 in flight", "cpu_us", with_tls, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 8).tls())
    }),
    measure("json-1", "1 KiB of JSON, 1 in flight", "cpu_us", with_document, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 1).document())
    }),
    measure("json-8", "1 KiB of JSON, 8 in flight", "cpu_us", with_document, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 8).document())
    }),
    measure("deflate-1", "the same deflated, 1 in flight", "cpu_us", with_deflate, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 1).document().deflate())
    }),
    measure("deflate-8", "the same deflated, 8 in flight", "cpu_us", with_deflate, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 8).document().deflate())
    }),
    measure(
        "one-shard-1",
        "one shard, shared generator, 1 in flight",
        "cpu_us",
        gateway,
        |c, s| fanout::sample(c, s, &fanout::Shape::new(1_000, 1).shards(1)),
    ),
    measure("two-shards-1", "two shards, the same, 1 in flight", "cpu_us", gateway, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 1).shards(2))
    }),
    measure(
        "one-shard-8",
        "one shard, shared generator, 8 in flight",
        "cpu_us",
        gateway,
        |c, s| fanout::sample(c, s, &fanout::Shape::new(1_000, 8).shards(1)),
    ),
    measure("two-shards-8", "two shards, the same, 8 in flight", "cpu_us", gateway, |c, s| {
        fanout::sample(c, s, &fanout::Shape::new(1_000, 8).shards(2))
    }),
    slow(measure("memory", "memory per idle connection", "rss_bytes", anyone, memory::plain)),
    slow(measure("memory-tls", "the same over TLS", "rss_bytes", with_tls, memory::over_tls)),
    slow(measure("isolation", "ping beside a flood", "loaded_p99_ms", gateway, isolation::flood)),
    slow(measure(
        "storm-beside",
        "ping beside 10,000 that recover",
        "loaded_p99_ms",
        gateway,
        isolation::storm,
    )),
    slow(measure("tail", "10,000 connections, delivery", "p99_ms", gateway, scenario::tail)),
    slow(measure("storm", "10,000 recover", "seconds", gateway, scenario::storm)),
];

/// A started server and what clients need to know about it.
#[derive(Debug)]
struct Stage {
    server: Server,
    talk: Talk,
    tls: Option<Arc<ClientConfig>>,
}

impl Stage {
    fn new(context: &Context, subject: &Subject, setup: &Setup) -> Result<Self, String> {
        let address = free_address()?;
        let command = subject.command(&context.places, setup, address.port())?;
        let log = context.places.cache.join(format!("{}.log", subject.name));
        let cores = match setup.shards {
            0 => context.server_core.to_string(),
            shards => format!("0-{}", shards - 1),
        };
        let server = Server::start(&command, &cores, address, &log)?;
        let tls = if setup.tls { Some(crate::tls::client(&context.places)?) } else { None };
        Ok(Self { server, talk: Talk::new(subject.kind, setup), tls })
    }

    fn swarm(&self, spin: bool) -> Result<Swarm, String> {
        Swarm::new(self.server.address, self.tls.clone(), spin)
    }
}

/// CPU time and wall time of a server while something is counted.
struct Watch {
    times: ThreadTimes,
    begun: Instant,
}

impl Watch {
    fn start(stage: &Stage, swarm: &mut Swarm) -> Self {
        swarm.take_busy();
        Self { times: stage.server.times(), begun: Instant::now() }
    }

    /// The usual values for `operations` since the start.
    fn stop(self, stage: &Stage, swarm: &mut Swarm, operations: u64) -> Values {
        let wall = self.begun.elapsed();
        let cpu = spent(&self.times, &stage.server.times());
        usual_values(cpu, wall, swarm.take_busy(), operations)
    }
}

fn usual_values(cpu: Duration, wall: Duration, busy: Duration, operations: u64) -> Values {
    let count = operations.max(1) as f64;
    let seconds = wall.as_secs_f64();
    Values::from([
        ("cpu_us".to_owned(), cpu.as_secs_f64() * 1e6 / count),
        ("per_s".to_owned(), count / seconds),
        ("server_share".to_owned(), cpu.as_secs_f64() / seconds),
        ("generator_share".to_owned(), busy.as_secs_f64() / seconds),
        ("operations".to_owned(), operations as f64),
    ])
}

fn small_payload() -> String {
    text(PAYLOAD_BYTES)
}

/// A JSON string of `bytes` bytes.
fn text(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

/// A JSON document of exactly 1 KiB, as an API would send it.
fn document() -> String {
    let mut items = String::new();
    for number in 0.. {
        let (price, stock) = (19.9 + f64::from(number * 37 % 100), number * 7919 % 500);
        let item = format!(
            r#"{{"id":"item-{number:04}","price":{price:.2},"stock":{stock},"tags":["new","sale"]}}"#
        );
        if items.len() + item.len() > 940 {
            break;
        }
        if number > 0 {
            items.push(',');
        }
        items += &item;
    }
    let text = format!(r#"{{"type":"catalogue","items":[{items}],"note":""#);
    let fill = 1024 - text.len() - 2;
    format!("{text}{}\"}}", "-".repeat(fill))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_their_size_and_are_json() {
        for (text, bytes) in [(small_payload(), 128), (document(), 1024)] {
            assert_eq!(text.len(), bytes);
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn values_are_per_operation() {
        let (cpu, wall) = (Duration::from_millis(500), Duration::from_secs(2));
        let values = usual_values(cpu, wall, Duration::from_secs(1), 100_000);
        assert!((values["cpu_us"] - 5.0).abs() < 1e-9);
        assert!((values["per_s"] - 50_000.0).abs() < 1e-6);
        assert!((values["server_share"] - 0.25).abs() < 1e-9);
        assert!((values["generator_share"] - 0.5).abs() < 1e-9);
    }

    #[test]
    fn names_of_measures_are_unique() {
        let mut names: Vec<&str> = MEASURES.iter().map(|measure| measure.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MEASURES.len());
    }
}
