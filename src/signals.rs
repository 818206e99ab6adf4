//! What the operator asks for by signal.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A wish of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// SIGTERM or SIGINT: end in an orderly way; the second one ends at once.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The signals the process listens to. From [`Self::listen`] on their default actions are off.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Starts listening.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next wish.
    ///
    /// # Cancel safety
    /// No signal is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
        }
    }

    /// The next wish to stop; reloads asked for meanwhile are ignored.
    pub(crate) async fn stop(&mut self) {
        while self.next().await != Wish::Stop {}
    }
}
