//! The ways in which Redis is run: one server, one with a replica and a Sentinel, a Redis Cluster of three masters, two
//! independent servers.

use std::net::SocketAddr;

use super::clients::ROOM;
use crate::gate::{Cut, Gate};
use crate::gateway::Setup;
use crate::netns::Namespace;
use crate::redis::Redis;
use crate::support::eventually;

/// Hash slots of a Redis Cluster.
const SLOTS: usize = 16_384;

/// Servers, and what leads to them.
#[derive(Debug)]
pub enum Layout {
    /// One server with a log, and a way to it for each node.
    Single { server: Redis, ways: Vec<Way> },
    /// Two servers, one of which is the master.
    Sentinel { servers: [Redis; 2], sentinel: Redis },
    /// Three masters without replicas.
    Cluster([Redis; 3]),
    /// Two servers with a part of the channels each; the nodes meet in the first.
    Spread([Redis; 2]),
}

/// How a node gets to Redis.
#[derive(Debug)]
pub enum Way {
    /// Through the test.
    Gate(Gate),
    /// Through the kernel, out of a network namespace.
    Namespace(Namespace),
}

impl Way {
    /// Interrupts directions, or gives them free.
    pub fn set(&self, cut: Cut) {
        match self {
            Self::Gate(gate) => gate.set(cut),
            Self::Namespace(namespace) => namespace.set(cut),
        }
    }
}

impl Layout {
    /// One server, behind a gate for each of `nodes`.
    pub fn single(nodes: usize) -> Self {
        let server = Redis::start(&["--appendonly", "yes"]);
        let ways = (0..nodes).map(|_| Way::Gate(Gate::open(server.address()))).collect();
        Self::Single { server, ways }
    }

    /// One server, and a network namespace for each of `nodes`.
    pub fn namespaces(nodes: u8) -> Self {
        let server =
            Redis::start(&["--appendonly", "yes", "--bind", "*", "--protected-mode", "no"]);
        let port = server.address().port();
        let ways = (0..nodes).map(|number| Way::Namespace(Namespace::new(number, port)));
        let ways = ways.collect();
        Self::Single { server, ways }
    }

    /// A master, its replica and a Sentinel that knows both.
    pub fn sentinel() -> Self {
        let master = Redis::start(&["--repl-diskless-sync-delay", "0"]);
        let port = master.address().port().to_string();
        let replica =
            Redis::start(&["--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1", &port]);
        let sentinel = Redis::sentinel(&master);
        let layout = Self::Sentinel { servers: [master, replica], sentinel };
        layout.await_whole();
        layout
    }

