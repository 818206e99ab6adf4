//! Fan-out: one publisher, many subscribers, so many publications in flight and never the next before all have them.

use std::time::{Duration, Instant};

use super::{AT_ONCE, Context, Stage, WARM_UP, Watch, document, small_payload, text};
use crate::frame;
use crate::sample::{Values, quantile};
use crate::subject::{Kind, Role, Setup, Subject};
use crate::swarm::Swarm;

/// A payload whose bare delivery is as long as the gateway's delivery of a small one.
const EVEN_BYTES: usize = 349;

/// What a fan-out looks like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    subscribers: usize,
    in_flight: usize,
    document: bool,
    even: bool,
    spin: bool,
    setup: Setup,
}

impl Shape {
    pub(super) fn new(subscribers: usize, in_flight: usize) -> Self {
        let setup = Setup::plain();
        Self { subscribers, in_flight, document: false, even: false, spin: true, setup }
    }

    /// In the namespace with history and recovery.
    pub(super) fn kept(mut self) -> Self {
        self.setup.namespace = "kept";
        self
    }

    pub(super) fn tls(mut self) -> Self {
        self.setup.tls = true;
        self
    }

    /// The larger payload.
    pub(super) fn document(mut self) -> Self {
        self.document = true;
        self
    }

    /// The others get payloads that make their deliveries as long as the gateway's, which carry more than a payload.
    pub(super) fn even(mut self) -> Self {
        self.even = true;
        self
    }

    /// That many shards on the first cores. The generator has a core of its own no longer, so it must not spin, and only
    /// the server's CPU time means something.
    pub(super) fn shards(mut self, shards: u8) -> Self {
        self.setup.shards = shards;
        self.spin = false;
        self
    }

    pub(super) fn deflate(mut self) -> Self {
        self.setup.deflate = true;
        self
    }
}

/// Measures one server in that shape.
pub(super) fn sample(
    context: &Context,
    subject: &Subject,
    shape: &Shape,
) -> Result<Values, String> {
    let stage = Stage::new(context, subject, &shape.setup)?;
    let mut swarm = stage.swarm(shape.spin)?;
    let talk = &stage.talk;
    swarm.open(shape.subscribers, AT_ONCE, |number| {
        talk.dialogue(Role::Subscriber, number, "news")
    })?;
    let publisher = shape.subscribers;
    swarm.open(1, 1, |_| talk.dialogue(Role::Publisher, publisher, "news"))?;
    let payload = match shape {
        Shape { document: true, .. } => document(),
        Shape { even: true, .. } if subject.kind != Kind::Gateway => text(EVEN_BYTES),
        _ => small_payload(),
    };
    let frames = talk.publication("news", &payload).repeat(shape.in_flight);
    let mut fanout =
        Fanout { swarm, publisher, frames, in_flight: shape.in_flight, latencies: vec![] };
    let wire_bytes = fanout.check(&payload, shape.setup.deflate)?;
    fanout.swarm.only_listen()?;
    fanout.run(WARM_UP)?;
    fanout.latencies.clear();
    let watch = Watch::start(&stage, &mut fanout.swarm);
    let deliveries = fanout.run(context.seconds)?;
    let mut values = watch.stop(&stage, &mut fanout.swarm, deliveries);
    values.insert("wire_bytes".to_owned(), wire_bytes as f64);
    fanout.latencies.sort_by(f64::total_cmp);
    for (name, share) in [("p50_ms", 0.5), ("p99_ms", 0.99)] {
        values.insert(name.to_owned(), quantile(&fanout.latencies, share));
    }
    Ok(values)
}

struct Fanout {
    swarm: Swarm,
    publisher: usize,
    /// What the publisher sends at once.
    frames: Vec<u8>,
    in_flight: usize,
    /// From the send to the last delivery, in milliseconds.
    latencies: Vec<f64>,
}

impl Fanout {
    /// Publishes for that long and says how many deliveries there were.
    fn run(&mut self, duration: Duration) -> Result<u64, String> {
        let begun = Instant::now();
        let mut deliveries = 0;
        while begun.elapsed() < duration {
            let sent = Instant::now();
            deliveries += self.burst()?.0;
            self.latencies.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok(deliveries)
    }

    /// One burst until all have all of it: deliveries, and how many of them were compressed.
    fn burst(&mut self) -> Result<(u64, u64), String> {
        let wanted = (self.publisher * self.in_flight) as u64;
        let (mut delivered, mut compressed) = (0, 0);
        self.swarm.send(self.publisher, &self.frames)?;
        while delivered < wanted {
            self.swarm.turn(Duration::from_millis(100))?;
            for arrival in &self.swarm.arrived {
                if arrival.link != self.publisher {
                    delivered += u64::from(arrival.messages);
                    compressed += u64::from(arrival.compressed);
                }
            }
            self.swarm.check_patience("fan-out")?;
        }
        if delivered == wanted {
            Ok((delivered, compressed))
        } else {
            Err(format!("{delivered} deliveries where {wanted} were due"))
        }
    }

    /// The first burst: what comes must be what was sent, compressed exactly when that was asked for. Bytes of a
    /// delivery on the wire.
    fn check(&mut self, payload: &str, deflate: bool) -> Result<usize, String> {
        self.swarm.keep(0);
        let (delivered, compressed) = self.burst()?;
        let (frames, bytes) = frame::split(&self.swarm.kept(0));
        if compressed != if deflate { delivered } else { 0 } {
            return Err(format!("{compressed} of {delivered} deliveries were compressed"));
        }
        let payload = payload.as_bytes();
        let holds = |text: &[u8]| text.windows(payload.len()).any(|part| part == payload);
        if frames.len() != self.in_flight
            || !(deflate || frames.iter().all(|(_, text)| holds(text)))
        {
            return Err("a delivery does not hold what was published".to_owned());
        }
        Ok(bytes / self.in_flight)
    }
}
