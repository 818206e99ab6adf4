//! Runs jobs in this process, asynchronously: by priority, fairly between keys, with retries, on a number of workers
//! that follows the load.
//!
//! It owns the jobs that it accepted until they are done, dead or handed back, and nothing else: it stores nothing.
//! Callers whose jobs must survive the process keep them as rows, delete a row when its job is done, and put back what
//! [`Processor::drain`] returns.
//!
//! The parts: [`lane`] is fair between the keys of one priority, [`stride`] between priorities, [`queue`] joins the
//! lanes and the delayed retries under their bounds, [`state`] adds what an ended attempt means and when to add
//! workers; none of them has a clock. [`shared`] is the lock around it and the waking, [`worker`] and [`supervisor`]
//! are the tasks.

mod backoff;
mod handler;
mod lane;
mod limits;
mod queue;
mod shared;
#[cfg(test)]
mod simulation;
mod state;
mod stats;
mod stride;
mod supervisor;
#[cfg(test)]
mod tests;
mod worker;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

pub(crate) use crate::notify::kinds::Priority;
pub(crate) use handler::{DeadReason, Handler, Outcome};
pub(crate) use lane::Key;
pub(crate) use limits::{KeyOrder, LaneLimits, LimitsError, ProcessorLimits};
use shared::Shared;
pub(crate) use stats::{LaneSnapshot, LaneTimes, Phase, ProcessorSnapshot};

/// Why there is no room for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// `jobs_max` is reached.
    #[error("the processor holds as many jobs as it may; try again later, or raise `jobs_max`")]
    Total,
    /// The lane's `jobs_max` is reached.
    #[error("the {0} lane holds as many jobs as it may; try again later, or raise its `jobs_max`")]
    Lane(Priority),
    /// `key_jobs_max` is reached.
    #[error("the key holds as many jobs as it may; try again later, or raise `key_jobs_max`")]
    Key,
    /// [`Processor::drain`] was called.
    #[error("the processor is shutting down; leave the job stored for the next start")]
    Draining,
}

/// A job that was not accepted.
#[derive(thiserror::Error)]
#[error("{why}")]
pub(crate) struct Refused<J> {
    /// The job.
    pub job: J,
    /// What was in the way.
    pub why: Full,
}

impl<J> fmt::Debug for Refused<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("why", &self.why).finish_non_exhaustive()
    }
}

/// See the module's documentation. Dropped without a drain, it drops its jobs, also the ones that run.
#[derive(Debug)]
pub(crate) struct Processor<J> {
    shared: Arc<Shared<J>>,
    supervisor: AbortHandle,
}

impl<J: Send + Sync + 'static> Processor<J> {
    /// Starts the workers on the tokio runtime that this is called in.
    pub(crate) fn start<H: Handler<J>>(
        limits: ProcessorLimits,
        handler: H,
    ) -> Result<Self, LimitsError> {
        Self::start_with(limits, handler, fastrand::Rng::new())
    }

    /// As [`Self::start`], with the random numbers of the backoff.
    fn start_with<H: Handler<J>>(
        limits: ProcessorLimits,
        handler: H,
        random: fastrand::Rng,
    ) -> Result<Self, LimitsError> {
        limits.check()?;
        let shared = Arc::new(Shared::new(limits, random));
        let run = supervisor::supervise(Arc::clone(&shared), Arc::new(handler));
        Ok(Self { shared, supervisor: tokio::spawn(run).abort_handle() })
    }

    /// Accepts a job when there is room for it now. Jobs of the same `key` share one place in the round of their lane.
    #[cfg(test)]
    pub(crate) fn try_push(
        &self,
        priority: Priority,
        key: impl Into<Key>,
        job: J,
    ) -> Result<(), Refused<J>> {
        self.shared.offer(priority, key.into(), job).map_err(|back| self.refuse(priority, back))
    }

    /// Waits for room until the deadline. Whoever waits is not in a queue: a job that comes when there is room may
    /// overtake it.
    ///
    /// # Cancel safety
    /// A job is accepted only by the poll that returns `Ok`: dropped before, it is not accepted, and is dropped too.
    pub(crate) async fn push(
        &self,
        priority: Priority,
        key: impl Into<Key> + Send,
        mut job: J,
        deadline: Instant,
    ) -> Result<(), Refused<J>> {
        let key = key.into();
        loop {
            let mut room = pin!(self.shared.room.notified());
            room.as_mut().enable();
            let Err(back) = self.shared.offer(priority, Arc::clone(&key), job) else {
                return Ok(());
            };
            if back.1 == Full::Draining || timeout_at(deadline, room).await.is_err() {
                return Err(self.refuse(priority, back));
            }
            job = back.0;
        }
    }

    fn refuse(&self, priority: Priority, (job, why): (J, Full)) -> Refused<J> {
        self.shared.with(|state| state.refused(priority));
        Refused { job, why }
    }

    /// Accepts no more jobs, works off those that are queued until the deadline, and returns all that are not finished
    /// then, in the order of acceptance. Jobs that wait for a retry, or ask for one meanwhile, are not tried again;
    /// with [`KeyOrder::Ordered`] neither are the ones behind them. What still runs at the deadline is dropped at its
    /// next await. A handler that reaches none within `stop_grace` keeps its job, which is then not returned.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped: called again, it goes on and returns everything.
    pub(crate) async fn drain(&self, deadline: Instant) -> Vec<J> {
        let shared = &self.shared;
        shared.with(|state| state.queue.close());
        shared.room.notify_waiters();
        shared.settle(deadline, |queue| queue.held() == 0).await;
        shared.with(|state| state.queue.stop());
        shared.stop.send_replace(true);
        let latest = Instant::now() + shared.limits.stop_grace;
        if !shared.settle(latest, |queue| queue.running() == 0).await {
            let running = shared.with(|state| state.queue.running());
            tracing::error!(
                event = "drain_incomplete",
                running,
                "handlers block their threads; their jobs are not handed back"
            );
        }
        shared.with(|state| state.queue.take_unfinished())
    }

    /// Counts and depths now. Cheap.
    pub(crate) fn snapshot(&self) -> ProcessorSnapshot {
        self.shared.with(|state| state.snapshot(Instant::now()))
    }

    /// Histograms of the lanes, each at its [`Priority::index`]. Copies some 200 KiB.
    pub(crate) fn times(&self) -> [LaneTimes; 4] {
        self.shared.with(|state| state.times())
    }
}

impl<J> Drop for Processor<J> {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}
