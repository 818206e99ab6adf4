//! Two nodes with a real Redis and one database.

use serde_json::{Value, json};

use super::{CHAT, Database, Recorded, await_told, events_of, hook_toml, recording, types};
use crate::delivery::receiver::Receiver;
use crate::gateway::Gateway;
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::{WAIT, eventually};

const KINDS: &str =
    "\"connected\", \"disconnected\", \"channel_occupied\", \"channel_vacated\", \"message\"";

struct World {
    nodes: Vec<Gateway>,
    hook: Receiver,
    _redis: Redis,
}

impl World {
    fn start() -> Self {
        let (database, redis, hook) = (Database::postgres(), Redis::start(&[]), Receiver::start());
        let toml = format!("{CHAT}{}", hook_toml(&hook.url("/"), KINDS, ""));
        let node = |name: &str| {
            let setup = recording(&database, "")
                .toml(&toml)
                .set("node.name", name)
                .set("redis.url", redis.url())
                .set("events.channels", "chat:")
                .set("events.sessions", true);
            let node = setup.start();
            node.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
            node
        };
        let nodes = vec![node("a"), node("b")];
        Self { nodes, hook, _redis: redis }
    }

    fn of_channels(&self) -> Vec<Value> {
        let mut events = self.nodes[1].events("type=channel_occupied");
        events.extend(self.nodes[1].events("type=channel_vacated"));
        events.sort_by_key(|event| event["id"].as_i64());
        events
    }

    fn await_channels(&self, expected: &[&str]) {
        eventually(&format!("channels are {expected:?}"), || {
            (types(&self.of_channels()) == expected).then_some(())
        });
    }

    /// Everything of the log has been told, once.
    fn check_told_once(&self) {
        let log = self.nodes[1].events("");
        let told = await_told(&self.hook, log.len());
        assert_eq!(told, log);
        let arrived: usize = self.hook.arrived().iter().map(|one| events_of(one).len()).sum();
        assert_eq!(arrived, log.len(), "two nodes share the work");
    }
}

#[test]
fn a_channel_is_told_once_for_all_nodes() {
    let world = World::start();
    let mut sockets: Vec<Socket> =
        world.nodes.iter().map(|node| Socket::connect(node, "ada")).collect();
    for socket in &mut sockets {
        socket.subscribe("chat:room");
    }
    world.await_channels(&["channel_occupied"]);
    for node in &world.nodes {
        node.await_metric("archmesh_events_channels", &[], |channels| channels == 1.0);
    }
    sockets.remove(0).close();
    world.nodes[0].await_metric("archmesh_events_channels", &[], |channels| channels == 0.0);
    // Written after what the other node has just removed.
    sockets[0].publish("chat:room", json!(1));
    world.nodes[1].await_events("type=message", 1);
    world.await_channels(&["channel_occupied"]);
    sockets.remove(0).close();
    world.await_channels(&["channel_occupied", "channel_vacated"]);
    world.check_told_once();
}

#[test]
fn what_a_killed_node_leaves_is_ended_by_another() {
    let mut world = World::start();
    let mut ada = Socket::connect(&world.nodes[0], "ada");
    let mut bob = Socket::connect(&world.nodes[1], "bob");
    ada.subscribe("chat:both");
    ada.subscribe("chat:hers");
    bob.subscribe("chat:both");
    world.await_channels(&["channel_occupied", "channel_occupied"]);
    world.nodes[1].await_metric("archmesh_events_channels", &[], |channels| channels == 1.0);
    world.nodes[0].signal("KILL");
    world.nodes[0].await_exit(WAIT);
    world.await_channels(&["channel_occupied", "channel_occupied", "channel_vacated"]);
    assert_eq!(world.of_channels()[2]["channel"], "chat:hers");
    let lost = world.nodes[1].await_events("type=disconnected", 1);
    assert_eq!((&lost[0]["user_id"], &lost[0]["node"]), (&json!("ada"), &json!("a")));
    assert_eq!(lost[0]["data"]["reason"], "node_lost");
    let sessions = world.nodes[1].found("/api/v1/users/ada/sessions");
    assert_eq!(sessions["sessions"][0]["reason"], "node_lost");
    world.check_told_once();
}

#[test]
fn a_node_that_comes_back_has_everything_again() {
    let world = World::start();
    let mut ada = Socket::connect(&world.nodes[0], "ada");
    ada.subscribe("chat:hers");
    world.await_channels(&["channel_occupied"]);
    world.nodes[0].signal("STOP");
    world.await_channels(&["channel_occupied", "channel_vacated"]);
    world.nodes[0].signal("CONT");
    world.await_channels(&["channel_occupied", "channel_vacated", "channel_occupied"]);
    let told = eventually("the session is back", || {
        let of = world.nodes[1].events("user=ada");
        (types(&of) == ["connected", "disconnected", "connected"]).then_some(of)
    });
    assert_eq!(told[2]["data"]["again"], true);
    let sessions = world.nodes[1].found("/api/v1/users/ada/sessions");
    assert!(sessions["sessions"][0]["disconnected_at"].is_null(), "{sessions}");
    assert_eq!(world.nodes[0].metric("archmesh_events_node_lost_total", &[]), 1.0);
    ada.close();
    world.await_channels(&[
        "channel_occupied",
        "channel_vacated",
        "channel_occupied",
        "channel_vacated",
    ]);
}

#[test]
fn a_message_is_told_once_wherever_it_is_published() {
    let world = World::start();
    let mut ada = Socket::connect(&world.nodes[0], "ada");
    let mut bob = Socket::connect(&world.nodes[1], "bob");
    bob.subscribe("chat:room");
    let again = json!({"channel": "chat:room", "data": 1, "idempotency_key": "k"});
    for _ in 0..2 {
        assert_eq!(ada.call("publish", again.clone())["type"], "published");
    }
    // On a channel that nobody watches, and past the history.
    ada.publish("chat:empty", json!(2));
    bob.call("publish", json!({"channel": "chat:room", "data": 3}));
    let messages = world.nodes[1].await_events("type=message", 3);
    let mut told: Vec<Value> = messages
        .iter()
        .map(|event| json!([event["user_id"], event["data"]["data"], event["data"]["offset"]]))
        .collect();
    told.sort_by_key(|one| one[1].as_i64());
    assert_eq!(json!(told), json!([["ada", 1, 1], ["ada", 2, 1], ["bob", 3, 2]]));
    world.check_told_once();
}
