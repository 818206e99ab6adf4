//! Setup: one or two shards, clients of several users, and the server API beside them.
//!
//! Must hold: what is published in a channel reaches every subscriber, whichever shard owns it and whoever published,
//! exactly once and in offset order; nobody else gets it; and what the rest of the protocol says about channels.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::gateway::{Gateway, Setup};
use crate::socket::Socket;
use crate::support::token_with;

fn shards_of(gateway: &Gateway, sockets: &[Socket]) -> BTreeSet<u64> {
    let listed = gateway.connections();
    let shard = |socket: &Socket| {
        let mut all = listed.iter();
        let entry = all.find(|entry| entry["session"] == socket.session()).expect("it is listed");
        entry["shard"].as_u64().unwrap()
    };
    sockets.iter().map(shard).collect()
}

fn talk(shards: u16) {
    let gateway = Setup::new().shards(shards).start();
    let mut ada = Socket::connect(&gateway, "ada");
    let mut bob = Socket::connect(&gateway, "bob");
    let mut eve = Socket::connect(&gateway, "eve");
    assert_eq!(ada.subscribe("chat:room")["offset"], 0);
    bob.subscribe("chat:room");
    eve.subscribe("chat:other");
    let position = bob.publish("chat:room", json!({"text": "hello", "n": [1, 2.5, null]}));
    assert_eq!(position["offset"], 1);
    for socket in [&mut ada, &mut bob] {
        let message = socket.take("message");
        assert_eq!(message["channel"], "chat:room");
        assert_eq!(message["data"], json!({"text": "hello", "n": [1, 2.5, null]}));
        assert_eq!((&message["offset"], &message["epoch"]), (&json!(1), &position["epoch"]));
        assert_eq!(message["sender"]["user_id"], "bob");
    }
    assert_eq!(ada.call("unsubscribe", json!({"channel": "chat:room"}))["type"], "unsubscribed");
    bob.publish("chat:room", json!("again"));
    assert_eq!(bob.take("message")["data"], "again");
    assert!(ada.settled("message").is_empty(), "no delivery after unsubscribe");
    assert!(eve.settled("message").is_empty(), "no delivery from another channel");
}

#[test]
pub fn one_shard_delivers() {
    talk(1);
}

#[test]
pub fn two_shards_deliver() {
    talk(2);
}

#[test]
pub fn every_shard_gets_what_any_shard_publishes() {
    let gateway = Setup::new().set("engine.balance", "round_robin").start();
    let mut sockets: Vec<Socket> =
        (0..8).map(|n| Socket::connect(&gateway, &format!("u{n}"))).collect();
    assert_eq!(shards_of(&gateway, &sockets), BTreeSet::from([0, 1]), "both shards are used");
    for channel in ["chat:a", "chat:b", "chat:c", "chat:d"] {
        for socket in &mut sockets {
            socket.subscribe(channel);
        }
        for (n, socket) in sockets.iter_mut().enumerate() {
            let position = socket.publish(channel, json!(n));
            assert_eq!(position["offset"], n + 1);
        }
        for socket in &mut sockets {
            for n in 0..8 {
                let message = socket.take("message");
                assert_eq!((&message["channel"], &message["data"]), (&json!(channel), &json!(n)));
            }
        }
    }
}

#[test]
pub fn the_server_api_reaches_sockets() {
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let update = json!({"workflow_id": "w1", "status": "in_progress", "progress": 40});
    let request = json!({
        "channel": "chat:room", "data": update, "type": "workflow_update", "priority": "high",
    });
    let position = gateway.result("publish", &request);
    let message = ada.take("workflow_update");
    assert_eq!(message["data"], update);
    assert_eq!(message["offset"], position["offset"]);
    assert!(message["sender"].is_null(), "the server is no sender");
    ada.subscribe("chat:second");
    let request = json!({"channels": ["chat:room", "chat:second"], "data": "to both"});
    let responses = gateway.result("broadcast", &request)["responses"].clone();
    assert_eq!(responses.as_array().unwrap().len(), 2, "{responses}");
    let channels: BTreeSet<String> =
        (0..2).map(|_| ada.take("message")["channel"].as_str().unwrap().to_owned()).collect();
    assert_eq!(channels, BTreeSet::from(["chat:room".to_owned(), "chat:second".to_owned()]));
}

#[test]
pub fn order_holds_while_many_publish() {
    const PUBLISHERS: usize = 4;
    const EACH: usize = 250;
    let gateway = Setup::new()
        .set("engine.balance", "round_robin")
        .set("limits.requests_in_flight_max", EACH)
        .start();
    let mut readers: Vec<Socket> =
        (0..6).map(|n| Socket::connect(&gateway, &format!("r{n}"))).collect();
    for reader in &mut readers {
        reader.subscribe("chat:busy");
    }
    std::thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut socket = Socket::connect(gateway, &format!("p{publisher}"));
                for n in 0..EACH {
                    socket
                        .send("publish", &json!({"channel": "chat:busy", "data": [publisher, n]}));
                }
                for _ in 0..EACH {
                    socket.take("published");
                }
            });
        }
    });
    for reader in &mut readers {
        let mut next = [0; PUBLISHERS];
        for offset in 1..=PUBLISHERS * EACH {
            let message = reader.take("message");
            assert_eq!(message["offset"], offset, "neither gap nor duplicate nor reordering");
            let publisher = message["data"][0].as_u64().unwrap() as usize;
            assert_eq!(message["data"][1], next[publisher], "one publisher's order is kept");
            next[publisher] += 1;
        }
    }
}

