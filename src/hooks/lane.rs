//! The way of one hook's questions: a bounded queue, a bounded number of requests, a breaker.
//!
//! A question's time begins when it arrives. Those before it began earlier, so one of them makes room before its time is over;
//! what waits therefore needs no timer. A question whose client has left is not asked, and makes room when the queue is full.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::hook::{HookAnswer, HookKind, HookQuestion, Verdict};
use gateway_core::message::ShardMessage;
use hdrhistogram::Histogram;
use reqwest::Url;
use tokio::time::Instant;
use uuid::Uuid;

use super::answer::{self, Unreadable};
use super::application::{Application, AskError};
use super::{HookState, question};
use crate::breaker::{Breaker, Change};
use crate::bridge::Bridge;
use crate::logging::LogSampler;

/// Between two looks for questions that nobody waits for any more.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);
/// Longest time that the histogram tells apart, in microseconds.
const HIGH_US: u64 = 60_000_000;

/// How long answers took, in microseconds.
pub(crate) type LaneTimes = Histogram<u64>;

/// What becomes of questions, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Allowed,
    Refused,
    Timeout,
    Failed,
    Unreadable,
    Overloaded,
    Breaker,
    Left,
}

/// Names of the outcomes: the application said yes (or answered a call), no, nothing in time, failed, answered what cannot be
/// understood; it was not asked because too many waited, because it is left alone, because the client had left.
pub(crate) const OUTCOMES: [&str; 8] =
    ["allowed", "refused", "timeout", "failed", "unreadable", "overloaded", "breaker", "left"];

/// How a lane works.
#[derive(Debug)]
pub(super) struct LaneSetup {
    pub(super) url: Url,
    pub(super) timeout: Duration,
    pub(super) concurrency_max: usize,
    pub(super) waiting_max: usize,
    pub(super) waiting_bytes_max: usize,
    /// Whether a client may when the application cannot be asked.
    pub(super) allow_on_failure: bool,
    pub(super) depth_max: u32,
    pub(super) breaker: Breaker,
    pub(super) application: Arc<Application>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Lane {
    kind: HookKind,
    bridge: Bridge,
    setup: ArcSwapOption<LaneSetup>,
    queue: Mutex<Queue>,
    outcomes: [AtomicU64; OUTCOMES.len()],
    times: Mutex<LaneTimes>,
    log: LogSampler,
}

#[derive(Debug)]
struct Queue {
    /// Tasks that ask one question after the other.
    running: usize,
    waiting: VecDeque<Job>,
    /// Payloads of those that wait.
    bytes: usize,
    /// When those whose client has left were last looked for.
    swept: Instant,
}

#[derive(Debug)]
struct Job {
    question: HookQuestion,
    arrived: Instant,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Queue {
    fn pop(&mut self) -> Option<Job> {
        let job = self.waiting.pop_front()?;
        self.bytes -= job.question.ask.bytes();
        Some(job)
    }

    /// Takes out those whose client has left; answers how many.
    fn sweep(&mut self) -> u64 {
        let before = self.waiting.len();
        self.waiting.retain(|job| job.question.is_wanted());
        self.bytes = self.waiting.iter().map(|job| job.question.ask.bytes()).sum();
        (before - self.waiting.len()) as u64
    }
}

/// Gives the place of a task back, also when it panics.
struct Place<'a>(Option<&'a Lane>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.0 {
            lane.lock().running -= 1;
        }
    }
}

impl Lane {
    pub(super) fn new(kind: HookKind, bridge: Bridge, lines_per_second: u32) -> Self {
        let times = Histogram::new_with_bounds(1, HIGH_US, 2);
        Self {
            kind,
            bridge,
            setup: ArcSwapOption::empty(),
            queue: Mutex::new(Queue {
                running: 0,
                waiting: VecDeque::new(),
                bytes: 0,
                swept: Instant::now(),
            }),
            outcomes: Default::default(),
            times: Mutex::new(times.expect("bounds are constant and valid")),
            log: LogSampler::new(lines_per_second),
        }
    }

    pub(super) fn replace(&self, setup: Option<Arc<LaneSetup>>) {
        self.setup.store(setup);
    }

    pub(super) fn state(&self) -> HookState {
        let (waiting, in_flight) = {
            let queue = self.lock();
            (queue.waiting.len(), queue.running)
        };
        HookState {
            kind: self.kind,
            breaker: self.setup.load().as_ref().map(|setup| setup.breaker.state()),
            waiting,
            in_flight,
            outcomes: std::array::from_fn(|index| self.outcomes[index].load(Ordering::Relaxed)),
        }
    }

