//! What the engine of one shard counts: plain fields that only the shard's thread writes, copied out on request.

use std::time::Duration;

use gateway_core::metrics::ShardMetrics;
use hdrhistogram::Histogram;

/// Counters of one shard's engine. Times in microseconds.
#[derive(Clone, Debug)]
pub struct EngineMetrics {
    /// Turns of the pump.
    pub turns: u64,
    /// Times the shard slept.
    pub parks: u64,
    /// Times other shards were woken by this one.
    pub wakeups: u64,
    /// Duration of turns that had something to do, in microseconds.
    pub turn_us: Histogram<u64>,
    /// From the start of a turn that had something to do to the start of the next: how long ready work may have
    /// waited, in microseconds.
    pub loop_lag_us: Histogram<u64>,
    /// Longest turn, in microseconds.
    pub stall_us_max: u64,
    /// Turns longer than the stall threshold.
    pub stalls: u64,
    /// Busy part of the last second, per mille.
    pub load_permille: u32,
    /// Times that completions did not fit into the completion queue (none is lost).
    pub completion_overflows: u64,
    /// Receives that found no free buffer and were armed again.
    pub receive_buffers_exhausted: u64,
    /// Times accepting rested because descriptors or memory were exhausted.
    pub accept_pauses: u64,
    /// Accepts that failed for another reason, mostly clients that went away.
    pub accept_errors: u64,
    /// Receives paused until the next turn because a connection used up its budget.
    pub receive_pauses: u64,
    /// Bytes received from sockets (encrypted ones with TLS).
    pub bytes_in: u64,
    /// Bytes given to sockets.
    pub bytes_out: u64,
    /// Send calls.
    pub sends: u64,
    /// Sends that took less than offered; the rest waits for the socket.
    pub sends_short: u64,
    /// Sockets accepted by this shard.
    pub accepted: u64,
    /// Sockets this shard accepted, by the shard that serves them.
    pub placed: Vec<u64>,
    /// Sockets kept because the chosen shard's mailbox was full.
    pub placements_refused: u64,
    /// Connections given to the control plane.
    pub handed_over: u64,
    /// Failed TLS handshakes.
    pub tls_failures: u64,
    /// Panics caught while a connection was handled.
    pub panics: u64,
}

impl EngineMetrics {
    /// All zero, for an engine with so many shards.
    pub fn new(shards: usize) -> Self {
        Self {
            turns: 0,
            parks: 0,
            wakeups: 0,
            turn_us: histogram(),
            loop_lag_us: histogram(),
            stall_us_max: 0,
            stalls: 0,
            load_permille: 0,
            completion_overflows: 0,
            receive_buffers_exhausted: 0,
            accept_pauses: 0,
            accept_errors: 0,
            receive_pauses: 0,
            bytes_in: 0,
            bytes_out: 0,
            sends: 0,
            sends_short: 0,
            accepted: 0,
            placed: vec![0; shards],
            placements_refused: 0,
            handed_over: 0,
            tls_failures: 0,
            panics: 0,
        }
    }

    /// Counts a turn that had something to do; answers whether it was a stall.
    pub(crate) fn turn_took(&mut self, duration: Duration, stall_threshold: Duration) -> bool {
        let us = micros(duration);
        self.turn_us.saturating_record(us.max(1));
        self.stall_us_max = self.stall_us_max.max(us);
        let stalled = duration > stall_threshold;
        self.stalls += u64::from(stalled);
        stalled
    }

    pub(crate) fn lagged(&mut self, lag: Duration) {
        self.loop_lag_us.saturating_record(micros(lag).max(1));
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Two significant digits up to one minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("the bounds are constant and valid")
}

/// Everything one shard counts, at one moment.
#[derive(Clone, Debug)]
pub struct ShardSnapshot {
    /// Of the core.
    pub core: ShardMetrics,
    /// Of the engine.
    pub engine: EngineMetrics,
    /// Messages in the shard's mailbox.
    pub mailbox_depth: usize,
    /// What the mailbox holds at most.
    pub mailbox_capacity: usize,
    /// Open sockets of the shard, and sockets on their way to it.
    pub connections: u64,
}
