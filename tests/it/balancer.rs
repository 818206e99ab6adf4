//! Setup: three nodes that share a real Redis, behind a real HAProxy or nginx with the files of `examples/`, in which only the
//! addresses are those of the test.
//!
//! Must hold: clients are spread, and seen with their own addresses; those of a node that drains or dies come to others
//! through the balancer and miss nothing; HAProxy's agent check sees load and drain; a node that is full says where to go.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::gateway::{Gateway, Log, Setup};
use crate::http::{Answer, Http};
use crate::redis::Redis;
use crate::socket::{Opening, Socket};
use crate::support::{WAIT, connect, eventually, read_to_end, root, token, tool};

/// Ports that are tried; another process may take one between finding it free and using it.
const TRIES: usize = 10;
/// What a client of the tests claims about itself, which nobody may believe.
const CLAIMED: &str = "203.0.113.7";

/// A node behind a balancer.
fn node(redis: &Redis, name: &str) -> Setup {
    Setup::new()
        .internal()
        .set("node.name", name)
        .set("redis.url", redis.url())
        .set("listen.agent", "127.0.0.1:0")
        .set("listen.proxies", "127.0.0.1")
        .set("limits.connections_max", 30)
        .set("drain.connections_per_second", 4)
        .set("drain.timeout", "20s")
}

fn three_nodes(redis: &Redis) -> Vec<Gateway> {
    let nodes: Vec<Gateway> =
        ["a", "b", "c"].into_iter().map(|name| node(redis, name).spawn()).collect();
    nodes.into_iter().map(ready).collect()
}

fn ready(mut node: Gateway) -> Gateway {
    node.await_ready();
    node
}

fn agent_of(node: &Gateway) -> SocketAddr {
    let lines = node.log.events("listening");
    let line = lines.iter().find(|line| line["listener"] == "agent").expect("an agent listener");
    line["address"].as_str().unwrap().parse().unwrap()
}

/// What HAProxy's agent check reads; empty when nobody listens any more.
fn agent_line(address: SocketAddr) -> String {
    let Ok(mut stream) = connect(address) else { return String::new() };
    String::from_utf8(read_to_end(&mut stream, WAIT).expect("it closes")).unwrap()
}

/// Percent in the agent's line, when it takes clients.
fn agent_weight(address: SocketAddr) -> Option<u32> {
    agent_line(address).strip_prefix("up ready ")?.strip_suffix("%\n")?.parse().ok()
}

/// A port of the loopback that nobody has now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running balancer; killed when dropped.
#[derive(Debug)]
pub struct Balancer {
    child: Child,
    /// Where clients connect.
    pub clients: SocketAddr,
    stats: Option<SocketAddr>,
    log: Log,
    _folder: TempDir,
}

impl Balancer {
    /// HAProxy in front of three nodes with an agent each.
    pub fn haproxy(nodes: &[Gateway]) -> Self {
        Self::start(nodes, "haproxy.cfg", |folder, config| {
            let path = folder.join("haproxy.cfg");
            fs::write(&path, config).unwrap();
            let mut command = Command::new(tool("HAPROXY", &["haproxy", ".cache/bin/haproxy"]));
            command.arg("-db").arg("-f").arg(path);
            command
        })
    }

    fn nginx(nodes: &[Gateway]) -> Self {
        Self::start(nodes, "nginx.conf", |folder, config| {
            fs::write(folder.join("example.conf"), config).unwrap();
            // One process, so that killing it leaves none; its files in the test's folder.
            let main = "daemon off; master_process off; pid nginx.pid; error_log stderr;\n\
                events { worker_connections 512; }\n\
                http {\n access_log off;\n client_body_temp_path body;\n proxy_temp_path proxy;\n\
                 fastcgi_temp_path fastcgi;\n uwsgi_temp_path uwsgi;\n scgi_temp_path scgi;\n\
                 include example.conf;\n}\n";
            fs::write(folder.join("nginx.conf"), main).unwrap();
            let mut command = Command::new(tool("NGINX", &["nginx", ".cache/bin/nginx"]));
            command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
            command
        })
    }

