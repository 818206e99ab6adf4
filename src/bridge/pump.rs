//! The task that empties the control queue.
//!
//! The engine signals an eventfd after pushing; this task sleeps on it and hands every event on without waiting for
//! anything, so that a slow HTTP client can never hold up an answer.

use std::io;

use gateway_core::message::ControlMessage;
use gateway_engine::{ControlEvent, ControlReceiver, HttpConnection};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::notify;
use crate::plane::SharedPlane;

/// Events taken in one go before other tasks get their turn.
const BATCH: usize = 256;

/// Hands events on until the future is dropped or the descriptor cannot be watched.
pub(crate) async fn run(
    receiver: ControlReceiver,
    plane: &SharedPlane,
    mut serve: impl FnMut(HttpConnection),
) -> io::Result<()> {
    #[allow(
        deprecated,
        reason = "the successor is unsafe; owning the receiver keeps its descriptor open as long as needed"
    )]
    let mut receiver = AsyncFd::with_interest(receiver, Interest::READABLE)?;
    let broker = plane.broker.as_deref();
    loop {
        // Cleared before draining, so that a wake-up that comes meanwhile is not cleared away; a drain that stops at
        // its batch makes the descriptor readable again.
        receiver.readable().await?.clear_ready();
        for event in receiver.get_mut().drain(BATCH) {
            match event {
                ControlEvent::Core(ControlMessage::Broker(request)) => {
                    // Only homes of a node with a broker ask, or of durable channels.
                    match (broker, &plane.durable) {
                        (_, Some(durable)) if request.durable => durable.handle(request),
                        (Some(broker), _) => broker.handle(request),
                        (None, _) => {}
                    }
                }
                ControlEvent::Core(ControlMessage::BusyUser(user)) => {
                    if let Some(broker) = broker {
                        broker.note_busy(user);
                    }
                }
                ControlEvent::Core(ControlMessage::Call(call)) => {
                    // Only shards of a node with notifications ask.
                    if let Some(notifications) = &plane.notifications {
                        notify::calls::handle(notifications, plane, *call);
                    }
                }
                ControlEvent::Core(ControlMessage::Occurred(occurrence)) => {
                    if let Some(events) = &plane.events {
                        events.note(&occurrence);
                    }
                }
                ControlEvent::Core(ControlMessage::Hook(question)) => plane.hooks.ask(*question),
                ControlEvent::Core(message) => plane.bridge.handle_message(message),
                ControlEvent::Snapshot { correlation, shard, snapshot } => {
                    plane.bridge.handle_snapshot(correlation, shard, snapshot);
                }
                ControlEvent::Http(connection) => serve(connection),
            }
        }
    }
}
