//! Turns the core's events into `tracing` records: category as target, event name as the `event` field.
//!
//! Events that a client can cause at will are sampled: so many of each kind are written in a second, and the first
//! record of the next one tells how many were left out.

use std::time::Duration;

use gateway_core::event::Event;
use gateway_core::ids::ShardId;
use gateway_core::time::Now;
use tracing::{debug, info, warn};

const CONNECTION: &str = "connection";
const SECURITY: &str = "security";
const PERFORMANCE: &str = "performance";
const WINDOW: Duration = Duration::from_secs(1);

/// Lets some records pass in a second and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    /// 0 = all of them.
    per_second: u32,
    window_until: Duration,
    passed: u32,
    left_out: u64,
}

impl Sampler {
    fn new(per_second: u32) -> Self {
        Self { per_second, ..Self::default() }
    }

    /// `Some(left out since the last record)` when a record may be written.
    pub(crate) fn pass(&mut self, now: Now) -> Option<u64> {
        if now.mono >= self.window_until {
            self.window_until = now.mono + WINDOW;
            self.passed = 0;
        }
        if self.per_second > 0 && self.passed >= self.per_second {
            self.left_out += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// A shard's log.
#[derive(Debug)]
pub(crate) struct Log {
    shard: ShardId,
    connected: Sampler,
    disconnected: Sampler,
    rate_limited: Sampler,
    slow_consumer: Sampler,
    authentication_failed: Sampler,
    handshake_refused: Sampler,
    gap_found: Sampler,
    stall: Sampler,
    panic: Sampler,
    accept: Sampler,
}

impl Log {
    /// `per_second`: records of one kind in a second; 0 = unlimited.
    pub(crate) fn new(shard: ShardId, per_second: u32) -> Self {
        let sampler = || Sampler::new(per_second);
        Self {
            shard,
            connected: sampler(),
            disconnected: sampler(),
            rate_limited: sampler(),
            slow_consumer: sampler(),
            authentication_failed: sampler(),
            handshake_refused: sampler(),
            gap_found: sampler(),
            stall: sampler(),
            panic: sampler(),
            accept: sampler(),
        }
    }

    pub(crate) fn event(&mut self, now: Now, event: &Event) {
        match event {
            Event::Connected { connection, session, user, address } => {
                if let Some(left_out) = self.connected.pass(now) {
                    info!(
                        target: CONNECTION, event = "connected", %connection, %session,
                        user = &**user, %address, left_out, "session opened"
                    );
                }
            }
            Event::Disconnected { connection, session, user, reason, duration } => {
                if let Some(left_out) = self.disconnected.pass(now) {
                    info!(
                        target: CONNECTION, event = "disconnected", %connection,
                        %session, user = &**user, reason = reason.reason(),
                        code = reason.close_code(), duration_ms = duration.as_millis() as u64,
                        left_out, "session closed"
                    );
                }
            }
            _ => self.sampled_event(now, event),
        }
    }

    fn sampled_event(&mut self, now: Now, event: &Event) {
        match event {
            Event::AuthenticationFailed { connection, address, error } => {
                if let Some(left_out) = self.authentication_failed.pass(now) {
                    warn!(
                        target: SECURITY, event = "authentication_failed", %connection, %address,
                        reason = ?error, left_out, "token refused"
                    );
                }
            }
            Event::HandshakeRefused { address, status, reason } => {
                if let Some(left_out) = self.handshake_refused.pass(now) {
                    debug!(
                        target: SECURITY, event = "handshake_refused", %address, status, reason,
                        left_out, "handshake refused"
                    );
                }
            }
            Event::RateLimited { connection, user } => {
                if let Some(left_out) = self.rate_limited.pass(now) {
                    warn!(
                        target: SECURITY, event = "rate_limited", %connection, user = &**user,
                        left_out, "rate limit passed"
                    );
                }
            }
            Event::SlowConsumer { connection, user, outbox_bytes } => {
                if let Some(left_out) = self.slow_consumer.pass(now) {
                    warn!(
                        target: PERFORMANCE, event = "slow_consumer", %connection,
                        user = &**user, outbox_bytes, left_out, "client reads too slowly"
                    );
                }
            }
            Event::GapFound { channel, expected, found } => {
                if let Some(left_out) = self.gap_found.pass(now) {
                    warn!(
                        target: PERFORMANCE, event = "gap_found", shard = %self.shard,
                        channel = &**channel, expected, found, left_out,
                        "publications between shards were lost and are being repaired"
                    );
                }
            }
            Event::Connected { .. } | Event::Disconnected { .. } => {}
        }
    }

    pub(crate) fn stall(&mut self, now: Now, duration: Duration) {
        if let Some(left_out) = self.stall.pass(now) {
            warn!(
                target: PERFORMANCE, event = "stall", shard = %self.shard,
                duration_ms = duration.as_millis() as u64, left_out, "a turn took too long"
            );
        }
    }

    pub(crate) fn panic(&mut self, now: Now, connection: impl std::fmt::Display, text: &str) {
        if let Some(left_out) = self.panic.pass(now) {
            tracing::error!(
                target: "error", event = "connection_panic", %connection, text, left_out,
                "a panic was caught; the connection is closed"
            );
        }
    }

    pub(crate) fn accept_paused(&mut self, now: Now, error: &std::io::Error) {
        if let Some(left_out) = self.accept.pass(now) {
            warn!(
                target: PERFORMANCE, event = "accept_paused", shard = %self.shard, %error, left_out,
                "cannot accept connections; accepting rests"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampler_passes_so_many_records_a_second() {
        let at = |ms| Now { mono: Duration::from_millis(ms), unix: Duration::ZERO };
        let mut sampler = Sampler::new(2);
        assert_eq!(sampler.pass(at(0)), Some(0));
        assert_eq!(sampler.pass(at(1)), Some(0));
        assert_eq!(sampler.pass(at(2)), None);
        assert_eq!(sampler.pass(at(999)), None);
        assert_eq!(sampler.pass(at(1000)), Some(2));
        assert_eq!(sampler.pass(at(2500)), Some(0));
        let mut all = Sampler::new(0);
        assert!((0..1000).all(|_| all.pass(at(0)) == Some(0)));
    }
}
