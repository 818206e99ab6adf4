//! Bounds of a processor, checked before it starts.

use std::time::Duration;

use super::Priority;

/// One lane's part of [`ProcessorLimits`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneLimits {
    /// Jobs of this priority held at once, as counted for `jobs_max`; 1 to 1,000,000.
    pub jobs_max: usize,
    /// Share of the starts relative to the other lanes, when several have work; 1 to 1,000.
    pub weight: u32,
    /// Part of `workers_max` that may run this lane's jobs at once, in percent and at least one worker; 1 to 100. Less
    /// than 100 keeps workers free for the other lanes when all the jobs of this one hang.
    pub workers_percent: u8,
}

/// How jobs of one key and lane go side by side. Keys of different lanes do not know of each other: a critical job
/// never waits for a low one of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyOrder {
    /// One at a time in the order of acceptance. The next one waits until the one before it is done or dead, also
    /// while that one waits for a retry.
    Ordered,
    /// Up to so many at once, 1 to 1,024; a retry goes behind the key's other jobs.
    Parallel(usize),
}

impl KeyOrder {
    /// Jobs of one key that may run at once.
    pub(super) fn running_max(self) -> usize {
        match self {
            Self::Ordered => 1,
            Self::Parallel(max) => max,
        }
    }
}

/// Bounds of a processor.
#[derive(Clone, Debug)]
pub(crate) struct ProcessorLimits {
    /// Jobs held at once; 1 to 1,000,000. A job is held from its acceptance until it is done, dead or handed back,
    /// hence also while it runs or waits for a retry: a retry always finds room.
    pub jobs_max: usize,
    /// The lanes, each at its [`Priority::index`].
    pub lanes: [LaneLimits; 4],
    /// Jobs of one key held at once in one lane; 1 to 1,000,000. Keeps one key from filling a lane.
    pub key_jobs_max: usize,
    /// How jobs of one key go side by side.
    pub key_order: KeyOrder,
    /// Workers kept when there is nothing to do; 1 to `workers_max`.
    pub workers_min: usize,
    /// Workers at most, which is the number of jobs that run at once; 1 to 1,024.
    pub workers_max: usize,
    /// Workers are added when none is idle and a lane's waiting jobs take this part of its `jobs_max`; 1 to 100
    /// percent.
    pub grow_fill_percent: u8,
    /// Workers are added when none is idle and a lane's oldest job waits for so long; 1 ms to 1 h.
    pub wait_target: Duration,
    /// From one addition of workers to the next; 1 ms to 1 min.
    pub grow_every: Duration,
    /// A worker above `workers_min` that had no job for so long ends; 1 ms to 24 h. Far above `grow_every`, or the
    /// number of workers swings.
    pub idle: Duration,
    /// One attempt, and one call of [`super::Handler::dead`]; 1 ms to 1 h.
    pub job_timeout: Duration,
    /// Attempts of a job, the first one included; 1 to 1,000.
    pub attempts_max: u32,
    /// Longest possible delay of the first retry, doubled with each further one; 1 ms to `retry_max`.
    pub retry_base: Duration,
    /// Longest delay of a retry by backoff; 1 ms to 24 h.
    pub retry_max: Duration,
    /// Longest delay of a retry that a handler can ask for; 1 ms to 24 h. A job that is to wait longer is better stored
    /// than held.
    pub retry_after_max: Duration,
    /// How long past its deadline a drain waits for handlers to reach an await; 100 ms to 1 min.
    pub stop_grace: Duration,
}

impl Default for ProcessorLimits {
    fn default() -> Self {
        let lane =
            |jobs_max, weight, workers_percent| LaneLimits { jobs_max, weight, workers_percent };
        Self {
            jobs_max: 20_000,
            lanes: [
                lane(10_000, 1, 50),
                lane(10_000, 2, 75),
                lane(10_000, 4, 90),
                lane(5_000, 8, 100),
            ],
            key_jobs_max: 1_000,
            key_order: KeyOrder::Parallel(4),
            workers_min: 2,
            workers_max: 32,
            grow_fill_percent: 10,
            wait_target: Duration::from_millis(100),
            grow_every: Duration::from_millis(50),
            idle: Duration::from_secs(30),
            job_timeout: Duration::from_secs(10),
            attempts_max: 5,
            retry_base: Duration::from_secs(1),
            retry_max: Duration::from_mins(1),
            retry_after_max: Duration::from_mins(5),
            stop_grace: Duration::from_secs(1),
        }
    }
}

/// Why a processor does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitsError {
    /// A limit is out of its bounds.
    #[error("`{name}` is {value}; set it from {min} to {max}{unit}")]
    Range {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: u128,
        /// Smallest one that is accepted.
        min: u128,
        /// Largest one that is accepted.
        max: u128,
        /// Unit of the three numbers.
        unit: &'static str,
    },
    /// A limit is above another one that it must not exceed.
    #[error("`{lower}` is above `{upper}`; lower it, or raise `{upper}`")]
    Crossed {
        /// The one that is too large.
        lower: &'static str,
        /// The one that bounds it.
        upper: &'static str,
    },
}

