//! Completions of connections: bytes, ends, room to write, cancels.

use std::os::fd::AsFd;

use gateway_core::ids::ConnectionId;

use super::{Pump, lookup};
use crate::connection::{Phase, Received};
use crate::ring::{Buffer, Completion, Op};

impl Pump {
    /// Arms receives that were paused or ended without an end of the stream: not more in one turn than there are
    /// buffers, because the others would only find none and come back.
    pub(super) fn arm_receives(&mut self) {
        if std::mem::take(&mut self.exhausted) {
            self.ring.offer_more_buffers();
            self.ring.publish_buffers();
        }
        for _ in 0..self.config.receive_buffers {
            let Some(id) = self.rearm.pop_front() else { return };
            let Some(connection) = lookup(&mut self.connections, id) else { continue };
            let wanted = matches!(connection.phase, Phase::Open | Phase::Closing);
            if wanted && !connection.receiving && !connection.ended {
                connection.receiving = true;
                connection.outstanding += 1;
                self.ring.receive(connection.socket.as_fd(), id.local_bits());
            }
        }
    }

    pub(super) fn handle_receive(&mut self, completion: Completion) {
        let id = ConnectionId::from_local_bits(self.id, completion.key);
        if let Some(buffer) = completion.buffer {
            self.handle_buffer(id, buffer);
        }
        if !completion.more {
            self.handle_receive_end(id, completion.result);
        }
    }

    fn handle_buffer(&mut self, id: ConnectionId, mut buffer: Buffer) {
        let length = buffer.len();
        self.metrics.bytes_in += length as u64;
        let mut offset = 0;
        while let Some(connection) = lookup(&mut self.connections, id) {
            let bytes = &mut self.ring.bytes(&mut buffer)[offset..];
            let (used, received) =
                connection.receive(self.now, &mut self.shard, bytes, &mut self.plain);
            offset += used;
            let tls = connection.tls.is_some();
            let go_on = self.handle_received(id, received);
            // At once, because a hand-over must not miss the bytes that follow.
            self.poll_outputs();
            if tls {
                self.flush_pending_tls(id);
            }
            if !go_on {
                break;
            }
        }
        self.ring.give_back(buffer);
        self.pause_flooder(id, length);
    }

    /// Answers whether more of the same bytes may follow.
    fn handle_received(&mut self, id: ConnectionId, received: Received) -> bool {
        match received {
            Received::Again => return true,
            Received::Drained => {}
            Received::Ended => self.note_end(id),
            Received::TlsFailed { handshaking } => {
                self.metrics.tls_failures += u64::from(handshaking);
                if handshaking {
                    self.shard.handle_tls_failure(self.now, id);
                }
                self.kill(id);
            }
            Received::Panicked(text) => {
                self.metrics.panics += 1;
                self.log.panic(self.now, id, &text);
                self.shard.handle_panic(self.now, id);
            }
        }
        false
    }

    /// A handshake has something to say although the core has not.
    fn flush_pending_tls(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        let pending = connection.tls.as_ref().is_some_and(crate::tls::Tls::has_pending);
        if pending && !connection.polling && self.flush.last() != Some(&id) {
            self.flush.push(id);
        }
    }

    /// Stops receiving until the next turn from a connection that has had its share of this one.
    fn pause_flooder(&mut self, id: ConnectionId, bytes: usize) {
        let (turn, budget) = (self.turn, self.config.receive_budget_bytes);
        let Some(connection) = lookup(&mut self.connections, id) else { return };
        let over = connection.count_received(turn, bytes as u32) as usize > budget;
        let may_pause = connection.receiving && !connection.cancelling;
        if over && may_pause && matches!(connection.phase, Phase::Open | Phase::Closing) {
            connection.cancelling = true;
            connection.outstanding += 1;
            self.ring.cancel(Op::Receive, id.local_bits());
            self.metrics.receive_pauses += 1;
        }
    }

    fn handle_receive_end(&mut self, id: ConnectionId, result: i32) {
        let Some(connection) = lookup(&mut self.connections, id) else { return };
        connection.outstanding -= 1;
        connection.receiving = false;
        connection.cancelling = false;
        match -result {
            libc::ENOBUFS => {
                self.metrics.receive_buffers_exhausted += 1;
                self.exhausted = true;
                self.rearm.push_back(id);
            }
            ..0 | libc::ECANCELED | libc::EINTR | libc::EAGAIN => self.rearm.push_back(id),
            _ => self.note_end(id),
        }
        self.settle(id);
    }

    /// The peer will send nothing more. What that means is looked at after this turn's flush, because the answer to
    /// the last bytes may still be in the outbox.
    fn note_end(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        if !connection.ended {
            connection.ended = true;
            self.ended.push(id);
        }
    }

    pub(super) fn close_ended(&mut self) {
        for id in std::mem::take(&mut self.ended) {
            let Some(connection) = self.connection(id) else { continue };
            let close = match connection.phase {
                Phase::Open => true,
                // Otherwise the flush that finishes, fails or is cut by the core's deadline ends it.
                Phase::Closing => connection.shut,
                Phase::HandOver(_) | Phase::Dead => false,
            };
            if close {
                self.kill(id);
            }
        }
    }

    /// A poll or a cancel has completed.
    pub(super) fn handle_operation_end(&mut self, completion: &Completion) {
        let id = ConnectionId::from_local_bits(self.id, completion.key);
        let Some(connection) = lookup(&mut self.connections, id) else { return };
        connection.outstanding -= 1;
        if completion.op == Op::PollOut {
            connection.polling = false;
            self.flush.push(id);
        }
        self.settle(id);
    }
}
