//! One socket of the generator: what it waits for, what it has half received and not yet sent, its TLS session.

use std::io::{self, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;
use rustls::ClientConnection;

use super::framing::Decoder;

/// Receive buffer of a connection that is not read.
const SLOW_RECEIVE_BYTES: usize = 64 << 10;

/// Where to leave a connection on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abandon {
    /// As soon as TCP is connected.
    Connected,
    /// In the middle of the request head.
    HalfHead,
    /// After the request head, without waiting for the answer, with a reset.
    Reset,
}

/// What a connection is waiting for.
#[derive(Debug)]
pub(super) enum Phase {
    /// TCP; the request head goes out after it.
    Connecting { head: Vec<u8>, abandon: Option<Abandon> },
    /// The answer to the upgrade.
    Upgrading,
    /// Messages.
    Open(Decoder),
    /// The server's close frame, after ours.
    Closing(Decoder),
    /// HTTP responses.
    Http,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) phase: Phase,
    /// Received and not yet understood.
    pub(super) inbound: Vec<u8>,
    pub(super) outbound: Vec<u8>,
    /// Bytes of `outbound` that are with the socket.
    sent: usize,
    /// Whether it is in the fleet's list of connections with something to send.
    pub(super) dirty: bool,
    /// Whether nothing is read for now.
    pub(super) paused: bool,
    /// Whether the peer has closed, so that reading must go on to the end.
    pub(super) read_closed: bool,
    tls: Option<Box<ClientConnection>>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, phase: Phase, tls: Option<ClientConnection>) -> Self {
        Self {
            stream,
            phase,
            inbound: Vec::new(),
            outbound: Vec::new(),
            sent: 0,
            dirty: false,
            paused: false,
            read_closed: false,
            tls: tls.map(Box::new),
        }
    }

    /// Whether what is read must go through [`Self::decrypt`].
    pub(super) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Decrypts what came from the socket and appends the plain text to `plain`. The session may have something to say
    /// afterwards, which the next [`Self::flush`] sends.
    pub(super) fn decrypt(&mut self, mut input: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        let Some(session) = &mut self.tls else { return Ok(()) };
        while !input.is_empty() {
            session.read_tls(&mut input).map_err(|error| error.to_string())?;
            let state = session.process_new_packets().map_err(|error| error.to_string())?;
            let mut rest = state.plaintext_bytes_to_read();
            while rest > 0 {
                let start = plain.len();
                plain.resize(start + rest, 0);
                let got = session.reader().read(&mut plain[start..]).map_err(|e| e.to_string())?;
                plain.truncate(start + got);
                rest = rest.saturating_sub(got.max(1));
            }
        }
        Ok(())
    }

    /// Writes until everything is sent or the socket is full; answers the bytes written.
    pub(super) fn flush(&mut self) -> io::Result<usize> {
        if matches!(self.phase, Phase::Connecting { .. }) {
            return Ok(0);
        }
        if let Some(session) = &mut self.tls {
            session.writer().write_all(&self.outbound)?;
            self.outbound = Vec::new();
            let mut written = 0;
            while session.wants_write() {
                match session.write_tls(&mut self.stream) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => written += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(written);
        }
        let before = self.sent;
        while self.sent < self.outbound.len() {
            match self.stream.write(&self.outbound[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(self.sent - before);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let written = self.sent - before;
        // An idle connection keeps no buffer: there are tens of thousands of them.
        self.outbound = Vec::new();
        self.sent = 0;
        Ok(written)
    }

    /// Whether TCP is connected by now.
    pub(super) fn is_connected(&self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Leaves the kernel little room for what is not read.
    pub(super) fn shrink_receive_buffer(&self) {
        // With a larger one it only takes longer until the server notices.
        let _ = socket2::SockRef::from(&self.stream).set_recv_buffer_size(SLOW_RECEIVE_BYTES);
    }

    /// Makes closing the socket send a reset.
    pub(super) fn reset_on_close(&self) {
        // Without it the socket closes politely, which ends the connection as well.
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}
