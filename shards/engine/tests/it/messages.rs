//! Mailboxes between shards and the control plane, driven by the real core.

use gateway_core::message::{
    ChannelOp, ChannelOutcome, ChannelRequest, ControlMessage, Origin, Publish, ShardMessage,
};
use gateway_engine::{Balance, ControlEvent};
use tungstenite::Message;

use crate::node::{Client, Node, start_with};

fn publish(node: &Node, correlation: u64, text: &str) {
    let request = ChannelRequest {
        origin: Origin::Control(correlation),
        channel: "system".into(),
        op: ChannelOp::Publish(Publish {
            data: format!("\"{text}\"").into_bytes().into(),
            accepted_at: node.handle.now().mono,
            ..Publish::default()
        }),
    };
    let home = node.handle.home_of("system");
    node.handle.try_send(home, ShardMessage::Request(Box::new(request))).unwrap();
}

fn read_until(client: &mut Client, text: &str) {
    loop {
        if let Message::Text(frame) = client.read().unwrap()
            && frame.contains(text)
        {
            return;
        }
    }
}

/// A publication from the control plane reaches subscribers on every shard, and the answer comes back.
#[test]
fn a_publication_reaches_every_shard_and_is_answered() {
    let mut node = start_with(3, |config, _| config.balance = Balance::RoundRobin);
    let mut clients: Vec<_> = (0..6).map(|_| node.websocket("/ws?token=")).collect();
    for client in &mut clients {
        read_until(client, "\"welcome\"");
    }
    for number in 0..50 {
        publish(&node, number, &format!("news {number}"));
    }
    for client in &mut clients {
        for number in 0..50 {
            read_until(client, &format!("news {number}\""));
        }
    }
    for number in 0..50 {
        let outcome = node.event("an answer", |event| match event {
            ControlEvent::Core(ControlMessage::Channel { correlation, outcome })
                if correlation == number =>
            {
                Ok(outcome)
            }
            event => Err(event),
        });
        assert!(matches!(outcome, Ok(ChannelOutcome::Published(_))), "{outcome:?}");
    }
    node.stop();
}
