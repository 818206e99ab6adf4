//! Turns the core's events into `tracing` records: category as target, event name as the `event` field.
//!
//! Events that a client can cause at will are sampled: the first of each kind in a second is written, the next record
//! tells how many were left out.

use std::time::Duration;

use gateway_core::event::Event;
use gateway_core::ids::ShardId;
use gateway_core::time::Now;
use tracing::{debug, info, warn};

const CONNECTION: &str = "connection";
const SECURITY: &str = "security";
const PERFORMANCE: &str = "performance";
const WINDOW: Duration = Duration::from_secs(1);

/// Lets one record pass in a second and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    open_until: Option<Duration>,
    left_out: u64,
}

impl Sampler {
    /// `Some(left out since the last record)` when a record may be written.
    pub(crate) fn pass(&mut self, now: Now) -> Option<u64> {
        if self.open_until.is_some_and(|until| now.mono < until) {
            self.left_out += 1;
            return None;
        }
        self.open_until = Some(now.mono + WINDOW);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// A shard's log.
#[derive(Debug)]
pub(crate) struct Log {
    shard: ShardId,
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
    pub(crate) fn new(shard: ShardId) -> Self {
        Self {
            shard,
            rate_limited: Sampler::default(),
            slow_consumer: Sampler::default(),
            authentication_failed: Sampler::default(),
            handshake_refused: Sampler::default(),
            gap_found: Sampler::default(),
            stall: Sampler::default(),
            panic: Sampler::default(),
            accept: Sampler::default(),
        }
    }

    pub(crate) fn event(&mut self, now: Now, event: &Event) {
        match event {
            Event::Connected { connection, session, user, address } => info!(
                target: CONNECTION, event = "connected", %connection, session = &**session,
                user = &**user, %address, "session opened"
            ),
            Event::Disconnected { connection, session, user, reason, duration } => info!(
                target: CONNECTION, event = "disconnected", %connection, session = &**session,
                user = &**user, reason = reason.reason(), code = reason.close_code(),
                duration_ms = duration.as_millis() as u64, "session closed"
            ),
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
    fn sampler_passes_one_record_a_second() {
        let at = |ms| Now { mono: Duration::from_millis(ms), unix: Duration::ZERO };
        let mut sampler = Sampler::default();
        assert_eq!(sampler.pass(at(0)), Some(0));
        assert_eq!(sampler.pass(at(1)), None);
        assert_eq!(sampler.pass(at(999)), None);
        assert_eq!(sampler.pass(at(1000)), Some(2));
        assert_eq!(sampler.pass(at(2500)), Some(0));
    }
}