    pub(super) fn times(&self) -> LaneTimes {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a question: it is asked now, waits for its turn, or is refused at once.
    pub(super) fn submit(self: &Arc<Self>, question: HookQuestion) {
        let now = Instant::now();
        let Some(setup) = self.setup.load_full() else {
            // A reload has switched the hook off while the question was on its way.
            self.count(Outcome::Failed);
            return self.send(&question, Verdict::Fail(away()));
        };
        let job = Job { question, arrived: now };
        let mut queue = self.lock();
        if queue.running < setup.concurrency_max {
            queue.running += 1;
            drop(queue);
            tokio::spawn(Arc::clone(self).work(job));
            return;
        }
        let bytes = job.question.ask.bytes();
        let is_full = |queue: &Queue| {
            queue.waiting.len() >= setup.waiting_max
                || queue.bytes + bytes > setup.waiting_bytes_max
        };
        if is_full(&queue) && now >= queue.swept + SWEEP_INTERVAL {
            queue.swept = now;
            let left = queue.sweep();
            self.outcomes[Outcome::Left as usize].fetch_add(left, Ordering::Relaxed);
        }
        if !is_full(&queue) {
            queue.bytes += bytes;
            return queue.waiting.push_back(job);
        }
        drop(queue);
        self.count(Outcome::Overloaded);
        let message = "too many questions wait for the application; try again";
        let error = ClientError::new(ErrorCode::Unavailable, message);
        self.send(&job.question, Verdict::Fail(error));
    }

    /// Asks one question after the other, as long as any waits.
    async fn work(self: Arc<Self>, first: Job) {
        let mut place = Place(Some(&self));
        let mut next = Some(first);
        while let Some(job) = next {
            self.process(job).await;
            let mut queue = self.lock();
            let concurrency_max = self.setup.load().as_ref().map_or(1, |s| s.concurrency_max);
            next = if queue.running <= concurrency_max { queue.pop() } else { None };
            if next.is_none() {
                queue.running -= 1;
                if queue.waiting.is_empty() {
                    queue.waiting.shrink_to(0);
                }
                place.0 = None;
            }
        }
    }

    async fn process(&self, job: Job) {
        let Job { question, arrived } = job;
        if !question.is_wanted() {
            return self.count(Outcome::Left);
        }
        let Some(setup) = self.setup.load_full() else {
            self.count(Outcome::Failed);
            return self.send(&question, Verdict::Fail(away()));
        };
        let deadline = arrived + setup.timeout;
        let now = Instant::now();
        if now >= deadline {
            self.count(Outcome::Timeout);
            return self.send(&question, on_failure(&setup));
        }
        if !setup.breaker.try_enter(now.into_std()) {
            self.count(Outcome::Breaker);
            return self.send(&question, on_failure(&setup));
        }
        let answered = self.ask(&setup, &question, deadline).await;
        let done = Instant::now();
        self.note_change(setup.breaker.report(done.into_std(), answered.is_ok()));
        let verdict = match answered {
            Ok(verdict) => {
                let refused = matches!(verdict, Verdict::Refuse(_));
                self.count(if refused { Outcome::Refused } else { Outcome::Allowed });
                let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
                times.saturating_record(done.duration_since(now).as_micros() as u64);
                verdict
            }
            Err(failure) => {
                self.count(match failure {
                    Failure::Ask(AskError::Timeout) => Outcome::Timeout,
                    Failure::Ask(_) => Outcome::Failed,
                    Failure::Unreadable(_) => Outcome::Unreadable,
                });
                self.log_failure(&failure);
                on_failure(&setup)
            }
        };
        self.send(&question, verdict);
    }

    async fn ask(
        &self,
        setup: &LaneSetup,
        question: &HookQuestion,
        deadline: Instant,
    ) -> Result<Verdict, Failure> {
        let now_unix = self.bridge.shards().now().unix;
        let id = Uuid::now_v7().simple().to_string();
        let application = &setup.application;
        let timestamp = now_unix.as_millis() as u64;
        let body = question::body(question, (&id, application.node()), timestamp)
            .ok_or(Unreadable("the question has no JSON form"))?;
        let about = (id.as_str(), self.kind.as_str());
        let answer = application.ask(&setup.url, about, body, (now_unix, deadline)).await?;
        Ok(answer::read(question, &answer, setup.depth_max)?)
    }

    /// Puts the answer into the mailbox of the connection's shard; waits elsewhere when that is full.
    fn send(&self, question: &HookQuestion, verdict: Verdict) {
        let (connection, request) = (question.connection, question.request);
        let answer = Box::new(HookAnswer { connection, request, verdict });
        let (bridge, message) = (&self.bridge, ShardMessage::Hooked(answer));
        if let Err(message) = bridge.shards().try_send(connection.shard(), message) {
            let bridge = bridge.clone();
            tokio::spawn(async move { bridge.deliver(connection.shard(), message).await });
        }
    }

    fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn log_failure(&self, failure: &Failure) {
        if let Some(left_out) = self.log.pass(std::time::Instant::now()) {
            tracing::warn!(
                category = "system",
                event = "hook_failed",
                hook = self.kind.as_str(),
                error = %failure,
                left_out,
            );
        }
    }

    fn note_change(&self, change: Option<Change>) {
        let hook = self.kind.as_str();
        match change {
            Some(Change::Opened) => tracing::error!(
                category = "error",
                event = "hook_breaker_open",
                hook,
                "the application is left alone for hooks.breaker_open, because it fails",
            ),
            Some(Change::Closed) => {
                tracing::info!(category = "system", event = "hook_breaker_closed", hook);
            }
            None => {}
        }
    }
}

fn away() -> ClientError {
    ClientError::new(ErrorCode::Unavailable, "the application does not answer; try again")
}

fn on_failure(setup: &LaneSetup) -> Verdict {
    if setup.allow_on_failure { Verdict::Allow } else { Verdict::Fail(away()) }
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