    /// Three masters that share the slots.
    pub fn cluster() -> Self {
        let arguments = [
            "--cluster-enabled",
            "yes",
            "--cluster-announce-ip",
            "127.0.0.1",
            "--cluster-node-timeout",
            "1000",
        ];
        let servers = [(); 3].map(|()| Redis::start(&arguments));
        for (index, server) in servers.iter().enumerate() {
            let (from, to) = (index * SLOTS / 3, (index + 1) * SLOTS / 3 - 1);
            assert_eq!(server.ask(&format!("CLUSTER ADDSLOTSRANGE {from} {to}")), "+OK");
            assert_eq!(server.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1)), "+OK");
        }
        for server in &servers[1..] {
            let port = server.address().port();
            assert_eq!(servers[0].ask(&format!("CLUSTER MEET 127.0.0.1 {port}")), "+OK");
        }
        let layout = Self::Cluster(servers);
        layout.await_whole();
        layout
    }

    /// Two servers that know nothing of each other.
    pub fn spread() -> Self {
        Self::Spread([(); 2].map(|()| Redis::start(&["--appendonly", "yes"])))
    }

    /// What the node with this number is told.
    pub fn configure(&self, node: usize, setup: Setup) -> Setup {
        let setup = setup.set("redis.url", self.url(node));
        match self {
            Self::Spread(servers) => {
                setup.set("redis.channel_urls", servers.each_ref().map(Redis::url).join(","))
            }
            Self::Single { ways, .. } => match &ways[node] {
                Way::Gate(_) => setup,
                Way::Namespace(namespace) => setup
                    .set("listen.public", SocketAddr::from((namespace.inside(), 0)))
                    .inside(namespace.name()),
            },
            _ => setup,
        }
    }

    fn url(&self, node: usize) -> String {
        match self {
            Self::Single { ways, .. } => match &ways[node] {
                Way::Gate(gate) => format!("redis://{}", gate.address()),
                Way::Namespace(namespace) => format!("redis://{}", namespace.server()),
            },
            Self::Sentinel { sentinel, .. } => {
                format!("redis-sentinel://{}/0?sentinelServiceName=main", sentinel.address())
            }
            Self::Cluster(servers) => format!("redis-cluster://{}", servers[0].address()),
            Self::Spread(servers) => servers[0].url(),
        }
    }

    /// All servers that keep data.
    pub fn servers(&self) -> &[Redis] {
        match self {
            Self::Single { server, .. } => std::slice::from_ref(server),
            Self::Sentinel { servers, .. } | Self::Spread(servers) => servers,
            Self::Cluster(servers) => servers,
        }
    }

    /// Waits until every server can do its part.
    pub fn await_whole(&self) {
        match self {
            Self::Single { .. } | Self::Spread(_) => {}
            Self::Sentinel { servers, sentinel } => {
                eventually("the replica follows and the Sentinel knows it", || {
                    let master = self.master();
                    let known = sentinel.ask("SENTINEL CKQUORUM main").starts_with("+OK")
                        && is_listed_well(sentinel);
                    (known && servers[master].ask("WAIT 1 500") == ":1").then_some(())
                });
            }
            Self::Cluster(servers) => eventually("the Redis Cluster is whole", || {
                let whole = |server: &Redis| {
                    let info = server.ask_all("CLUSTER INFO").concat();
                    info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
                };
                servers.iter().all(whole).then_some(())
            }),
        }
    }

    /// Number of the server that the Sentinel calls master.
    pub fn master(&self) -> usize {
        let Self::Sentinel { servers, sentinel } = self else { return 0 };
        eventually("the Sentinel names a master", || {
            let address = sentinel.ask_all("SENTINEL GET-MASTER-ADDR-BY-NAME main");
            let port: u16 = address.get(1)?.parse().ok()?;
            servers.iter().position(|server| server.address().port() == port)
        })
    }

    /// How often a Sentinel has made another server the master, be it that it hung for too long on a busy machine.
    pub fn failovers(&self) -> Option<String> {
        let Self::Sentinel { sentinel, .. } = self else { return None };
        value_of(&sentinel.ask_all("SENTINEL MASTER main"), "config-epoch").map(str::to_owned)
    }

    /// Waits until the other server is the master and says so itself.
    pub fn await_failover(&self, from: usize) {
        eventually("the other server is the master", || {
            let to = self.master();
            (to != from && self.servers()[to].ask_all("ROLE")[0] == "master").then_some(())
        });
    }

    /// Number of the server that owns the slot of the channel, and the slot.
    pub fn owner_of_room(&self) -> (usize, usize) {
        let servers = self.servers();
        let key = format!("archmesh:{{{ROOM}}}");
        let slot = servers[0].ask(&format!("CLUSTER KEYSLOT {key}"));
        let slot: usize = slot.trim_start_matches(':').parse().unwrap();
        let owner = eventually("some master owns the slot", || {
            let at = servers[0].ask(&format!("CLUSTER COUNTKEYSINSLOT {slot}"));
            assert!(at.starts_with(':'), "{at}");
            servers.iter().position(|server| owns(server, slot))
        });
        (owner, slot)
    }

    /// Moves the slot of the channel to the next master, keys and all, while it is in use.
    pub fn move_room(&self) {
        let servers = self.servers();
        let (from, slot) = self.owner_of_room();
        let to = (from + 1) % servers.len();
        let id = |index: usize| servers[index].ask_all("CLUSTER MYID").concat();
        let (source, target) = (&servers[from], &servers[to]);
        let (source_id, target_id) = (id(from), id(to));
        let asked = target.ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}"));
        assert_eq!(asked, "+OK");
        let asked = source.ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}"));
        assert_eq!(asked, "+OK");
        let port = target.address().port();
        loop {
            let keys = source.ask_all(&format!("CLUSTER GETKEYSINSLOT {slot} 10"));
            if keys.is_empty() {
                break;
            }
            let keys = keys.join(" ");
            let moved = source.ask(&format!("MIGRATE 127.0.0.1 {port} \"\" 0 5000 KEYS {keys}"));
            assert!(moved == "+OK" || moved == "+NOKEY", "{moved}");
        }
        for server in [target, source, &servers[(to + 1) % servers.len()]] {
            let asked = server.ask(&format!("CLUSTER SETSLOT {slot} NODE {target_id}"));
            assert_eq!(asked, "+OK");
        }
    }

    /// The server that serves the channel.
    pub fn serving(&self) -> usize {
        match self {
            Self::Single { .. } => 0,
            Self::Sentinel { .. } => self.master(),
            Self::Cluster(_) => self.owner_of_room().0,
            Self::Spread(servers) => eventually("some server has the channel", || {
                let asked = format!("EXISTS archmesh:{{{ROOM}}}:meta");
                servers.iter().position(|server| server.ask(&asked) == ":1")
            }),
        }
    }
}

/// Whether the Sentinel knows a replica that it would promote.
fn is_listed_well(sentinel: &Redis) -> bool {
    let fields = sentinel.ask_all("SENTINEL REPLICAS main");
    let value = |name: &str| value_of(&fields, name);
    value("flags") == Some("slave") && value("master-link-status") == Some("ok")
}

/// What stands behind a name.
fn value_of<'a>(fields: &'a [String], name: &str) -> Option<&'a str> {
    let at = fields.iter().position(|field| field == name)?;
    fields.get(at + 1).map(String::as_str)
}

fn owns(server: &Redis, slot: usize) -> bool {
    let nodes = server.ask_all("CLUSTER NODES").concat();
    let Some(own) = nodes.lines().find(|line| line.contains("myself")) else { return false };
    own.split_whitespace().skip(8).any(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let bounds = from.parse::<usize>().ok().zip(to.parse::<usize>().ok());
        bounds.is_some_and(|(from, to)| (from..=to).contains(&slot))
    })
}

/// Where each of `nodes` listens.
pub fn addresses(nodes: &[crate::gateway::Gateway]) -> Vec<SocketAddr> {
    nodes.iter().map(|node| node.public).collect()
}
