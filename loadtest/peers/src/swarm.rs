//! Thousands of WebSocket clients on one thread: the load of every measure. It counts messages and reads no payload, so
//! that it is cheaper than any server it loads. Level-triggered epoll, one receive per ready socket.
//!
//! It can spin: then the server never pays for waking a generator that fell asleep, as it would not for clients across
//! a network. How busy it was in truth is in `Swarm::busy`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{Domain, SockRef, Socket, Type};

use crate::frame::{self, Scanner};

/// Nothing at all came for this long: the server is stuck or lost a message.
const PATIENCE: Duration = Duration::from_secs(10);
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
const BUFFER_BYTES: usize = 256 << 10;
const EVENTS: usize = 256;
/// Bytes that are kept of a connection whose content is looked at.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// Ports of clients that come from a given address.
const PORTS: Range<u16> = 10_000..60_000;

/// An address with its own count of ports: a kernel that has to find a free one looks at most of them.
#[derive(Debug)]
struct Source {
    address: IpAddr,
    next_port: u16,
}

impl Source {
    fn bind(&mut self, socket: &Socket) -> std::io::Result<()> {
        for _ in PORTS {
            let port = self.next_port;
            self.next_port = if port + 1 == PORTS.end { PORTS.start } else { port + 1 };
            match socket.bind(&SocketAddr::new(self.address, port).into()) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                bound => return bound,
            }
        }
        Err(ErrorKind::AddrInUse.into())
    }
}

/// How a client enters: an upgrade request, then messages awaited and sent.
#[derive(Clone, Debug, Default)]
pub struct Dialogue {
    /// Request head of the upgrade.
    pub request: Vec<u8>,
    /// Messages of the server to wait for before `then` is sent.
    pub greetings: u32,
    /// Frames to send then; may be empty.
    pub then: Vec<u8>,
    /// Messages to wait for after `then`.
    pub answers: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Upgrading,
    Greeting,
    Joining,
    Open,
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    tls: Option<Box<rustls::ClientConnection>>,
    scanner: Scanner,
    stage: Stage,
    awaited: u32,
    dialogue: Option<Box<Dialogue>>,
    kept: Vec<u8>,
    keeping: bool,
}

/// Messages that came on one connection during a turn.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The connection.
    pub link: usize,
    /// Data messages.
    pub messages: u32,
    /// Of those, compressed ones.
    pub compressed: u32,
}

/// The clients.
pub struct Swarm {
    epoll: OwnedFd,
    links: Vec<Link>,
    buffer: Box<[u8]>,
    address: SocketAddr,
    from: Option<Source>,
    tls: Option<Arc<ClientConfig>>,
    spin: bool,
    busy: Duration,
    opened: usize,
    last_arrival: Instant,
    /// What came in the last [`Swarm::turn`] on connections that are open.
    pub arrived: Vec<Arrival>,
}

