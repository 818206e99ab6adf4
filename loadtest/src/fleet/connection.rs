//! One socket of the generator: what it waits for, what it has half received and not yet sent.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use super::framing::Decoder;

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
}

impl Connection {
    pub(super) fn new(stream: TcpStream, phase: Phase) -> Self {
        Self { stream, phase, inbound: Vec::new(), outbound: Vec::new(), sent: 0, dirty: false }
    }

    /// Writes until everything is sent or the socket is full; answers the bytes written.
    pub(super) fn flush(&mut self) -> io::Result<usize> {
        if matches!(self.phase, Phase::Connecting { .. }) {
            return Ok(0);
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

    /// Makes closing the socket send a reset.
    pub(super) fn reset_on_close(&self) {
        // Without it the socket closes politely, which ends the connection as well.
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// Starts connecting, from 127.0.0.`source` when one is given and the server is on the IPv4 loopback.
pub(super) fn connect(address: SocketAddr, source: Option<u8>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let (Some(source), IpAddr::V4(server)) = (source, address.ip())
        && server.is_loopback()
    {
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, source), 0));
        socket.bind(&from.into())?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}
