//! Senders that log what was acknowledged, and devices that log what came. Both come back after every loss.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::devices::Dice;
use crate::http::Http;
use crate::socket::{Opening, Socket};
use crate::support::{API_KEY, WAIT, eventually, token};

/// Users of a run.
pub const USERS: usize = 3;
/// Devices of each.
const DEVICES: usize = 2;
/// Threads that send.
const SENDERS: usize = 3;
/// Between two requests of a sender, and two attempts to connect.
const PACE: Duration = Duration::from_millis(4);
/// Between two attempts of a device to read its inbox.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Items of a device that are marked together.
const MARKED: usize = 8;
/// "Unavailable": the only answer of a gateway that cannot do it now.
const TRY_AGAIN: u64 = 108;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A notification that was acknowledged.
#[derive(Clone, Debug)]
pub struct Sent {
    pub id: String,
    pub users: BTreeSet<usize>,
}

/// What a device has seen.
#[derive(Debug, Default)]
struct Seen {
    /// Notification ids by the number in the title.
    ids: BTreeMap<u64, BTreeSet<String>>,
    /// How often each id was pushed.
    pushed: BTreeMap<String, usize>,
}

/// What the clients share with the test.
#[derive(Debug)]
struct Shared {
    /// Where nodes listen.
    nodes: Mutex<Vec<SocketAddr>>,
    sending: AtomicBool,
    over: AtomicBool,
    next: AtomicU64,
    acknowledged: Mutex<BTreeMap<u64, Sent>>,
    /// Requests that were sent again.
    repeated: AtomicUsize,
    /// Those of them that had been done already.
    already: AtomicUsize,
    /// Answers that are neither success nor "unavailable".
    wrong: Mutex<Vec<Value>>,
}

/// Clients of a run, each a thread of its own.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
    devices: Vec<(usize, Arc<Mutex<Seen>>, JoinHandle<()>)>,
}

/// User id.
pub fn user_name(user: usize) -> String {
    format!("u{user}")
}

impl Clients {
    /// Starts them; the devices spread over the nodes.
    pub fn start(nodes: Vec<SocketAddr>) -> Self {
        let shared = Arc::new(Shared {
            nodes: Mutex::new(nodes),
            sending: AtomicBool::new(true),
            over: AtomicBool::new(false),
            next: AtomicU64::new(1),
            acknowledged: Mutex::default(),
            repeated: AtomicUsize::new(0),
            already: AtomicUsize::new(0),
            wrong: Mutex::default(),
        });
        let devices = (0..USERS * DEVICES).map(|index| {
            let seen = Arc::new(Mutex::new(Seen::default()));
            let (shared, log) = (Arc::clone(&shared), Arc::clone(&seen));
            let thread = std::thread::spawn(move || watch(&shared, &log, index));
            (index / DEVICES, seen, thread)
        });
        let devices = devices.collect();
        let senders = (0..SENDERS).map(|index| {
            let (shared, dice) = (Arc::clone(&shared), Dice::new());
            std::thread::spawn(move || send(&shared, index, dice))
        });
        let senders = senders.collect();
        Self { shared, senders, devices }
    }

    /// Notifications acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        locked(&self.shared.acknowledged).len()
    }

    /// Where a node listens now.
    pub fn moved(&self, index: usize, address: SocketAddr) {
        locked(&self.shared.nodes)[index] = address;
    }

    /// A client has failed; its message is above.
    pub fn check_running(&self) {
        let wrong = locked(&self.shared.wrong);
        assert!(wrong.is_empty(), "answers that are no answer: {wrong:?}");
        let failed = self.senders.iter().any(JoinHandle::is_finished)
            || self.devices.iter().any(|(_, _, thread)| thread.is_finished());
        assert!(!failed, "a client has failed; its message is above");
    }

    /// No more is sent; answers what was acknowledged, which is everything that was ever asked for.
    pub fn stop_sending(&mut self) -> BTreeMap<u64, Sent> {
        self.shared.sending.store(false, Ordering::Relaxed);
        for sender in self.senders.drain(..) {
            sender.join().expect("a sender does not fail");
        }
        let wrong = locked(&self.shared.wrong);
        assert!(wrong.is_empty(), "answers that are no answer: {wrong:?}");
        locked(&self.shared.acknowledged).clone()
    }

    /// Waits until every device has everything that was sent to its user, and checks that nothing else came.
    pub fn finish(self, sent: &BTreeMap<u64, Sent>) -> String {
        let mut repeats = 0;
        for (user, seen, _) in &self.devices {
            let wanted: BTreeMap<u64, BTreeSet<String>> = sent
                .iter()
                .filter(|(_, sent)| sent.users.contains(user))
                .map(|(n, sent)| (*n, BTreeSet::from([sent.id.clone()])))
                .collect();
            let lacks = || {
                let seen = locked(seen);
                wanted
                    .iter()
                    .find(|(n, _)| !seen.ids.contains_key(n))
                    .map(|(n, id)| (*n, id.clone()))
            };
            let began = Instant::now();
            while let Some(lacking) = lacks() {
                assert!(began.elapsed() < WAIT, "a device of user {user} never got {lacking:?}");
                std::thread::park_timeout(PACE);
            }
            let seen = locked(seen);
            assert_eq!(seen.ids, wanted, "user {user}: each once, and under one id");
            repeats += seen.pushed.values().filter(|times| **times > 1).count();
        }
        self.shared.over.store(true, Ordering::Relaxed);
        for (_, _, thread) in self.devices {
            thread.join().expect("a device does not fail");
        }
        let number = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        format!(
            "{} acknowledged, {} repeated requests of which {} had been done, {repeats} pushes came again",
            sent.len(),
            number(&self.shared.repeated),
            number(&self.shared.already),
        )
    }

    /// Waits until some more were acknowledged.
    pub fn await_calm(&self, count: usize) {
        let from = self.acknowledged();
        eventually("notifications are acknowledged again", || {
            self.check_running();
            (self.acknowledged() >= from + count).then_some(())
        });
    }
}

