//! Listening sockets: one per shard and address, sharing the port by `SO_REUSEPORT`.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::ListenerConfig;
use crate::error::EngineError;

/// A listening socket of one shard.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    /// The ring accepts on it.
    pub(crate) armed: bool,
    /// Accepting rests until then because descriptors or memory are exhausted.
    pub(crate) paused_until: Option<Duration>,
}

impl Listener {
    pub(crate) fn new(socket: TcpListener) -> Self {
        Self { socket, armed: false, paused_until: None }
    }
}

/// Opens every listener of every shard, `[shard][listener]`, before any of them accepts, and tells the addresses with
/// port 0 resolved.
pub(crate) fn bind_all(
    listeners: &[ListenerConfig],
    shards: usize,
    backlog: i32,
) -> Result<(Vec<Vec<TcpListener>>, Vec<SocketAddr>), EngineError> {
    let mut sockets: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    let mut addresses = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let configured = listener.address;
        let failed = |source| EngineError::Bind { address: configured, source };
        // With both families configured on one port, each socket takes its own.
        let only_v6 = listeners
            .iter()
            .any(|other| other.address.is_ipv4() && other.address.port() == configured.port());
        let mut address = configured;
        for of_shard in &mut sockets {
            let socket = bind(address, only_v6, backlog).map_err(failed)?;
            address = socket.local_addr().map_err(failed)?;
            of_shard.push(socket);
        }
        addresses.push(address);
    }
    Ok((sockets, addresses))
}

fn bind(address: SocketAddr, only_v6: bool, backlog: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn all_shards_share_the_port_that_port_zero_took() {
        let address = "127.0.0.1:0".parse().unwrap();
        let (sockets, addresses) = bind_all(&[ListenerConfig { address }], 3, 16).unwrap();
        assert_ne!(addresses[0].port(), 0);
        for of_shard in &sockets {
            assert_eq!(of_shard[0].local_addr().unwrap(), addresses[0]);
        }
    }

    #[test]
    fn address_in_use_is_told_with_address_and_mend() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind_all(&[ListenerConfig { address }], 1, 16).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains("stop the process"), "{error}");
    }
}
