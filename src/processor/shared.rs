//! What the processor, its workers and its supervisor share: the state behind a mutex, and how they wake one another.
//!
//! Why no wake-up is lost. Whoever waits registers first (`enable`), then looks at the state under the lock, and sleeps
//! only when there is nothing; whoever changes the state does so under the lock and notifies afterwards. So a change is
//! either seen by the look, or comes after the registration and wakes it. In detail:
//!
//! - `work`, one notification per job that may run. A worker that finds another job waiting beside its own passes the
//!   notification on, so one that reached nobody (all workers ran) reaches the next that is idle. A worker that is
//!   woken but ends drops its registration, and tokio hands the notification to the next one. What becomes free when a
//!   job ends (its key's turn, its lane's share) is looked at by the worker that ran it, before it sleeps.
//! - `room` and `settled` wake all that wait, each of which looks again.
//! - `look` has one listener, the supervisor, and keeps a notification that comes while it is busy.
//! - `stop` is a value, not an event.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::lane::{Entry, Key};
use super::queue::Queue;
use super::state::{After, Ended, State, Times};
use super::{Full, Priority, ProcessorLimits};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shared<J> {
    pub(super) limits: ProcessorLimits,
    /// Held for one change at a time, never over an await; no job is dropped inside it.
    state: Mutex<State<J>>,
    /// A job may run.
    pub(super) work: Notify,
    /// A job left, or none are accepted any more.
    pub(super) room: Notify,
    /// A job ended; of interest to a drain.
    settled: Notify,
    /// The supervisor must look earlier than it meant to.
    pub(super) look: Notify,
    /// Whether workers drop what they run and end.
    pub(super) stop: watch::Sender<bool>,
}

impl<J> Shared<J> {
    pub(super) fn new(limits: ProcessorLimits, random: fastrand::Rng) -> Self {
        Self {
            state: Mutex::new(State::new(&limits, random)),
            limits,
            work: Notify::new(),
            room: Notify::new(),
            settled: Notify::new(),
            look: Notify::new(),
            stop: watch::Sender::new(false),
        }
    }

    /// One look at the state, or one change of it.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut State<J>) -> R) -> R {
        let (result, wake) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let result = change(&mut state);
            (result, state.must_wake())
        };
        if wake {
            self.look.notify_one();
        }
        result
    }

    /// Accepts a job and wakes a worker for it.
    pub(super) fn offer(&self, priority: Priority, key: Key, job: J) -> Result<(), (J, Full)> {
        self.with(|state| state.offer(priority, key, job, Instant::now()))?;
        // The last one to fall idle, so that those which are idle for long can end.
        self.work.notify_last();
        Ok(())
    }

    /// The job whose turn it is.
    pub(super) fn take(&self) -> Option<Entry<J>> {
        let (entry, more) = self.with(|state| state.take(Instant::now()))?;
        if more {
            self.work.notify_last();
        }
        Some(entry)
    }

    /// A call of the handler ended; a job that the handler is to be told of, if it is to be.
    pub(super) fn ended(&self, entry: Entry<J>, ended: Ended, times: Times) -> Option<Entry<J>> {
        let after = self.with(|state| state.ended(entry, ended, times));
        if let After::Tell(entry) = after {
            return Some(entry);
        }
        self.room.notify_waiters();
        self.settled.notify_waiters();
        None
    }

    /// Waits until `done` or the deadline; whether it was `done`.
    pub(super) async fn settle(&self, deadline: Instant, done: impl Fn(&Queue<J>) -> bool) -> bool {
        loop {
            let mut settled = pin!(self.settled.notified());
            settled.as_mut().enable();
            if self.with(|state| done(&state.queue)) {
                return true;
            }
            if timeout_at(deadline, settled).await.is_err() {
                return false;
            }
        }
    }
}