const HOUR_MS: u128 = 3_600_000;
const DAY_MS: u128 = 24 * HOUR_MS;

impl ProcessorLimits {
    /// Whether every limit is in its bounds.
    pub(crate) fn check(&self) -> Result<(), LimitsError> {
        count("jobs_max", self.jobs_max, 1_000_000)?;
        for lane in &self.lanes {
            count("lanes.jobs_max", lane.jobs_max, 1_000_000)?;
            count("lanes.weight", lane.weight as usize, 1_000)?;
            count("lanes.workers_percent", usize::from(lane.workers_percent), 100)?;
        }
        count("key_jobs_max", self.key_jobs_max, 1_000_000)?;
        count("key_order", self.key_order.running_max(), 1_024)?;
        count("workers_max", self.workers_max, 1_024)?;
        count("workers_min", self.workers_min, 1_024)?;
        count("grow_fill_percent", usize::from(self.grow_fill_percent), 100)?;
        count("attempts_max", self.attempts_max as usize, 1_000)?;
        duration("wait_target", self.wait_target, 1, HOUR_MS)?;
        duration("grow_every", self.grow_every, 1, 60_000)?;
        duration("idle", self.idle, 1, DAY_MS)?;
        duration("job_timeout", self.job_timeout, 1, HOUR_MS)?;
        duration("retry_base", self.retry_base, 1, DAY_MS)?;
        duration("retry_max", self.retry_max, 1, DAY_MS)?;
        duration("retry_after_max", self.retry_after_max, 1, DAY_MS)?;
        duration("stop_grace", self.stop_grace, 100, 60_000)?;
        if self.workers_min > self.workers_max {
            return Err(LimitsError::Crossed { lower: "workers_min", upper: "workers_max" });
        }
        if self.retry_base > self.retry_max {
            return Err(LimitsError::Crossed { lower: "retry_base", upper: "retry_max" });
        }
        Ok(())
    }

    /// Jobs of a lane that may run at once.
    pub(super) fn running_max(&self, priority: Priority) -> usize {
        let percent = usize::from(self.lanes[priority.index()].workers_percent);
        (self.workers_max * percent / 100).max(1)
    }

    /// Waiting jobs of a lane from which on workers are added.
    pub(super) fn grow_depth(&self, priority: Priority) -> usize {
        let percent = usize::from(self.grow_fill_percent);
        (self.lanes[priority.index()].jobs_max * percent).div_ceil(100)
    }
}

fn count(name: &'static str, value: usize, max: usize) -> Result<(), LimitsError> {
    range(name, value as u128, (1, max as u128), "")
}

fn duration(name: &'static str, value: Duration, min: u128, max: u128) -> Result<(), LimitsError> {
    // Rounded up: a part of a millisecond above the largest value is refused too.
    range(name, value.as_nanos().div_ceil(1_000_000), (min, max), " milliseconds")
}

fn range(
    name: &'static str,
    value: u128,
    (min, max): (u128, u128),
    unit: &'static str,
) -> Result<(), LimitsError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(LimitsError::Range { name, value, min, max, unit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut ProcessorLimits)) -> Result<(), String> {
        let mut limits = ProcessorLimits::default();
        change(&mut limits);
        limits.check().map_err(|error| error.to_string())
    }

    #[test]
    fn bounds_are_checked() {
        assert_eq!(check(|_| ()), Ok(()));
        let refused = "`jobs_max` is 0; set it from 1 to 1000000";
        assert_eq!(check(|limits| limits.jobs_max = 0), Err(refused.to_owned()));
        let refused = "`idle` is 0; set it from 1 to 86400000 milliseconds";
        assert_eq!(check(|limits| limits.idle = Duration::ZERO), Err(refused.to_owned()));
        let refused = "`workers_min` is above `workers_max`; lower it, or raise `workers_max`";
        assert_eq!(check(|limits| limits.workers_min = 33), Err(refused.to_owned()));
        assert!(check(|limits| limits.lanes[2].weight = 0).is_err());
        assert!(check(|limits| limits.lanes[0].workers_percent = 101).is_err());
        assert!(check(|limits| limits.key_order = KeyOrder::Parallel(0)).is_err());
        assert!(check(|limits| limits.retry_base = Duration::from_secs(61)).is_err());
        assert!(check(|limits| limits.grow_every = Duration::from_nanos(60_000_000_001)).is_err());
        assert!(check(|limits| limits.stop_grace = Duration::from_millis(99)).is_err());
    }

    #[test]
    fn shares_are_of_the_whole() {
        let mut limits = ProcessorLimits::default();
        assert_eq!(Priority::ALL.map(|lane| limits.running_max(lane)), [16, 24, 28, 32]);
        assert_eq!(limits.grow_depth(Priority::Low), 1_000);
        limits.workers_max = 1;
        limits.lanes[0].jobs_max = 3;
        assert_eq!(limits.running_max(Priority::Low), 1, "never none");
        assert_eq!(limits.grow_depth(Priority::Low), 1, "never none");
    }
}