    fn start(nodes: &[Gateway], example: &str, prepare: impl Fn(&Path, String) -> Command) -> Self {
        for _ in 0..TRIES {
            let folder = tempfile::tempdir().unwrap();
            let (clients, stats) = (free_port(), free_port());
            let text = fs::read_to_string(root().join("examples").join(example)).unwrap();
            let mut text = text
                .replace("127.0.0.1:8080", &format!("127.0.0.1:{clients}"))
                .replace("127.0.0.1:8404", &format!("127.0.0.1:{stats}"));
            for (at, node) in nodes.iter().enumerate() {
                let agent = agent_of(node).port();
                text = text
                    .replace(&format!("127.0.0.1:808{}", at + 1), &node.public.to_string())
                    .replace(&format!("agent-port 908{}", at + 1), &format!("agent-port {agent}"));
            }
            let mut command = prepare(folder.path(), text);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
            let stats = (example == "haproxy.cfg").then(|| at(stats));
            let mut child = command.spawn().expect("the balancer starts");
            let log = Log::default();
            log.follow(child.stdout.take().unwrap());
            log.follow(child.stderr.take().unwrap());
            let mut balancer = Self { child, clients: at(clients), stats, log, _folder: folder };
            if balancer.await_ready() {
                return balancer;
            }
        }
        panic!("the balancer did not start on {TRIES} ports");
    }

    /// `false` when the process has ended, for example because a port was taken.
    fn await_ready(&mut self) -> bool {
        eventually("the balancer answers", || {
            if self.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let answer = Http::connect(self.clients, None).ok()?.get("/ready").ok()?;
            (answer.status == 200).then_some(true)
        })
    }

    /// Connects a client from another address of the loopback, as it would come back: again and again.
    fn client(&self, user: &str) -> Socket {
        let opening = Opening {
            from: Some(client_address()),
            headers: vec![("X-Forwarded-For".to_owned(), CLAIMED.to_owned())],
            ..Opening::with_token(&token(user))
        };
        let mut socket = eventually("a node behind the balancer takes the client", || {
            Socket::open_at(self.clients, None, &opening).ok()
        });
        socket.await_welcome();
        socket
    }

    /// What HAProxy knows of a server, by the names of its columns.
    fn server(&self, name: &str) -> BTreeMap<String, String> {
        let stats = self.stats.expect("HAProxy has numbers");
        let answer = Http::connect(stats, None).unwrap().get("/stats;csv").unwrap().text();
        let mut lines = answer.lines().map(|line| line.trim_start_matches("# ").split(','));
        let names: Vec<&str> = lines.next().expect("a head").collect();
        let rows = lines.map(|row| names.iter().copied().zip(row).collect::<BTreeMap<_, _>>());
        let mut rows = rows.filter(|row| row.get("svname") == Some(&name));
        let row = rows.next().unwrap_or_else(|| panic!("{name} is in {answer}"));
        row.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn await_server(&self, name: &str, what: &str, wanted: impl Fn(&str, u32) -> bool) {
        eventually(&format!("{name} is {what}"), || {
            let row = self.server(name);
            wanted(&row["status"], row["weight"].parse().ok()?).then_some(())
        });
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the balancer ---\n{}\n---", self.log.text());
        }
    }
}

fn client_address() -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 9).into()
}

fn node_of(socket: &Socket) -> &str {
    socket.welcome()["data"]["node"].as_str().expect("the node's name")
}

fn by_node(sockets: &[Socket]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for socket in sockets {
        *counts.entry(node_of(socket).to_owned()).or_default() += 1;
    }
    counts
}

/// Offsets of the publications in a list.
fn offsets(publications: &[Value]) -> Vec<u64> {
    publications.iter().map(|publication| publication["offset"].as_u64().unwrap()).collect()
}

fn check_spread_and_addresses(nodes: &[Gateway], balancer: &Balancer) {
    let sockets: Vec<Socket> = (0..12).map(|n| balancer.client(&format!("u{n}"))).collect();
    let counts = by_node(&sockets);
    assert!(counts.len() == 3 && counts.values().all(|count| *count >= 2), "{counts:?}");
    let listed = eventually("the node knows the others, and all connections", || {
        Some(nodes[0].connections()).filter(|listed| listed.len() == 12)
    });
    for connection in listed {
        assert_eq!(connection["address"], client_address().to_string(), "{connection}");
    }
    // A page is fetched, then its script opens a WebSocket; the client may do both on one connection.
    let mut http = Http::connect(balancer.clients, None).unwrap();
    assert_eq!(http.get("/ready").unwrap().status, 200);
    assert_eq!(upgrade(&mut http, "page").status, 101);
}

