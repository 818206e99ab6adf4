//! Publishers that log what was acknowledged, and watchers that log what came. All come back after every loss.
//!
//! A publisher repeats what was not answered with its idempotency key, over every reconnect and on whichever node it finds;
//! now and then it leaves before the answer. Each watcher stays with a node of its own; one more goes from node to node.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Dice;
use crate::seen::{Place, Seen, place_of};
use crate::socket::{Opening, Socket};
use crate::support::token;

/// The channel of the run; its history is long enough for what is missed during a fault.
pub const ROOM: &str = "chat:room";
/// Between two publications of a publisher, and two attempts to connect.
const PACE: Duration = Duration::from_millis(5);
/// Longer than the buffer that a Redis client owns, so that it counts against the limit of a subscriber.
const LARGE: usize = 20_000;
/// Publications of which a publisher does not wait for the first answer: each with this divisor.
const UNHEARD: u64 = 40;
/// A watcher goes on to another node, or back to its own, after so many publications or when none comes for so long.
const STAY: usize = 50;
const IDLE: Duration = Duration::from_secs(1);
/// Who is not answered for so long tries another node.
const PATIENCE: Duration = Duration::from_secs(3);
/// Messages that are taken in before what was seen is noted.
const TAKEN_MAX: usize = 32;
/// Letters of what cannot be compressed.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";

/// What the clients share with the test.
#[derive(Debug)]
pub struct Shared {
    /// Where nodes listen.
    nodes: Mutex<Vec<SocketAddr>>,
    /// Where all connect who have no node of their own.
    front: Option<SocketAddr>,
    stop: AtomicBool,
    /// Publishers only.
    rest: AtomicBool,
    resting: AtomicUsize,
    /// Whether publications are large.
    pub large: AtomicBool,
    next: AtomicU64,
    acknowledged: Mutex<HashMap<Place, u64>>,
    /// Publishes that were answered with something else than a temporary error or a place of their own.
    wrong: Mutex<Vec<Value>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that says in its last words who it was.
fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    Builder::new().name(name).spawn(work).expect("a thread starts")
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

/// Who watches the channel.
#[derive(Debug)]
struct Watcher {
    user: String,
    /// The node that it stays with; `None` for the one that roams.
    home: Option<usize>,
    is_home: AtomicBool,
    seen: Mutex<Seen>,
}

/// Clients of a run, each a thread of its own.
#[derive(Debug)]
pub struct Clients {
    pub shared: Arc<Shared>,
    watchers: Vec<(Arc<Watcher>, JoinHandle<()>)>,
    publishers: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts a watcher and a publisher for each node.
    pub fn start(nodes: &[SocketAddr]) -> Self {
        Self::start_with(nodes, None, false)
    }

    /// The same, and a watcher that roams. It and the publishers go through `front` if there is one.
    pub fn start_roaming(nodes: &[SocketAddr], front: Option<SocketAddr>) -> Self {
        Self::start_with(nodes, front, true)
    }

    fn start_with(nodes: &[SocketAddr], front: Option<SocketAddr>, roaming: bool) -> Self {
        let shared = Arc::new(Shared {
            nodes: Mutex::new(nodes.to_vec()),
            front,
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            resting: AtomicUsize::new(0),
            large: AtomicBool::new(false),
            next: AtomicU64::new(1),
            acknowledged: Mutex::default(),
            wrong: Mutex::default(),
        });
        let homes = (0..nodes.len()).map(Some).chain(roaming.then_some(None));
        let watchers = homes.map(|home| {
            let user = home.map_or_else(|| "roamer".to_owned(), |home| format!("watcher{home}"));
            let (is_home, seen) = (AtomicBool::new(false), Mutex::default());
            let watcher = Arc::new(Watcher { user, home, is_home, seen });
            let (shared, own) = (Arc::clone(&shared), Arc::clone(&watcher));
            let name = watcher.user.clone();
            (watcher, spawn(name, move || watch(&shared, &own)))
        });
        let watchers = watchers.collect();
        let publishers = (0..nodes.len()).map(|index| {
            let shared = Arc::clone(&shared);
            spawn(format!("publisher{index}"), move || publish(&shared, index))
        });
        let publishers = publishers.collect();
        Self { shared, watchers, publishers }
    }

