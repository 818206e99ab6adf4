//! Two nodes with one database: homes keep a copy of the newest publications and ask for the older ones.
//!
//! Must hold: whoever comes back gets everything the database has, whatever the copy holds; nobody waits for somebody else's
//! question; a subscriber that left meanwhile leaves nothing behind.

use gateway_core::broker::{ChannelUpdate, Snapshot};
use gateway_core::message::{Epoch, StreamPosition};
use gateway_core::metrics::HistoryRead;
use serde_json::{Value, json};

use crate::broker::{ROOM, World};

/// A world with publications 1 to `count`, more than a copy holds when above 10, and the position of the first.
fn world_with(count: u64) -> (World, Value) {
    let mut world = World::durable();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    let first = world.publish(0, a, 1)["data"].clone();
    for n in 2..=count {
        assert_eq!(world.publish(0, a, n)["data"]["offset"], n);
    }
    (world, first)
}

fn offsets(messages: &Value) -> Vec<u64> {
    let messages = messages.as_array().expect("messages");
    messages.iter().map(|message| message["offset"].as_u64().expect("offset")).collect()
}

fn from_to(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

#[test]
fn publications_reach_both_nodes_in_the_order_of_the_rows() {
    let mut world = World::durable();
    let (a, _) = world.subscriber(0, "a", Value::Null);
    let (b, _) = world.subscriber(1, "b", Value::Null);
    for n in 1..=6 {
        let (node, client) = if n % 2 == 0 { (0, a) } else { (1, b) };
        assert_eq!(world.publish(node, client, n)["data"]["offset"], n);
    }
    assert_eq!(world.numbers(0, a), [1, 2, 3, 4, 5, 6]);
    assert_eq!(world.numbers(1, b), [1, 2, 3, 4, 5, 6]);
    assert!(world.streams[ROOM].members.is_empty(), "members are for a broker only");
}

#[test]
fn what_the_copy_has_let_go_comes_from_the_database() {
    let (mut world, first) = world_with(50);
    for node in [0, 1] {
        let (_, reply) = world.subscriber(node, "b", first.clone());
        assert_eq!(reply["recovered"], true, "node {node}");
        assert_eq!(offsets(&reply["messages"]), from_to(2, 50));
    }
    let reads = |world: &mut World, read: HistoryRead| {
        world.nodes[0].count(|metrics| metrics.recovery_reads.0[read as usize])
    };
    assert_eq!(reads(&mut world, HistoryRead::Asked), 1);
    assert_eq!(reads(&mut world, HistoryRead::Held), 0);
    // The newest are in the copy: nothing is asked.
    world.held = Some(Vec::new());
    let mut recent = first;
    recent["offset"] = json!(45);
    let (_, reply) = world.subscriber(0, "c", recent);
    assert_eq!((&reply["recovered"], &reply["offset"]), (&json!(true), &json!(50)));
    assert!(world.held.take().is_some_and(|held| held.is_empty()));
    assert_eq!(reads(&mut world, HistoryRead::Held), 1);
}

#[test]
fn history_comes_from_the_database_page_by_page() {
    let (mut world, _) = world_with(50);
    let (b, _) = world.subscriber(1, "b", Value::Null);
    let mut since = Value::Null;
    let mut read = Vec::new();
    while read.len() < 50 {
        let mut query = json!({"channel": ROOM, "limit": 20});
        if !since.is_null() {
            query["since"] = since;
        }
        let reply = world.call(1, b, "history", query);
        let page = offsets(&reply["data"]["messages"]);
        assert!(!page.is_empty(), "{reply}");
        since = json!({"offset": page.last(), "epoch": reply["data"]["epoch"]});
        read.extend(page);
    }
    assert_eq!(read, from_to(1, 50));
    let foreign = json!({"offset": 3, "epoch": "zzzzzzzz"});
    let reply = world.call(1, b, "history", json!({"channel": ROOM, "since": foreign}));
    assert_eq!(reply["data"]["error_code"], "UNRECOVERABLE_POSITION", "{reply}");
}

#[test]
fn publications_go_on_while_a_page_is_read() {
    let (mut world, first) = world_with(30);
    let (a, _) = world.subscriber(0, "a2", Value::Null);
    world.held = Some(Vec::new());
    let token = world.nodes[0].token("b", json!({}));
    let b = world.nodes[0].upgrade(0, &format!("/ws?token={token}"), "");
    world.settle();
    world.nodes[0].take(b, "welcome");
    let wish = json!({"type": "subscribe", "id": "s", "data": {"channel": ROOM, "recover": first}});
    world.nodes[0].send(b, &wish);
    world.settle();
    for n in 31..=35 {
        world.publish(0, a, n);
    }
    assert_eq!(world.numbers(0, a), from_to(31, 35));
    world.release();
    let reply = world.nodes[0].take(b, "subscribed");
    assert_eq!(reply["data"]["recovered"], true);
    assert_eq!(offsets(&reply["data"]["messages"]), from_to(2, 35));
    world.publish(0, a, 36);
    assert_eq!(world.numbers(0, b), [36]);
}

#[test]
fn who_leaves_while_a_page_is_read_leaves_nothing_behind() {
    let (mut world, first) = world_with(30);
    world.held = Some(Vec::new());
    let token = world.nodes[0].token("b", json!({}));
    let b = world.nodes[0].upgrade(0, &format!("/ws?token={token}"), "");
    world.settle();
    let wish = json!({"type": "subscribe", "id": "s", "data": {"channel": ROOM, "recover": first}});
    world.nodes[0].send(b, &wish);
    world.settle();
    world.nodes[0].drop_socket(b);
    world.settle();
    world.release();
    let (c, _) = world.subscriber(0, "c", Value::Null);
    let stats = world.call(0, c, "presence_stats", json!({"channel": ROOM}));
    assert_eq!(stats["data"]["users"], 2, "a and c: {stats}");
}

#[test]
fn without_the_database_nothing_is_claimed_and_nothing_is_lost() {
    let (mut world, first) = world_with(30);
    world.away = true;
    let (b, reply) = world.subscriber(1, "b", first.clone());
    assert_eq!(reply["recovered"], false, "the node has never seen the channel");
    let reply = world.publish(1, b, 99);
    assert_eq!(
        (&reply["type"], &reply["data"]["error_code"]),
        (&json!("error"), &json!("UNAVAILABLE"))
    );
    let reply = world.call(1, b, "history", json!({"channel": ROOM}));
    assert_eq!(reply["data"]["error_code"], "UNAVAILABLE", "{reply}");
    // Its copy does not reach back so far, and the client is to come again rather than start anew.
    let (c, _) = world.subscriber(0, "c", Value::Null);
    world.call(0, c, "unsubscribe", json!({"channel": ROOM}));
    let reply = world.call(0, c, "subscribe", json!({"channel": ROOM, "recover": first}));
    assert_eq!(reply["data"]["error_code"], "UNAVAILABLE", "{reply}");
    world.come_back();
    let reply = world.call(0, c, "subscribe", json!({"channel": ROOM, "recover": first}));
    assert_eq!(offsets(&reply["data"]["messages"]), from_to(2, 30));
}

#[test]
fn a_hole_between_nodes_is_filled() {
    let (mut world, _) = world_with(3);
    let (b, _) = world.subscriber(1, "b", Value::Null);
    let (a, _) = world.subscriber(0, "a2", Value::Null);
    world.deaf = true;
    for n in 4..=9 {
        world.publish(0, a, n);
    }
    world.deaf = false;
    world.tell(1, &ROOM.into(), ChannelUpdate::Behind);
    world.settle();
    assert_eq!(world.numbers(1, b), from_to(4, 9));
    // More than a snapshot holds: the hub of the shard asks for the rest.
    world.deaf = true;
    for n in 10..=40 {
        world.publish(0, a, n);
    }
    world.deaf = false;
    world.publish(0, a, 41);
    assert_eq!(world.numbers(1, b), from_to(10, 41));
}

/// Members come from the broker, publications from the database: only what the broker has not told makes presence partial.
#[test]
fn presence_is_partial_only_without_the_brokers_members() {
    let mut alone = World::durable();
    let (a, _) = alone.subscriber(0, "a", Value::Null);
    assert!(!alone.partial(0, a));
    alone.away = true;
    let (b, _) = alone.subscriber(1, "b", Value::Null);
    assert!(!alone.partial(1, b), "there is no other node");

    let mut world = World::durable_with_broker();
    world.away = true;
    let (a, _) = world.subscriber(0, "a", Value::Null);
    assert!(world.partial(0, a));
    let snapshot = |members| {
        let top = StreamPosition { offset: 0, epoch: Epoch(*b"epoch000") };
        let snapshot = Snapshot { top, publications: Vec::new(), server: 0, members };
        ChannelUpdate::Snapshot(Box::new(snapshot))
    };
    // The database answers, Redis does not.
    world.tell(0, &ROOM.into(), snapshot(None));
    world.settle();
    assert!(world.partial(0, a));
    world.tell(0, &ROOM.into(), snapshot(Some(Vec::new())));
    world.tell(0, &ROOM.into(), snapshot(None));
    world.settle();
    assert!(!world.partial(0, a), "members were told, and need not be told again");
    let page = world.call(0, a, "history", json!({"channel": ROOM}));
    assert_eq!(page["data"]["error_code"], "UNAVAILABLE", "{page}");
    world.come_back();
    let page = world.call(0, a, "history", json!({"channel": ROOM}));
    assert!(page["type"] == "history" && page["data"]["partial"].is_null(), "{page}");
}