/// Asks for a WebSocket and answers what came.
fn upgrade(http: &mut Http, user: &str) -> Answer {
    let headers = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let path = format!("/ws?token={}", token(user));
    http.request("GET", &path, &headers.map(str::to_owned), &[]).unwrap()
}

/// Clients of a node that drains come to others and have everything.
fn check_drain(nodes: &mut [Gateway], balancer: &Balancer) {
    let mut sockets: Vec<Socket> = (0..9).map(|n| balancer.client(&format!("d{n}"))).collect();
    let epoch = sockets.iter_mut().map(|socket| socket.subscribe("chat:room")["epoch"].clone());
    let epoch = epoch.last().unwrap();
    for n in 0..5 {
        nodes[1].publish("chat:room", json!(n));
    }
    let (mut moving, mut staying): (Vec<Socket>, Vec<Socket>) =
        sockets.into_iter().partition(|socket| node_of(socket) == "a");
    assert!(!moving.is_empty() && !staying.is_empty());
    nodes[0].signal("TERM");
    eventually("the drain begins", || nodes[0].log.events("drain_started").pop());
    for socket in &mut moving {
        assert_eq!(socket.take("disconnect")["data"]["reconnect"], true);
        assert_eq!(socket.wait_close().code, Some(4001));
        nodes[1].publish("chat:room", json!("meanwhile"));
        let mut seen = offsets(&socket.drain("message"));
        let last = seen.last().copied().unwrap_or(0);
        let mut back = balancer.client("back");
        assert_ne!(node_of(&back), "a");
        let recovered = back.recover("chat:room", &json!({"offset": last, "epoch": epoch}));
        assert_eq!(recovered["recovered"], true, "{recovered}");
        seen.extend(offsets(recovered["messages"].as_array().unwrap()));
        let top = recovered["offset"].as_u64().unwrap();
        assert_eq!(seen, (1..=top).collect::<Vec<_>>(), "everything once, in order");
        staying.push(back);
    }
    nodes[1].publish("chat:room", json!("to all"));
    for socket in &mut staying {
        socket.wait_for("the last one", |message| message["data"] == "to all");
    }
    assert_eq!(nodes[0].await_exit(WAIT).code(), Some(0));
}

#[test]
fn haproxy_spreads_clients_and_a_drain_moves_them() {
    let redis = Redis::start(&[]);
    let mut nodes = three_nodes(&redis);
    let balancer = Balancer::haproxy(&nodes);
    check_spread_and_addresses(&nodes, &balancer);
    check_drain(&mut nodes, &balancer);
    balancer.await_server("node-1", "left out", |status, _| status.starts_with("DOWN"));
    balancer.await_server("node-2", "up", |status, _| status == "UP");
}

#[test]
fn nginx_spreads_clients_and_a_drain_moves_them() {
    let redis = Redis::start(&[]);
    let mut nodes = three_nodes(&redis);
    let balancer = Balancer::nginx(&nodes);
    check_spread_and_addresses(&nodes, &balancer);
    check_drain(&mut nodes, &balancer);
}

#[test]
fn a_killed_node_is_left_out() {
    let redis = Redis::start(&[]);
    let mut nodes = three_nodes(&redis);
    let haproxy = Balancer::haproxy(&nodes);
    let nginx = Balancer::nginx(&nodes);
    let clients = |balancer: &Balancer| -> Vec<Socket> {
        (0..6).map(|n| balancer.client(&format!("k{n}"))).collect()
    };
    let before = [clients(&haproxy), clients(&nginx)];
    drop(nodes.remove(0));
    for (balancer, sockets) in [&haproxy, &nginx].into_iter().zip(before) {
        let (lost, kept): (Vec<Socket>, Vec<Socket>) =
            sockets.into_iter().partition(|socket| node_of(socket) == "a");
        assert!(!lost.is_empty() && !kept.is_empty());
        for mut socket in lost {
            assert_ne!(socket.wait_close().code, Some(1000), "it was cut");
        }
        let counts = by_node(&clients(balancer));
        assert!(!counts.contains_key("a"), "{counts:?}");
        for mut socket in kept {
            assert_eq!(socket.call("ping", json!({}))["type"], "pong");
        }
    }
    haproxy.await_server("node-1", "left out", |status, _| status.starts_with("DOWN"));
}

