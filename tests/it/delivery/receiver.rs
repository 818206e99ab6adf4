//! An HTTP service of the test's own: keeps what arrives, and answers what a rule says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::eventually;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Arrived {
    /// Value of a header, given in lower case; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// Headline of a webhook's notification.
    pub fn title(&self) -> String {
        self.json()["data"]["title"].as_str().expect("a title").to_owned()
    }

    /// Whether one of the signatures is that of `secret` (Standard Webhooks).
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap();
        let head = format!("{}.{}.", self.header("webhook-id"), self.header("webhook-timestamp"));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let tag = hmac::sign(&key, &[head.as_bytes(), &self.body].concat());
        let expected = format!("v1,{}", STANDARD.encode(tag));
        self.header("webhook-signature").split(' ').any(|given| given == expected)
    }
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Status(u16),
    /// With `Retry-After` in seconds.
    Later(u16, u32),
    /// Nothing, until the other side goes.
    Hang,
    /// 200, as soon as [`Receiver::open`] was called.
    Gate,
}

type Rule = Box<dyn FnMut(&Arrived) -> Reply + Send>;

struct Shared {
    arrived: Mutex<Vec<Arrived>>,
    rule: Mutex<Rule>,
    is_open: Mutex<bool>,
    opened: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module's documentation. Its threads end with their connections and the process.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Receiver {
    /// One that answers 200.
    pub fn start() -> Self {
        Self::with(|_| Reply::Status(200))
    }

    /// One that answers what `rule` says.
    pub fn with(rule: impl FnMut(&Arrived) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            arrived: Mutex::default(),
            rule: Mutex::new(Box::new(rule)),
            is_open: Mutex::default(),
            opened: Condvar::new(),
        });
        let of_threads = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&of_threads);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// Its URL with a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on it answers what `rule` says.
    pub fn answer(&self, rule: impl FnMut(&Arrived) -> Reply + Send + 'static) {
        *lock(&self.shared.rule) = Box::new(rule);
    }

    /// Lets those go who wait at the gate, and all that come.
    pub fn open(&self) {
        *lock(&self.shared.is_open) = true;
        self.shared.opened.notify_all();
    }

    /// What arrived so far.
    pub fn arrived(&self) -> Vec<Arrived> {
        lock(&self.shared.arrived).clone()
    }

    /// Waits until `count` have arrived.
    pub fn await_arrived(&self, count: usize) -> Vec<Arrived> {
        eventually(&format!("{count} requests arrive"), || {
            Some(self.arrived()).filter(|arrived| arrived.len() >= count)
        })
    }
}

fn serve(stream: TcpStream, shared: &Shared) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(arrived) = read(&mut reader) {
        let reply = lock(&shared.rule)(&arrived);
        lock(&shared.arrived).push(arrived);
        let head = match reply {
            Reply::Status(status) => format!("HTTP/1.1 {status} x\r\n"),
            Reply::Later(status, after) => {
                format!("HTTP/1.1 {status} x\r\nRetry-After: {after}\r\n")
            }
            Reply::Hang => {
                let mut rest = Vec::new();
                let _ = reader.read_to_end(&mut rest);
                return;
            }
            Reply::Gate => {
                let mut is_open = lock(&shared.is_open);
                while !*is_open {
                    is_open = shared.opened.wait(is_open).unwrap_or_else(PoisonError::into_inner);
                }
                "HTTP/1.1 200 x\r\n".to_owned()
            }
        };
        if writer.write_all(format!("{head}Content-Length: 0\r\n\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// The next request, until the connection ends.
fn read(reader: &mut BufReader<TcpStream>) -> Option<Arrived> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<(String, String)> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Arrived { path, headers, body, at: Instant::now() })
}
