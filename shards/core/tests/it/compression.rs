//! permessage-deflate: who gets compressed frames, that they are made once, and compressed input.

use std::io::IoSlice;

use gateway_core::ws::deflate::Deflater;
use gateway_core::ws::frame::{self, Header, Opcode};
use serde_json::json;

use crate::node::{Client, Node};

const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";

fn connect(node: &mut Node, shard: u16, user: &str, extension: &str) -> Client {
    let token = node.token(user, json!({}));
    let client = node.upgrade(shard, &format!("/ws?token={token}"), extension);
    node.settle();
    node.take(client, "welcome");
    client
}

#[test]
fn large_publications_are_compressed_for_those_who_negotiated_it() {
    let mut node = Node::new(2);
    let deflating = connect(&mut node, 0, "a", DEFLATE);
    let narrow = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n";
    let narrow = connect(&mut node, 0, "b", narrow);
    let plain = connect(&mut node, 1, "c", "");
    assert!(
        node.clients[narrow].head.contains("server_max_window_bits=9"),
        "{}",
        node.clients[narrow].head
    );
    let clients = [deflating, narrow, plain];
    for client in clients {
        node.subscribe(client, "live:1");
    }
    let before = clients.map(|client| node.clients[client].compressed);
    let large = json!({"text": "all the same ".repeat(400)});
    node.publish(plain, "live:1", large.clone());
    for client in clients {
        assert_eq!(node.take(client, "message")["data"], large);
    }
    let after = clients.map(|client| node.clients[client].compressed);
    assert_eq!(after, [before[0] + 1, before[1], before[2]]);
    node.publish(plain, "live:1", json!("small"));
    node.take(deflating, "message");
    assert_eq!(node.clients[deflating].compressed, after[0], "below compression_bytes_min");
}

#[test]
fn a_compressed_publication_is_made_once() {
    let mut node = Node::new(1);
    let clients = ["a", "b"].map(|user| connect(&mut node, 0, user, DEFLATE));
    for client in clients {
        node.subscribe(client, "live:1");
        node.clients[client].stalled = true;
    }
    let publisher = node.connect(0, "p");
    node.publish(publisher, "live:1", json!("all the same ".repeat(400)));
    let place = |client: Client| {
        let id = node.clients[client].id.unwrap();
        let mut slices = [IoSlice::new(&[])];
        assert_eq!(node.shards[0].gather(id, &mut slices), 1);
        assert!(slices[0].len() < 400, "compressed");
        slices[0].as_ptr()
    };
    assert_eq!(place(clients[0]), place(clients[1]), "both outboxes hold the same bytes");
}

#[test]
fn replies_are_compressed_and_compressed_commands_understood() {
    let mut node = Node::new(1);
    let a = connect(&mut node, 0, "a", DEFLATE);
    node.subscribe(a, "chat:1");
    for n in 0..20 {
        node.publish(a, "chat:1", json!(n));
    }
    let before = node.clients[a].compressed;
    node.take_all(a);
    let command = json!({"type": "history", "id": "h", "data": {"channel": "chat:1"}}).to_string();
    let mut payload = Vec::new();
    Deflater::new(6).deflate(command.as_bytes(), &mut payload);
    let header = Header {
        fin: true,
        rsv1: true,
        opcode: Opcode::Text,
        mask: Some([1, 2, 3, 4]),
        payload_len: payload.len() as u64,
    };
    let mut bytes = Vec::new();
    frame::encode_with(&mut bytes, &header, &payload);
    node.send_raw(a, &bytes);
    node.settle();
    let history = node.take(a, "history");
    assert_eq!(history["data"]["messages"].as_array().unwrap().len(), 20);
    assert_eq!(node.clients[a].compressed, before + 1);
    let stranger = node.connect(0, "b");
    node.send_raw(stranger, &bytes);
    node.settle();
    assert_eq!(node.clients[stranger].close_code, Some(1002), "it was not negotiated");
}
