//! A small blocking HTTP/1.1 client: one connection, requests in order, answers read to their last byte.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConfig;
use serde_json::Value;

use crate::support::{Stream, WAIT, is_timeout};

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// Value of a header, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }
}

/// One connection.
#[derive(Debug)]
pub struct Http {
    pub stream: Stream,
    host: String,
    received: Vec<u8>,
}

impl Http {
    /// Connects.
    pub fn connect(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let stream = Stream::connect(address, tls)?;
        Ok(Self { stream, host: address.to_string(), received: Vec::new() })
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends a request and reads its answer; `headers` are whole lines without their ends.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[String],
        body: &[u8],
    ) -> io::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        if !body.is_empty() || method == "POST" {
            head += "Content-Length: ";
            head += &body.len().to_string();
            head += "\r\n";
        }
        for line in headers {
            head += line;
            head += "\r\n";
        }
        head += "\r\n";
        // A peer may answer and close before it has read a large body; the answer counts.
        let sent = self.send(&[head.as_bytes(), body].concat());
        self.answer(method == "HEAD").or_else(|error| sent.and(Err(error)))
    }

    /// `GET` without headers.
    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.request("GET", path, &[], &[])
    }

    /// Reads one answer.
    pub fn answer(&mut self, to_head: bool) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let head: Vec<u8> = self.received.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer { status: status.unwrap_or(0), headers, body: Vec::new() };
        let bodiless = to_head || answer.status < 200 || matches!(answer.status, 204 | 304);
        if !bodiless {
            answer.body = self.body(&answer)?;
        }
        Ok(answer)
    }

    fn body(&mut self, answer: &Answer) -> io::Result<Vec<u8>> {
        if answer.header("transfer-encoding") == Some("chunked") {
            return self.chunks();
        }
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().expect("a number");
            return self.exactly(length);
        }
        loop {
            match self.more() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.received));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(at) = self.received.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                self.more()?;
            };
            let line: Vec<u8> = self.received.drain(..line_end + 2).collect();
            let text = String::from_utf8_lossy(&line[..line_end]).into_owned();
            let size = usize::from_str_radix(text.trim(), 16).expect("a chunk size");
            let chunk = self.exactly(size + 2)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < length {
            self.more()?;
        }
        Ok(self.received.drain(..length).collect())
    }

    fn more(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + WAIT;
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
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
