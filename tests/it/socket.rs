//! A blocking WebSocket client over tungstenite that speaks the native protocol.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde_json::{Value, json};
use socket2::SockRef;
use tungstenite::client::client_with_config;
use tungstenite::http::Uri;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{ClientRequestBuilder, Error, HandshakeError, Message, WebSocket};

use crate::gateway::Gateway;
use crate::support::{Stream, WAIT, is_timeout, token};

/// How the gateway ended a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Close code; `None` when the socket ended without a close frame.
    pub code: Option<u16>,
    pub reason: String,
}

/// What a connection is opened with.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// Path with its query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub subprotocols: Vec<String>,
    /// `SO_RCVBUF` of the client.
    pub receive_buffer: Option<usize>,
    /// Address that the client connects from.
    pub from: Option<IpAddr>,
    /// How long the handshake may take before it counts as refused; otherwise the test fails after [`WAIT`].
    pub patience: Option<Duration>,
}

impl Opening {
    /// With a token in the query.
    pub fn with_token(token: &str) -> Self {
        Self { target: format!("/ws?token={token}"), ..Self::default() }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Socket {
    ws: WebSocket<Stream>,
    inbox: VecDeque<Value>,
    closed: Option<Closed>,
    welcome: Value,
    last_id: u64,
    pub pings: usize,
}

impl Socket {
    /// Connects `user` and waits for the welcome.
    pub fn connect(gateway: &Gateway, user: &str) -> Self {
        Self::connect_with(gateway, &token(user))
    }

    /// Connects with a token and waits for the welcome.
    pub fn connect_with(gateway: &Gateway, token: &str) -> Self {
        let mut socket = Self::open(gateway, &Opening::with_token(token)).expect("an upgrade");
        socket.await_welcome();
        socket
    }

    /// Opens the WebSocket; nothing is waited for. The error is the HTTP status of the refusal, or 0 when the socket
    /// ended without an answer.
    pub fn open(gateway: &Gateway, opening: &Opening) -> Result<Self, u16> {
        Self::open_at(gateway.public, gateway.tls.as_ref(), opening)
    }

    /// As [`Self::open`], at any address.
    pub fn open_at(
        address: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        opening: &Opening,
    ) -> Result<Self, u16> {
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let uri: Uri = format!("{scheme}://{address}{}", opening.target).parse().unwrap();
        let mut request = ClientRequestBuilder::new(uri);
        for (name, value) in &opening.headers {
            request = request.with_header(name.clone(), value.clone());
        }
        for name in &opening.subprotocols {
            request = request.with_sub_protocol(name.clone());
        }
        let stream = Stream::connect_from(opening.from, address, tls).map_err(|_| 0_u16)?;
        if let Some(bytes) = opening.receive_buffer {
            SockRef::from(stream.socket()).set_recv_buffer_size(bytes).unwrap();
        }
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
        let deadline = Instant::now() + opening.patience.unwrap_or(WAIT);
        let mut state = client_with_config(request, stream, Some(config));
        loop {
            match state {
                Ok((ws, _)) => {
                    return Ok(Self {
                        ws,
                        inbox: VecDeque::new(),
                        closed: None,
                        welcome: Value::Null,
                        last_id: 0,
                        pings: 0,
                    });
                }
                Err(HandshakeError::Interrupted(handshake)) => {
                    if Instant::now() >= deadline {
                        assert!(opening.patience.is_some(), "the handshake is not answered");
                        return Err(0);
                    }
                    state = handshake.handshake();
                }
                Err(HandshakeError::Failure(Error::Http(answer))) => {
                    return Err(answer.status().as_u16());
                }
                Err(HandshakeError::Failure(_)) => return Err(0),
            }
        }
    }

    /// Waits for the welcome.
    pub fn await_welcome(&mut self) {
        self.welcome = self.take("welcome");
    }

    /// The `welcome` message.
    pub fn welcome(&self) -> &Value {
        &self.welcome
    }

    /// Public session id.
    pub fn session(&self) -> &str {
        self.welcome["data"]["session_id"].as_str().expect("a session id")
    }

    /// Sends a text message as it is; answers whether the socket took it.
    pub fn send_text(&mut self, text: &str) -> bool {
        self.write(Message::text(text))
    }

    /// Sends any message; answers whether the socket took it.
    pub fn write(&mut self, message: Message) -> bool {
        let mut result = self.ws.send(message);
        let deadline = Instant::now() + WAIT;
        while let Err(Error::Io(error)) = &result
            && is_timeout(error)
            && Instant::now() < deadline
        {
            result = self.ws.flush();
        }
        result.is_ok()
    }

    /// Sends a command without waiting; answers its id.
    pub fn send(&mut self, kind: &str, data: &Value) -> String {
        self.last_id += 1;
        let id = format!("t{}", self.last_id);
        let message = json!({"type": kind, "id": id, "data": data}).to_string();
        assert!(self.send_text(&message), "{kind} cannot be sent: {:?}", self.closed);
        id
    }

    /// Sends a command and waits for its answer, whatever it is.
    pub fn call(&mut self, kind: &str, data: Value) -> Value {
        let id = self.send(kind, &data);
        self.reply(&id)
    }

    /// As [`Self::call`], for a gateway that may be gone any time: `None` when the connection has ended or `given_up` says so.
    pub fn call_unless(
        &mut self,
        kind: &str,
        data: Value,
        given_up: impl Fn() -> bool,
    ) -> Option<Value> {
        self.last_id += 1;
        let id = format!("t{}", self.last_id);
        let message = json!({"type": kind, "id": id, "data": data}).to_string();
        if !self.send_text(&message) {
            return None;
        }
        loop {
            if let Some(at) = self.inbox.iter().position(|message| message["reply_to"] == id) {
                return self.inbox.remove(at);
            }
            if self.closed.is_some() || given_up() {
                return None;
            }
            self.poll();
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Waits for the answer to a command.
    pub fn reply(&mut self, id: &str) -> Value {
        self.wait_for(&format!("an answer to {id}"), |message| message["reply_to"] == id)
    }

    /// Subscribes and waits for success; answers `data`.
    pub fn subscribe(&mut self, channel: &str) -> Value {
        let reply = self.call("subscribe", json!({"channel": channel}));
        assert_eq!(reply["type"], "subscribed", "{reply}");
        reply["data"].clone()
    }

    /// Subscribes from a position; answers `data`.
    pub fn recover(&mut self, channel: &str, position: &Value) -> Value {
        let recover = json!({"offset": position["offset"], "epoch": position["epoch"]});
        let reply = self.call("subscribe", json!({"channel": channel, "recover": recover}));
        assert_eq!(reply["type"], "subscribed", "{reply}");
        reply["data"].clone()
    }

    /// Publishes and waits for success; answers `data`.
    pub fn publish(&mut self, channel: &str, data: Value) -> Value {
        let reply = self.call("publish", json!({"channel": channel, "data": data}));
        assert_eq!(reply["type"], "published", "{reply}");
        reply["data"].clone()
    }

    /// Waits for the next message of a type; others stay for later calls.
    pub fn take(&mut self, kind: &str) -> Value {
        self.wait_for(kind, |message| message["type"] == kind)
    }

    /// Waits for the first message that matches, and takes it out.
    pub fn wait_for(&mut self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(at) = self.inbox.iter().position(&matches) {
                return self.inbox.remove(at).expect("just found");
            }
            assert!(
                self.closed.is_none() && Instant::now() < deadline,
                "no {what}; closed: {:?}, received {}: {:?}",
                self.closed,
                self.inbox.len(),
                self.inbox.iter().take(3).collect::<Vec<_>>()
            );
            self.poll();
        }
    }

    /// Messages of a type that have arrived and were not taken yet.
    pub fn drain(&mut self, kind: &str) -> Vec<Value> {
        self.drain_of(&[kind])
    }

    /// Messages of some types that have arrived and were not taken yet, in order.
    pub fn drain_of(&mut self, kinds: &[&str]) -> Vec<Value> {
        let wanted = |message: &Value| kinds.iter().any(|kind| message["type"] == *kind);
        let (taken, kept) = std::mem::take(&mut self.inbox).into_iter().partition(wanted);
        self.inbox = kept;
        Vec::from(taken as VecDeque<Value>)
    }

    /// Everything that has arrived when a ping is answered, of that type. What the gateway sent before the pong is
    /// in, so this shows what did not come as well.
    pub fn settled(&mut self, kind: &str) -> Vec<Value> {
        let pong = self.call("ping", json!({}));
        assert_eq!(pong["type"], "pong", "{pong}");
        self.drain(kind)
    }

    /// Waits until the gateway ends the connection.
    pub fn wait_close(&mut self) -> Closed {
        self.wait_close_within(WAIT)
    }

    /// Like [`Self::wait_close`] with another limit.
    pub fn wait_close_within(&mut self, limit: Duration) -> Closed {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(closed) = &self.closed {
                return closed.clone();
            }
            assert!(Instant::now() < deadline, "not closed; received: {:?}", self.inbox);
            self.poll();
        }
    }

    /// Reads one message, waiting for a slice of time at most; answers whether there was one.
    pub fn poll(&mut self) -> bool {
        match self.ws.read() {
            Ok(Message::Text(text)) => {
                self.inbox.push_back(serde_json::from_str(&text).expect("messages are JSON"));
                true
            }
            Ok(Message::Ping(_)) => {
                self.pings += 1;
                true
            }
            Ok(Message::Close(frame)) => {
                self.closed = Some(match frame {
                    Some(frame) => {
                        Closed { code: Some(frame.code.into()), reason: frame.reason.to_string() }
                    }
                    None => Closed { code: Some(1005), reason: String::new() },
                });
                // Sends the answer to the close frame; the peer may be gone already.
                let _ = self.ws.flush();
                true
            }
            Ok(_) => true,
            Err(Error::Io(error)) if is_timeout(&error) => false,
            Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => false,
            Err(_) => {
                self.closed.get_or_insert(Closed { code: None, reason: String::new() });
                false
            }
        }
    }

    /// Closes in an orderly way.
    pub fn close(mut self) {
        let _ = self.ws.close(None);
        self.wait_close();
    }

    /// Drops the TCP connection without a word: RST instead of FIN.
    pub fn reset(self) {
        SockRef::from(self.ws.get_ref().socket()).set_linger(Some(Duration::ZERO)).unwrap();
    }
}
