//! New sockets: accepting, choosing their shard, refusing.
//!
//! Accepting rests instead of spinning when descriptors or memory are exhausted, and ends by emptying the kernel's
//! queue, because what is left in it when a listener is closed is lost to its client.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gateway_core::metrics::RefusalReason;
use gateway_core::settings::Peer;
use socket2::SockRef;

use super::Pump;
use crate::connection::Connection;
use crate::listener::Listener;
use crate::mailbox::PlacedSocket;
use crate::placement::{PEEK_BYTES_MAX, user_of};
use crate::ring::{Completion, Op};
use crate::tls::Tls;

/// Sockets of a shard whose first bytes are awaited; more are placed by address at once.
const WAITING_MAX: usize = 1024;

/// Reads of a refused client's input: one that sends without end is not listened to for ever.
const REFUSED_READS_MAX: usize = 16;

/// Sockets whose first bytes are awaited. Each waits at most the handshake timeout.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// In the order of their deadlines. A socket that was placed leaves its entry behind, empty.
    sockets: VecDeque<Option<WaitingSocket>>,
    /// Number of the first entry; the key of an entry is its number.
    first: u64,
    /// Entries that are not empty.
    live: usize,
}

#[derive(Debug)]
struct WaitingSocket {
    deadline: Duration,
    placed: PlacedSocket,
    /// Being cancelled because the deadline has passed.
    expired: bool,
}

impl Waiting {
    fn add(&mut self, socket: WaitingSocket) -> u64 {
        self.live += 1;
        self.sockets.push_back(Some(socket));
        self.first + self.sockets.len() as u64 - 1
    }

    fn get(&self, key: u64) -> Option<&WaitingSocket> {
        self.sockets.get(usize::try_from(key.checked_sub(self.first)?).ok()?)?.as_ref()
    }

    fn take(&mut self, key: u64) -> Option<WaitingSocket> {
        let index = usize::try_from(key.checked_sub(self.first)?).ok()?;
        let socket = self.sockets.get_mut(index)?.take();
        self.live -= usize::from(socket.is_some());
        while matches!(self.sockets.front(), Some(None)) {
            self.sockets.pop_front();
            self.first += 1;
        }
        socket
    }

    fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }
}

impl Pump {
    /// Accepts on every listener that is neither armed nor resting.
    pub(super) fn arm_listeners(&mut self) {
        for (key, listener) in self.listeners.iter_mut().enumerate() {
            let Some(listener) = listener else { continue };
            if listener.paused_until.is_some_and(|until| until <= self.now.mono) {
                listener.paused_until = None;
            }
            if !listener.armed && listener.paused_until.is_none() {
                listener.armed = true;
                self.ring.accept(listener.socket.as_fd(), key as u64);
            }
        }
    }

    /// When a rest ends or a waiting socket is placed without its first bytes.
    pub(super) fn next_accept_deadline(&self) -> Option<Duration> {
        let rests = self.listeners.iter().flatten().filter_map(|listener| listener.paused_until);
        let waiting = self.waiting.sockets.iter().flatten().find(|socket| !socket.expired);
        rests.chain(waiting.map(|socket| socket.deadline)).min()
    }

    pub(super) fn handle_accept(&mut self, completion: Completion) {
        let stopping = self.mailbox().stop_accepting.load(Ordering::Acquire);
        if let Some(accepted) = completion.accepted {
            self.handle_accepted(TcpStream::from(accepted));
        }
        if completion.more {
            return;
        }
        let pause = self.now.mono + self.config.accept_pause;
        let key = completion.key as usize;
        let Some(Some(listener)) = self.listeners.get_mut(key) else { return };
        listener.armed = false;
        if stopping {
            self.close_listener(key);
            return;
        }
        match -completion.result {
            // The kernel ended it without a reason of ours (completion queue full): armed again in the next turn.
            ..=0 | libc::ECANCELED => {}
            libc::EINTR | libc::ECONNABORTED | libc::EPROTO | libc::EAGAIN => {
                self.metrics.accept_errors += 1;
            }
            errno => {
                listener.paused_until = Some(pause);
                self.metrics.accept_pauses += 1;
                self.log.accept_paused(self.now, &io::Error::from_raw_os_error(errno));
            }
        }
    }

