//! `peer-raw`: the least a server can do, as the limit of the machine. One thread, epoll, one plain send per
//! subscriber with everything that was published since the last turn; no queue, no limits, no checks, no features.

#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use gateway_peers::frame::{BINARY, TEXT, from_server, split};
use rustix::event::epoll;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const LISTENER: u64 = u64::MAX;
const BACKLOG: i32 = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Upgrading,
    Subscriber,
    Publisher,
    Echo,
}

struct Client {
    stream: TcpStream,
    role: Role,
    inbox: Vec<u8>,
}

fn listen() -> std::io::Result<TcpListener> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(9000);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn main() -> std::io::Result<()> {
    gateway_peers::limits::raise_descriptors();
    let listener = listen()?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    // By number, in the order in which they came; gone ones leave a hole.
    let mut clients: Vec<Option<Client>> = Vec::new();
    let (mut events, mut buffer) = (Vec::with_capacity(256), vec![0; 64 << 10]);
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        let mut published = Vec::new();
        for event in &events {
            let id = event.data.u64();
            if id == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let data = epoll::EventData::new_u64(clients.len() as u64);
                    epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
                    let inbox = Vec::new();
                    clients.push(Some(Client { stream, role: Role::Upgrading, inbox }));
                }
            } else if let Some(place) = clients.get_mut(id as usize)
                && let Some(client) = place
                && !client.receive(&mut buffer, &mut published)
            {
                *place = None;
            }
        }
        if !published.is_empty() {
            for client in
                clients.iter_mut().flatten().filter(|client| client.role == Role::Subscriber)
            {
                client.send(&published);
            }
        }
    }
}

impl Client {
    /// Takes input; false when the connection is over.
    fn receive(&mut self, buffer: &mut [u8], published: &mut Vec<u8>) -> bool {
        match self.stream.read(buffer) {
            Ok(0) => return false,
            Ok(bytes) => self.inbox.extend_from_slice(&buffer[..bytes]),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        if self.role == Role::Upgrading {
            self.upgrade();
            return true;
        }
        let (frames, used) = split(&self.inbox);
        self.inbox.drain(..used);
        let mut answer = Vec::new();
        for (opcode, payload) in frames {
            match (self.role, opcode) {
                (Role::Publisher, TEXT | BINARY) => published.extend(from_server(opcode, &payload)),
                (Role::Echo, TEXT | BINARY) => answer.extend(from_server(opcode, &payload)),
                _ => {}
            }
        }
        if !answer.is_empty() {
            self.send(&answer);
        }
        true
    }

    fn upgrade(&mut self) {
        if !self.inbox.ends_with(b"\r\n\r\n") {
            return;
        }
        let head = String::from_utf8_lossy(&self.inbox).into_owned();
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
        let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        .into_bytes();
        self.role = match head.split(' ').nth(1) {
            Some("/sub") => Role::Subscriber,
            Some("/pub") => Role::Publisher,
            _ => Role::Echo,
        };
        if self.role == Role::Subscriber {
            answer.extend(from_server(TEXT, b"ready"));
        }
        self.inbox = Vec::new();
        self.send(&answer);
    }

    /// One send; what the socket does not take is lost, which the generator would see.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write(bytes);
    }
}
