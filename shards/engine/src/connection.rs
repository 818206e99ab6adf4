//! The engine's side of one connection: socket, TLS, which operations the ring still holds for it.
//!
//! Invariant: the socket is closed, and the slot given back to the core, only when `outstanding` is zero, so that no
//! completion can ever meet a later connection in the same slot.

use std::any::Any;
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use gateway_core::Shard;
use gateway_core::ids::ConnectionId;
use gateway_core::settings::Peer;
use gateway_core::time::Now;

use crate::metrics::EngineMetrics;
use crate::tls::{CountedSocket, Tls, TlsStep};

/// Pieces of an outbox that one send call takes.
const SEND_SLICES_MAX: usize = 64;
/// So much is put into one piece before it is sent: copying it costs less than the kernel's walk along the pieces.
const COPIED_BYTES_MAX: usize = 4096;
/// Send calls for one connection in one turn before others have theirs.
const SEND_ROUNDS_MAX: usize = 8;
/// A plain request that came to a TLS port.
const PLAIN_ON_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\
    Content-Length: 27\r\n\r\nThis port needs TLS (wss).\n";

/// Where a connection stands with the engine.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Bytes go to the core.
    Open,
    /// Bytes are collected for the control plane; given over when no operation is outstanding.
    HandOver(Vec<u8>),
    /// What is in the outbox is sent, then the write side is shut down; input is dropped until the peer's end.
    Closing,
    /// Shut down; removed when no operation is outstanding.
    Dead,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) socket: TcpStream,
    pub(crate) tls: Option<Tls>,
    pub(crate) peer: Peer,
    pub(crate) phase: Phase,
    /// Operations that the ring will still complete, cancels included.
    pub(crate) outstanding: u8,
    /// A receive is armed.
    pub(crate) receiving: bool,
    /// The armed receive is being cancelled.
    pub(crate) cancelling: bool,
    /// A poll for room to write is armed.
    pub(crate) polling: bool,
    /// The peer's end of the stream was seen.
    pub(crate) ended: bool,
    /// The write side is shut down.
    pub(crate) shut: bool,
    /// Turn in which `turn_bytes` were received.
    pub(crate) turn: u32,
    pub(crate) turn_bytes: u32,
}

/// What one step of receiving came to.
#[derive(Debug)]
pub(crate) enum Received {
    /// Call again with the bytes that are left.
    Again,
    /// All bytes are used.
    Drained,
    /// The peer ended the TLS session: as good as the end of the stream.
    Ended,
    /// TLS cannot go on.
    TlsFailed { handshaking: bool },
    /// The core panicked; what it said.
    Panicked(String),
}

/// How far a flush came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Everything is with the socket.
    Done,
    /// The socket is full.
    Blocked,
    /// The budget of this turn is used up.
    More,
    /// The socket is broken.
    Broken,
}

impl Connection {
    pub(crate) fn new(id: ConnectionId, socket: TcpStream, peer: Peer, tls: Option<Tls>) -> Self {
        Self {
            id,
            socket,
            tls,
            peer,
            phase: Phase::Open,
            outstanding: 0,
            receiving: false,
            cancelling: false,
            polling: false,
            ended: false,
            shut: false,
            turn: 0,
            turn_bytes: 0,
        }
    }

    /// Adds to what was received in turn `turn` and answers the sum.
    pub(crate) fn count_received(&mut self, turn: u32, bytes: u32) -> u32 {
        if self.turn != turn {
            self.turn = turn;
            self.turn_bytes = 0;
        }
        self.turn_bytes = self.turn_bytes.saturating_add(bytes);
        self.turn_bytes
    }

