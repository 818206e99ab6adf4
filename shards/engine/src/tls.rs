//! TLS of one connection: rustls driven by bytes, without a socket of its own.
//!
//! Invariants: plaintext is taken out after every record, so rustls keeps at most one record of it; plaintext is put
//! in only when nothing encrypted waits, so rustls keeps at most [`PENDING_BYTES_MAX`] of it.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};
use socket2::SockRef;

/// Bound of plaintext that rustls keeps for sending.
const PENDING_BYTES_MAX: usize = 64 * 1024;
const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Result of one step of receiving.
#[derive(Debug)]
pub(crate) enum TlsStep {
    /// So many bytes of plaintext were written to the caller's buffer; step again.
    Plain(usize),
    /// All received bytes are used and no plaintext is left.
    Drained,
    /// The peer has ended the TLS session in order.
    Closed,
    /// The peer broke the protocol, or a plain request came; an alert waits to be sent.
    Failed { handshaking: bool },
    /// Plain HTTP instead of TLS.
    PlainHttp,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Tls {
    connection: Box<ServerConnection>,
    any_received: bool,
    close_notify_sent: bool,
}

impl Tls {
    pub(crate) fn new(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut connection = Box::new(ServerConnection::new(Arc::clone(config))?);
        connection.set_buffer_limit(Some(PENDING_BYTES_MAX));
        Ok(Self { connection, any_received: false, close_notify_sent: false })
    }

    pub(crate) fn into_connection(self) -> Box<ServerConnection> {
        self.connection
    }

    /// Takes encrypted bytes from the front of `bytes` until plaintext is there.
    pub(crate) fn step(&mut self, bytes: &mut &[u8], plain: &mut [u8]) -> TlsStep {
        if let Some(first) = bytes.first().filter(|_| !self.any_received) {
            if first.is_ascii_uppercase() {
                return TlsStep::PlainHttp;
            }
            self.any_received = true;
        }
        loop {
            match self.connection.reader().read(plain) {
                Ok(0) => return TlsStep::Closed,
                Ok(length) => return TlsStep::Plain(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.failed(),
            }
            if bytes.is_empty() {
                return TlsStep::Drained;
            }
            match self.connection.read_tls(bytes) {
                Ok(0) => return TlsStep::Closed,
                Ok(_) => {}
                Err(_) => return self.failed(),
            }
            if self.connection.process_new_packets().is_err() {
                return self.failed();
            }
        }
    }

    fn failed(&self) -> TlsStep {
        TlsStep::Failed { handshaking: self.connection.is_handshaking() }
    }

    /// Whether encrypted bytes wait to be sent.
    pub(crate) fn has_pending(&self) -> bool {
        self.connection.wants_write()
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full; anything else is final.
    pub(crate) fn send(&mut self, socket: &mut CountedSocket<'_>) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(socket)?;
        }
        Ok(())
    }

    /// Takes plaintext for sending; answers how many bytes.
    pub(crate) fn feed(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.connection.writer().write_vectored(slices)
    }

    /// Tells the peer, once, that nothing more will come.
    pub(crate) fn close_notify(&mut self) {
        if !self.close_notify_sent {
            self.close_notify_sent = true;
            self.connection.send_close_notify();
        }
    }
}

/// A socket that never blocks or raises a signal, and counts what it is given.
#[derive(Debug)]
pub(crate) struct CountedSocket<'a> {
    socket: &'a TcpStream,
    pub(crate) sends: u64,
    pub(crate) bytes: u64,
    pub(crate) short: u64,
}

impl<'a> CountedSocket<'a> {
    pub(crate) fn new(socket: &'a TcpStream) -> Self {
        Self { socket, sends: 0, bytes: 0, short: 0 }
    }
}

impl Write for CountedSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.sends += 1;
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let result = loop {
            let socket = SockRef::from(self.socket);
            let result = match slices {
                // Cheaper than a message header for one slice.
                [one] => socket.send_with_flags(one, SEND_FLAGS),
                _ => socket.send_vectored_with_flags(slices, SEND_FLAGS),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let sent = *result.as_ref().unwrap_or(&0);
        self.bytes += sent as u64;
        self.short += u64::from(sent < offered);
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