    fn handle_accepted(&mut self, socket: TcpStream) {
        self.metrics.accepted += 1;
        // Both fail only when the peer is gone already.
        let (Ok(()), Ok(address)) = (socket.set_nodelay(true), socket.peer_addr()) else {
            self.metrics.accept_errors += 1;
            return;
        };
        let address_ip = address.ip().to_canonical();
        let peer = Peer { address: address_ip, port: address.port(), tls: self.tls.is_some() };
        let placed = PlacedSocket { socket, peer };
        let may_wait = self.shutdown_until.is_none() && self.waiting.live < WAITING_MAX;
        if may_wait && self.placer.needs_first_bytes() && !peer.tls {
            let deadline = self.now.mono + self.settings.limits.handshake_timeout;
            let key = self.waiting.add(WaitingSocket { deadline, placed, expired: false });
            if let Some(waiting) = self.waiting.get(key) {
                self.ring.poll_in(waiting.placed.socket.as_fd(), key);
            }
            return;
        }
        let target = self.placer.place(peer.address);
        self.move_to(target, placed);
    }

    fn move_to(&mut self, target: gateway_core::ids::ShardId, placed: PlacedSocket) {
        if target != self.id && self.shutdown_until.is_some() {
            // The other shard may have ended already.
            self.placer.keep(target);
            self.serve(placed);
            return;
        }
        if target == self.id {
            self.metrics.placed[target.index()] += 1;
            self.serve(placed);
            return;
        }
        match self.mesh.try_place(target, placed) {
            Ok(()) => self.metrics.placed[target.index()] += 1,
            Err(placed) => {
                self.metrics.placements_refused += 1;
                self.metrics.placed[self.id.index()] += 1;
                self.placer.keep(target);
                self.serve(placed);
            }
        }
    }

    /// The poll of a waiting socket has ended: it has bytes, or is broken, or its time was over.
    pub(super) fn handle_first_bytes(&mut self, key: u64) {
        let Some(waiting) = self.waiting.take(key) else { return };
        let mut bytes = [0; PEEK_BYTES_MAX];
        let length = waiting.placed.socket.peek(&mut bytes).unwrap_or(0);
        let target = match user_of(&bytes[..length]) {
            Some(user) => self.placer.place_user(&user),
            None => self.placer.place(waiting.placed.peer.address),
        };
        self.move_to(target, waiting.placed);
    }

    pub(super) fn run_accept_deadlines(&mut self) -> bool {
        let (mono, first) = (self.now.mono, self.waiting.first);
        let mut busy = false;
        for (index, socket) in self.waiting.sockets.iter_mut().enumerate() {
            let Some(socket) = socket else { continue };
            if socket.deadline > mono {
                break;
            }
            if !socket.expired {
                socket.expired = true;
                busy = true;
                // Its poll completes and the socket is placed by address.
                self.ring.cancel(Op::PollIn, first + index as u64);
            }
        }
        busy
    }

    /// Places every waiting socket without its first bytes, as soon as the ring lets go of it.
    pub(super) fn stop_waiting(&mut self) {
        for socket in self.waiting.sockets.iter_mut().flatten() {
            socket.deadline = self.now.mono;
        }
    }

