//! Chunked transfers: every status, any order of chunks, who gets them, and the limits.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gateway_core::large_data::{checksum_hex, split};
use serde_json::{Value, json};

use crate::node::{Client, Node, settings};

const CHUNK_BYTES: usize = 16 << 10;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 % 251) as u8).collect()
}

/// The `data` of every chunk of a transfer.
fn chunks(data_id: &str, whole: &[u8]) -> Vec<Value> {
    let checksum = checksum_hex(whole);
    split(whole, CHUNK_BYTES)
        .map(|(index, total, text)| {
            json!({
                "data_id": data_id,
                "chunk_index": index,
                "total_chunks": total,
                "chunk_data": text,
                "checksum": checksum,
            })
        })
        .collect()
}

/// Sends a chunk with further members of the envelope.
fn send(node: &mut Node, client: Client, data: &Value, envelope: &Value) {
    let id = format!("chunk{}", data["chunk_index"]);
    let mut command = json!({"type": "large_data", "id": id, "data": data});
    for (name, value) in envelope.as_object().unwrap() {
        command[name] = value.clone();
    }
    crate::schema::check_command(&command);
    node.send(client, &command);
    node.settle();
}

/// Puts together what `client` has received.
fn received(node: &mut Node, client: Client, channel: &str) -> Vec<u8> {
    let messages = node.take_all(client);
    let mut whole = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        assert_eq!(message["type"], "large_data");
        assert_eq!(message["channel"], channel);
        assert_eq!(message["data"]["chunk_index"], index + 1);
        assert_eq!(message["data"]["total_chunks"], messages.len());
        whole.extend(STANDARD.decode(message["data"]["chunk_data"].as_str().unwrap()).unwrap());
    }
    if let Some(message) = messages.first() {
        assert_eq!(message["data"]["checksum"], checksum_hex(&whole));
    }
    whole
}

#[test]
fn a_transfer_reaches_the_users_other_devices_whatever_the_order() {
    let mut node = Node::new(2);
    let (laptop, phone, other) = (node.connect(0, "a"), node.connect(1, "a"), node.connect(1, "b"));
    let whole = bytes(100_000);
    let chunks = chunks("file-1", &whole);
    assert_eq!(chunks.len(), 7);
    for index in [3, 0, 6, 2, 5, 1] {
        send(&mut node, laptop, &chunks[index], &json!({}));
        assert!(node.take_all(laptop).is_empty(), "nothing is said before the last chunk");
        assert!(node.take_all(phone).is_empty(), "nothing is passed on before the checksum holds");
    }
    send(&mut node, laptop, &chunks[3], &json!({}));
    assert!(node.take_all(laptop).is_empty(), "a repeated chunk is ignored");
    send(&mut node, laptop, &chunks[4], &json!({}));
    let answer = node.take(laptop, "large_data_received");
    assert_eq!(answer["reply_to"], "chunk5");
    let expected = json!({"data_id": "file-1", "status": "received", "total_size": 100_000});
    assert_eq!(answer["data"], expected);
    assert_eq!(received(&mut node, phone, "user:a"), whole);
    assert!(node.take_all(laptop).is_empty(), "the sender gets no copy");
    assert!(node.take_all(other).is_empty());
    assert_eq!(node.count(|m| m.large_data_bytes), 0);
}

#[test]
fn a_transfer_may_go_to_a_channel_or_an_application_session() {
    let mut node = Node::new(2);
    let (a, b) = (node.connect(0, "a"), node.connect(1, "b"));
    let whole = bytes(20_000);
    for (envelope, channel) in [
        (json!({"channel": "chat:files"}), "chat:files"),
        (json!({"session_id": "s-7"}), "session:s-7"),
        (json!({"channel": "live:x", "session_id": "s-7"}), "live:x"),
    ] {
        node.subscribe(b, channel);
        for chunk in chunks("d", &whole) {
            send(&mut node, a, &chunk, &envelope);
        }
        assert_eq!(node.take(a, "large_data_received")["data"]["status"], "received");
        assert_eq!(received(&mut node, b, channel), whole, "{envelope}");
    }
    let denied = &chunks("d", &whole)[0];
    send(&mut node, a, denied, &json!({"channel": "workflow:1"}));
    assert_eq!(node.take(a, "error")["data"]["error_code"], "PERMISSION_DENIED");
    assert_eq!(node.count(|m| m.large_data_bytes), 0, "a refused chunk is not kept");
}

#[test]
fn a_damaged_transfer_is_told_and_passed_to_nobody() {
    let mut node = Node::new(2);
    let (a, phone) = (node.connect(0, "a"), node.connect(1, "a"));
    let mut chunks = chunks("d", &bytes(40_000));
    let damaged = STANDARD.encode(vec![0u8; CHUNK_BYTES]);
    chunks[1]["chunk_data"] = json!(damaged);
    for chunk in &chunks {
        send(&mut node, a, chunk, &json!({}));
    }
    let answer = node.take(a, "large_data_received");
    assert_eq!(answer["data"]["status"], "checksum_mismatch");
    assert_eq!(answer["data"]["total_size"], 40_000);
    assert!(node.take_all(phone).is_empty());
    assert_eq!(node.count(|m| m.large_data_bytes), 0);
}

