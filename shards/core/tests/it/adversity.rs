//! Bursts, interleavings and abuse that once broke a promise: each test names the promise.

use std::time::Duration;

use gateway_core::large_data::{checksum_hex, split};
use gateway_core::message::{
    ChannelOp, ChannelRequest, Origin, Publish, Revocation, ShardMessage, ShardOp, ShardRequest,
    Target,
};
use gateway_core::settings::Settings;
use gateway_core::ws::frame::{self, Opcode};
use serde_json::json;

use crate::node::{Node, settings};

/// Sizes as in production, where they matter here.
fn production(shards: u16, change: impl Fn(&mut Settings)) -> Node {
    let mut settings = settings();
    settings.limits.outbox_bytes_max = 2 << 20;
    settings.limits.recovery_bytes_max = 1 << 20;
    settings.limits.large_data.connection_bytes_max = 64 << 20;
    settings.limits.large_data.shard_bytes_max = 256 << 20;
    change(&mut settings);
    Node::with(shards, settings)
}

/// A publish that reaches the home within the turn: nothing is flushed unless the shard asks for it.
fn publish(node: &mut Node, channel: &str, data: &str) {
    let home = node.home(channel).index();
    let request = ChannelRequest {
        origin: Origin::Control(9_999_999),
        channel: channel.into(),
        op: ChannelOp::Publish(Publish { data: data.to_owned().into(), ..Publish::default() }),
    };
    node.shards[home].handle_message(node.now, ShardMessage::Request(Box::new(request)));
    node.relieve(home);
}

#[test]
fn a_large_transfer_does_not_make_fast_readers_slow() {
    let mut node = production(1, |_| {});
    let (a, b) = (node.connect(0, "a"), node.connect(0, "b"));
    node.subscribe(b, "session:x");
    let whole = vec![7u8; 60 * (64 << 10)];
    for (index, total, text) in split(&whole, 64 << 10) {
        let data = json!({"data_id": "d", "chunk_index": index, "total_chunks": total,
            "chunk_data": text, "checksum": checksum_hex(&whole)});
        node.send(
            a,
            &json!({"type": "large_data", "id": "x", "channel": "session:x", "data": data}),
        );
        node.settle();
    }
    assert_eq!(node.take(a, "large_data_received")["data"]["status"], "received");
    let chunks = node.take_all(b).iter().filter(|m| m["type"] == "large_data").count();
    assert_eq!((chunks, node.clients[b].close_code), (60, None));
    assert_eq!(node.count(|m| m.large_data_bytes), 0);
}

#[test]
fn a_burst_within_one_turn_does_not_make_fast_readers_slow() {
    let mut node = production(1, |s| s.limits.shard_outbox_bytes_max = 4 << 20);
    let clients: Vec<_> = (0..10).map(|n| node.connect(0, &format!("u{n}"))).collect();
    for &client in &clients {
        node.subscribe(client, "chat:x");
        node.take_all(client);
    }
    let data = format!("\"{}\"", "x".repeat(64 << 10));
    for _ in 0..40 {
        publish(&mut node, "chat:x", &data);
    }
    node.settle();
    for &client in &clients {
        let got = node.take_all(client).iter().filter(|m| m["type"] == "message").count();
        assert_eq!((got, node.clients[client].close_code), (40, None));
    }
}

#[test]
fn a_repair_that_takes_too_long_loses_nothing_silently() {
    let mut node = production(2, |s| s.limits.outbox_bytes_max = 64 << 20);
    let b = node.connect(1, "b");
    let channel = node.channel_on("chat", 0);
    node.subscribe(b, &channel);
    node.take_all(b);
    node.mailbox_max = 0;
    publish(&mut node, &channel, "1");
    node.turn(0);
    node.mailbox_max = 1_000_000;
    for _ in 0..4097 {
        publish(&mut node, &channel, "1");
        // The subscriber's shard gets its mail; the home never answers the repair.
        while node.turn(0) {}
        while let Some(message) = node.mail[1].pop_front() {
            node.shards[1].handle_message(node.now, message);
        }
    }
    node.settle();
    let mut seen = Vec::new();
    for message in node.take_all(b) {
        match message["type"].as_str().unwrap() {
            "lost" => {
                let end = |name: &str| message["data"][name].as_u64().unwrap();
                seen.extend(end("from_offset")..=end("to_offset"));
            }
            "message" => seen.push(message["offset"].as_u64().unwrap()),
            _ => {}
        }
    }
    assert_eq!(seen, (1..=4098).collect::<Vec<_>>());
}