impl Shared {
    fn node(&self, at: usize) -> SocketAddr {
        let nodes = locked(&self.nodes);
        nodes[at % nodes.len()]
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

fn send(shared: &Shared, index: usize, mut dice: Dice) {
    let mut at = index;
    let mut http = None;
    while shared.sending.load(Ordering::Relaxed) {
        let n = shared.next.fetch_add(1, Ordering::Relaxed);
        let first = dice.throw(USERS);
        let users: BTreeSet<usize> =
            (0..=dice.throw(USERS)).map(|more| (first + more) % USERS).collect();
        insist(shared, (&mut http, &mut at), n, &users);
        std::thread::park_timeout(PACE);
    }
}

/// Sends until it is taken, as a backend would that retries with its key.
fn insist(
    shared: &Shared,
    (http, at): (&mut Option<Http>, &mut usize),
    n: u64,
    users: &BTreeSet<usize>,
) {
    let names: Vec<String> = users.iter().map(|user| user_name(*user)).collect();
    let body = json!({"users": names, "title": n.to_string(), "message": "m", "category": "system",
        "idempotency_key": format!("k{n}")});
    let mut tries = 0;
    let began = Instant::now();
    while began.elapsed() < WAIT {
        if tries > 0 {
            shared.repeated.fetch_add(1, Ordering::Relaxed);
            std::thread::park_timeout(PACE);
        }
        tries += 1;
        let Some(answer) = ask(http, shared.node(*at), &body) else {
            *http = None;
            *at += 1;
            continue;
        };
        if let Some(id) = answer["result"]["notification_id"].as_str() {
            let already = answer["result"]["duplicate"] == true;
            shared.already.fetch_add(usize::from(already), Ordering::Relaxed);
            let sent = Sent { id: id.to_owned(), users: users.clone() };
            locked(&shared.acknowledged).insert(n, sent);
            return;
        }
        if answer["error"]["code"] != TRY_AGAIN {
            return locked(&shared.wrong).push(answer);
        }
    }
    locked(&shared.wrong).push(json!({"never taken": n}));
}

fn ask(http: &mut Option<Http>, address: SocketAddr, body: &Value) -> Option<Value> {
    if http.is_none() {
        *http = Some(Http::connect(address, None).ok()?);
    }
    let headers = [format!("X-API-Key: {API_KEY}"), "Content-Type: application/json".to_owned()];
    let path = "/api/v1/notifications";
    let answer =
        http.as_mut()?.request("POST", path, &headers, body.to_string().as_bytes()).ok()?;
    serde_json::from_slice(&answer.body).ok()
}

impl Seen {
    fn note(&mut self, item: &Value) -> String {
        let n = item["title"].as_str().and_then(|title| title.parse().ok()).expect("a number");
        let id = item["notification_id"].as_str().expect("an id").to_owned();
        self.ids.entry(n).or_default().insert(id.clone());
        id
    }

    fn note_pushed(&mut self, item: &Value) -> String {
        let id = self.note(item);
        *self.pushed.entry(id.clone()).or_default() += 1;
        id
    }
}

fn watch(shared: &Shared, log: &Mutex<Seen>, index: usize) {
    let user = user_name(index / DEVICES);
    let mut at = index;
    while !shared.is_over() {
        let opening = Opening::with_token(&token(&user));
        if let Ok(mut socket) = Socket::open_at(shared.node(at), None, &opening)
            && socket.call_unless("ping", json!({}), || shared.is_over()).is_some()
        {
            stay(shared, log, &mut socket, index.is_multiple_of(DEVICES));
        }
        at += 1;
        std::thread::park_timeout(PACE);
    }
}

/// Reads the inbox once and takes what comes, until the connection ends. One device of a user confirms, the other reads.
fn stay(shared: &Shared, log: &Mutex<Seen>, socket: &mut Socket, confirms: bool) {
    let kind = if confirms { "notification_ack" } else { "notification_read" };
    let mut looked: Option<Instant> = None;
    let mut is_behind = true;
    let mut unmarked = Vec::new();
    while !socket.is_closed() && !shared.is_over() {
        if is_behind && looked.is_none_or(|at| at.elapsed() > LOOK_AGAIN) {
            is_behind = read_inbox(shared, log, socket).is_none();
            looked = Some(Instant::now());
        }
        socket.poll();
        for message in socket.drain("notification") {
            unmarked.push(locked(log).note_pushed(&message["data"]));
        }
        // A gap is told, and the inbox has what was in it.
        is_behind |= !socket.drain_of(&["lost", "unsubscribed"]).is_empty();
        socket.drain("notification_update");
        if unmarked.len() >= MARKED {
            let ids: Vec<String> = std::mem::take(&mut unmarked);
            // What cannot be marked now is not marked; the checks do not depend on it.
            let _reply = socket.call_unless(kind, json!({"ids": ids}), || shared.is_over());
        }
    }
}

/// All pages, or nothing when there is no answer or an error.
fn read_inbox(shared: &Shared, log: &Mutex<Seen>, socket: &mut Socket) -> Option<()> {
    let mut request = json!({"limit": 200});
    loop {
        let reply = socket.call_unless("notifications", request.clone(), || shared.is_over())?;
        let items = reply["data"]["items"].as_array()?;
        for item in items {
            locked(log).note(item);
        }
        let Some(next) = reply["data"]["next"].as_i64() else { return Some(()) };
        request["before"] = json!(next);
    }
}