impl Swarm {
    /// Clients of the server at `address`, over TLS when there is a configuration for it.
    pub fn new(
        address: SocketAddr,
        tls: Option<Arc<ClientConfig>>,
        spin: bool,
    ) -> Result<Self, String> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| format!("epoll: {e}"))?;
        Ok(Self {
            epoll,
            links: Vec::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            address,
            from: None,
            tls,
            spin,
            busy: Duration::ZERO,
            opened: 0,
            last_arrival: Instant::now(),
            arrived: Vec::with_capacity(EVENTS),
        })
    }

    /// Later connections come from this address of the machine.
    pub fn come_from(&mut self, address: IpAddr) {
        self.from = Some(Source { address, next_port: PORTS.start });
    }

    /// Connections opened so far, closed ones of [`Swarm::close`] not counted.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Time spent on anything but waiting, since the last call.
    pub fn take_busy(&mut self) -> Duration {
        std::mem::take(&mut self.busy)
    }

    /// Opens `count` connections, `at_once` at a time, and waits until each has come through its dialogue.
    pub fn open(
        &mut self,
        count: usize,
        at_once: usize,
        mut dialogue: impl FnMut(usize) -> Dialogue,
    ) -> Result<Range<usize>, String> {
        let first = self.links.len();
        while self.links.len() < first + count {
            let wave = at_once.min(first + count - self.links.len());
            for _ in 0..wave {
                let index = self.links.len();
                self.dial(dialogue(index - first))?;
            }
            self.last_arrival = Instant::now();
            while self.opened < self.links.len() {
                self.turn(Duration::from_millis(100))?;
                self.check_patience("opening connections")?;
            }
        }
        Ok(first..first + count)
    }

    /// Puts the TCP of every client into the state of one that only listens. A client that has just sent something delays
    /// its acknowledgements, and on a loopback these are then made on the sender's core and at its cost; how much a client
    /// says before it listens is a matter of the protocol and not of what a delivery costs.
    pub fn only_listen(&self) -> Result<(), String> {
        for link in &self.links {
            SockRef::from(&link.stream)
                .set_tcp_quickack(true)
                .map_err(|error| format!("TCP_QUICKACK: {error}"))?;
        }
        Ok(())
    }

    fn dial(&mut self, dialogue: Dialogue) -> Result<(), String> {
        let fault = |error: std::io::Error| format!("connecting to {}: {error}", self.address);
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None);
        let socket = socket.map_err(fault)?;
        if let Some(from) = &mut self.from {
            from.bind(&socket).map_err(fault)?;
        }
        socket.connect_timeout(&self.address.into(), DIAL_TIMEOUT).map_err(fault)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).map_err(fault)?;
        stream.set_nonblocking(true).map_err(fault)?;
        let tls = match &self.tls {
            Some(config) => {
                let name = ServerName::try_from("localhost").expect("a valid name");
                let client = rustls::ClientConnection::new(config.clone(), name);
                Some(Box::new(client.map_err(|error| format!("TLS: {error}"))?))
            }
            None => None,
        };
        let data = epoll::EventData::new_u64(self.links.len() as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)
            .map_err(|error| format!("epoll: {error}"))?;
        let mut link = Link {
            stream,
            tls,
            scanner: Scanner::default(),
            stage: Stage::Upgrading,
            awaited: 0,
            dialogue: None,
            kept: Vec::new(),
            keeping: true,
        };
        link.send(&dialogue.request)?;
        link.dialogue = Some(Box::new(dialogue));
        self.links.push(link);
        Ok(())
    }

    /// Sends frames on a connection.
    pub fn send(&mut self, link: usize, frames: &[u8]) -> Result<(), String> {
        let begun = Instant::now();
        let sent = self.links[link].send(frames);
        self.busy += begun.elapsed();
        sent
    }

    /// Waits at most `timeout` for input, not at all when spinning, and takes what is there.
    pub fn turn(&mut self, timeout: Duration) -> Result<(), String> {
        self.arrived.clear();
        let timeout = if self.spin { Duration::ZERO } else { timeout };
        let timeout = rustix::event::Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut room = [const { MaybeUninit::uninit() }; EVENTS];
        let events = match epoll::wait(&self.epoll, &mut room[..], Some(&timeout)) {
            Ok(([], _)) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok((events, _)) => events,
            Err(error) => return Err(format!("epoll: {error}")),
        };
        let begun = Instant::now();
        for event in events {
            self.receive(event.data.u64() as usize)?;
        }
        self.last_arrival = begun;
        self.busy += begun.elapsed();
        Ok(())
    }

    fn receive(&mut self, index: usize) -> Result<(), String> {
        let link = &mut self.links[index];
        let mut seen = frame::Seen::default();
        let closed = loop {
            let (bytes, more) = match link.read(&mut self.buffer) {
                Ok(Some(read)) => read,
                Ok(None) => break false,
                Err(Closed) => break true,
            };
            let piece = link.take(&self.buffer[..bytes])?;
            seen.messages += piece.messages;
            seen.compressed += piece.compressed;
            seen.pings += piece.pings;
            seen.closes += piece.closes;
            if !more {
                break false;
            }
        };
        if closed || seen.closes > 0 {
            let stage = &link.stage;
            return Err(format!("the server closed connection {index} ({stage:?})"));
        }
        for _ in 0..seen.pings {
            link.send(&frame::from_client(frame::PONG, b""))?;
        }
        if link.stage == Stage::Open {
            if seen.messages > 0 {
                let (messages, compressed) = (seen.messages, seen.compressed);
                self.arrived.push(Arrival { link: index, messages, compressed });
            }
        } else if link.advance(seen.messages)? {
            self.opened += 1;
        }
        Ok(())
    }

    /// An error once nothing has come for a long time.
    pub fn check_patience(&self, doing: &str) -> Result<(), String> {
        if self.last_arrival.elapsed() < PATIENCE {
            return Ok(());
        }
        let stuck = self.links.iter().position(|link| link.stage != Stage::Open);
        let place = stuck.map_or(String::new(), |at| {
            let stage = &self.links[at].stage;
            let kept = String::from_utf8_lossy(&self.links[at].kept);
            format!("; connection {at} is {stage:?} after {:?}", &kept[..kept.len().min(300)])
        });
        Err(format!("{doing}: nothing came for {} s{place}", PATIENCE.as_secs()))
    }

    /// Starts to keep the bytes of a connection, for [`Swarm::kept`].
    pub fn keep(&mut self, link: usize) {
        self.links[link].keeping = true;
        self.links[link].kept.clear();
    }

    /// Ends keeping and gives what came meanwhile.
    pub fn kept(&mut self, link: usize) -> Vec<u8> {
        self.links[link].keeping = false;
        std::mem::take(&mut self.links[link].kept)
    }

    /// Cuts every connection off without a word, and without leaving its port in use for a minute.
    pub fn cut_off(&mut self) -> Result<(), String> {
        for link in &self.links {
            SockRef::from(&link.stream)
                .set_linger(Some(Duration::ZERO))
                .map_err(|error| format!("SO_LINGER: {error}"))?;
        }
        self.close();
        Ok(())
    }

    /// Closes every connection.
    pub fn close(&mut self) {
        self.links.clear();
        self.opened = 0;
    }
}