#[test]
fn an_unsubscribe_while_attaching_does_not_hang_the_connect() {
    let mut node = production(2, |_| {});
    let user =
        (0..).map(|n| format!("u{n}")).find(|u| node.home(&format!("user:{u}")).0 == 1).unwrap();
    let token = node.token(&user, json!({}));
    let client = node.upgrade(0, &format!("/ws?token={token}"), "");
    let op = ShardOp::Unsubscribe {
        target: Target::User(user.as_str().into()),
        channel: format!("user:{user}").into(),
    };
    let request = Box::new(ShardRequest { correlation: 1, op });
    node.shards[0].handle_message(node.now, ShardMessage::Control(request));
    node.settle();
    assert!(node.take_all(client).iter().any(|m| m["type"] == "welcome"));
}

#[test]
fn who_missed_more_than_fits_is_told_so_and_stays() {
    let mut node = production(1, |_| {});
    let a = node.connect(0, "a");
    let positions: Vec<_> =
        (0..6).map(|n| node.subscribe(a, &format!("chat:{n}"))["data"].clone()).collect();
    node.drop_socket(a);
    let data = format!("\"{}\"", "x".repeat(90_000));
    for n in 0..60 {
        publish(&mut node, &format!("chat:{}", n % 6), &data);
    }
    node.settle();
    let b = node.connect(0, "a");
    let mut input = Vec::new();
    for (n, position) in positions.iter().enumerate() {
        let recover = json!({"offset": position["offset"], "epoch": position["epoch"]});
        let data = json!({"channel": format!("chat:{n}"), "recover": recover});
        let command = json!({"type": "subscribe", "id": n.to_string(), "data": data});
        frame::encode_masked(
            &mut input,
            Opcode::Text,
            command.to_string().as_bytes(),
            [1, 2, 3, 4],
        );
    }
    node.send_raw(b, &input);
    node.settle();
    let replies: Vec<_> =
        node.take_all(b).into_iter().filter(|m| m["type"] == "subscribed").collect();
    assert_eq!((replies.len(), node.clients[b].close_code), (6, None));
    let recovered = replies.iter().filter(|m| m["data"]["recovered"] == true).count();
    assert!((1..6).contains(&recovered), "{recovered} of 6 fit");
}

#[test]
fn the_last_words_have_their_time() {
    let mut node = production(1, |_| {});
    let b = node.connect(0, "b");
    node.subscribe(b, "chat:x");
    // Just before the next ping the client closes while its socket is full.
    let due = node.shards[0].next_deadline().unwrap();
    let until_ping = due.saturating_sub(node.now.mono + Duration::from_millis(200));
    node.advance(until_ping);
    node.clients[b].stalled = true;
    publish(&mut node, "chat:x", "1");
    let mut close = Vec::new();
    frame::encode_masked(&mut close, Opcode::Close, &1000u16.to_be_bytes(), [1, 2, 3, 4]);
    node.send_raw(b, &close);
    node.settle();
    node.advance(Duration::from_millis(4900));
    assert!(!node.clients[b].closed, "limits.close_timeout is 5 s");
    node.advance(Duration::from_millis(300));
    assert!(node.clients[b].closed);
}