    /// Publications acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        locked(&self.shared.acknowledged).len()
    }

    /// Users that watch the channel, with one connection each, in order.
    pub fn users(&self) -> Vec<&str> {
        let mut users: Vec<&str> =
            self.watchers.iter().map(|(watcher, _)| &*watcher.user).collect();
        users.sort_unstable();
        users
    }

    /// Whether every watcher that stays with a node is there.
    pub fn are_home(&self) -> bool {
        let is_home =
            |watcher: &Watcher| watcher.home.is_none() || watcher.is_home.load(Ordering::Relaxed);
        self.watchers.iter().all(|(watcher, _)| is_home(watcher))
    }

    /// What each watcher was told to have lost, beyond the first `before[its number]`; with or without the one that roams.
    pub fn told_since(&self, before: &[usize], roaming_too: bool) -> Vec<Value> {
        let mut since = Vec::new();
        for ((watcher, _), before) in self.watchers.iter().zip(before) {
            if roaming_too || watcher.home.is_some() {
                let told = &locked(&watcher.seen).told[*before..];
                since
                    .extend(told.iter().map(|told| json!({"watcher": watcher.user, "told": told})));
            }
        }
        since
    }

    /// How often each watcher was told of a loss.
    pub fn told(&self) -> Vec<usize> {
        self.watchers.iter().map(|(watcher, _)| locked(&watcher.seen).told.len()).collect()
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
        let position = |watcher: &Watcher| locked(&watcher.seen).position().cloned();
        self.watchers.iter().map(|(watcher, _)| position(watcher)).collect()
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

    /// Publishers pause, and none of them waits for an answer any more.
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
        for (watcher, thread) in self.watchers {
            thread.join().expect("a watcher does not fail");
            let seen = locked(&watcher.seen);
            seen.check(&locked(&self.shared.acknowledged), &watcher.user);
            told += usize::from(!seen.told.is_empty());
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
    fn connect(&self, user: &str, at: &mut usize, front: Option<SocketAddr>) -> Option<Socket> {
        while !self.is_over() {
            let address = front.unwrap_or_else(|| {
                let nodes = locked(&self.nodes);
                *at %= nodes.len();
                nodes[*at]
            });
            let opening = Opening { patience: Some(PATIENCE), ..Opening::with_token(&token(user)) };
            if let Ok(mut socket) = Socket::open_at(address, None, &opening)
                && self.call(&mut socket, "ping", json!({})).is_some()
            {
                return Some(socket);
            }
            *at += 1;
            std::thread::park_timeout(PACE);
        }
        None
    }

    /// `None` at the end, when the connection has ended, or when no answer comes.
    fn call(&self, socket: &mut Socket, kind: &str, data: Value) -> Option<Value> {
        let began = Instant::now();
        socket.call_unless(kind, data, || self.is_over() || began.elapsed() > PATIENCE)
    }

    /// Waits while publishers shall rest.
    fn rest_if_asked(&self, socket: &mut Socket) {
        if !self.rest.load(Ordering::Relaxed) {
            return;
        }
        self.resting.fetch_add(1, Ordering::Relaxed);
        while self.rest.load(Ordering::Relaxed) && !self.is_over() {
            if !socket.poll() {
                std::thread::park_timeout(PACE);
            }
        }
        self.resting.fetch_sub(1, Ordering::Relaxed);
    }

    fn next_publication(&self) -> Publication {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let mut data = json!({"n": n});
        if self.large.load(Ordering::Relaxed) {
            data["padding"] = padding(n).into();
        }
        let body = json!({"channel": ROOM, "data": data, "idempotency_key": format!("k{n}")});
        Publication { n, body, unheard: n.is_multiple_of(UNHEARD) }
    }
}

fn watch(shared: &Shared, watcher: &Watcher) {
    let front = watcher.home.map_or(shared.front, |_| None);
    let mut at = watcher.home.unwrap_or(0);
    while let Some(mut socket) = shared.connect(&watcher.user, &mut at, front) {
        let mut request = json!({"channel": ROOM});
        if let Some((epoch, offset)) = locked(&watcher.seen).position() {
            request["recover"] = json!({"epoch": epoch, "offset": offset});
        }
        let reply = shared.call(&mut socket, "subscribe", request);
        let Some(reply) = reply.filter(|reply| reply["type"] == "subscribed") else {
            at += 1;
            continue;
        };
        let mut early = socket.drain_of(&["message", "lost"]);
        early.retain(|message| message["channel"] == ROOM);
        assert!(early.is_empty(), "{}: {early:?} came before the answer {reply}", watcher.user);
        locked(&watcher.seen).note_subscribed(&reply["data"]);
        let is_home = watcher.home == Some(at);
        watcher.is_home.store(is_home, Ordering::Relaxed);
        follow(shared, watcher, &mut socket, is_home);
        watcher.is_home.store(false, Ordering::Relaxed);
        at = match watcher.home {
            Some(home) if !is_home && !socket.is_closed() => home,
            _ => at + 1,
        };
    }
}

/// Takes what comes, until the connection ends, or until it is time for another node.
fn follow(shared: &Shared, watcher: &Watcher, socket: &mut Socket, is_home: bool) {
    let mut came = Instant::now();
    let first = locked(&watcher.seen).numbers.len();
    let mut last = first;
    // With everything that is published the run shall come to rest, and nobody moves.
    while !socket.is_closed() && !shared.is_over() {
        // There may be no pause in what comes, and others look at what was seen.
        let _more = (0..TAKEN_MAX).all(|_| socket.poll());
        let mut seen = locked(&watcher.seen);
        seen.note_arrived(socket, ROOM);
        let now = seen.numbers.len();
        drop(seen);
        if now > last {
            (came, last) = (Instant::now(), now);
        }
        let is_resting = shared.rest.load(Ordering::Relaxed);
        let is_time = now >= first + STAY || came.elapsed() > IDLE;
        if !is_home && !is_resting && is_time {
            return;
        }
    }
}

/// What a publisher wants to be acknowledged.
#[derive(Debug)]
struct Publication {
    n: u64,
    body: Value,
    /// The next answer is not waited for.
    unheard: bool,
}

fn publish(shared: &Shared, index: usize) {
    let mut at = index;
    let mut pending = None;
    while let Some(mut socket) = shared.connect(&format!("publisher{index}"), &mut at, shared.front)
    {
        while !socket.is_closed() && !shared.is_over() {
            if pending.is_none() {
                shared.rest_if_asked(&mut socket);
            }
            let mut publication = pending.take().unwrap_or_else(|| shared.next_publication());
            // One of them tries another node as soon as it is refused.
            if !insist(shared, &mut socket, &mut publication, index == 1) {
                pending = Some(publication);
                break;
            }
            std::thread::park_timeout(PACE);
        }
        at += 1;
    }
}

/// Publishes until it is taken, as a client would that retries with its key. `false`: it is to be repeated on another
/// connection, and nobody knows whether it was taken.
fn insist(
    shared: &Shared,
    socket: &mut Socket,
    publication: &mut Publication,
    flees: bool,
) -> bool {
    let Publication { n, body, unheard } = publication;
    if std::mem::take(unheard) {
        socket.send_text(&json!({"type": "publish", "id": "unheard", "data": body}).to_string());
        return false;
    }
    while let Some(reply) = shared.call(socket, "publish", body.clone()) {
        if reply["type"] == "published" {
            let place = place_of(&reply["data"]);
            let other = locked(&shared.acknowledged).insert(place, *n);
            if let Some(other) = other {
                let reply = json!({"answers": [other, n], "same place": reply});
                locked(&shared.wrong).push(reply);
            }
            return true;
        }
        if reply["data"]["error_details"]["temporary"] != true {
            locked(&shared.wrong).push(reply);
            return true;
        }
        if flees {
            return false;
        }
        std::thread::park_timeout(PACE);
    }
    false
}

/// Text that is as long for Redis as it is here.
fn padding(n: u64) -> String {
    let mut dice = Dice::new(n);
    (0..LARGE).map(|_| char::from(LETTERS[dice.throw(LETTERS.len())])).collect()
}
