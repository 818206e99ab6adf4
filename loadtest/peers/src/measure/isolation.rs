//! Whether a flooded shard is felt on another: two shards, pings at a fixed rate to one of them, while the other is flooded
//! to its limit.
//!
//! There are only two cores, so the sides must not share one. The flood is made by a thread on the core of the flooded
//! shard and has nothing to do with the core of the other. The pings come from the core of the shard they go to, at a
//! rate that leaves it nearly idle. Before the flood the first core spins for nothing: a busy neighbour makes a core of
//! a virtual machine slower, and that is not the gateway's doing. Without that control is told too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::{Context, Stage};
use crate::frame::{TEXT, from_client};
use crate::process::{ThreadTimes, spent};
use crate::sample::{Values, quantile};
use crate::subject::{Role, Setup, Subject};
use crate::swarm::Swarm;

const CONNECTIONS: usize = 4;
/// Pings in flight on each connection of the flood.
const FLOOD_IN_FLIGHT: usize = 64;
const PING_INTERVAL: Duration = Duration::from_millis(1);
/// Pings of one phase at least; a 99th percentile of fewer says little.
const PHASE_MIN: Duration = Duration::from_secs(3);
/// Shard and core that are flooded; the generator's own core is that of the other.
const FLOODED: usize = 0;

/// Measures one gateway.
pub(super) fn sample(context: &Context, subject: &Subject) -> Result<Values, String> {
    let stage = Stage::new(context, subject, &Setup { shards: 2, ..Setup::plain() })?;
    let mut sides = [stage.swarm(false)?, stage.swarm(false)?];
    // Round robin: one to each shard in turns.
    for number in 0..2 * CONNECTIONS {
        let dialogue = stage.talk.dialogue(Role::Publisher, number, "");
        sides[number % 2].open(1, 1, |_| dialogue.clone())?;
    }
    let ping = from_client(TEXT, br#"{"type":"ping","id":"1"}"#);
    let [mut flooder, mut prober] = sides;
    if loaded(&stage, &mut flooder, &ping)? != FLOODED {
        std::mem::swap(&mut flooder, &mut prober);
    }
    let phase = context.seconds.max(PHASE_MIN);
    probe(&mut prober, &ping, phase / 3)?;
    let quiet = probe(&mut prober, &ping, phase)?;
    let spinning = |stop: &AtomicBool| {
        spin(stop);
        Ok(())
    };
    let busy = beside(FLOODED, spinning, || probe(&mut prober, &ping, phase))?;
    let (times, begun) = (stage.server.times(), Instant::now());
    let flood = |stop: &AtomicBool| flood(&mut flooder, &ping, stop);
    let flooded = beside(FLOODED, flood, || probe(&mut prober, &ping, phase))?;
    let now = stage.server.times();
    let wall = begun.elapsed();
    let share = |shard| of_shard(&stage, shard, &times, &now).as_secs_f64() / wall.as_secs_f64();
    let mut values = Values::from([
        ("flooded_shard_share".to_owned(), share(FLOODED)),
        ("probed_shard_share".to_owned(), share(1 - FLOODED)),
    ]);
    let ratio = quantile(&flooded, 0.99) / quantile(&busy, 0.99);
    values.insert("flooded_to_busy".to_owned(), ratio);
    for (name, latencies) in [("quiet", quiet), ("busy", busy), ("flooded", flooded)] {
        values.insert(format!("{name}_p50_ms"), quantile(&latencies, 0.5));
        values.insert(format!("{name}_p99_ms"), quantile(&latencies, 0.99));
    }
    Ok(values)
}

/// CPU time of the threads of one shard between two looks.
fn of_shard(stage: &Stage, shard: usize, before: &ThreadTimes, after: &ThreadTimes) -> Duration {
    let threads = stage.server.threads_named(&format!("shard-{shard}"));
    let own = |times: &ThreadTimes| {
        times.iter().filter(|(id, _)| threads.contains(id)).map(|(id, time)| (*id, *time)).collect()
    };
    spent(&own(before), &own(after))
}

/// Which of the two shards works when the connections of `swarm` send pings.
fn loaded(stage: &Stage, swarm: &mut Swarm, ping: &[u8]) -> Result<usize, String> {
    let before = stage.server.times();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| flood(swarm, ping, &stop));
        thread::park_timeout(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap_or_else(|_| Err("the flood panicked".to_owned()))
    })?;
    let after = stage.server.times();
    let work = [0, 1].map(|shard| of_shard(stage, shard, &before, &after));
    Ok(usize::from(work[1] > work[0]))
}

/// Runs `main` while `other` runs in a thread on `core`.
fn beside<T>(
    core: usize,
    other: impl FnOnce(&AtomicBool) -> Result<(), String> + Send,
    main: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
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
        other.join().unwrap_or_else(|_| Err("a thread of the load panicked".to_owned()))?;
        outcome
    })
}

fn spin(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

/// Keeps every connection full of pings until told to stop, then takes the answers that are due.
fn flood(swarm: &mut Swarm, ping: &[u8], stop: &AtomicBool) -> Result<(), String> {
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
