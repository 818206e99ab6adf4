//! A running engine and its clients.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gateway_core::admission::Admission;
use gateway_core::auth::KeySet;
use gateway_core::ids::ShardId;
use gateway_core::settings::Settings;
use gateway_engine::{
    Balance, ControlEvent, ControlReceiver, Engine, EngineConfig, EngineHandle, HttpConnection,
    ListenerConfig, ShardPlacement, ShardSnapshot,
};
use tungstenite::{Message, WebSocket};

/// Longest wait for anything a test expects.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Client = WebSocket<TcpStream>;

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) handle: EngineHandle,
    pub(crate) control: ControlReceiver,
    events: Vec<ControlEvent>,
    correlation: u64,
}

/// A node of `shards` shards that keeps connections where the kernel puts them.
pub(crate) fn start(shards: usize) -> Node {
    start_with(shards, |_, _| {})
}

pub(crate) fn start_with(
    shards: usize,
    customize: impl FnOnce(&mut EngineConfig, &mut Settings),
) -> Node {
    let (mut config, mut settings) = (config(shards), settings());
    customize(&mut config, &mut settings);
    let admission = Arc::new(Admission::new(config.hash_seed));
    let (engine, control) = Engine::start(config, Arc::new(settings), admission).unwrap();
    let handle = engine.handle();
    Node { engine, handle, control, events: Vec::new(), correlation: 0 }
}

pub(crate) fn config(shards: usize) -> EngineConfig {
    EngineConfig {
        shards: vec![ShardPlacement { cpu: None, weight: 1 }; shards],
        listeners: vec![ListenerConfig { address: "127.0.0.1:0".parse().unwrap() }],
        tls: None,
        backlog: 1024,
        balance: Balance::Kernel,
        mailbox_messages_max: 1024,
        control_messages_max: 1024,
        receive_buffers: 64,
        receive_buffer_bytes: 4096,
        receive_budget_bytes: 256 * 1024,
        completion_entries: 4096,
        accept_pause: Duration::from_millis(50),
        log_records_per_second: 0,
        stall_threshold: Duration::from_millis(50),
        started: Instant::now(),
        seed: [7; 32],
        hash_seed: 7,
    }
}

pub(crate) fn settings() -> Settings {
    let mut settings = Settings::for_tests(KeySet::default());
    settings.auth.anonymous = true;
    settings.diagnostics.fault_injection = true;
    settings.limits.message_bytes_max = 16 << 20;
    settings.limits.outbox_bytes_max = 64 << 20;
    settings
}

/// Looks again and again until `probe` gives something.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        thread::yield_now();
    }
}

/// A plain socket to `address` that never waits longer than a test may.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

impl Node {
    pub(crate) fn address(&self) -> SocketAddr {
        self.handle.local_addresses()[0]
    }

    pub(crate) fn websocket(&self, path: &str) -> Client {
        let address = self.address();
        tungstenite::client(format!("ws://{address}{path}"), connect(address)).unwrap().0
    }

    pub(crate) fn echo(&self) -> Client {
        self.websocket("/echo")
    }

    /// Waits for the first event that `pick` takes; keeps the others for later.
    pub(crate) fn event<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(ControlEvent) -> Result<T, ControlEvent>,
    ) -> T {
        eventually(what, || {
            self.events.extend(self.control.drain(64));
            let mut found = None;
            for event in std::mem::take(&mut self.events) {
                if found.is_some() {
                    self.events.push(event);
                    continue;
                }
                match pick(event) {
                    Ok(picked) => found = Some(picked),
                    Err(event) => self.events.push(event),
                }
            }
            found
        })
    }

    pub(crate) fn http(&mut self) -> HttpConnection {
        self.event("a hand-over", |event| match event {
            ControlEvent::Http(http) => Ok(http),
            event => Err(event),
        })
    }

    pub(crate) fn snapshot(&mut self, shard: u16) -> ShardSnapshot {
        // An answer to a full queue would be dropped.
        self.events.extend(self.control.drain(usize::MAX));
        self.correlation += 1;
        let wanted = self.correlation;
        let handle = self.handle.clone();
        eventually("room for a request", || {
            handle.request_snapshot(ShardId(shard), wanted).then_some(())
        });
        self.event("a snapshot", |event| match event {
            ControlEvent::Snapshot { correlation, snapshot, .. } if correlation == wanted => {
                Ok(*snapshot)
            }
            event => Err(event),
        })
    }

    /// Waits until a snapshot of `shard` is as `wanted`.
    pub(crate) fn until(
        &mut self,
        what: &str,
        shard: u16,
        wanted: impl Fn(&ShardSnapshot) -> bool,
    ) -> ShardSnapshot {
        eventually(what, || Some(self.snapshot(shard)).filter(&wanted))
    }

    pub(crate) fn snapshots(&mut self) -> Vec<ShardSnapshot> {
        (0..self.handle.shards()).map(|shard| self.snapshot(shard)).collect()
    }

    pub(crate) fn stop(self) {
        self.handle.shutdown();
        self.engine.join().unwrap();
    }
}

/// Sends and expects the same back.
pub(crate) fn echoes<S: std::io::Read + std::io::Write>(client: &mut WebSocket<S>, text: &str) {
    client.send(Message::text(text)).unwrap();
    assert_eq!(client.read().unwrap(), Message::text(text));
}
