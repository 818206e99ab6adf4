//! Whether load on one shard is felt on another: two shards, pings at a fixed rate to one of them, while the other is
//! flooded with messages to its limit, or 10,000 clients come back to it and recover, over and over.
//!
//! There are only two cores, so the sides must not share one. The load is made by a thread on the core of the loaded
//! shard and has nothing to do with the core of the other. The pings come from the core of the shard they go to, at a
//! rate that leaves it nearly idle. Before the load the first core is busy with something that has nothing to do with the
//! gateway that is pinged: a busy neighbour makes a core of a virtual machine slower, and the kernel makes it wait for
//! locks, and that is not the gateway's doing. Without that control is told too.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::{AT_ONCE, Context, Stage, small_payload};
use crate::frame::{TEXT, from_client};
use crate::process::{ThreadTimes, spent};
use crate::sample::{Values, quantile};
use crate::subject::{Role, Setup, Subject};
use crate::swarm::Swarm;

const CONNECTIONS: usize = 4;
/// Pings in flight on each connection of the flood.
const FLOOD_IN_FLIGHT: usize = 64;
/// Clients that come back.
const RETURNING: usize = 10_000;
/// Channels that they are in.
const CHANNELS: usize = 100;
/// Publications that each of them missed.
const MISSED: usize = 20;
const PING_INTERVAL: Duration = Duration::from_millis(1);
/// Pings of one phase at least; a 99th percentile of fewer says little.
const PHASE_MIN: Duration = Duration::from_secs(3);
/// Shard and core that are loaded; the generator's own core is that of the other.
const LOADED: usize = 0;
/// Addresses that are tried until both shards have one.
const ADDRESSES: u8 = 40;

/// Pings beside a flood of messages.
pub(super) fn flood(context: &Context, subject: &Subject) -> Result<Values, String> {
    let sides = Sides::new(context, subject)?;
    let mut flooder = sides.swarm(sides.loaded)?;
    sides.enter(&mut flooder)?;
    let spinning = |stop: &AtomicBool| {
        spin(stop);
        Ok(0)
    };
    let flood = |stop: &AtomicBool| keep_full(&mut flooder, &sides.ping, stop).map(|()| 0);
    sides.measure(context, spinning, flood)
}

/// Pings beside a storm of clients that come back and recover. The control is the same storm to another process on the
/// same core.
pub(super) fn storm(context: &Context, subject: &Subject) -> Result<Values, String> {
    let sides = Sides::new(context, subject)?;
    let other = Stage::new(context, subject, &Setup { namespace: "kept", ..Setup::default() })?;
    let mut swarm = sides.swarm(sides.loaded)?;
    let mut others = other.swarm(false)?;
    others.come_from(sides.loaded);
    publish_missed(&sides.stage, sides.swarm(sides.loaded)?)?;
    publish_missed(&other, other.swarm(false)?)?;
    let control = |stop: &AtomicBool| come_back(&other, &mut others, stop);
    sides.measure(context, control, |stop| come_back(&sides.stage, &mut swarm, stop))
}

/// Publishes to every channel what those who come back will have missed.
fn publish_missed(stage: &Stage, mut publisher: Swarm) -> Result<(), String> {
    let dialogue = stage.talk.dialogue(Role::Publisher, RETURNING, "");
    publisher.open(1, 1, |_| dialogue.clone())?;
    for channel in 0..CHANNELS {
        let name = channel_name(channel);
        let frames = stage.talk.publication(&name, &small_payload()).repeat(MISSED);
        publisher.send(0, &frames)?;
        let mut answered = 0;
        while answered < MISSED {
            publisher.turn(Duration::from_millis(100))?;
            let answers = publisher.arrived.iter().map(|arrival| arrival.messages as usize);
            answered += answers.sum::<usize>();
            publisher.check_patience("the answer to a publish")?;
        }
    }
    Ok(())
}

