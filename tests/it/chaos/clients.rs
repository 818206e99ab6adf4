//! Publishers that log what was acknowledged, and watchers that log what came. Both come back after every loss.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::seen::{Place, Seen, place_of};
use crate::socket::{Opening, Socket};
use crate::support::token;

/// The channel of the run; its history is long enough for what is missed during a fault.
pub const ROOM: &str = "chat:room";
/// Between two publications of a publisher, and two attempts to connect.
const PACE: Duration = Duration::from_millis(5);
/// Longer than the buffer that a Redis client owns, so that it counts against the limit of a subscriber.
const LARGE: usize = 40_000;

/// What the clients share with the test.
#[derive(Debug)]
pub struct Shared {
    /// Where nodes listen.
    nodes: Mutex<Vec<SocketAddr>>,
    stop: AtomicBool,
    /// Publishers only.
    rest: AtomicBool,
    resting: AtomicUsize,
    /// Whether publications are large.
    pub large: AtomicBool,
    next: AtomicU64,
    acknowledged: Mutex<HashMap<Place, u64>>,
    /// Publishes that were answered with something else than a temporary error.
    wrong: Mutex<Vec<Value>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far the watchers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evenness {
    /// All have everything.
    Even,
    /// All are in an epoch in which nothing was acknowledged yet.
    Empty,
    /// They stand at different places, or lack something.
    Uneven,
}

/// Clients of a run, each a thread of its own.
#[derive(Debug)]
pub struct Clients {
    pub shared: Arc<Shared>,
    watchers: Vec<(Arc<Mutex<Seen>>, JoinHandle<()>)>,
    publishers: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts a watcher and a publisher for each node.
    pub fn start(nodes: &[SocketAddr]) -> Self {
        let shared = Arc::new(Shared {
            nodes: Mutex::new(nodes.to_vec()),
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            resting: AtomicUsize::new(0),
            large: AtomicBool::new(false),
            next: AtomicU64::new(1),
            acknowledged: Mutex::default(),
            wrong: Mutex::default(),
        });
        let watchers = (0..nodes.len()).map(|index| {
            let seen = Arc::new(Mutex::new(Seen::default()));
            let (shared, log) = (Arc::clone(&shared), Arc::clone(&seen));
            (seen, std::thread::spawn(move || watch(&shared, &log, index)))
        });
        let watchers = watchers.collect();
        let publishers = (0..nodes.len()).map(|index| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || publish(&shared, index))
        });
        let publishers = publishers.collect();
        Self { shared, watchers, publishers }
    }

    /// Publications acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        locked(&self.shared.acknowledged).len()
    }

    /// Whether every watcher stands at the same place, and nothing that was acknowledged lies behind it.
    pub fn evenness(&self) -> Evenness {
        let mut ends = self.positions();
        ends.dedup();
        let [Some((epoch, offset))] = &ends[..] else { return Evenness::Uneven };
        let acknowledged = locked(&self.shared.acknowledged);
        let newest = acknowledged.keys().filter(|(of, _)| of == epoch).map(|(_, offset)| *offset);
        match newest.max() {
            None => Evenness::Empty,
            Some(newest) if newest <= *offset => Evenness::Even,
            Some(_) => Evenness::Uneven,
        }
    }

    /// Where the watchers stand.
    pub fn positions(&self) -> Vec<Option<Place>> {
        self.watchers.iter().map(|(seen, _)| locked(seen).position().cloned()).collect()
    }

    /// Whether a watcher has failed; the run need not go on.
    pub fn has_failed(&self) -> bool {
        self.watchers.iter().any(|(_, thread)| thread.is_finished())
            || self.publishers.iter().any(JoinHandle::is_finished)
    }

    /// Where a node listens now.
    pub fn moved(&self, index: usize, address: SocketAddr) {
        locked(&self.shared.nodes)[index] = address;
    }

    /// Publishers pause, and nothing is under way any more.
    pub fn pause(&self) -> bool {
        self.shared.rest.store(true, Ordering::Relaxed);
        self.shared.resting.load(Ordering::Relaxed) == self.publishers.len()
    }

    /// Publishers go on.
    pub fn go_on(&self) {
        self.shared.rest.store(false, Ordering::Relaxed);
    }

    /// Ends all clients and checks what they saw. Answers how many publications were acknowledged and how many watchers
    /// were told of a loss.
    pub fn finish(self) -> (usize, usize) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for publisher in self.publishers {
            publisher.join().expect("a publisher does not fail");
        }
        let mut told = 0;
        for (index, (seen, thread)) in self.watchers.into_iter().enumerate() {
            thread.join().expect("a watcher does not fail");
            let seen = locked(&seen);
            seen.check(&locked(&self.shared.acknowledged), &format!("watcher {index}"));
            told += usize::from(seen.told);
        }
        assert_eq!(*locked(&self.shared.wrong), [json!(null); 0], "answers that are no answer");
        (locked(&self.shared.acknowledged).len(), told)
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A connection to some node that has welcomed the user, `None` at the end. The first attempt goes to the node `at`.
    fn connect(&self, user: &str, at: &mut usize) -> Option<Socket> {
        while !self.is_over() {
            let address = {
                let nodes = locked(&self.nodes);
                nodes[*at % nodes.len()]
            };
            let opening = Opening::with_token(&token(user));
            if let Ok(mut socket) = Socket::open_at(address, None, &opening)
                && socket.call_unless("ping", json!({}), || self.is_over()).is_some()
            {
                return Some(socket);
            }
            *at += 1;
            std::thread::park_timeout(PACE);
        }
        None
    }
}

