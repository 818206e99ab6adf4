//! The task that empties the control queue.
//!
//! The engine signals an eventfd after pushing; this task sleeps on it and hands every event on without waiting for
//! anything, so that a slow HTTP client can never hold up an answer.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use gateway_engine::{ControlEvent, ControlReceiver, HttpConnection};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Bridge;

/// Events taken in one go before other tasks get their turn.
const BATCH: usize = 256;

/// Borrows the descriptor for registration; the receiver outlives it in [`run`].
#[derive(Debug)]
struct WakeUp(RawFd);

impl AsRawFd for WakeUp {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Hands events on until the future is dropped or the descriptor cannot be watched.
pub(crate) async fn run(
    mut receiver: ControlReceiver,
    bridge: Bridge,
    mut serve: impl FnMut(HttpConnection),
) -> io::Result<()> {
    let wake_up = AsyncFd::with_interest(WakeUp(receiver.as_raw_fd()), Interest::READABLE)?;
    loop {
        // Cleared before draining, so that a wake-up that comes meanwhile is not cleared away; a drain that stops at
        // its batch makes the descriptor readable again.
        wake_up.readable().await?.clear_ready();
        for event in receiver.drain(BATCH) {
            match event {
                ControlEvent::Core(message) => bridge.handle_message(message),
                ControlEvent::Snapshot { correlation, shard, snapshot } => {
                    bridge.handle_snapshot(correlation, shard, snapshot);
                }
                ControlEvent::Http(connection) => serve(connection),
            }
        }
    }
}
