//! Bounds how often one event is logged: whoever can cause it must not be able to fill the disk.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Length of the window that lines are counted in.
const WINDOW: Duration = Duration::from_secs(1);

/// Lets so many lines of an event through in a second and counts the others.
#[derive(Debug)]
pub(crate) struct LogSampler {
    /// 0 = all of them.
    per_second: u32,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    until: Option<Instant>,
    passed: u32,
    left_out: u64,
}

impl LogSampler {
    /// `per_second`: lines in a second; 0 = unlimited.
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second, window: Mutex::default() }
    }

    /// `Some(lines left out since the last one)` when a line may be written.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.until.is_none_or(|until| now >= until) {
            window.until = Some(now + WINDOW);
            window.passed = 0;
        }
        if self.per_second > 0 && window.passed >= self.per_second {
            window.left_out += 1;
            return None;
        }
        window.passed = window.passed.saturating_add(1);
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_lines_and_the_next_tells_the_rest() {
        let sampler = LogSampler::new(2);
        let start = Instant::now();
        let passed: Vec<_> = (0..5).map(|_| sampler.pass(start)).collect();
        assert_eq!(passed, [Some(0), Some(0), None, None, None]);
        assert_eq!(sampler.pass(start + WINDOW), Some(3));
        let unlimited = LogSampler::new(0);
        assert!((0..100).all(|_| unlimited.pass(start) == Some(0)));
    }
}
