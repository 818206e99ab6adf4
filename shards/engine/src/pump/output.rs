//! What the shard wishes: messages, flushes, closes, hand-overs.

use std::net::Shutdown;
use std::os::fd::AsFd;

use gateway_core::ids::ConnectionId;
use gateway_core::metrics::DropKind;
use gateway_core::{Fault, Output};

use super::{Pump, lookup};
use crate::bridge::{ControlEvent, HttpConnection};
use crate::connection::{Flushed, Phase};
use crate::ring::Op;

impl Pump {
    pub(super) fn poll_outputs(&mut self) -> bool {
        let mut busy = false;
        while let Some(output) = self.shard.poll_output() {
            busy = true;
            match output {
                Output::Send { target, message } => {
                    if let Err(message) = self.mesh.try_send(target, message) {
                        self.shard.handle_refused(self.now, target, message);
                    }
                }
                Output::Control(message) => {
                    if let Err(ControlEvent::Core(message)) =
                        self.control.try_send(ControlEvent::Core(message))
                    {
                        self.shard.handle_control_refused(self.now, message);
                    }
                }
                Output::HandOver { id, received } => self.start_hand_over(id, received),
                Output::Close { id } => self.start_closing(id),
                Output::Abort { id } => self.kill(id),
                Output::Event(event) => self.log.event(self.now, &event),
                Output::Fault(fault) => misbehave(fault),
            }
        }
        busy
    }

    pub(super) fn count_control_drop(&mut self) {
        self.shard.metrics_mut().dropped.add(DropKind::Control as usize, 1);
    }

    /// Sends for every connection that has something new, and for those that could not send all before.
    pub(super) fn flush_dirty(&mut self) -> bool {
        // Those that use up their budget are put back for the next turn.
        let waiting = std::mem::take(&mut self.flush);
        // First, because this writes markers of losses: a connection that is closing is shut down behind its last one.
        let mut busy = self.flush_new();
        for id in waiting {
            busy = true;
            self.flush_connection(id);
        }
        busy
    }

    /// Sends for every connection that has something new.
    fn flush_new(&mut self) -> bool {
        let mut busy = false;
        while let Some(id) = self.shard.next_dirty() {
            busy = true;
            self.flush_connection(id);
        }
        busy
    }

    /// Sends in the middle of a turn when so much waits that outboxes would fill although their sockets have room.
    pub(super) fn relieve_outboxes(&mut self) {
        if self.shard.wants_flush() {
            self.poll_outputs();
            self.flush_new();
        }
    }

    fn flush_connection(&mut self, id: ConnectionId) {
        let Some(connection) = lookup(&mut self.connections, id) else { return };
        let open = matches!(connection.phase, Phase::Open | Phase::Closing);
        if connection.polling || !open || connection.shut {
            return;
        }
        let mut flushed =
            connection.flush(self.now, &mut self.shard, &mut self.metrics, &mut self.copied);
        if flushed == Flushed::Done
            && matches!(connection.phase, Phase::Closing)
            && let Some(tls) = &mut connection.tls
        {
            tls.close_notify();
            flushed =
                connection.flush(self.now, &mut self.shard, &mut self.metrics, &mut self.copied);
        }
        match flushed {
            Flushed::Done if matches!(connection.phase, Phase::Closing) => {
                // The read side stays open: closing with unread input would reset the connection and could take the
                // last bytes with it. The peer's end, or the core's deadline, finishes it.
                connection.shut = true;
                let failed = connection.socket.shutdown(Shutdown::Write).is_err();
                if failed || connection.ended {
                    self.kill(id);
                }
            }
            Flushed::Done => {}
            Flushed::Blocked => {
                connection.polling = true;
                connection.outstanding += 1;
                self.ring.poll_out(connection.socket.as_fd(), id.local_bits());
            }
            Flushed::More => self.flush.push(id),
            Flushed::Broken => self.kill(id),
        }
    }

    pub(super) fn start_closing(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        if matches!(connection.phase, Phase::Open) {
            connection.phase = Phase::Closing;
            self.flush.push(id);
        }
    }

    fn start_hand_over(&mut self, id: ConnectionId, received: Vec<u8>) {
        let Some(connection) = self.connection(id) else { return };
        if matches!(connection.phase, Phase::Open) {
            connection.phase = Phase::HandOver(received);
            self.cancel_operations(id);
            self.settle(id);
        }
    }

    /// Ends a connection at once, as far as the ring allows: its operations are cancelled and awaited.
    pub(super) fn kill(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        if matches!(connection.phase, Phase::Dead) {
            return;
        }
        connection.phase = Phase::Dead;
        // Fails only when the connection is broken already.
        let _ = connection.socket.shutdown(Shutdown::Both);
        self.cancel_operations(id);
        self.settle(id);
    }

    fn cancel_operations(&mut self, id: ConnectionId) {
        let Some(connection) = lookup(&mut self.connections, id) else { return };
        if connection.receiving && !connection.cancelling {
            connection.cancelling = true;
            connection.outstanding += 1;
            self.ring.cancel(Op::Receive, id.local_bits());
        }
        if connection.polling {
            connection.outstanding += 1;
            self.ring.cancel(Op::PollOut, id.local_bits());
        }
    }

    /// Finishes what waits until the ring holds nothing for the connection any more.
    pub(super) fn settle(&mut self, id: ConnectionId) {
        let Some(connection) = lookup(&mut self.connections, id) else { return };
        let finished = matches!(connection.phase, Phase::HandOver(_) | Phase::Dead);
        if connection.outstanding > 0 || !finished {
            return;
        }
        let Some(connection) = self.connections[id.slot() as usize].take() else { return };
        self.live -= 1;
        self.uncount_connection();
        if let Phase::HandOver(received) = connection.phase {
            let http = HttpConnection {
                socket: connection.socket.into(),
                peer: connection.peer,
                received,
                tls: connection.tls.map(crate::tls::Tls::into_connection),
            };
            if self.control.try_send(ControlEvent::Http(http)).is_ok() {
                self.metrics.handed_over += 1;
            } else {
                self.shard.metrics_mut().dropped.add(DropKind::HandOver as usize, 1);
            }
        }
        self.shard.handle_closed(self.now, id);
    }

    /// Sends what is in the outboxes and closes, everywhere.
    pub(super) fn close_all(&mut self) {
        for id in self.open_connections() {
            self.start_closing(id);
        }
    }

    /// Cuts whatever is left.
    pub(super) fn kill_all(&mut self) {
        for id in self.open_connections() {
            self.kill(id);
        }
    }

    fn open_connections(&self) -> Vec<ConnectionId> {
        self.connections.iter().flatten().map(|connection| connection.id).collect()
    }
}

#[expect(clippy::disallowed_methods, reason = "stalling the shard is what the fault is")]
fn misbehave(fault: Fault) {
    match fault {
        Fault::Stall(duration) => std::thread::sleep(duration),
        Fault::PanicShard => panic!("fault injection: a panic of the shard"),
    }
}