/// The server closed the connection or it broke.
struct Closed;

impl Link {
    /// Reads once: bytes read and whether more may be there without another event. `None` when there is nothing now.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<(usize, bool)>, Closed> {
        let Some(tls) = &mut self.tls else {
            return match self.stream.read(buffer) {
                Ok(0) => Err(Closed),
                Ok(bytes) => Ok(Some((bytes, false))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(_) => Err(Closed),
            };
        };
        match tls.read_tls(&mut self.stream) {
            Ok(0) => return Err(Closed),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Err(Closed),
        }
        tls.process_new_packets().map_err(|_| Closed)?;
        while tls.wants_write() {
            if tls.write_tls(&mut self.stream).is_err() {
                break;
            }
        }
        match tls.reader().read(buffer) {
            Ok(0) => Err(Closed),
            Ok(bytes) => Ok(Some((bytes, bytes == buffer.len()))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(_) => Err(Closed),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<frame::Seen, String> {
        if self.keeping && self.kept.len() < KEPT_BYTES_MAX {
            self.kept.extend_from_slice(bytes);
        }
        if self.stage != Stage::Upgrading {
            return Ok(self.scanner.feed(bytes));
        }
        let Some(end) = self.kept.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(frame::Seen::default());
        };
        let head = String::from_utf8_lossy(&self.kept[..end]).into_owned();
        if !head.starts_with("HTTP/1.1 101") {
            let all = String::from_utf8_lossy(&self.kept);
            return Err(format!("the server refused the upgrade: {all}"));
        }
        self.kept.drain(..end + 4);
        self.stage = Stage::Greeting;
        self.awaited = self.dialogue.as_ref().map_or(0, |dialogue| dialogue.greetings);
        Ok(self.scanner.feed(&self.kept))
    }

    /// Goes on in the dialogue after `messages` came; whether the connection is open now.
    fn advance(&mut self, messages: u32) -> Result<bool, String> {
        if self.stage == Stage::Upgrading {
            return Ok(false);
        }
        self.awaited = self.awaited.saturating_sub(messages);
        if self.awaited == 0 && self.stage == Stage::Greeting {
            self.stage = Stage::Joining;
            let dialogue = self.dialogue.take().unwrap_or_default();
            if !dialogue.then.is_empty() {
                self.awaited = dialogue.answers;
                self.kept.clear();
                self.send(&dialogue.then)?;
            }
        }
        if self.awaited == 0 && self.stage == Stage::Joining {
            let (frames, _) = frame::split(&self.kept);
            if let Some((_, fault)) =
                frames.iter().find(|(_, text)| text.starts_with(br#"{"type":"error""#))
            {
                return Err(format!("refused: {}", String::from_utf8_lossy(fault)));
            }
            self.stage = Stage::Open;
            self.keeping = false;
            self.kept = Vec::new();
        }
        Ok(self.stage == Stage::Open)
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let begun = Instant::now();
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(bytes).map_err(|error| format!("TLS: {error}"))?;
            bytes = &[];
        }
        loop {
            let sent = match &mut self.tls {
                Some(tls) if tls.wants_write() => tls.write_tls(&mut self.stream).map(|_| 0),
                _ if bytes.is_empty() => return Ok(()),
                _ => self.stream.write(bytes),
            };
            match sent {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && begun.elapsed() < PATIENCE => {}
                Err(error) => return Err(format!("sending: {error}")),
            }
        }
    }
}
