//! When so much waits in dirty outboxes that they must be flushed before more input is handled.
//!
//! A flush is normally the end of a turn. Without this, a burst within one turn would look like a slow client: its outbox
//! would pass the bound although the socket takes everything at once.

use crate::settings::Limits;

/// Part of a bound that may gather between two flushes.
const SHARE: usize = 4;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Unsent bytes of the shard after the last flush.
    left: usize,
    high: bool,
}

impl Pressure {
    /// A connection has `unsent` bytes now and had `left` after its last flush.
    pub(super) fn note(&mut self, unsent: usize, left: usize, limits: &Limits) {
        self.high |= unsent.saturating_sub(left) > limits.outbox_bytes_max / SHARE;
    }

    /// The shard has `unsent` bytes now.
    pub(super) fn note_all(&mut self, unsent: usize, limits: &Limits) {
        self.high |= unsent.saturating_sub(self.left) > limits.shard_outbox_bytes_max / SHARE;
    }

    /// Every dirty outbox was flushed as far as its socket takes it.
    pub(super) fn relieve(&mut self, unsent: usize) {
        self.left = unsent;
        self.high = false;
    }

    pub(super) fn is_high(&self) -> bool {
        self.high
    }
}
