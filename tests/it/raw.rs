//! A WebSocket in bytes: for clients that break rules, and for very many of them.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::support::{READ_SLICE, WAIT, is_timeout};

/// Opcodes of RFC 6455.
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;

/// An upgrade request.
pub fn upgrade(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A client's frame; `first` is FIN, the reserved bits and the opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        0..=125 => out.push(0x80 | payload.len() as u8),
        126..=65_535 => {
            out.push(0xfe);
            out.extend((payload.len() as u16).to_be_bytes());
        }
        _ => {
            out.push(0xff);
            out.extend((payload.len() as u64).to_be_bytes());
        }
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// A whole text message.
pub fn text(payload: &str) -> Vec<u8> {
    frame(0x80 | TEXT, payload.as_bytes())
}

/// One connection.
#[derive(Debug)]
pub struct Raw {
    pub socket: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    /// Connects.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: crate::support::connect(address)?, received: Vec::new() })
    }

    /// Connects from another loopback address: each has ports of its own.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&address.into(), WAIT)?;
        let socket = TcpStream::from(socket);
        socket.set_read_timeout(Some(READ_SLICE))?;
        socket.set_write_timeout(Some(WAIT))?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, received: Vec::new() })
    }

    /// Sends the upgrade and reads until the `welcome` is there.
    pub fn attach(&mut self, token: &str) -> io::Result<()> {
        self.send(upgrade(&format!("/ws?token={token}")).as_bytes())?;
        let head = self.head()?;
        if !head.starts_with("HTTP/1.1 101") {
            return Err(io::Error::other(head));
        }
        let (_, payload) = self.message()?;
        let text = String::from_utf8_lossy(&payload);
        if text.contains("\"welcome\"") { Ok(()) } else { Err(io::Error::other(text.into_owned())) }
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Reads an HTTP head.
    pub fn head(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.received.drain(..at + 4).collect();
                return String::from_utf8(head).map_err(io::Error::other);
            }
            self.more()?;
        }
    }

    /// Reads one frame: opcode and payload.
    pub fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        loop {
            if let Some((header, length)) = self.header()
                && self.received.len() >= header + length
            {
                let opcode = self.received[0] & 0x0f;
                let frame: Vec<u8> = self.received.drain(..header + length).collect();
                return Ok((opcode, frame[header..].to_vec()));
            }
            self.more()?;
        }
    }

    /// Reads until the gateway closes; answers the code of its close frame, if it sent one.
    pub fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.message() {
                Ok((CLOSE, payload)) if payload.len() >= 2 => {
                    return Some(u16::from_be_bytes([payload[0], payload[1]]));
                }
                Ok(_) => {}
                Err(error) if is_timeout(&error) => panic!("the gateway does not close"),
                Err(_) => return None,
            }
        }
    }

    /// Ends with RST instead of FIN.
    pub fn reset(self) {
        // A peer that has gone already leaves nothing to reset.
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    fn header(&self) -> Option<(usize, usize)> {
        let bytes = &self.received;
        match *bytes.get(1)? & 0x7f {
            126 => Some((4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)))),
            127 => Some((10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize)),
            short => Some((2, usize::from(short))),
        }
    }

    fn more(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + WAIT;
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    return Ok(());
                }
                Err(error) if is_timeout(&error) && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }
}
