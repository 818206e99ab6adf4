//! The faults, which of them a way to run Redis allows, and how each is seen to have taken effect.

use std::time::{Duration, Instant};

use super::layout::Layout;
use super::sign::{
    DOWN, DRAIN, EPOCHS, FAILED, JOINED, LEASE_ENDED, LEASE_LOST, LEFT, MEMBERS_LEFT, MISSED,
    PROBE_LOST, READ_ONLY, SCRIPTS_LOADED, SLOTS_MOVED, SUBSCRIBED, Sign, UP, Who,
};
use super::{WELL_MAX, World, hold};
use crate::gate::Cut;
use crate::redis::Redis;
use crate::support::within;

/// A server that hangs for less than it takes to notice, and for longer.
const HANGS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
/// As long as the shortest time-outs that operators leave in place.
const HANG_LONG: Duration = Duration::from_secs(30);

/// Longer than a lease.
const OUTAGE: Duration = Duration::from_millis(1500);

/// What can be done to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connections for publications are cut.
    CutSubscribers,
    /// All connections of clients are cut.
    CutEveryone,
    /// The server stops for a while and keeps its sockets.
    Hang(Duration),
    /// All data are gone.
    Flush,
    /// The server is killed and comes back without its data.
    KillAndEmpty,
    /// The server is killed and comes back with its log.
    KillAndKeep,
    /// The scripts are gone.
    ForgetScripts,
    /// The server takes no writes.
    ReadOnly,
    /// The server has no memory left.
    OutOfMemory,
    /// The server drops subscribers because they are slow.
    OverflowSubscribers,
    /// The network between one node and Redis drops everything, or one direction.
    Partition(Cut),
    /// The Sentinel is asked to make the replica the master.
    Failover,
    /// The master is killed, and comes back as a replica.
    KillMaster,
    /// The master hangs until the Sentinel has replaced it, and then goes on as if nothing had happened.
    HangMaster,
    /// The slot of the channel moves to another master.
    MoveSlot,
    /// A node is killed and a new one takes its place.
    KillNode,
    /// A node stops for longer than its lease.
    PauseNode(Duration),
    /// All nodes are restarted, one after the other, in good order.
    RollingRestart,
}

const CUTS: [Cut; 3] = [
    Cut { there: true, back: true },
    Cut { there: true, back: false },
    Cut { there: false, back: true },
];

/// The faults that make sense, with the long ones when there is time.
pub fn faults_of(layout: &Layout, long: bool) -> Vec<Fault> {
    let mut faults = vec![
        Fault::CutSubscribers,
        Fault::CutEveryone,
        Fault::Flush,
        Fault::ForgetScripts,
        Fault::OutOfMemory,
        Fault::OverflowSubscribers,
        Fault::KillNode,
        Fault::PauseNode(Duration::from_secs(2)),
        Fault::RollingRestart,
    ];
    if long {
        faults.push(Fault::PauseNode(HANG_LONG));
    }
    match layout {
        Layout::Single { .. } => {
            faults.extend(HANGS.map(Fault::Hang));
            faults.extend(CUTS.map(Fault::Partition));
            faults.extend([Fault::KillAndEmpty, Fault::KillAndKeep, Fault::ReadOnly]);
            if long {
                faults.push(Fault::Hang(HANG_LONG));
            }
        }
        Layout::Sentinel { .. } => {
            faults.push(Fault::Hang(Duration::from_millis(200)));
            faults.extend([Fault::Failover, Fault::KillMaster, Fault::HangMaster]);
        }
        Layout::Spread(_) => {
            faults.extend(HANGS.map(Fault::Hang));
            faults.extend([Fault::KillAndEmpty, Fault::KillAndKeep, Fault::ReadOnly]);
        }
        Layout::Cluster(_) => {
            faults.extend(HANGS.map(Fault::Hang));
            faults.extend([Fault::MoveSlot, Fault::KillAndEmpty]);
        }
    }
    faults
}

impl Fault {
    /// Whether publications may be gone afterwards, or nobody can know that they are not; otherwise nobody may be told of a
    /// loss.
    pub fn may_lose(self) -> bool {
        matches!(
            self,
            Self::Flush
                | Self::KillAndEmpty
                | Self::KillAndKeep
                | Self::Failover
                | Self::KillMaster
                | Self::HangMaster
        )
    }

    /// Whether a node cannot read from Redis meanwhile. A client that comes there from a node that was faster is answered
    /// `recovered: false`, because its position is not known there; nobody else is.
    pub fn hides_redis(self) -> bool {
        matches!(self, Self::Hang(_) | Self::ReadOnly | Self::OutOfMemory | Self::Partition(_))
    }

