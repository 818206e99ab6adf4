//! One message in flight on each of many connections, answered by the server: echo, and publish with its reply.

use std::time::{Duration, Instant};

use super::{AT_ONCE, Context, Stage, WARM_UP, Watch, small_payload};
use crate::frame::{TEXT, from_client};
use crate::sample::Values;
use crate::subject::{Role, Setup, Subject};
use crate::swarm::Swarm;

const CONNECTIONS: usize = 100;

/// Echo of a small message.
pub(super) fn echo(context: &Context, subject: &Subject) -> Result<Values, String> {
    let stage = Stage::new(context, subject, &Setup::plain())?;
    let mut swarm = stage.swarm(true)?;
    swarm.open(CONNECTIONS, AT_ONCE, |number| stage.talk.dialogue(Role::Echo, number, ""))?;
    let frame = from_client(TEXT, small_payload().as_bytes());
    exchange(context, &stage, swarm, &vec![frame; CONNECTIONS])
}

/// JSON publications that are acknowledged, each connection to a channel of its own without subscribers.
pub(super) fn publish_ack(context: &Context, subject: &Subject) -> Result<Values, String> {
    let stage = Stage::new(context, subject, &Setup::plain())?;
    let mut swarm = stage.swarm(true)?;
    swarm.open(CONNECTIONS, AT_ONCE, |number| stage.talk.dialogue(Role::Publisher, number, ""))?;
    let payload = small_payload();
    let frames: Vec<Vec<u8>> = (0..CONNECTIONS)
        .map(|number| stage.talk.publication(&format!("own-{number}"), &payload))
        .collect();
    exchange(context, &stage, swarm, &frames)
}

fn exchange(
    context: &Context,
    stage: &Stage,
    mut swarm: Swarm,
    frames: &[Vec<u8>],
) -> Result<Values, String> {
    swarm.keep(0);
    for (link, frame) in frames.iter().enumerate() {
        swarm.send(link, frame)?;
    }
    run(&mut swarm, frames, WARM_UP)?;
    let kept = swarm.kept(0);
    let (answers, _) = crate::frame::split(&kept);
    if let Some((_, fault)) =
        answers.iter().find(|(_, text)| text.starts_with(br#"{"type":"error""#))
    {
        return Err(format!("refused: {}", String::from_utf8_lossy(fault)));
    }
    let watch = Watch::start(stage, &mut swarm);
    let operations = run(&mut swarm, frames, context.seconds)?;
    Ok(watch.stop(stage, &mut swarm, operations))
}

/// Answers every message with the next one for that long.
fn run(swarm: &mut Swarm, frames: &[Vec<u8>], duration: Duration) -> Result<u64, String> {
    let begun = Instant::now();
    let mut answers = 0;
    while begun.elapsed() < duration {
        swarm.turn(Duration::from_millis(100))?;
        let arrived = std::mem::take(&mut swarm.arrived);
        for arrival in &arrived {
            if arrival.messages != 1 {
                return Err(format!("{} answers to one message", arrival.messages));
            }
            answers += 1;
            swarm.send(arrival.link, &frames[arrival.link])?;
        }
        swarm.arrived = arrived;
        swarm.check_patience("an answer")?;
    }
    Ok(answers)
}