#[test]
fn an_unfinished_transfer_expires() {
    let mut node = Node::new(1);
    let a = node.connect(0, "a");
    let chunks = chunks("d", &bytes(40_000));
    send(&mut node, a, &chunks[0], &json!({}));
    node.advance(Duration::from_secs(50));
    send(&mut node, a, &chunks[1], &json!({}));
    node.advance(Duration::from_secs(50));
    assert!(node.take_all(a).is_empty(), "each chunk gives it a new minute");
    assert!(node.count(|m| m.large_data_bytes) > 32_000);
    node.advance(Duration::from_secs(11));
    let answer = node.take(a, "large_data_received");
    let expected = json!({"data_id": "d", "status": "expired", "total_size": 0});
    assert_eq!(answer["data"], expected);
    assert_eq!(answer.get("reply_to"), None);
    assert_eq!(node.count(|m| m.large_data_bytes), 0);
    send(&mut node, a, &chunks[2], &json!({}));
    assert!(node.take_all(a).is_empty(), "the same name begins a new transfer");
}

#[test]
fn limits_of_transfers() {
    let mut settings = settings();
    settings.limits.large_data.transfers_max = 2;
    settings.limits.large_data.chunks_max = 3;
    settings.limits.large_data.connection_bytes_max = 48 << 10;
    settings.limits.large_data.chunk_bytes_max = CHUNK_BYTES;
    let mut node = Node::with(1, settings);
    let a = node.connect(0, "a");
    let mut check = |data: &Value, expected: &str| {
        let reply = node.call(a, "large_data", data.clone());
        assert_eq!(reply["data"]["error_code"], expected, "{reply}");
        assert!(!node.clients[a].closed);
    };
    let good = chunks("good", &bytes(40_000)).remove(0);
    let changed = |name: &str, value: Value| {
        let mut data = good.clone();
        data[name] = value;
        data
    };
    check(&changed("chunk_index", json!(0)), "INVALID_MESSAGE_FORMAT");
    check(&changed("chunk_index", json!(4)), "INVALID_MESSAGE_FORMAT");
    check(&changed("data_id", json!("")), "INVALID_MESSAGE_FORMAT");
    check(&changed("checksum", json!("abc")), "INVALID_MESSAGE_FORMAT");
    check(&changed("chunk_data", json!("***")), "INVALID_MESSAGE_FORMAT");
    check(&changed("total_chunks", json!(4)), "LIMIT_EXCEEDED");
    let large = STANDARD.encode(bytes(CHUNK_BYTES + 1));
    check(&changed("chunk_data", json!(large)), "MESSAGE_TOO_LARGE");
    for name in ["one", "two"] {
        let data = changed("data_id", json!(name));
        node.send(a, &json!({"type": "large_data", "data": data}));
        node.settle();
        assert!(node.take_all(a).is_empty());
    }
    let reply = node.call(a, "large_data", changed("data_id", json!("three")));
    assert_eq!(reply["data"]["error_code"], "LIMIT_EXCEEDED");
    let mut second = changed("data_id", json!("one"));
    second["chunk_index"] = json!(2);
    let reply = node.call(a, "large_data", second);
    assert_eq!(reply["data"]["error_code"], "LIMIT_EXCEEDED", "48 KiB with the tables");
}

#[test]
fn a_transfer_that_was_missed_is_not_recovered() {
    let mut node = Node::new(2);
    let (a, b) = (node.connect(0, "a"), node.connect(1, "b"));
    node.subscribe(b, "chat:1");
    let seen = node.publish(a, "chat:1", json!("seen"));
    node.drop_socket(b);
    for chunk in chunks("d", &bytes(20_000)) {
        send(&mut node, a, &chunk, &json!({"channel": "chat:1"}));
    }
    let b = node.connect(1, "b");
    let recover = seen["data"].clone();
    let reply = node.call(b, "subscribe", json!({"channel": "chat:1", "recover": recover}));
    assert_eq!(reply["data"]["recovered"], false, "chunks have a place but are not kept");
}

#[test]
fn a_long_transfer_leaves_room_for_commands() {
    let mut settings = settings();
    settings.limits.requests_in_flight_max = 3;
    let mut node = Node::with(2, settings);
    let channel = node.channel_on("live", 1);
    let a = node.connect(0, "a");
    for data in chunks("d", &bytes(100_000)) {
        node.send(a, &json!({"type": "large_data", "channel": channel, "data": data}));
    }
    let data = json!({"channel": channel, "data": 1});
    assert_eq!(node.call(a, "publish", data)["type"], "published");
    assert_eq!(node.take(a, "large_data_received")["data"]["status"], "received");
}

#[test]
fn a_transfer_that_a_full_mailbox_cut_off_is_told_once() {
    let mut node = Node::new(2);
    node.mailbox_max = 2;
    let channel = node.channel_on("live", 1);
    let (a, b) = (node.connect(0, "a"), node.connect(1, "b"));
    node.subscribe(b, &channel);
    let chunks = chunks("d", &bytes(100_000));
    for data in &chunks {
        send(&mut node, a, data, &json!({"channel": channel}));
    }
    let error = node.take(a, "error");
    assert_eq!(error["reply_to"], "chunk7");
    assert_eq!(error["data"]["error_code"], "UNAVAILABLE");
    assert!(node.take_all(a).is_empty());
    assert!(node.take_all(b).len() < chunks.len());
}
