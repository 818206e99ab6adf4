//! Setup: two nodes and a real Redis that hangs, dies and comes back.
//!
//! Must hold: presence and history say that they may be incomplete while Redis is known to be away, by WebSocket and by the server
//! API, and at no other time.

use serde_json::{Value, json};

use crate::broker::{REPAIRED_MAX, pair};
use crate::gateway::Gateway;
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::within;

const ROOM: &str = "session:room";

/// What may be partial.
const READS: [&str; 3] = ["presence", "presence_stats", "history"];

/// Whether each of [`READS`] says so, by WebSocket and by API.
fn said(gateway: &Gateway, socket: &mut Socket) -> [[bool; 2]; READS.len()] {
    let is_partial = |answer: &Value| {
        let partial = &answer["partial"];
        assert!(partial.is_null() || partial == true, "{answer}");
        partial == true
    };
    READS.map(|kind| {
        let mut question = json!({"channel": ROOM});
        let by_socket = socket.call(kind, question.clone());
        assert_eq!(by_socket["type"], kind, "{by_socket}");
        if kind == "history" {
            question["limit"] = 10.into();
        }
        let by_api = gateway.result(kind, &question);
        [&by_socket["data"], &by_api].map(is_partial)
    })
}

fn await_said(gateway: &Gateway, socket: &mut Socket, partial: bool) {
    within(REPAIRED_MAX, &format!("all of {READS:?} say partial: {partial}"), || {
        (said(gateway, socket) == [[partial; 2]; READS.len()]).then_some(())
    });
}

#[test]
fn what_may_be_incomplete_says_so_while_redis_is_away() {
    let mut redis = Redis::start(&[]);
    let (a, b) = pair(&redis);
    let mut ada = Socket::connect(&a, "ada");
    let mut bob = Socket::connect(&b, "bob");
    ada.subscribe(ROOM);
    bob.subscribe(ROOM);
    ada.publish(ROOM, json!({"n": 1}));
    assert_eq!(said(&a, &mut ada), [[false; 2]; READS.len()]);
    redis.signal("STOP");
    await_said(&a, &mut ada, true);
    redis.signal("CONT");
    await_said(&a, &mut ada, false);
    redis.kill();
    await_said(&a, &mut ada, true);
    await_said(&b, &mut bob, true);
    // Members of a channel that the node has never heard of are not known at all.
    let stats = a.result("presence_stats", &json!({"channel": "session:other"}));
    assert_eq!(stats, json!({"num_clients": 0, "num_users": 0, "partial": true}));
    redis.restart();
    await_said(&a, &mut ada, false);
    await_said(&b, &mut bob, false);
}
