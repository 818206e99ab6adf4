//! The faults, and which of them a way to run Redis allows.

use std::time::{Duration, Instant};

use super::layout::Layout;
use super::{World, hold};
use crate::gate::Cut;
use crate::redis::Redis;

/// A server that hangs for less than it takes to notice, and for longer.
const HANGS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
/// As long as the shortest time-outs that operators leave in place.
const HANG_LONG: Duration = Duration::from_secs(30);

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
    /// Does it, and undoes it after a while.
    pub fn happen(self, world: &mut World) {
        match self {
            Self::CutSubscribers => world.ask_all("client kill type pubsub"),
            Self::CutEveryone => {
                world.ask_all("client kill type normal skipme yes");
                world.ask_all("client kill type pubsub");
            }
            Self::Flush => drop(world.serving().ask("flushall")),
            Self::ForgetScripts => world.ask_all("script flush"),
            Self::Hang(duration) => {
                let serving = world.layout.serving();
                world.layout.servers()[serving].signal("STOP");
                hold(duration);
                world.layout.servers()[serving].signal("CONT");
            }
            Self::KillAndEmpty | Self::KillAndKeep => kill(world, self == Self::KillAndEmpty),
            Self::ReadOnly => {
                // Nothing listens there, and nothing is lost by looking for it.
                world.ask_all("replicaof 127.0.0.1 1");
                world.calm_or(Duration::from_secs(2));
                world.ask_all("replicaof no one");
            }
            Self::OutOfMemory => {
                world.ask_all("config set maxmemory 100000");
                world.calm_or(Duration::from_secs(2));
                world.ask_all("config set maxmemory 0");
            }
            Self::OverflowSubscribers => overflow(world),
            Self::Partition(cut) => partition(world, cut),
            Self::Failover | Self::KillMaster | Self::HangMaster => fail_over(world, self),
            Self::MoveSlot => world.layout.move_room(),
            Self::KillNode => {
                let node = world.choose_node();
                world.nodes[node].signal("KILL");
                world.replace(node);
            }
            Self::PauseNode(duration) => {
                let node = world.choose_node();
                world.nodes[node].signal("STOP");
                hold(duration);
                world.nodes[node].signal("CONT");
            }
            Self::RollingRestart => {
                for node in 0..world.nodes.len() {
                    world.nodes[node].signal("TERM");
                    let status = world.nodes[node].await_exit(Duration::from_secs(20));
                    assert!(status.success(), "node {node} ends in good order: {status}");
                    world.replace(node);
                }
            }
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

fn kill(world: &mut World, empty: bool) {
    let serving = world.layout.serving();
    let server = &mut servers(world)[serving];
    server.kill();
    if empty {
        server.forget_data();
    }
    server.restart();
}

/// A message counts against a subscriber's limit only when it is larger than the buffer that every client owns.
fn overflow(world: &mut World) {
    world.ask_all("config set client-output-buffer-limit \"pubsub 1 0 0\"");
    world.make_large(true);
    world.calm_or(Duration::from_secs(2));
    world.make_large(false);
    world.ask_all("config set client-output-buffer-limit \"pubsub 32mb 8mb 60\"");
}

fn partition(world: &mut World, cut: Cut) {
    let node = world.choose_node();
    let Layout::Single { ways, .. } = &world.layout else { return };
    ways[node].set(cut);
    hold(HANGS[1]);
    ways[node].set(Cut::default());
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
