//! Setup: three nodes, a real Redis in one of several layouts, once behind a real HAProxy, a publisher and a watcher at every
//! node, a watcher that goes from node to node, and a seed that decides which faults come in which order meanwhile.
//!
//! Must hold, whatever came: every acknowledged publication reaches every watcher once and in order, or the watcher is
//! told that something is missing, which is the case only after faults that may lose something; nobody is told a wrong
//! `recovered`; every fault shows as the documentation promises; all is well again when the faults are over, and all nodes
//! answer the same about history and members.
//!
//! `CHAOS_SEED` repeats a run, `CHAOS_FAULTS` makes it longer (`make chaos`), `CHAOS_FAULT` is the beginning of the name of
//! the only fault, `CHAOS_LOG` the level of the nodes' logs, `CHAOS_BALANCER=1` puts HAProxy before every layout.

pub mod clients;
mod fault;
mod layout;
mod sign;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::balancer::{Balancer, free_port};
use crate::gateway::{Gateway, Setup};
use crate::redis::Redis;
use crate::support::{unix_now, within};
use clients::{Clients, Evenness, ROOM};
use fault::{Fault, faults_of};
use layout::{Layout, addresses};

/// Nodes of a run.
const NODES: usize = 3;
/// Faults of a run in the test suite. So many runs one after the other as it takes for all faults have them all.
const FAULTS: usize = 6;
/// Acknowledged publications between two faults.
const CALM: usize = 60;
/// From the end of a fault to its last effect: a node that was cut off, a slow machine, and a Sentinel that waits.
const WELL_MAX: Duration = Duration::from_secs(60);
/// After this it is said what is waited for.
const SLOW: Duration = Duration::from_secs(10);

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The runner shows it when the test fails.
fn say(line: &str) {
    // Nothing to do about a stream that is gone.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Lets a fault last: its length is what is tested.
pub fn hold(duration: Duration) {
    let until = Instant::now() + duration;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

/// A stream of numbers from a seed: xorshift.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    /// The stream of this seed.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// Everything that a run consists of.
#[derive(Debug)]
pub struct World {
    layout: Layout,
    nodes: Vec<Gateway>,
    clients: Clients,
    dice: Dice,
    front: Option<Front>,
}

/// A balancer, and the ports of the nodes behind it, which they keep when they are restarted: public and agent.
#[derive(Debug)]
struct Front {
    balancer: Balancer,
    ports: Vec<(u16, u16)>,
}

impl World {
    fn start(layout: Layout, dice: Dice, behind_balancer: bool) -> Self {
        let ports = (0..NODES).map(|_| (free_port(), free_port())).collect::<Vec<_>>();
        let ports = behind_balancer.then_some(ports);
        let start = |index| node(&layout, index, ports.as_deref()).start();
        let nodes: Vec<Gateway> = (0..NODES).map(start).collect();
        for gateway in &nodes {
            gateway.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
        }
        let front = ports.map(|ports| Front { balancer: Balancer::haproxy(&nodes), ports });
        let entry = front.as_ref().map(|front| front.balancer.clients);
        let clients = Clients::start_roaming(&addresses(&nodes), entry);
        Self { layout, nodes, clients, dice, front }
    }

    fn choose_node(&mut self) -> usize {
        self.dice.throw(self.nodes.len())
    }

    fn serving(&self) -> &Redis {
        &self.layout.servers()[self.layout.serving()]
    }

    /// First line of each server's answer.
    fn ask_all(&self, command: &str) -> Vec<String> {
        self.layout.servers().iter().map(|server| server.ask(command)).collect()
    }

    fn make_large(&self, large: bool) {
        self.clients.shared.large.store(large, std::sync::atomic::Ordering::Relaxed);
    }

    /// A new node takes the place of one that has ended.
    fn replace(&mut self, index: usize) {
        let ports = self.front.as_ref().map(|front| &front.ports[..]);
        self.nodes[index] = node(&self.layout, index, ports).start();
        if self.front.is_none() {
            self.clients.moved(index, self.nodes[index].public);
        }
    }

    /// Holds while nothing can be published: each publisher can at most hear of one publication that was made before.
    fn hold_silent(&self, during: impl FnOnce(&Self)) {
        let from = self.clients.acknowledged();
        during(self);
        let came = self.clients.acknowledged() - from;
        assert!(came <= NODES, "{came} publications were acknowledged, which could not be made");
    }

    fn await_calm(&self) {
        let from = self.clients.acknowledged();
        within(WELL_MAX, "publications are acknowledged again", || {
            assert!(!self.clients.has_failed(), "a client has failed; its message is above");
            (self.clients.acknowledged() >= from + CALM).then_some(())
        });
    }

    /// All is well: everybody is where they belong and has everything, and all nodes answer the same.
    fn settle(&self) {
        self.await_calm();
        let began = Instant::now();
        loop {
            within(WELL_MAX, "the watchers are home", || self.clients.are_home().then_some(()));
            within(WELL_MAX, "the publishers pause", || self.clients.pause().then_some(()));
            while began.elapsed() < WELL_MAX {
                assert!(!self.clients.has_failed(), "a client has failed; its message is above");
                match self.clients.evenness() {
                    Evenness::Even => {
                        await_agreement(&self.nodes, &self.clients);
                        return self.clients.go_on();
                    }
                    // The stream has begun anew since the last publication.
                    Evenness::Empty => break,
                    Evenness::Uneven => hold(Duration::from_millis(5)),
                }
            }
            assert!(began.elapsed() < WELL_MAX, "not even: {:?}", self.clients.positions());
            self.clients.go_on();
            self.await_calm();
        }
    }
}

/// History and members are the same on all nodes, and the members are the watchers that there are.
pub fn await_agreement(nodes: &[Gateway], clients: &Clients) {
    let users = clients.users();
    let began = Instant::now();
    let mut is_told = false;
    loop {
        let seen: Vec<[Value; 2]> = nodes.iter().map(views).collect();
        let mut members: Vec<&str> = seen[0][1]["presence"]
            .as_object()
            .map(|members| members.values().filter_map(|one| one["user"].as_str()).collect())
            .unwrap_or_default();
        members.sort_unstable();
        let counts = [&seen[0][1]["num_clients"], &seen[0][1]["num_users"]];
        let are_all = members == users && counts.iter().all(|count| **count == users.len());
        if are_all && seen.iter().all(|view| *view == seen[0]) {
            return;
        }
        if began.elapsed() > SLOW && !is_told {
            is_told = true;
            tell_views(&seen);
        }
        assert!(began.elapsed() < WELL_MAX, "the nodes differ; wanted are {users:?}");
        hold(Duration::from_millis(100));
    }
}

fn tell_views(seen: &[[Value; 2]]) {
    for (node, [history, presence]) in seen.iter().enumerate() {
        let count = history["publications"].as_array().map_or(0, Vec::len);
        let (epoch, offset) = (&history["epoch"], &history["offset"]);
        let refused = &history["error"];
        say(&format!(
            "node {node}: {count} publications up to {epoch} {offset}, {refused}; {presence}"
        ));
    }
}

/// Newest part of the history, and the members, as a node answers.
fn views(node: &Gateway) -> [Value; 2] {
    let history = json!({"channel": ROOM, "limit": 1000, "reverse": true});
    let presence = json!({"channel": ROOM});
    [("history", history), ("presence", presence)]
        .map(|(method, request)| node.api(method, &request))
        .map(|mut answer| if answer["error"].is_null() { answer["result"].take() } else { answer })
}

fn node(layout: &Layout, index: usize, ports: Option<&[(u16, u16)]>) -> Setup {
    let level = std::env::var("CHAOS_LOG").unwrap_or_else(|_| "info".to_owned());
    let mut setup = Setup::new();
    if let Some((public, agent)) = ports.map(|ports| ports[index]) {
        setup = setup
            .set("listen.public", format!("127.0.0.1:{public}"))
            .set("listen.agent", format!("127.0.0.1:{agent}"))
            .set("listen.proxies", "127.0.0.1");
    }
    layout
        .configure(index, setup)
        .set("log.level", level)
        .set("node.name", format!("n{index}"))
        .set("redis.check_interval", "500ms")
        .set("redis.breaker_open", "300ms")
        .set("cluster.lease_interval", "200ms")
        .set("cluster.lease_ttl", "1s")
        // What is missed in the longest cut of one node can be read and sent at once.
        .set("namespaces.chat.history_size", 20_000)
        .set("channels.history_page_max", 20_000)
        .set("channels.recovery_bytes_max", "8MiB")
        .set("outbox.connection_bytes_max", "16MiB")
        .set("drain.timeout", "5s")
        .set("drain.reconnect_delay_max", "1ms")
}

/// The number of this run of the test suite on this machine; on another one runs count from the day on.
fn next_turn(name: &str) -> u64 {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{name}.turn"));
    let kept = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    let turn = kept.unwrap_or_else(|| unix_now() / 86_400);
    // Without it the next run has the same faults.
    let _ = fs::write(path, (turn + 1).to_string());
    turn
}

/// The faults of a run in their order: each once before one comes again, or the next part of them.
fn plan(mut choices: Vec<Fault>, count: usize, seed: u64, dice: &mut Dice) -> Vec<Fault> {
    if let Ok(wanted) = std::env::var("CHAOS_FAULT") {
        choices.retain(|fault| format!("{fault:?}").starts_with(&wanted));
        assert!(!choices.is_empty(), "CHAOS_FAULT={wanted} is none of this layout");
    }
    let all = choices.len();
    choices.rotate_left((seed % all as u64) as usize * count % all);
    if count < all {
        choices.truncate(count);
    }
    for at in (1..choices.len()).rev() {
        choices.swap(at, dice.throw(at + 1));
    }
    choices.into_iter().cycle().take(count).collect()
}

fn faults_wanted() -> usize {
    variable("CHAOS_FAULTS").map_or(FAULTS, |faults| faults as usize)
}

fn wants_balancer() -> bool {
    variable("CHAOS_BALANCER").is_some()
}

/// A long run is made in two halves, the second behind HAProxy.
fn run(name: &str, layout: impl Fn() -> Layout) {
    let faults = faults_wanted();
    if faults > FAULTS && !wants_balancer() {
        run_with(name, layout(), faults.div_ceil(2), false);
        run_with(&format!("{name}-haproxy"), layout(), faults / 2, true);
    } else {
        run_with(name, layout(), faults, wants_balancer());
    }
}

fn run_with(name: &str, layout: Layout, faults: usize, behind_balancer: bool) {
    let is_long = faults_wanted() > FAULTS;
    let turn = || if is_long { unix_now() } else { next_turn(name) };
    let seed = variable("CHAOS_SEED").unwrap_or_else(turn);
    say(&format!("{name}: CHAOS_SEED={seed}, {faults} faults"));
    let mut dice = Dice::new(seed);
    let faults = plan(faults_of(&layout, is_long), faults, seed, &mut dice);
    let mut world = World::start(layout, dice, behind_balancer);
    world.settle();
    let began = Instant::now();
    let last = faults.len() - 1;
    let (mut told, mut may_lose, mut hides) = (world.clients.told(), false, false);
    for (at, fault) in faults.into_iter().enumerate() {
        let (acknowledged, seconds) = (world.clients.acknowledged(), began.elapsed().as_secs());
        say(&format!("{name} {seconds:>4} s, {acknowledged} acknowledged: {fault:?}"));
        let failovers = world.layout.failovers();
        fault.happen(&mut world);
        world.await_calm();
        may_lose |= fault.may_lose() || world.layout.failovers() != failovers;
        hides |= fault.hides_redis();
        for node in &mut world.nodes {
            assert!(node.is_running(), "a node has ended by itself");
        }
        // Now and then the next one comes while this one is not over.
        if at < last && world.dice.throw(4) == 0 {
            may_lose = true;
            continue;
        }
        world.settle();
        if !may_lose {
            let lost = world.clients.told_since(&told, !hides);
            assert!(lost.is_empty(), "{fault:?} loses nothing, and somebody is told so: {lost:?}");
        }
        (told, may_lose, hides) = (world.clients.told(), false, false);
    }
    let (acknowledged, told) = world.clients.finish();
    say(&format!("{name}: {acknowledged} acknowledged, {told} watchers told of a loss"));
}

/// With HAProxy in front it is a test of its own.
#[test]
fn single_redis_loses_nothing_silently() {
    run_with("single", Layout::single(NODES), faults_wanted(), wants_balancer());
}

#[test]
fn sentinel_loses_nothing_silently() {
    run("sentinel", Layout::sentinel);
}

#[test]
fn redis_cluster_loses_nothing_silently() {
    run("cluster", Layout::cluster);
}

#[test]
fn independent_servers_lose_nothing_silently() {
    run("independent", Layout::spread);
}

/// Publishers, and the watcher that roams, know the balancer only.
#[test]
fn haproxy_in_front_loses_nothing_silently() {
    run_with("haproxy", Layout::single(NODES), faults_wanted(), true);
}

/// Packets are dropped by the kernel here.
#[test]
#[ignore = "needs root and iptables: `make chaos` runs it"]
fn namespaces_lose_nothing_silently() {
    assert!(
        !wants_balancer(),
        "CHAOS_BALANCER does not go together with network namespaces, where a node has another port after each start; \
         unset it, or choose another CHAOS_LAYOUT"
    );
    run_with("namespaces", Layout::namespaces(NODES as u8), faults_wanted(), false);
}
