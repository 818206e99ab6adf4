//! What a user of the processor implements, and what it answers with.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// How an attempt went, as the handler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The job is finished.
    Done,
    /// It is to be tried again, unless this was the last attempt.
    Retry {
        /// From now to the next attempt, cut at `retry_after_max`; `None` leaves it to the backoff.
        after: Option<Duration>,
    },
    /// It can never succeed; says why.
    Dead(Cow<'static, str>),
}

/// Why an attempt did not finish its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The handler asked for a retry.
    Retry,
    /// It took longer than `job_timeout`.
    TimedOut,
    /// It panicked.
    Panicked,
}

impl Failure {
    /// Name in logs and stored rows.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::TimedOut => "timed_out",
            Self::Panicked => "panicked",
        }
    }
}

/// Why a job is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeadReason {
    /// The handler said so.
    Handler(Cow<'static, str>),
    /// Every attempt failed.
    Attempts {
        /// How many there were.
        attempts: u32,
        /// How the last one failed.
        last: Failure,
    },
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handler(reason) => f.write_str(reason),
            Self::Attempts { attempts, last } => {
                write!(f, "{attempts} attempts failed, the last with {}", last.as_str())
            }
        }
    }
}

/// Does the jobs. An attempt may be dropped at any await: at its timeout, and at the deadline of a drain; the job is
/// then attempted again, here or after it was handed back. What it does must therefore bear being done twice. It must
/// not block the thread: a timeout takes effect at an await only.
pub(crate) trait Handler<J>: Send + Sync + 'static {
    /// One attempt, the first being number 1. The job is lent, so that a timeout or a panic cannot lose it.
    fn handle(&self, job: &J, attempt: u32) -> impl Future<Output = Outcome> + Send;

    /// The job is given up. It runs under the same timeout as an attempt, and is tried again with backoff when it times
    /// out or panics, `attempts_max` times in all.
    fn dead(&self, job: &J, reason: &DeadReason) -> impl Future<Output = ()> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_shown() {
        assert_eq!(DeadReason::Handler("gone".into()).to_string(), "gone");
        let reason = DeadReason::Attempts { attempts: 3, last: Failure::TimedOut };
        assert_eq!(reason.to_string(), "3 attempts failed, the last with timed_out");
    }
}