#[test]
fn haproxy_sees_load_and_drain_through_the_agent() {
    let redis = Redis::start(&[]);
    let nodes = three_nodes(&redis);
    let balancer = Balancer::haproxy(&nodes);
    let half: Vec<Socket> = (0..15).map(|n| Socket::connect(&nodes[0], &format!("h{n}"))).collect();
    balancer.await_server("node-1", "given half", |status, weight| {
        status == "UP" && (40..=50).contains(&weight)
    });
    balancer.await_server("node-2", "given all", |_, weight| weight >= 90);
    let rest: Vec<Socket> =
        (15..30).map(|n| Socket::connect(&nodes[0], &format!("h{n}"))).collect();
    balancer.await_server("node-1", "full", |_, weight| weight == 0);
    for client in 0..4 {
        assert_ne!(node_of(&balancer.client(&format!("o{client}"))), "a");
    }
    drop((half, rest));
    balancer.await_server("node-1", "empty again", |_, weight| weight >= 90);
}

#[test]
fn haproxy_drains_a_node_that_asks_for_it_and_takes_it_back() {
    let mut redis = Redis::start(&[]);
    let others = Redis::start(&[]);
    // Without its Redis this node is not ready, and goes on to serve those it has.
    let strict = ready(node(&redis, "a").set("redis.required", true).spawn());
    let nodes = vec![strict, ready(node(&others, "b").spawn()), ready(node(&others, "c").spawn())];
    let balancer = Balancer::haproxy(&nodes);
    let mut staying = eventually("a client sits on the strict node", || {
        let socket = balancer.client("staying");
        (node_of(&socket) == "a").then_some(socket)
    });
    redis.kill();
    eventually("the agent asks for a drain", || {
        (agent_line(agent_of(&nodes[0])) == "drain\n").then_some(())
    });
    // The check of /ready fails at the same time, and its DOWN may hide the DRAIN in the table.
    eventually("HAProxy has heard it", || {
        let lines = balancer.log.lines();
        lines.iter().any(|line| line.contains("node-1") && line.contains("drain")).then_some(())
    });
    for client in 0..4 {
        assert_ne!(node_of(&balancer.client(&format!("d{client}"))), "a");
    }
    assert_eq!(staying.call("ping", json!({}))["type"], "pong", "it is not cut");
    redis.restart();
    balancer.await_server("node-1", "taken back", |status, weight| status == "UP" && weight > 0);
}

#[test]
fn the_agent_works_without_redis_and_says_drain_to_the_end() {
    let mut node = Setup::new()
        .set("listen.agent", "127.0.0.1:0")
        .set("limits.connections_max", 10)
        .set("drain.connections_per_second", 1)
        .set("drain.timeout", "20s")
        .start();
    let agent = agent_of(&node);
    // What the shards themselves are busy with may take a little off.
    eventually("it is empty", || agent_weight(agent).filter(|weight| (90..=100).contains(weight)));
    let sockets: Vec<Socket> = (0..4).map(|n| Socket::connect(&node, &format!("u{n}"))).collect();
    eventually("the weight is what is free", || {
        agent_weight(agent).filter(|weight| (50..=60).contains(weight))
    });
    let answer = node.get("/ready");
    assert_eq!(answer.header("x-archmesh-connections-max"), Some("10"));
    assert!(answer.header("x-archmesh-load").unwrap().parse::<u8>().unwrap() >= 40);
    // A peer that stays costs a place for a second at most, and one that talks gets its answer too.
    let _staying = connect(agent).unwrap();
    let mut talking = connect(agent).unwrap();
    talking.write_all(b"who is there?\n").unwrap();
    let mut line = [0; 8];
    eventually("it is answered", || talking.read_exact(&mut line).ok());
    assert_eq!(&line, b"up ready");
    assert!(node.metric("archmesh_agent_checks_total", &[("outcome", "answered")]) >= 3.0);
    node.signal("TERM");
    eventually("it drains", || (agent_line(agent) == "drain\n").then_some(()));
    drop(sockets);
    assert_eq!(node.await_exit(WAIT).code(), Some(0));
}