fn watch(shared: &Shared, log: &Mutex<Seen>, index: usize) {
    let mut at = index;
    while let Some(mut socket) = shared.connect(&format!("watcher{index}"), &mut at) {
        let mut request = json!({"channel": ROOM});
        if let Some((epoch, offset)) = locked(log).position() {
            request["recover"] = json!({"epoch": epoch, "offset": offset});
        }
        let reply = socket.call_unless("subscribe", request, || shared.is_over());
        let Some(reply) = reply.filter(|reply| reply["type"] == "subscribed") else { continue };
        locked(log).note_subscribed(&reply["data"]);
        while !socket.is_closed() && !shared.is_over() {
            locked(log).note_all(&mut socket, ROOM);
        }
        at += 1;
    }
}

fn publish(shared: &Shared, index: usize) {
    let mut at = index;
    while let Some(mut socket) = shared.connect(&format!("publisher{index}"), &mut at) {
        while !socket.is_closed() && !shared.is_over() {
            if shared.rest.load(Ordering::Relaxed) {
                shared.resting.fetch_add(1, Ordering::Relaxed);
                while shared.rest.load(Ordering::Relaxed) && !shared.is_over() {
                    socket.poll();
                }
                shared.resting.fetch_sub(1, Ordering::Relaxed);
            }
            let n = shared.next.fetch_add(1, Ordering::Relaxed);
            insist(shared, &mut socket, n);
            std::thread::park_timeout(PACE);
        }
        at += 1;
    }
}

/// Publishes until it is taken, as a client would that retries with its key, or until the connection ends.
fn insist(shared: &Shared, socket: &mut Socket, n: u64) {
    let mut data = json!({"n": n});
    if shared.large.load(Ordering::Relaxed) {
        data["padding"] = "x".repeat(LARGE).into();
    }
    let body = json!({"channel": ROOM, "data": data, "idempotency_key": format!("k{n}")});
    while let Some(reply) = socket.call_unless("publish", body.clone(), || shared.is_over()) {
        if reply["type"] == "published" {
            locked(&shared.acknowledged).insert(place_of(&reply["data"]), n);
            return;
        }
        if reply["data"]["error_details"]["temporary"] != true {
            locked(&shared.wrong).push(reply);
            return;
        }
        std::thread::park_timeout(PACE);
        // What was taken before the answer went missing is not published twice, so the key stays.
    }
}