    /// Does it, and undoes it when it has shown.
    pub fn happen(self, world: &mut World) {
        match self {
            Self::CutSubscribers => cut(world, &["client kill type pubsub"]),
            Self::CutEveryone => {
                cut(world, &["client kill type normal skipme yes", "client kill type pubsub"]);
            }
            Self::Flush => flush(world),
            Self::ForgetScripts => {
                let signs = world.expect(&[Sign(SCRIPTS_LOADED, Who::Some)]);
                world.ask_all("script flush");
                world.await_signs(&signs);
            }
            Self::Hang(duration) => hang(world, duration),
            Self::KillAndEmpty | Self::KillAndKeep => kill(world, self == Self::KillAndEmpty),
            Self::ReadOnly => {
                // Nothing listens there, and nothing is lost by looking for it.
                let more = [Sign(READ_ONLY, Who::All)];
                refuse(world, &more, "replicaof 127.0.0.1 1", "replicaof no one");
            }
            Self::OutOfMemory => {
                refuse(world, &[], "config set maxmemory 100000", "config set maxmemory 0");
            }
            Self::OverflowSubscribers => overflow(world),
            Self::Partition(cut) => partition(world, cut),
            Self::Failover | Self::KillMaster | Self::HangMaster => {
                let signs =
                    world.expect(&[Sign(SCRIPTS_LOADED, Who::All), Sign(EPOCHS, Who::Some)]);
                fail_over(world, self);
                world.await_signs(&signs);
            }
            Self::MoveSlot => {
                let signs = world.expect(&[Sign(SLOTS_MOVED, Who::All)]);
                world.layout.move_room();
                world.await_signs(&signs);
            }
            Self::KillNode => kill_node(world),
            Self::PauseNode(duration) => pause_node(world, duration),
            Self::RollingRestart => (0..world.nodes.len()).for_each(|node| restart(world, node)),
        }
        world.layout.await_whole();
    }
}

fn servers(world: &mut World) -> &mut [Redis] {
    match &mut world.layout {
        Layout::Single { server, .. } => std::slice::from_mut(server),
        Layout::Sentinel { servers, .. } | Layout::Spread(servers) => servers,
        Layout::Cluster(servers) => servers,
    }
}

/// Cuts connections again until publications were missed.
fn cut(world: &mut World, commands: &[&str]) {
    let signs = [Sign(SUBSCRIBED, Who::All), Sign(MISSED, Who::Some)];
    world.repeat_until(&signs, |world| {
        for command in commands {
            let killed = world.ask_all(command);
            assert!(killed.iter().all(|count| count.starts_with(':')), "{command}: {killed:?}");
        }
    });
}

fn flush(world: &mut World) {
    let mut signs = vec![Sign(EPOCHS, Who::Some)];
    if world.serving().try_ask("EXISTS archmesh:{nodes}:leases").as_deref() == Some(":1") {
        signs.push(Sign(LEASE_LOST, Who::All));
    }
    let signs = world.expect(&signs);
    assert_eq!(world.serving().ask("flushall"), "+OK");
    world.await_signs(&signs);
}

/// What takes longer than nodes wait for an answer must be told. Masters of a Redis Cluster share a breaker, which the others
/// keep closed.
fn hang(world: &mut World, duration: Duration) {
    let serving = world.layout.serving();
    let mut signs = Vec::new();
    let is_told = duration >= HANGS[1];
    let is_down = is_told && !matches!(world.layout, Layout::Cluster(_));
    if is_down {
        signs.extend([Sign(DOWN, Who::All), Sign(UP, Who::All)]);
    } else if is_told {
        signs.push(Sign(PROBE_LOST, Who::All));
    }
    let signs = world.expect(&signs);
    world.layout.servers()[serving].stop();
    world.hold_silent(|world| {
        hold(duration);
        for node in world.nodes.iter().filter(|_| is_down) {
            assert_eq!(node.get("/health").json()["status"], "degraded");
        }
    });
    world.layout.servers()[serving].signal("CONT");
    world.await_signs(&signs);
}

fn kill(world: &mut World, empty: bool) {
    let serving = world.layout.serving();
    // One that is back at once may not have been missed.
    let waits = empty && !matches!(world.layout, Layout::Cluster(_));
    let down = world.expect(if waits { &[Sign(DOWN, Who::All)] } else { &[] });
    let up = world.expect(if waits { &[Sign(UP, Who::All)] } else { &[] });
    let signs = world.expect(&[Sign(SCRIPTS_LOADED, Who::All), Sign(EPOCHS, Who::Some)]);
    servers(world)[serving].kill();
    world.await_signs(&down);
    if empty {
        servers(world)[serving].forget_data();
    }
    servers(world)[serving].restart();
    world.await_signs(&up);
    world.await_signs(&signs);
}

