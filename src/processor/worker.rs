//! A worker: takes one job after the other and runs the handler on it.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until, timeout};

use super::handler::{Handler, Outcome};
use super::lane::Entry;
use super::shared::Shared;
use super::state::{Ended, State, Times};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Worker<J, H> {
    shared: Arc<Shared<J>>,
    handler: Arc<H>,
    stop: watch::Receiver<bool>,
}

impl<J, H> Worker<J, H>
where
    J: Send + Sync + 'static,
    H: Handler<J>,
{
    /// It is counted already.
    pub(super) fn new(shared: Arc<Shared<J>>, handler: Arc<H>) -> Self {
        let stop = shared.stop.subscribe();
        Self { shared, handler, stop }
    }

    /// Until it was idle for long, or the processor stops.
    pub(super) async fn run(mut self) {
        while let Some(mut entry) = self.next().await {
            loop {
                let started = Instant::now();
                let ended = self.call(&entry).await;
                let now = Instant::now();
                let times = Times { now, ran: now - started };
                match self.shared.ended(entry, ended, times) {
                    Some(given_up) => entry = given_up,
                    None => break,
                }
            }
            // A handler that never waits must not keep the thread.
            consume_budget().await;
        }
    }

    /// Waits for a job. `None` ends the worker, which is then no longer counted.
    async fn next(&mut self) -> Option<Entry<J>> {
        let mut idle_until = Instant::now() + self.shared.limits.idle;
        loop {
            let mut work = pin!(self.shared.work.notified());
            work.as_mut().enable();
            if *self.stop.borrow() {
                self.shared.with(State::left);
                return None;
            }
            if let Some(entry) = self.shared.take() {
                return Some(entry);
            }
            tokio::select! {
                biased;
                () = &mut work => {}
                _ = self.stop.wait_for(|stop| *stop) => {}
                () = sleep_until(idle_until) => {
                    if self.shared.with(State::retire) {
                        return None;
                    }
                    idle_until = Instant::now() + self.shared.limits.idle;
                }
            }
        }
    }

    /// One call of the handler. The future is dropped in here too, so that a panic of its destructors is caught.
    async fn call(&mut self, entry: &Entry<J>) -> Ended {
        let call = async {
            let limit = self.shared.limits.job_timeout;
            tokio::select! {
                biased;
                called = timeout(limit, handle(&*self.handler, entry)) => {
                    called.map_or(Ended::TimedOut, Ended::Returned)
                }
                _ = self.stop.wait_for(|stop| *stop) => Ended::Stopped,
            }
        };
        match AssertUnwindSafe(call).catch_unwind().await {
            Ok(ended) => ended,
            Err(panic) => {
                tracing::error!(
                    event = "job_panicked",
                    priority = entry.priority.as_str(),
                    attempt = entry.attempts,
                    given_up = entry.verdict.is_some(),
                    panic = message(&*panic),
                    "a handler panicked; the attempt counts as failed"
                );
                Ended::Panicked
            }
        }
    }
}

async fn handle<J, H: Handler<J>>(handler: &H, entry: &Entry<J>) -> Outcome {
    match &entry.verdict {
        None => handler.handle(&entry.job, entry.attempts).await,
        Some(reason) => {
            handler.dead(&entry.job, reason).await;
            Outcome::Done
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("not a text")
}