/// Clients come, recover and are cut off, until told to stop; how many came.
fn come_back(stage: &Stage, swarm: &mut Swarm, stop: &AtomicBool) -> Result<u64, String> {
    let mut returned = 0;
    while !stop.load(Ordering::Relaxed) {
        swarm.cut_off()?;
        let mut next = 0;
        while next < RETURNING && !stop.load(Ordering::Relaxed) {
            swarm.open(AT_ONCE, AT_ONCE, |number| {
                let number = next + number;
                stage.talk.returning(number, &channel_name(number % CHANNELS))
            })?;
            next += AT_ONCE;
        }
        returned += next as u64;
    }
    swarm.cut_off()?;
    Ok(returned)
}

fn channel_name(number: usize) -> String {
    format!("news-{number}")
}

/// A gateway of two shards with an address for each.
struct Sides {
    stage: Stage,
    loaded: IpAddr,
    probed: IpAddr,
    ping: Vec<u8>,
}

impl Sides {
    fn new(context: &Context, subject: &Subject) -> Result<Self, String> {
        let setup = Setup { shards: 2, by_address: true, namespace: "kept", ..Setup::default() };
        let stage = Stage::new(context, subject, &setup)?;
        let ping = from_client(TEXT, br#"{"type":"ping","id":"1"}"#);
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut sides = Self { stage, loaded: address, probed: address, ping };
        let mut found = [None; 2];
        for last in 1..=ADDRESSES {
            let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
            let mut swarm = sides.swarm(address)?;
            sides.enter(&mut swarm)?;
            found[sides.shard_of(&mut swarm)?].get_or_insert(address);
            if let [Some(loaded), Some(probed)] = found {
                (sides.loaded, sides.probed) = (loaded, probed);
                return Ok(sides);
            }
        }
        Err(format!("{ADDRESSES} addresses are all on one shard"))
    }

    /// Clients that come from `address`.
    fn swarm(&self, address: IpAddr) -> Result<Swarm, String> {
        let mut swarm = self.stage.swarm(false)?;
        swarm.come_from(address);
        Ok(swarm)
    }

    fn enter(&self, swarm: &mut Swarm) -> Result<(), String> {
        swarm
            .open(CONNECTIONS, 1, |number| self.stage.talk.dialogue(Role::Publisher, number, ""))
            .map(drop)
    }

    /// Which of the two shards works when the connections of `swarm` send pings.
    fn shard_of(&self, swarm: &mut Swarm) -> Result<usize, String> {
        let before = self.stage.server.times();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let flood = scope.spawn(|| keep_full(swarm, &self.ping, &stop));
            thread::park_timeout(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
            flood.join().unwrap_or_else(|_| Err("the flood panicked".to_owned()))
        })?;
        let after = self.stage.server.times();
        let work = [0, 1].map(|shard| of_shard(&self.stage, shard, &before, &after));
        Ok(usize::from(work[1] > work[0]))
    }

    /// Pings alone, beside a core that is busy with `control`, beside `load`; both answer how much they did.
    fn measure(
        &self,
        context: &Context,
        control: impl FnOnce(&AtomicBool) -> Result<u64, String> + Send,
        load: impl FnOnce(&AtomicBool) -> Result<u64, String> + Send,
    ) -> Result<Values, String> {
        let mut prober = self.swarm(self.probed)?;
        self.enter(&mut prober)?;
        let phase = context.seconds.max(PHASE_MIN);
        probe(&mut prober, &self.ping, phase / 3)?;
        let quiet = probe(&mut prober, &self.ping, phase)?;
        let begun = Instant::now();
        let (busy, control) = beside(LOADED, control, || probe(&mut prober, &self.ping, phase))?;
        let control = control as f64 / begun.elapsed().as_secs_f64();
        let (times, begun) = (self.stage.server.times(), Instant::now());
        let (loaded, done) = beside(LOADED, load, || probe(&mut prober, &self.ping, phase))?;
        let now = self.stage.server.times();
        let wall = begun.elapsed().as_secs_f64();
        let share = |shard| of_shard(&self.stage, shard, &times, &now).as_secs_f64() / wall;
        let mut values = Values::from([
            ("loaded_shard_share".to_owned(), share(LOADED)),
            ("probed_shard_share".to_owned(), share(1 - LOADED)),
            ("load_per_s".to_owned(), done as f64 / wall),
            ("control_per_s".to_owned(), control),
        ]);
        let ratio = quantile(&loaded, 0.99) / quantile(&busy, 0.99);
        values.insert("loaded_to_busy".to_owned(), ratio);
        for (name, latencies) in [("quiet", quiet), ("busy", busy), ("loaded", loaded)] {
            values.insert(format!("{name}_p50_ms"), quantile(&latencies, 0.5));
            values.insert(format!("{name}_p99_ms"), quantile(&latencies, 0.99));
        }
        Ok(values)
    }
}

