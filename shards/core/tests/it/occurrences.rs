//! What the control plane is told of what happens, with a control queue that is full now and then.
//!
//! Must hold: nothing that is not asked for; a session that was told to be connected is told once to be gone, and after that;
//! a channel is told when it becomes watched and unwatched, and once the queue has room with what is true then; a client's
//! message once, as its channel got it; what waits is bounded.

use std::sync::Arc;

use gateway_core::Output;
use gateway_core::broker::{BrokerOp, BrokerRequest};
use gateway_core::error::Disconnect;
use gateway_core::ids::{ConnectionId, ShardId};
use gateway_core::message::{
    ChannelOp, ChannelRequest, ControlMessage, Origin, Publish, ShardMessage,
};
use gateway_core::metrics::DropKind;
use gateway_core::occurrence::{Happening, Occurrence, OccurrenceSettings};
use gateway_core::settings::{BrokerSettings, Namespaces, Settings};
use serde_json::json;

use crate::node::{Node, settings};

/// Everything is asked for; messages in `chat` only.
fn curious() -> Settings {
    let mut settings = settings();
    settings.notifications = false;
    settings.occurrences = OccurrenceSettings {
        sessions: true,
        authentication: true,
        channels: vec!["chat:".into()],
        messages: true,
        waiting_max: 3,
        waiting_bytes_max: 4096,
    };
    let mut namespaces: Vec<_> = settings.namespaces.iter().cloned().collect();
    for namespace in &mut namespaces {
        namespace.webhook_messages = *namespace.name == *"chat";
    }
    settings.namespaces = Namespaces::new(namespaces);
    settings
}

fn occurrences(node: &mut Node) -> Vec<Occurrence> {
    let (told, others) = std::mem::take(&mut node.control)
        .into_iter()
        .partition(|message| matches!(message, ControlMessage::Occurred(_)));
    node.control = others;
    let told: Vec<ControlMessage> = told;
    told.into_iter()
        .filter_map(|message| match message {
            ControlMessage::Occurred(occurrence) => Some(*occurrence),
            _ => None,
        })
        .collect()
}

/// One word for each.
fn words(node: &mut Node) -> Vec<String> {
    occurrences(node)
        .into_iter()
        .map(|occurrence| match occurrence.what {
            Happening::Connected { user, .. } => format!("+{user}"),
            Happening::Disconnected { user, reason, .. } => format!("-{user} {}", reason.reason()),
            Happening::AuthenticationFailed { error, .. } => format!("!{error:?}"),
            Happening::Watched { channel, watched } => {
                format!("{channel} {}", if watched { "watched" } else { "unwatched" })
            }
            Happening::Message(message) => {
                let data = String::from_utf8_lossy(&message.data).into_owned();
                format!("{} {} {data}", message.channel, message.position.offset)
            }
        })
        .collect()
}

#[test]
fn nothing_is_told_that_nobody_asked_for() {
    let mut node = Node::new(2);
    let client = node.connect(0, "alice");
    node.call(client, "subscribe", json!({"channel": "chat:room"}));
    node.call(client, "publish", json!({"channel": "chat:room", "data": 1}));
    node.drop_socket(client);
    node.settle();
    assert!(words(&mut node).is_empty());
}

#[test]
fn sessions_and_channels_are_told_as_they_come_and_go() {
    let mut node = Node::with(2, curious());
    let (alice, bob) = (node.connect(0, "alice"), node.connect(1, "bob"));
    assert_eq!(words(&mut node), ["+alice", "+bob"]);
    for client in [alice, bob] {
        node.call(client, "subscribe", json!({"channel": "chat:room"}));
        node.call(client, "subscribe", json!({"channel": "live:room"}));
    }
    assert_eq!(words(&mut node), ["chat:room watched"], "once for all shards");
    node.call(alice, "unsubscribe", json!({"channel": "chat:room"}));
    assert!(words(&mut node).is_empty(), "bob still watches");
    node.drop_socket(bob);
    node.settle();
    let lost = Disconnect::ConnectionLost.reason();
    let mut told = words(&mut node);
    told.sort();
    assert_eq!(told, [format!("-bob {lost}"), "chat:room unwatched".to_owned()]);
    node.drop_socket(alice);
    node.settle();
    assert_eq!(words(&mut node), [format!("-alice {lost}")]);
}

#[test]
fn a_refused_token_is_told_and_no_session() {
    let mut node = Node::with(1, curious());
    let client = node.upgrade(0, "/ws", "");
    node.send(client, &json!({"type": "auth", "id": "1", "data": {"token": "x.y.z"}}));
    node.settle();
    node.drop_socket(client);
    node.settle();
    assert_eq!(words(&mut node), ["!Malformed"]);
}

