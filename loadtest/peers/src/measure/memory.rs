//! Memory of idle connections, and what the gateway spends on them while nothing happens.

use std::time::{Duration, Instant};

use super::{AT_ONCE, Context, Stage};
use crate::process::spent;
use crate::sample::Values;
use crate::subject::{Kind, Role, Setup, Subject};
use crate::swarm::Swarm;

const CONNECTIONS: usize = 10_000;
/// Idle time before memory is looked at.
const SETTLE: Duration = Duration::from_secs(5);
/// One period of the gateway's default heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Plain connections.
pub(super) fn plain(context: &Context, subject: &Subject) -> Result<Values, String> {
    sample(context, subject, &Setup::plain())
}

/// Connections over TLS.
pub(super) fn over_tls(context: &Context, subject: &Subject) -> Result<Values, String> {
    sample(context, subject, &Setup { tls: true, ..Setup::plain() })
}

fn sample(context: &Context, subject: &Subject, setup: &Setup) -> Result<Values, String> {
    let stage = Stage::new(context, subject, setup)?;
    let mut swarm = stage.swarm(false)?;
    idle(&mut swarm, Duration::from_millis(500))?;
    let before = stage.server.rss_bytes();
    let per_connection = |now: u64| now.saturating_sub(before) as f64 / CONNECTIONS as f64;
    let mut values = Values::new();
    open(&stage, &mut swarm)?;
    idle(&mut swarm, SETTLE)?;
    values.insert("rss_bytes".to_owned(), per_connection(stage.server.rss_bytes()));
    if subject.kind == Kind::Gateway && !setup.tls {
        let times = stage.server.times();
        let begun = Instant::now();
        idle(&mut swarm, HEARTBEAT)?;
        let cpu = spent(&times, &stage.server.times()).as_secs_f64() * 1e6;
        let share = cpu / begun.elapsed().as_secs_f64() / CONNECTIONS as f64;
        values.insert("idle_us_s".to_owned(), share);
    }
    swarm.close();
    idle(&mut swarm, Duration::from_secs(1))?;
    values.insert("rss_closed_bytes".to_owned(), per_connection(stage.server.rss_bytes()));
    open(&stage, &mut swarm)?;
    idle(&mut swarm, SETTLE)?;
    values.insert("rss_again_bytes".to_owned(), per_connection(stage.server.rss_bytes()));
    Ok(values)
}

fn open(stage: &Stage, swarm: &mut Swarm) -> Result<(), String> {
    let join = |number| stage.talk.dialogue(Role::Subscriber, number, "news");
    swarm.open(CONNECTIONS, AT_ONCE, join).map(drop)
}

/// Only answers pings for that long.
fn idle(swarm: &mut Swarm, duration: Duration) -> Result<(), String> {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    {
        swarm.turn(left)?;
    }
    Ok(())
}
