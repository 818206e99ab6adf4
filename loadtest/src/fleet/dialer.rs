//! From which address of this machine a connection comes.
//!
//! One address has about 28,000 ports to connect from, so that more connections need more addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

/// Addresses of the IPv4 loopback that are used when many are needed and none are given.
const LOOPBACK_SOURCES: u8 = 8;

/// Opens sockets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dialer {
    given: Vec<IpAddr>,
    many: bool,
    dialed: usize,
}

impl Dialer {
    /// Takes turns with the `given` local addresses. Without any the system chooses, but for `many` connections to the
    /// IPv4 loopback eight of its own addresses are used.
    pub(crate) fn new(given: Vec<IpAddr>, many: bool) -> Self {
        Self { given, many, dialed: 0 }
    }

    fn source(&mut self, server: IpAddr) -> Option<IpAddr> {
        self.dialed = self.dialed.wrapping_add(1);
        let fitting: Vec<_> =
            self.given.iter().filter(|ip| ip.is_ipv4() == server.is_ipv4()).copied().collect();
        if !fitting.is_empty() {
            return Some(fitting[self.dialed % fitting.len()]);
        }
        let loopback = server.is_ipv4() && server.is_loopback();
        let last = (self.dialed % usize::from(LOOPBACK_SOURCES)) as u8 + 1;
        (self.many && loopback).then(|| Ipv4Addr::new(127, 0, 0, last).into())
    }

    /// Starts connecting.
    pub(super) fn connect(&mut self, server: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = self.source(server.ip()) {
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        match socket.connect(&server.into()) {
            Ok(()) => {}
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(TcpStream::from_std(socket.into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sources(given: &[&str], many: bool, server: &str) -> Vec<Option<IpAddr>> {
        let given = given.iter().map(|ip| ip.parse().unwrap()).collect();
        let mut dialer = Dialer::new(given, many);
        let mut found: Vec<_> = (0..40).map(|_| dialer.source(server.parse().unwrap())).collect();
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn given_addresses_take_turns_and_must_be_of_the_same_family() {
        assert_eq!(sources(&["127.0.0.1", "127.0.0.2", "::1"], true, "127.0.0.9").len(), 2);
        assert_eq!(sources(&["10.0.0.1", "::1"], false, "::1"), [Some("::1".parse().unwrap())]);
        assert_eq!(sources(&["::1"], false, "127.0.0.1"), [None]);
    }

    #[test]
    fn many_connections_to_the_loopback_use_more_of_it() {
        assert_eq!(sources(&[], true, "127.0.0.1").len(), 8);
        assert_eq!(sources(&[], false, "127.0.0.1"), [None]);
        assert_eq!(sources(&[], true, "10.0.0.1"), [None]);
    }
}