#[test]
fn a_message_is_told_once_as_its_channel_got_it() {
    let mut node = Node::with(2, curious());
    let client = node.connect(0, "alice");
    occurrences(&mut node);
    let publish = json!({"channel": "chat:room", "data": {"x": 1}, "idempotency_key": "k"});
    node.call(client, "publish", publish.clone());
    node.call(client, "publish", publish);
    node.call(client, "publish", json!({"channel": "live:room", "data": 2}));
    let told = occurrences(&mut node);
    assert_eq!(told.len(), 1, "{told:?}");
    let Happening::Message(message) = &told[0].what else { panic!("{told:?}") };
    assert_eq!((&*message.channel, message.position.offset), ("chat:room", 1));
    assert_eq!(&message.data[..], br#"{"x":1}"#);
    let sender: serde_json::Value =
        serde_json::from_slice(message.sender.as_ref().unwrap()).unwrap();
    assert_eq!(sender["user_id"], "alice");
    let publish = Publish { data: b"3".as_slice().into(), ..Publish::default() };
    node.api("chat:room", ChannelOp::Publish(publish)).unwrap();
    assert!(words(&mut node).is_empty(), "the server's own messages are not told");
}

/// The driver of the broker tells it when the message has its place.
#[test]
fn with_a_broker_a_home_does_not_tell_a_message() {
    let mut settings = curious();
    settings.broker = Some(BrokerSettings { detach_delay: std::time::Duration::from_secs(30) });
    let mut node = Node::with(1, settings);
    say(&mut node, 1, 1);
    drive(&mut node, 9);
    let asked = node.control.iter().any(|message| {
        matches!(
            message,
            ControlMessage::Broker(BrokerRequest { op: BrokerOp::Publish { .. }, .. })
        )
    });
    assert!(asked);
    assert!(!words(&mut node).iter().any(|word| word.starts_with("chat:room")));
}

/// Takes the outputs of shard 0 as a driver whose control queue has room for `room` messages.
fn drive(node: &mut Node, room: usize) {
    let mut room = room;
    let now = node.now;
    node.shards[0].retry_backlog(now);
    while let Some(output) = node.shards[0].poll_output() {
        if let Output::Control(message) = output {
            if room == 0 {
                node.shards[0].handle_control_refused(now, message);
            } else {
                room -= 1;
                node.control.push(message);
            }
        }
    }
}

fn say(node: &mut Node, from: u64, to: u64) {
    for n in from..=to {
        let origin =
            Origin::Connection { id: ConnectionId::new(ShardId(0), 9, 9), request: n as u32 };
        let publish = Publish { data: n.to_string().into_bytes().into(), ..Publish::default() };
        let (channel, op) = (Arc::from("chat:room"), ChannelOp::Publish(publish));
        let request = ChannelRequest { origin, channel, op };
        let now = node.now;
        node.shards[0].handle_message(now, ShardMessage::Request(Box::new(request)));
    }
}

#[test]
fn what_waits_keeps_its_order_and_its_bound() {
    let mut node = Node::with(1, curious());
    say(&mut node, 1, 2);
    drive(&mut node, 1);
    assert!(node.shards[0].has_backlog());
    say(&mut node, 3, 6);
    drive(&mut node, 1);
    assert_eq!(words(&mut node), ["chat:room 1 1", "chat:room 2 2"]);
    drive(&mut node, 9);
    assert_eq!(words(&mut node), ["chat:room 3 3", "chat:room 4 4", "chat:room 5 5"]);
    assert_eq!(node.count(|metrics| metrics.dropped.0[DropKind::Occurrence as usize]), 1);
    assert!(!node.shards[0].has_backlog());
}

#[test]
fn a_channel_is_told_with_what_is_true_when_there_is_room() {
    let mut node = Node::with(1, curious());
    let client = node.connect(0, "alice");
    occurrences(&mut node);
    let watch = |node: &mut Node, kind: &str, room| {
        node.send(client, &json!({"type": kind, "id": "s", "data": {"channel": "chat:room"}}));
        drive(node, room);
    };
    watch(&mut node, "subscribe", 0);
    watch(&mut node, "unsubscribe", 0);
    watch(&mut node, "subscribe", 0);
    assert!(words(&mut node).is_empty());
    drive(&mut node, 9);
    assert_eq!(words(&mut node), ["chat:room watched"]);
    watch(&mut node, "unsubscribe", 0);
    watch(&mut node, "subscribe", 9);
    assert_eq!(words(&mut node).last().unwrap(), "chat:room watched");
}