    /// Handles a part of `bytes` and answers how many it used. `plain` is room for decrypted bytes.
    pub(crate) fn receive(
        &mut self,
        now: Now,
        shard: &mut Shard,
        bytes: &mut [u8],
        plain: &mut [u8],
    ) -> (usize, Received) {
        if matches!(self.phase, Phase::Closing | Phase::Dead) {
            return (bytes.len(), Received::Drained);
        }
        let Some(tls) = &mut self.tls else {
            let used = bytes.len();
            return match self.take_plain(now, shard, bytes) {
                Ok(()) => (used, Received::Drained),
                Err(text) => (used, Received::Panicked(text)),
            };
        };
        let mut rest: &[u8] = bytes;
        let step = tls.step(&mut rest, plain);
        let used = bytes.len() - rest.len();
        let received = match step {
            TlsStep::Plain(length) => match self.take_plain(now, shard, &mut plain[..length]) {
                Ok(()) => Received::Again,
                Err(text) => Received::Panicked(text),
            },
            TlsStep::Drained => Received::Drained,
            TlsStep::Closed => Received::Ended,
            TlsStep::Failed { handshaking } => {
                // The alert, as far as the socket takes it.
                let _ = tls.send(&mut CountedSocket::new(&self.socket));
                Received::TlsFailed { handshaking }
            }
            TlsStep::PlainHttp => {
                let _ = CountedSocket::new(&self.socket).write(PLAIN_ON_TLS);
                Received::TlsFailed { handshaking: true }
            }
        };
        (used, received)
    }

    fn take_plain(&mut self, now: Now, shard: &mut Shard, bytes: &mut [u8]) -> Result<(), String> {
        match &mut self.phase {
            Phase::Open => {
                let id = self.id;
                catch_unwind(AssertUnwindSafe(|| shard.handle_bytes(now, id, bytes)))
                    .map_err(|panic| panic_text(panic.as_ref()))
            }
            Phase::HandOver(received) => {
                received.extend_from_slice(bytes);
                Ok(())
            }
            Phase::Closing | Phase::Dead => Ok(()),
        }
    }

    /// Sends what waits, as far as the socket takes it and the budget of a turn goes; `copied` is room to put small
    /// pieces together.
    pub(crate) fn flush(
        &mut self,
        now: Now,
        shard: &mut Shard,
        metrics: &mut EngineMetrics,
        copied: &mut Vec<u8>,
    ) -> Flushed {
        let mut socket = CountedSocket::new(&self.socket);
        let result = match &mut self.tls {
            None => flush_plain(now, shard, self.id, &mut socket, copied),
            Some(tls) => flush_tls(now, shard, self.id, tls, &mut socket),
        };
        metrics.sends += socket.sends;
        metrics.bytes_out += socket.bytes;
        metrics.sends_short += socket.short;
        match result {
            Ok(true) => Flushed::Done,
            Ok(false) => Flushed::More,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Flushed::Blocked,
            Err(_) => Flushed::Broken,
        }
    }
}

/// `Ok(true)` when nothing is left, `Ok(false)` when the budget is used up.
fn flush_plain(
    now: Now,
    shard: &mut Shard,
    id: ConnectionId,
    socket: &mut CountedSocket<'_>,
    copied: &mut Vec<u8>,
) -> io::Result<bool> {
    for _ in 0..SEND_ROUNDS_MAX {
        let mut slices = [IoSlice::new(&[]); SEND_SLICES_MAX];
        let filled = shard.gather(id, &mut slices);
        if filled == 0 {
            return Ok(true);
        }
        let slices = &slices[..filled];
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let sent = if filled > 1 && offered <= COPIED_BYTES_MAX {
            copied.clear();
            for slice in slices {
                copied.extend_from_slice(slice);
            }
            socket.write(copied)?
        } else {
            socket.write_vectored(slices)?
        };
        shard.handle_sent(now, id, sent);
        if sent < offered {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if shard.unsent_bytes(id) == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn flush_tls(
    now: Now,
    shard: &mut Shard,
    id: ConnectionId,
    tls: &mut Tls,
    socket: &mut CountedSocket<'_>,
) -> io::Result<bool> {
    for _ in 0..SEND_ROUNDS_MAX {
        tls.send(socket)?;
        let mut slices = [IoSlice::new(&[]); SEND_SLICES_MAX];
        let filled = shard.gather(id, &mut slices);
        if filled == 0 {
            return Ok(!tls.has_pending());
        }
        let taken = tls.feed(&slices[..filled])?;
        shard.handle_sent(now, id, taken);
    }
    tls.send(socket)?;
    Ok(shard.unsent_bytes(id) == 0)
}

/// What a panic said, when it said it in words.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a text".to_owned())
}