#[test]
fn a_loss_does_not_overtake_the_welcome() {
    let mut node = production(3, |_| {});
    let system = node.home("system").0;
    let user = (0..)
        .map(|n| format!("u{n}"))
        .find(|u| node.home(&format!("user:{u}")).0 != system)
        .unwrap();
    let home = node.home(&format!("user:{user}")).0;
    let own = (0..3u16).find(|shard| *shard != system && *shard != home).unwrap();
    let token = node.token(&user, json!({}));
    let client = node.upgrade(own, &format!("/ws?token={token}"), "");
    // Every shard but the home of `system` takes its mail, so that the attach stays incomplete.
    let step = |node: &mut Node| {
        for _ in 0..6 {
            node.turn(0);
            for shard in [usize::from(home), usize::from(own)] {
                while let Some(message) = node.mail[shard].pop_front() {
                    node.shards[shard].handle_message(node.now, message);
                }
            }
        }
        node.turn(0);
    };
    let publish = |node: &mut Node, transient: bool| {
        let request = ChannelRequest {
            origin: Origin::Control(9_999_999),
            channel: format!("user:{user}").into(),
            op: ChannelOp::Publish(Publish { data: "1".into(), transient, ..Publish::default() }),
        };
        let home = usize::from(home);
        node.shards[home].handle_message(node.now, ShardMessage::Request(Box::new(request)));
    };
    step(&mut node);
    publish(&mut node, false);
    step(&mut node);
    node.mailbox_max = 0;
    publish(&mut node, true);
    node.turn(0);
    node.mailbox_max = 1024;
    publish(&mut node, false);
    step(&mut node);
    node.settle();
    let kinds: Vec<_> =
        node.take_all(client).iter().map(|m| m["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["welcome", "message", "lost", "message"]);
}

#[test]
fn channels_that_are_only_published_to_do_not_keep_others_out() {
    let mut node = production(1, |s| s.limits.channels_per_shard_max = 100);
    let a = node.connect(0, "a");
    for n in 0..120 {
        let data = json!({"channel": format!("session:junk-{n}"), "data": 1});
        assert_eq!(node.call(a, "publish", data)["type"], "published");
    }
    let token = node.token("victim", json!({}));
    let client = node.upgrade(0, &format!("/ws?token={token}"), "");
    node.settle();
    let welcome = node.take(client, "welcome");
    let subscriptions = welcome["data"]["subscriptions"].as_array().unwrap();
    assert!(subscriptions.iter().any(|s| s["channel"] == "user:victim"));
    assert!(node.count(|m| m.channels) <= 100);
}

#[test]
fn idempotency_keys_do_not_outlive_their_time() {
    let mut node = production(1, |_| {});
    let a = node.connect(0, "a");
    node.subscribe(a, "chat:x");
    let publish = |node: &mut Node| {
        let data = json!({"channel": "chat:x", "data": 1, "idempotency_key": "secret-key"});
        node.call(a, "publish", data)["data"]["offset"].clone()
    };
    assert_eq!(publish(&mut node), publish(&mut node));
    assert!(format!("{:?}", node.shards[0]).contains("secret-key"));
    node.advance(Duration::from_secs(310));
    assert!(!format!("{:?}", node.shards[0]).contains("secret-key"), "kept for 300 s");
}

#[test]
fn a_revoked_channel_token_ends_its_subscription() {
    let mut node = production(1, |_| {});
    let a = node.connect(0, "a");
    let token = node.token("a", json!({"channel": "workflow:7", "jti": "chan-1"}));
    let data = json!({"channel": "user:shared", "token": token});
    assert_eq!(node.call(a, "subscribe", data)["type"], "error", "another channel's token");
    let data = json!({"channel": "workflow:7", "token": token});
    assert_eq!(node.call(a, "subscribe", data.clone())["type"], "subscribed");
    let expires_at = node.now.unix + Duration::from_secs(4000);
    node.ask_all(|| ShardOp::Revoke(Revocation::TokenId { token_id: "chan-1".into(), expires_at }));
    let end = node.take(a, "unsubscribed");
    assert_eq!(end["data"]["reason"], "revoked");
    assert_eq!(node.call(a, "subscribe", data)["type"], "error");
}

#[test]
fn half_open_connections_do_not_keep_others_out() {
    let mut node = production(2, |s| s.limits.connections_max = 100);
    let half_open: Vec<_> = (0..128)
        .map(|n| {
            let client = node.dial(n % 2);
            node.send_raw(client, b"GET /ws HTTP/1.1\r\nHo");
            client
        })
        .collect();
    for n in 0..20 {
        node.connect(n % 2, &format!("u{n}"));
    }
    let cut = half_open.iter().filter(|client| node.clients[**client].closed).count();
    assert_eq!(cut, 20, "the ones that waited longest");
    assert!(node.clients[half_open[0]].closed && !node.clients[half_open[127]].closed);
}
