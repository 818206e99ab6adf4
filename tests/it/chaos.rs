//! Setup: three nodes, a real Redis in one of four layouts, once behind a real HAProxy, a publisher and a watcher at every
//! node, and a seed that decides which faults come in which order while they are at work.
//!
//! Must hold, whatever came: every acknowledged publication reaches every watcher once and in order, or the watcher is
//! told that something is missing; nobody is told a wrong `recovered`; all is well again when the faults are over, and all
//! nodes know the same members.
//!
//! `CHAOS_SEED` repeats a run, `CHAOS_FAULTS` makes it longer (`make chaos`), `CHAOS_FAULT` is the beginning of the name of
//! the only fault, `CHAOS_LOG` the level of the nodes' logs, `CHAOS_BALANCER=1` puts HAProxy before every layout.

pub mod clients;
mod fault;
mod layout;

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::balancer::{Balancer, free_port};
use crate::gateway::{Gateway, Setup};
use crate::redis::Redis;
use crate::support::{unix_now, within};
use clients::{Clients, Evenness, ROOM};
use fault::faults_of;
use layout::{Layout, addresses};

/// Nodes of a run.
const NODES: usize = 3;
/// Faults of a run in the test suite.
const FAULTS: u64 = 6;
/// Acknowledged publications between two faults.
const CALM: usize = 60;
/// From the end of a fault to its last effect: a node that was cut off, a slow machine, and a Sentinel that waits.
const WELL_MAX: Duration = Duration::from_secs(60);

/// Every node knows the same members, one connection for each watcher, none that is gone and none twice.
pub fn await_same_members(nodes: &[Gateway], watchers: usize) {
    let body = json!({"channel": ROOM});
    let present = |node: &Gateway| {
        let answer = node.api("presence", &body);
        let members = answer["result"]["presence"].as_object()?;
        Some(members.keys().cloned().collect::<Vec<_>>())
    };
    let mut found = Vec::new();
    let began = Instant::now();
    while began.elapsed() < WELL_MAX {
        found = nodes.iter().map(present).collect::<Vec<_>>();
        let right = |members: &Option<Vec<_>>| {
            *members == found[0] && members.as_ref().is_some_and(|all| all.len() == watchers)
        };
        if found.iter().all(right) {
            return;
        }
        hold(Duration::from_millis(20));
    }
    panic!("{watchers} watchers, present: {found:#?}");
}

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
    _balancer: Balancer,
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
        let front = ports.map(|ports| (Balancer::haproxy(&nodes), ports));
        let clients = match &front {
            None => Clients::start(&addresses(&nodes)),
            Some((balancer, _)) => Clients::start(&[balancer.clients; NODES]),
        };
        let front = front.map(|(balancer, ports)| Front { _balancer: balancer, ports });
        Self { layout, nodes, clients, dice, front }
    }

    fn choose_node(&mut self) -> usize {
        self.dice.throw(self.nodes.len())
    }

    fn serving(&self) -> &Redis {
        &self.layout.servers()[self.layout.serving()]
    }

    fn ask_all(&self, command: &str) {
        for server in self.layout.servers() {
            server.ask(command);
        }
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

    /// Until some publications were acknowledged, or the time is over.
    fn calm_or(&self, limit: Duration) {
        let (from, began) = (self.clients.acknowledged(), Instant::now());
        while self.clients.acknowledged() < from + CALM && began.elapsed() < limit {
            hold(Duration::from_millis(5));
        }
    }

    fn await_calm(&self) {
        let from = self.clients.acknowledged();
        within(WELL_MAX, "publications are acknowledged again", || {
            assert!(!self.clients.has_failed(), "a client has failed; its message is above");
            (self.clients.acknowledged() >= from + CALM).then_some(())
        });
    }

    /// What is published when all is well reaches everyone, at the same place.
    fn await_even(&self) {
        let began = Instant::now();
        loop {
            within(WELL_MAX, "the publishers pause", || self.clients.pause().then_some(()));
            while began.elapsed() < WELL_MAX {
                assert!(!self.clients.has_failed(), "a client has failed; its message is above");
                match self.clients.evenness() {
                    Evenness::Even => return self.clients.go_on(),
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
        .set("drain.timeout", "5s")
        .set("drain.reconnect_delay_max", "1ms")
}

fn run(name: &str, layout: Layout, behind_balancer: bool) {
    let seed = variable("CHAOS_SEED").unwrap_or_else(unix_now);
    let faults = variable("CHAOS_FAULTS").unwrap_or(FAULTS);
    say(&format!("{name}: CHAOS_SEED={seed} CHAOS_FAULTS={faults}"));
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut choices = faults_of(&layout, faults > FAULTS);
    if let Ok(wanted) = std::env::var("CHAOS_FAULT") {
        choices.retain(|fault| format!("{fault:?}").starts_with(&wanted));
        assert!(!choices.is_empty(), "CHAOS_FAULT={wanted} is none of this layout");
    }
    // Every fault comes once before one comes again.
    for at in (1..choices.len()).rev() {
        choices.swap(at, dice.throw(at + 1));
    }
    let behind_balancer = behind_balancer || variable("CHAOS_BALANCER").is_some();
    let mut world = World::start(layout, dice, behind_balancer);
    world.await_calm();
    let began = Instant::now();
    for fault in choices.into_iter().cycle().take(faults as usize) {
        let (at, seconds) = (world.clients.acknowledged(), began.elapsed().as_secs());
        say(&format!("{name} {seconds:>4} s, {at} acknowledged: {fault:?}"));
        fault.happen(&mut world);
        world.await_calm();
        for node in &mut world.nodes {
            assert!(node.is_running(), "a node has ended by itself");
        }
    }
    world.await_even();
    await_same_members(&world.nodes, NODES);
    let (acknowledged, told) = world.clients.finish();
    say(&format!("{name}: {acknowledged} acknowledged, {told} of {NODES} watchers told of a loss"));
}

#[test]
fn single_redis_loses_nothing_silently() {
    run("single", Layout::single(NODES), false);
}

#[test]
fn sentinel_loses_nothing_silently() {
    run("sentinel", Layout::sentinel(), false);
}

#[test]
fn redis_cluster_loses_nothing_silently() {
    run("cluster", Layout::cluster(), false);
}

#[test]
fn independent_servers_lose_nothing_silently() {
    run("independent", Layout::spread(), false);
}

/// Clients know the balancer only.
#[test]
fn haproxy_in_front_loses_nothing_silently() {
    run("haproxy", Layout::single(NODES), true);
}

/// Packets are dropped by the kernel here.
#[test]
#[ignore = "needs root and iptables: `make chaos` runs it"]
fn namespaces_lose_nothing_silently() {
    run("namespaces", Layout::namespaces(NODES as u8), false);
}
