//! Setup: three nodes with a real Redis, connections on all of them, and a node that hangs or dies.
//!
//! Must hold: every node answers the same about connections, channels, users and nodes; each connection is listed once over
//! all pages; what is missing is called partial, within the deadline, and never an error.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::{eventually, within};

const NODES: [&str; 3] = ["a", "b", "c"];
/// A killed node's lease ends within 3.5 s here; the rest is for a busy machine.
const GONE_MAX: Duration = Duration::from_secs(20);
/// A lease that ends soon, and one that ends on no busy machine.
const SHORT: &str = "3s";
const LONG: &str = "20s";

fn three(redis: &Redis, lease: &str) -> Vec<Gateway> {
    let start = |name: &&str| {
        Setup::new()
            .set("node.name", name)
            .set("redis.url", redis.url())
            .set("redis.breaker_open", "200ms")
            .set("cluster.lease_interval", "200ms")
            .set("cluster.lease_ttl", lease)
            .set("api.timeout", "3s")
            .start()
    };
    let gateways: Vec<Gateway> = NODES.iter().map(start).collect();
    for gateway in &gateways {
        gateway.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
        gateway.await_metric("archmesh_cluster_nodes", &[("state", "up")], |nodes| nodes == 3.0);
    }
    gateways
}

/// Two connections of the node's own user and one of a user who is everywhere, on every node.
fn connect(gateways: &[Gateway]) -> Vec<Socket> {
    let mut sockets = Vec::new();
    for (gateway, name) in gateways.iter().zip(NODES) {
        for user in [name, name, "ada"] {
            let mut socket = Socket::connect(gateway, user);
            socket.subscribe("chat:all");
            socket.subscribe(&format!("chat:{name}"));
            sockets.push(socket);
        }
    }
    sockets
}

/// Sessions over all pages of a listing, and whether a page was partial.
fn sessions(gateway: &Gateway, user: Option<&str>, limit: u32) -> (Vec<String>, bool) {
    let (mut sessions, mut partial) = (Vec::new(), false);
    let mut request = json!({"limit": limit});
    if let Some(user) = user {
        request["user"] = user.into();
    }
    loop {
        let page = gateway.result("connections", &request);
        partial |= page["partial"] == true;
        for connection in page["connections"].as_array().unwrap() {
            sessions.push(connection["session"].as_str().unwrap().to_owned());
        }
        if page["next_cursor"].is_null() {
            return (sessions, partial);
        }
        request["cursor"] = page["next_cursor"].clone();
    }
}

fn names(info: &Value) -> Vec<&str> {
    info["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect()
}

#[test]
fn every_node_answers_for_all() {
    let redis = Redis::start(&[]);
    let gateways = three(&redis, LONG);
    let sockets = connect(&gateways);
    let expected: BTreeSet<String> =
        sockets.iter().map(|socket| socket.session().to_owned()).collect();
    for gateway in &gateways {
        for limit in [1, 2, 4, 100] {
            let (listed, partial) = sessions(gateway, None, limit);
            assert!(!partial);
            assert_eq!(listed.len(), expected.len(), "each once, with pages of {limit}");
            assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
        }
        assert_eq!(sessions(gateway, Some("ada"), 2).0.len(), 3);
        let one = gateway.result("connection", &json!({"session": sockets[8].session()}));
        assert_eq!((&one["node"], &one["user"]), (&json!("c"), &json!("ada")));
        let nobody = gateway.api("connection", &json!({"session": "no-such-session"}));
        assert_eq!(nobody["error"]["temporary"], Value::Null, "{nobody}");
        let status = gateway.result("user_status", &json!({"users": ["ada", "b", "nobody"]}));
        let counts = [0, 1, 2].map(|at: usize| status["statuses"][at]["connections"].clone());
        assert_eq!(counts, [json!(3), json!(2), json!(0)], "{status}");
        let channels = gateway.result("channels", &json!({"prefix": "chat:"}));
        let listed: Vec<&String> = channels["channels"].as_object().unwrap().keys().collect();
        assert_eq!(listed, ["chat:a", "chat:all", "chat:b", "chat:c"]);
        assert_eq!(channels["channels"]["chat:all"]["num_clients"], 9, "{channels}");
        let first = gateway.result("channels", &json!({"prefix": "chat:", "limit": 1}));
        assert_eq!((&first["truncated"], &first["partial"]), (&json!(true), &json!(false)));
        let info = gateway.result("info", &json!({}));
        assert_eq!((names(&info), &info["partial"]), (NODES.to_vec(), &json!(false)));
        // Counters are given out again for a moment before the shards are asked anew.
        eventually("the counters are those of all connections", || {
            let info = gateway.result("info", &json!({}));
            let nodes = info["nodes"].as_array()?;
            nodes.iter().all(|node| node["num_clients"] == 3).then_some(())
        });
    }
    let complete =
        gateways[0].metric("archmesh_broker_questions_total", &[("outcome", "complete")]);
    assert!(complete > 0.0);
}

#[test]
fn a_node_that_does_not_answer_makes_results_partial() {
    let redis = Redis::start(&[]);
    let mut gateways = three(&redis, SHORT);
    let sockets = connect(&gateways);
    gateways[2].signal("STOP");
    let began = Instant::now();
    let info = gateways[0].result("info", &json!({}));
    assert_eq!((names(&info), &info["partial"]), (vec!["a", "b"], &json!(true)));
    assert!(began.elapsed() < Duration::from_secs(3), "within the deadline of the call");
    // Its lease ends: then nobody waits for it any more.
    within(GONE_MAX, "the hung node is gone", || {
        let info = gateways[0].result("info", &json!({}));
        (info["partial"] == false).then(|| assert_eq!(names(&info), ["a", "b"]))
    });
    gateways[2].signal("CONT");
    eventually("it is back under another number", || {
        let (listed, partial) = sessions(&gateways[1], None, 4);
        (!partial && listed.len() == sockets.len()).then_some(())
    });
    gateways[2].signal("KILL");
    gateways[2].await_exit(Duration::from_secs(10));
    within(GONE_MAX, "the killed node is gone", || {
        let (listed, partial) = sessions(&gateways[0], None, 4);
        (!partial && listed.len() == 6).then_some(())
    });
}

#[test]
fn without_redis_a_node_answers_for_itself() {
    let redis = Redis::start(&[]);
    let gateways = three(&redis, LONG);
    let _sockets = connect(&gateways);
    redis.signal("STOP");
    let (listed, partial) = sessions(&gateways[0], None, 100);
    assert!(partial && listed.len() == 3, "{listed:?}");
    let info = gateways[0].result("info", &json!({}));
    assert_eq!((names(&info), &info["partial"]), (vec!["a"], &json!(true)));
    let channels = gateways[0].result("channels", &json!({"prefix": "chat:"}));
    assert_eq!(channels["partial"], true, "{channels}");
    redis.signal("CONT");
    eventually("all answer again", || {
        let (listed, partial) = sessions(&gateways[0], None, 4);
        (!partial && listed.len() == 9).then_some(())
    });
}