#[test]
fn a_full_node_names_another_to_those_it_refuses() {
    let redis = Redis::start(&[]);
    let named = |name: &str| {
        node(&redis, name).set("cluster.url", format!("wss://{name}.example/ws")).spawn()
    };
    let small = node(&redis, "a").set("limits.connections_max", 1).spawn();
    let [a, b, c] = [small, named("b"), named("c")].map(ready);
    let _only = Socket::connect(&a, "first");
    let mut told = BTreeMap::new();
    eventually("both others are named in turn", || {
        let answer = upgrade(&mut a.http(), "second");
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), Some("1"));
        let body = answer.json();
        assert_eq!(body["error"]["code"], "NODE_FULL");
        assert_eq!(answer.header("location"), body["url"].as_str());
        *told.entry(body["url"].as_str()?.to_owned()).or_insert(0) += 1;
        (told.len() == 2).then_some(())
    });
    drop(b);
    eventually("the one that has died is not named any more", || {
        let urls: Vec<_> =
            (0..8).map(|_| upgrade(&mut a.http(), "x").json()["url"].clone()).collect();
        urls.iter().all(|url| url == "wss://c.example/ws").then_some(())
    });
    drop(c);
    eventually("nobody is named when nobody is there", || {
        let answer = upgrade(&mut a.http(), "x");
        (answer.header("location").is_none() && answer.json()["url"].is_null()).then_some(())
    });
}

#[test]
fn a_full_node_is_passed_over_by_the_balancers() {
    let redis = Redis::start(&[]);
    let small = node(&redis, "a").set("limits.connections_max", 1).spawn();
    let nodes = [small, node(&redis, "b").spawn(), node(&redis, "c").spawn()].map(ready);
    let _only = Socket::connect(&nodes[0], "first");
    for balancer in [Balancer::haproxy(&nodes), Balancer::nginx(&nodes)] {
        let opening = Opening::with_token(&token("guest"));
        for _ in 0..6 {
            let opened = Socket::open_at(balancer.clients, None, &opening);
            opened.expect("the first try comes to a node with room").close();
        }
    }
}

/// Stands where clients of a node would connect, and answers or does not.
#[derive(Debug)]
struct Stub {
    address: SocketAddr,
    answers: Arc<AtomicBool>,
}

impl Stub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(AtomicBool::new(true));
        let shared = Arc::clone(&answers);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                if shared.load(Ordering::Relaxed) {
                    let mut head = [0; 1024];
                    let asked = stream
                        .read(&mut head)
                        .is_ok_and(|length| head[..length].starts_with(b"GET /ready HTTP/1.1\r\n"));
                    let status = if asked { "200 OK" } else { "404 Not Found" };
                    // The node may have given up waiting.
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                    );
                }
            }
        });
        Self { address, answers }
    }

    fn answer(&self, answers: bool) {
        self.answers.store(answers, Ordering::Relaxed);
    }
}

#[test]
fn a_node_out_of_reach_gets_no_clients() {
    let (redis, stub) = (Redis::start(&[]), Stub::start());
    let a = node(&redis, "a")
        .set("cluster.url", "ws://a.invalid/ws")
        .set("cluster.probe_interval", "100ms")
        .spawn();
    // Emptier by its weight, so that clients go there as long as they may.
    let b = node(&redis, "b")
        .set("cluster.url", format!("ws://{}/ws", stub.address))
        .set("cluster.weight", 1000)
        .spawn();
    let [a, b] = [a, b].map(ready);
    let _client = Socket::connect(&a, "first");
    let nodes = || a.operators().get("/cluster/nodes").unwrap().json()["nodes"].clone();
    let await_node = |name: &str| {
        eventually(&format!("clients are sent to {name}"), || {
            (a.get("/connect").json()["node"] == name).then_some(())
        });
    };
    await_node("b");
    stub.answer(false);
    eventually("the log says so", || a.log.events("node_unreachable").pop());
    await_node("a");
    let seen = nodes();
    let reachable = |name: &str| {
        let mut nodes = seen.as_array().unwrap().iter();
        nodes.find(|node| node["name"] == name).unwrap()["reachable"].clone()
    };
    assert_eq!((reachable("a"), reachable("b")), (Value::Null, json!(false)), "{seen}");
    assert_eq!(a.metric("archmesh_cluster_nodes_unreachable", &[]), 1.0);
    // It has to hear of the client on the other one first.
    eventually("no node refuses itself", || {
        (b.get("/connect").json()["node"] == "b").then_some(())
    });
    stub.answer(true);
    await_node("b");
    eventually("the log says so", || a.log.events("node_reachable").pop());
}