#[test]
pub fn server_side_subscriptions_come_with_the_welcome() {
    let gateway = Gateway::start();
    let token = token_with("ada", json!({"channels": ["private:board"], "info": {"name": "Ada"}}));
    let mut ada = Socket::connect_with(&gateway, &token);
    let welcome = ada.welcome()["data"].clone();
    assert_eq!(welcome["user_id"], "ada");
    assert_eq!(welcome["node"], "test-node");
    assert!(welcome["expires_at"].is_u64(), "{welcome}");
    let channels: BTreeSet<&str> = welcome["subscriptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["channel"].as_str().unwrap())
        .collect();
    assert_eq!(channels, BTreeSet::from(["private:board", "system", "user:ada"]));
    let mut bob = Socket::connect(&gateway, "bob");
    for channel in ["private:board", "user:ada", "system"] {
        gateway.publish(channel, json!(channel));
        assert_eq!(ada.take("message")["data"], channel);
    }
    assert_eq!(bob.take("message")["channel"], "system");
    assert!(bob.settled("message").is_empty(), "another user's channels are not delivered");
    let refused = bob.call("subscribe", json!({"channel": "user:ada"}));
    assert_eq!(refused["data"]["error_code"], "PERMISSION_DENIED", "{refused}");
}

#[test]
pub fn presence_tells_who_is_there() {
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let phone = token_with("bob", json!({"info": {"device": "phone"}}));
    let mut bob = Socket::connect_with(&gateway, &phone);
    let mut bob_again = Socket::connect(&gateway, "bob");
    bob.subscribe("chat:room");
    let join = ada.wait_for("bob's join", |m| {
        m["type"] == "join" && m["data"]["session_id"] == bob.session()
    });
    assert_eq!(join["data"]["info"]["device"], "phone");
    bob_again.subscribe("chat:room");
    let present = ada.call("presence", json!({"channel": "chat:room"}))["data"].clone();
    assert_eq!((&present["clients"], &present["users"]), (&json!(3), &json!(2)), "{present}");
    let stats = gateway.result("presence_stats", &json!({"channel": "chat:room"}));
    assert_eq!(stats, json!({"num_clients": 3, "num_users": 2}));
    let session = bob.session().to_owned();
    bob.reset();
    ada.wait_for("bob's leave", |m| m["type"] == "leave" && m["data"]["session_id"] == *session);
    let stats = ada.call("presence_stats", json!({"channel": "chat:room"}))["data"].clone();
    assert_eq!((&stats["clients"], &stats["users"]), (&json!(2), &json!(2)), "{stats}");
}

#[test]
pub fn a_repeated_publication_is_published_once() {
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let publish = json!({"channel": "chat:room", "data": 1, "idempotency_key": "order-17"});
    let first = ada.call("publish", publish.clone());
    let second = ada.call("publish", publish.clone());
    assert_eq!(first["data"], second["data"]);
    assert_eq!(gateway.result("publish", &publish), first["data"]);
    assert_eq!(ada.settled("message").len(), 1);
}

fn chunk(whole: &[u8], index: usize, total: usize, size: usize, checksum: &str) -> Value {
    let part = &whole[(index - 1) * size..(index * size).min(whole.len())];
    json!({
        "data_id": "drawing", "chunk_index": index, "total_chunks": total,
        "chunk_data": STANDARD.encode(part), "checksum": checksum,
    })
}

#[test]
pub fn large_data_goes_both_ways() {
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    let whole: Vec<u8> = (0..200_000_u32).map(|n| (n * 31 % 251) as u8).collect();
    let checksum: String = Sha256::digest(&whole).iter().map(|b| format!("{b:02x}")).collect();
    for index in 1..=4 {
        ada.send("large_data", &chunk(&whole, index, 4, 50_000, &checksum));
    }
    let received = ada.take("large_data_received");
    assert_eq!(received["data"]["status"], "received", "{received}");
    assert_eq!(received["data"]["total_size"], 200_000);
    let wrong = "0".repeat(64);
    for index in 1..=4 {
        ada.send("large_data", &chunk(&whole, index, 4, 50_000, &wrong));
    }
    assert_eq!(ada.take("large_data_received")["data"]["status"], "checksum_mismatch");

    ada.subscribe("chat:files");
    let request = json!({"channel": "chat:files", "payload": STANDARD.encode(&whole)});
    let result = gateway.result("large_data", &request);
    assert_eq!(result["checksum"], checksum);
    let mut joined = Vec::new();
    for index in 1..=result["total_chunks"].as_u64().unwrap() {
        let message = ada.take("large_data");
        assert_eq!(message["data"]["chunk_index"], index);
        let part = message["data"]["chunk_data"].as_str().unwrap();
        joined.extend(STANDARD.decode(part).unwrap());
    }
    assert!(joined == whole, "the chunks make up the payload");
}