/// CPU time of the threads of one shard between two looks.
fn of_shard(stage: &Stage, shard: usize, before: &ThreadTimes, after: &ThreadTimes) -> Duration {
    let threads = stage.server.threads_named(&format!("shard-{shard}"));
    let own = |times: &ThreadTimes| {
        times.iter().filter(|(id, _)| threads.contains(id)).map(|(id, time)| (*id, *time)).collect()
    };
    spent(&own(before), &own(after))
}

/// Runs `main` while `other` runs in a thread on `core`; what both came to.
fn beside<T>(
    core: usize,
    other: impl FnOnce(&AtomicBool) -> Result<u64, String> + Send,
    main: impl FnOnce() -> Result<T, String>,
) -> Result<(T, u64), String> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let other = scope.spawn(move || {
            let mut cores = CpuSet::new();
            cores.set(core);
            sched_setaffinity(None, &cores).map_err(|error| format!("core {core}: {error}"))?;
            other(stop)
        });
        let outcome = main();
        stop.store(true, Ordering::Relaxed);
        let done = other.join();
        let done = done.unwrap_or_else(|_| Err("a thread of the load panicked".to_owned()))?;
        Ok((outcome?, done))
    })
}

fn spin(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

/// Keeps every connection full of pings until told to stop, then takes the answers that are due.
fn keep_full(swarm: &mut Swarm, ping: &[u8], stop: &AtomicBool) -> Result<(), String> {
    let mut due = 0;
    for link in 0..swarm.len() {
        swarm.send(link, &ping.repeat(FLOOD_IN_FLIGHT))?;
        due += FLOOD_IN_FLIGHT;
    }
    while due > 0 {
        swarm.turn(Duration::from_millis(100))?;
        let arrived = std::mem::take(&mut swarm.arrived);
        for arrival in &arrived {
            let answers = arrival.messages as usize;
            due -= answers;
            if !stop.load(Ordering::Relaxed) {
                swarm.send(arrival.link, &ping.repeat(answers))?;
                due += answers;
            }
        }
        swarm.arrived = arrived;
        swarm.check_patience("a pong of the flood")?;
    }
    Ok(())
}

/// Pings at a fixed rate; milliseconds to the answer, sorted: from the scheduled time when the answer before came too late
/// for it, otherwise from the send, for how long an idle core takes to wake the generator is no doing of the server.
fn probe(swarm: &mut Swarm, ping: &[u8], duration: Duration) -> Result<Vec<f64>, String> {
    let mut latencies = Vec::new();
    let begun = Instant::now();
    let mut scheduled = begun;
    while scheduled.duration_since(begun) < duration {
        let mut start = scheduled;
        while let Some(left) =
            scheduled.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            swarm.turn(left)?;
            start = Instant::now();
        }
        swarm.send(latencies.len() % CONNECTIONS, ping)?;
        let mut answered = false;
        while !answered {
            swarm.turn(Duration::from_millis(100))?;
            answered = !swarm.arrived.is_empty();
            swarm.check_patience("a pong")?;
        }
        latencies.push(start.elapsed().as_secs_f64() * 1e3);
        scheduled += PING_INTERVAL;
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}