/// The servers refuse to write after one command, until another one.
fn refuse(world: &mut World, more: &[Sign], begin: &str, end: &str) {
    let signs = world.expect(&[more, &[Sign(FAILED, Who::Some)]].concat());
    let said = world.ask_all(begin);
    assert!(said.iter().all(|said| said.starts_with("+OK")), "{begin}: {said:?}");
    let during = |world: &World| {
        hold(OUTAGE);
        world.await_signs(&signs);
    };
    if more.is_empty() {
        // Without memory a publication is made that comes in one call behind the leave of a member.
        during(world);
    } else {
        world.hold_silent(during);
    }
    world.ask_all(end);
}

/// A message counts against a subscriber's limit only when it is larger than the buffer that every client owns.
fn overflow(world: &mut World) {
    let closed = |world: &World| -> usize {
        let servers = world.layout.servers().iter();
        servers.map(|server| server.logged("overcoming of output buffer limits")).sum()
    };
    let before = closed(world);
    let signs = world.expect(&[Sign(SUBSCRIBED, Who::Some), Sign(MISSED, Who::Some)]);
    world.ask_all("config set client-output-buffer-limit \"pubsub 1 0 0\"");
    world.make_large(true);
    within(WELL_MAX, "Redis closes a connection", || (closed(world) > before).then_some(()));
    world.await_signs(&signs);
    world.make_large(false);
    world.ask_all("config set client-output-buffer-limit \"pubsub 32mb 8mb 60\"");
}

/// For longer than the node's lease.
fn partition(world: &mut World, cut: Cut) {
    let node = world.choose_node();
    let signs = world.expect(&[
        Sign(DOWN, Who::Node(node)),
        Sign(UP, Who::Node(node)),
        Sign(LEASE_LOST, Who::Node(node)),
        Sign(LEASE_ENDED, Who::Some),
        Sign(MEMBERS_LEFT, Who::Others(node)),
    ]);
    let Layout::Single { ways, .. } = &world.layout else { return };
    ways[node].set(cut);
    hold(HANGS[1]);
    ways[node].set(Cut::default());
    world.await_signs(&signs);
}

fn kill_node(world: &mut World) {
    let node = world.choose_node();
    let signs = world.expect(&[
        // Whoever renews its own next ends it, and that may be the new one.
        Sign(LEASE_ENDED, Who::Some),
        Sign(MEMBERS_LEFT, Who::Others(node)),
        Sign(LEFT, Who::Others(node)),
    ]);
    world.nodes[node].signal("KILL");
    world.nodes[node].await_exit(Duration::from_secs(20));
    world.replace(node);
    world.await_signs(&signs);
}

fn pause_node(world: &mut World, duration: Duration) {
    let node = world.choose_node();
    let signs = world.expect(&[
        Sign(LEASE_ENDED, Who::Some),
        Sign(LEASE_LOST, Who::Node(node)),
        Sign(MEMBERS_LEFT, Who::Others(node)),
    ]);
    world.nodes[node].signal("STOP");
    hold(duration);
    world.nodes[node].signal("CONT");
    world.await_signs(&signs);
}

fn restart(world: &mut World, node: usize) {
    let drains = world.expect(&[Sign(DRAIN, Who::Node(node))]);
    let others = world.expect(&[Sign(LEFT, Who::Others(node)), Sign(JOINED, Who::Others(node))]);
    world.nodes[node].signal("TERM");
    let status = world.nodes[node].await_exit(Duration::from_secs(20));
    assert!(status.success(), "node {node} ends in good order: {status}");
    world.await_signs(&drains);
    world.replace(node);
    world.await_signs(&others);
}

fn fail_over(world: &mut World, fault: Fault) {
    let master = world.layout.master();
    let Layout::Sentinel { sentinel, .. } = &world.layout else { return };
    match fault {
        Fault::Failover => {
            let began = Instant::now();
            // It refuses for a while after the last one.
            while sentinel.ask("SENTINEL FAILOVER main") != "+OK" {
                assert!(began.elapsed() < Duration::from_secs(30), "the Sentinel goes along");
                hold(Duration::from_millis(100));
            }
            world.layout.await_failover(master);
        }
        Fault::HangMaster => {
            world.layout.servers()[master].signal("STOP");
            world.layout.await_failover(master);
            world.layout.servers()[master].signal("CONT");
        }
        _ => {
            servers(world)[master].kill();
            world.layout.await_failover(master);
            let port = world.layout.servers()[1 - master].address().port().to_string();
            servers(world)[master].restart_with(&["--replicaof", "127.0.0.1", &port]);
        }
    }
}
