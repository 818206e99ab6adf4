//! The supervisor: puts delayed jobs into their lanes when they are due, and starts workers.

use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::handler::Handler;
use super::shared::Shared;
use super::state::State;
use super::worker::Worker;

/// Runs until the processor stops and the last worker ended. Dropped, it takes all workers with it.
pub(super) async fn supervise<J, H>(shared: Arc<Shared<J>>, handler: Arc<H>)
where
    J: Send + Sync + 'static,
    H: Handler<J>,
{
    let mut workers = JoinSet::new();
    let mut stop = shared.stop.subscribe();
    loop {
        let orders = shared.with(|state| state.look(Instant::now()));
        for _ in 0..orders.start {
            workers.spawn(Worker::new(Arc::clone(&shared), Arc::clone(&handler)).run());
        }
        // No more than this can wait for one.
        for _ in 0..orders.promoted.min(shared.limits.workers_max) {
            shared.work.notify_last();
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = shared.look.notified() => {}
            () = sleep_until(orders.next.unwrap_or_else(Instant::now)), if orders.next.is_some() => {}
            Some(ended) = workers.join_next() => note(&shared, &ended),
        }
    }
    while let Some(ended) = workers.join_next().await {
        note(&shared, &ended);
    }
}

/// A worker counts itself out, except when it panics, which only the destructor of a job can make it do.
fn note<J>(shared: &Shared<J>, ended: &Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(event = "worker_panicked", %error, "a worker ended; another one takes its place");
        shared.with(State::left);
    }
}
