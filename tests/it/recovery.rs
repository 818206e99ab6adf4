//! Setup: a client with a position goes away and comes back, quietly or while others publish.
//!
//! Must hold: it gets exactly what it missed, each publication once and in order, or is told `recovered: false`; never
//! a silent gap, also not when the node has forgotten everything.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::socket::Socket;

fn numbers(messages: &Value) -> Vec<u64> {
    let messages = messages.as_array().expect("a list of publications");
    messages.iter().map(|message| message["data"].as_u64().expect("a number")).collect()
}

#[test]
pub fn exactly_what_was_missed_comes_back() {
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    gateway.publish("chat:room", json!(0));
    let seen = ada.take("message");
    ada.reset();
    for n in 1..=50 {
        gateway.publish("chat:room", json!(n));
    }
    let mut ada = Socket::connect(&gateway, "ada");
    let subscribed = ada.recover("chat:room", &seen);
    assert_eq!(subscribed["recovered"], true);
    let mut came = numbers(&subscribed["messages"]);
    // Through Redis the answer to a publisher may be faster than the publication, which then comes live.
    while came.len() < 50 {
        came.push(ada.take("message")["data"].as_u64().expect("a number"));
    }
    assert_eq!(came, (1..=50).collect::<Vec<_>>());
    gateway.publish("chat:room", json!(51));
    assert_eq!(ada.take("message")["data"], 51);
    assert_eq!(ada.settled("message").len(), 0, "nothing comes twice");
    gateway.await_metric("archmesh_recoveries_total", &[("result", "ok")], |n| n >= 1.0);
}

#[test]
pub fn what_the_history_does_not_hold_is_said() {
    let toml = "[[namespaces]]\nname = \"chat\"\nhistory_size = 10\n";
    let gateway = Setup::new().toml(toml).start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let seen = gateway.publish("chat:room", json!(0));
    ada.reset();
    for n in 1..=11 {
        gateway.publish("chat:room", json!(n));
    }
    let mut ada = Socket::connect(&gateway, "ada");
    let subscribed = ada.recover("chat:room", &seen);
    assert_eq!(subscribed["recovered"], false);
    assert_eq!(subscribed["messages"], json!([]));
    assert_eq!(subscribed["offset"], 12, "it goes on from the top");
    ada.call("unsubscribe", json!({"channel": "chat:room"}));
    let within = json!({"offset": 3, "epoch": seen["epoch"]});
    assert_eq!(
        numbers(&ada.recover("chat:room", &within)["messages"]),
        (3..=11).collect::<Vec<_>>()
    );
    ada.call("unsubscribe", json!({"channel": "chat:room"}));
    let stranger = json!({"offset": 12, "epoch": "zzzzzzzz"});
    assert_eq!(ada.recover("chat:room", &stranger)["recovered"], false);
    gateway.await_metric("archmesh_recoveries_total", &[("result", "failed")], |n| n >= 2.0);
}

#[test]
pub fn no_gap_and_no_duplicate_while_others_publish() {
    const ROUNDS: usize = 25;
    let gateway = Setup::new()
        .set("engine.balance", "round_robin")
        .toml("[[namespaces]]\nname = \"chat\"\nhistory_size = 100000\n")
        .start();
    let stop = AtomicBool::new(false);
    let (last, published) = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut socket = Socket::connect(&gateway, "publisher");
            let mut published = 0;
            while !stop.load(Ordering::Relaxed) {
                published += 1;
                socket.publish("chat:busy", json!(published));
            }
            published
        });
        let mut position = json!({"offset": 0, "epoch": ""});
        let mut next: u64 = 1;
        for round in 0..ROUNDS {
            let mut socket = Socket::connect(&gateway, "reader");
            let subscribed = socket.recover("chat:busy", &position);
            assert_eq!(subscribed["recovered"], true, "round {round} from {position}");
            let messages = subscribed["messages"].as_array().unwrap().clone();
            let live = (0..20).map(|_| socket.take("message")).collect::<Vec<_>>();
            for message in messages.iter().chain(&live) {
                assert_eq!(message["data"], next, "round {round}");
                assert_eq!(message["offset"], next, "round {round}");
                next += 1;
                position = message.clone();
            }
            if round % 2 == 0 { socket.reset() } else { drop(socket) }
        }
        stop.store(true, Ordering::Relaxed);
        (position, publisher.join().unwrap())
    });
    let mut socket = Socket::connect(&gateway, "reader");
    let rest = socket.recover("chat:busy", &last);
    let from = last["offset"].as_u64().unwrap() + 1;
    assert_eq!(numbers(&rest["messages"]), (from..=published).collect::<Vec<_>>());
}

#[test]
pub fn a_restarted_node_says_that_it_forgot() {
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let seen = ada.publish("chat:room", json!("before"));
    drop(gateway);
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    let subscribed = ada.recover("chat:room", &seen);
    assert_eq!(subscribed["recovered"], false);
    assert_ne!(subscribed["epoch"], seen["epoch"]);
}

#[test]
pub fn the_first_message_may_carry_positions() {
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    gateway.publish("user:ada", json!("seen"));
    let seen = ada.take("message");
    // Another device shows when the publication has come to this node: through Redis that may be after its answer.
    let mut other = Socket::connect(&gateway, "ada");
    ada.reset();
    gateway.publish("user:ada", json!("missed"));
    other.take("message");
    let opening = crate::socket::Opening { target: "/ws".into(), ..Default::default() };
    let mut ada = Socket::open(&gateway, &opening).unwrap();
    let recover = json!({"user:ada": {"offset": seen["offset"], "epoch": seen["epoch"]}});
    let token = crate::support::token("ada");
    let welcome = ada.call("auth", json!({"token": token, "recover": recover}));
    let subscriptions = welcome["data"]["subscriptions"].as_array().unwrap();
    let mine = subscriptions.iter().find(|s| s["channel"] == "user:ada").unwrap();
    assert_eq!(mine["recovered"], true, "{welcome}");
    assert_eq!(mine["messages"][0]["data"], "missed");
}

#[test]
pub fn history_is_read_in_pages() {
    let gateway = Gateway::start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let first = ada.publish("chat:room", json!(1));
    for n in 2..=10 {
        ada.publish("chat:room", json!(n));
    }
    let page = |socket: &mut Socket, query: Value| {
        let mut data = query;
        data["channel"] = json!("chat:room");
        socket.call("history", data)["data"].clone()
    };
    let reply = page(&mut ada, json!({"limit": 3, "since": first}));
    assert_eq!(numbers(&reply["messages"]), [2, 3, 4], "{reply}");
    let reply = page(&mut ada, json!({"limit": 3, "reverse": true}));
    assert_eq!(numbers(&reply["messages"]), [10, 9, 8], "{reply}");
}
