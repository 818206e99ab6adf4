//! What a new connection costs the server.

use super::{AT_ONCE, Context, Stage, Watch};
use crate::sample::Values;
use crate::subject::{Role, Setup, Subject};
use crate::swarm::Dialogue;

const CONNECTIONS: usize = 5_000;
/// Connections before the measurement.
const WARM: usize = 500;

/// TCP and upgrade alone.
pub(super) fn bare(context: &Context, subject: &Subject) -> Result<Values, String> {
    let stage = Stage::new(context, subject, &Setup::plain())?;
    open(&stage, |number| stage.talk.dialogue(Role::Bare, number, ""))
}

/// Connect, a token that was never seen before, `welcome`, one subscription, each user once.
pub(super) fn fresh(context: &Context, subject: &Subject) -> Result<Values, String> {
    let stage = Stage::new(context, subject, &Setup::plain())?;
    let tokens: Vec<String> = (0..WARM + CONNECTIONS).map(|n| stage.talk.token(n)).collect();
    open(&stage, |number| stage.talk.member(&tokens[number], Some("news")))
}

/// The same with one token, which the gateway knows after the first connection.
pub(super) fn cached(context: &Context, subject: &Subject) -> Result<Values, String> {
    let stage = Stage::new(context, subject, &Setup::plain())?;
    let token = stage.talk.token(0);
    open(&stage, |_| stage.talk.member(&token, Some("news")))
}

fn open(stage: &Stage, dialogue: impl Fn(usize) -> Dialogue) -> Result<Values, String> {
    let mut swarm = stage.swarm(true)?;
    swarm.open(WARM, AT_ONCE, &dialogue)?;
    let watch = Watch::start(stage, &mut swarm);
    swarm.open(CONNECTIONS, AT_ONCE, |number| dialogue(WARM + number))?;
    Ok(watch.stop(stage, &mut swarm, CONNECTIONS as u64))
}