    /// A socket to be served here; it is counted on this shard already.
    pub(super) fn serve(&mut self, placed: PlacedSocket) {
        let PlacedSocket { socket, peer } = placed;
        let tls = match self.tls.as_ref().map(Tls::new).transpose() {
            Ok(tls) => tls,
            Err(error) => {
                self.metrics.tls_failures += 1;
                tracing::error!(target: "error", event = "tls_setup_failed", %error, "TLS cannot be set up");
                self.uncount_connection();
                return;
            }
        };
        let id = match self.shard.open(self.now, peer) {
            Ok(id) => id,
            Err(reason) => {
                if tls.is_none() {
                    refuse(&socket, reason);
                }
                self.uncount_connection();
                return;
            }
        };
        let slot = id.slot() as usize;
        if slot >= self.connections.len() {
            self.connections.resize_with(slot + 1, || None);
        }
        let mut connection = Connection::new(id, socket, peer, tls);
        connection.receiving = true;
        connection.outstanding = 1;
        self.ring.receive(connection.socket.as_fd(), id.local_bits());
        debug_assert!(
            self.connections[slot].is_none(),
            "the core reuses a slot only when it is free"
        );
        self.connections[slot] = Some(connection);
        self.live += 1;
        if self.shutdown_until.is_some() {
            self.start_closing(id);
        }
    }

    pub(super) fn uncount_connection(&self) {
        self.mailbox().board.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Begins to close every listener; answers whether there was one left to begin with.
    pub(super) fn stop_listeners(&mut self) -> bool {
        let mut began = false;
        for key in 0..self.listeners.len() {
            let Some(listener) = &mut self.listeners[key] else { continue };
            if !listener.armed {
                self.close_listener(key);
                began = true;
            } else if listener.paused_until.is_none() {
                // An armed listener never rests, so the field can say that its cancel is under way.
                listener.paused_until = Some(Duration::MAX);
                self.ring.cancel(Op::Accept, key as u64);
                began = true;
            }
        }
        began
    }

    /// Takes what clients have put into the kernel's queue, then closes.
    #[expect(
        clippy::disallowed_methods,
        reason = "non-blocking, after the ring's accept has ended"
    )]
    fn close_listener(&mut self, key: usize) {
        let Some(Listener { socket, .. }) = self.listeners[key].take() else { return };
        while let Ok((accepted, _)) = socket.accept() {
            if accepted.set_nonblocking(true).is_ok() {
                self.handle_accepted(accepted);
            }
        }
    }

    /// Whether no listener and no socket on its way is left.
    pub(super) fn nothing_accepted(&self) -> bool {
        self.listeners.iter().all(Option::is_none)
            && self.waiting.is_empty()
            && self.mailbox().queue.is_empty()
    }
}

/// Tells a plain client, as far as it is possible without waiting, why it is not served.
fn refuse(socket: &TcpStream, reason: RefusalReason) {
    let status = match reason {
        RefusalReason::AddressLimit | RefusalReason::UserLimit | RefusalReason::HandshakeRate => {
            "429 Too Many Requests"
        }
        _ => "503 Service Unavailable",
    };
    let body = reason.as_str();
    let answer = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // The client may be gone; nothing is owed to it then.
    let _ = SockRef::from(socket).send_with_flags(answer.as_bytes(), flags);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    // Closing with unread input would reset the connection and could take the answer with it.
    let mut input = [0; PEEK_BYTES_MAX];
    for _ in 0..REFUSED_READS_MAX {
        if !matches!((&*socket).read(&mut input), Ok(length) if length == input.len()) {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn socket() -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn empty_entries_behind_a_slow_socket_are_not_counted() {
        let mut waiting = Waiting::default();
        let add = |waiting: &mut Waiting| {
            let peer = Peer { address: Ipv4Addr::LOCALHOST.into(), port: 1, tls: false };
            let placed = PlacedSocket { socket: socket(), peer };
            waiting.add(WaitingSocket { deadline: Duration::ZERO, placed, expired: false })
        };
        let slow = add(&mut waiting);
        for _ in 0..3 {
            let quick = add(&mut waiting);
            assert!(waiting.take(quick).is_some());
            assert!(waiting.take(quick).is_none());
        }
        assert_eq!(waiting.live, 1);
        assert!(waiting.take(slow).is_some());
        assert_eq!((waiting.live, waiting.is_empty()), (0, true));
    }
}
