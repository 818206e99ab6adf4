//! Commands that the control plane answers: who may ask, where the answer goes, and what happens when there is none.

use gateway_core::call::{CallAnswer, CallKind, ClientCall, ClientMessage};
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::message::{ControlMessage, ShardMessage};
use serde_json::json;

use crate::node::{Client, Node, settings};

const ITEM: &str = r#"{"notification_id":"n1","user_id":"alice","seq":1,"title":"t","message":"m",
    "category":"user_action","priority":"normal","created_at":1}"#;
const COUNTERS: &str = r#"{"unread":1,"unseen":1,"revision":1}"#;

fn calls(node: &mut Node) -> Vec<ClientCall> {
    let calls = node.control.drain(..).filter_map(|message| match message {
        ControlMessage::Call(call) => Some(*call),
        _ => None,
    });
    calls.collect()
}

fn ask(node: &mut Node, client: Client, kind: &str) -> ClientCall {
    calls(node);
    node.send(client, &json!({"type": kind, "id": "q", "data": {"ids": ["n1"]}}));
    node.settle();
    let mut calls = calls(node);
    assert_eq!(calls.len(), 1, "{calls:?}");
    calls.remove(0)
}

fn answer(node: &mut Node, call: &ClientCall, outcome: Result<Vec<ClientMessage>, ClientError>) {
    let (connection, request) = (call.connection, call.request);
    let answer = Box::new(CallAnswer { connection, request, outcome });
    let shard = connection.shard().index();
    node.shards[shard].handle_message(node.now, ShardMessage::Called(answer));
    node.settle();
}

fn message(kind: &'static str, data: &'static str) -> ClientMessage {
    ClientMessage { kind, data: data.as_bytes().into() }
}

#[test]
fn a_session_that_is_ready_is_announced_and_can_be_told_something() {
    let mut node = Node::new(2);
    let client = node.connect(1, "alice");
    let arrived = calls(&mut node);
    assert_eq!(arrived.len(), 1);
    assert_eq!((arrived[0].kind, arrived[0].request), (CallKind::Arrived, ClientCall::UNASKED));
    assert_eq!(&*arrived[0].user, "alice");
    let told = vec![message("notification", ITEM), message("notification_update", COUNTERS)];
    answer(&mut node, &arrived[0], Ok(told));
    let first = node.take(client, "notification");
    assert_eq!(
        (&first["data"]["notification_id"], &first["reply_to"]),
        (&json!("n1"), &json!(null))
    );
    assert_eq!(node.take(client, "notification_update")["data"]["unread"], 1);
    // An error that answers nothing is nobody's.
    answer(&mut node, &arrived[0], Err(ClientError::overloaded()));
    assert!(node.take_all(client).is_empty());
}

#[test]
fn a_call_is_answered_once_and_by_its_number() {
    let mut node = Node::new(1);
    let client = node.connect(0, "alice");
    let call = ask(&mut node, client, "notification_read");
    assert_eq!(call.kind, CallKind::Read);
    assert_eq!(&call.data[..], br#"{"ids":["n1"]}"#);
    answer(&mut node, &call, Ok(vec![message("notification_update", COUNTERS)]));
    let reply = node.take(client, "notification_update");
    assert_eq!(reply["reply_to"], "q");
    answer(&mut node, &call, Ok(vec![message("notification_update", "{}")]));
    assert!(node.take_all(client).is_empty(), "the number is used up");

    let call = ask(&mut node, client, "notifications");
    answer(&mut node, &call, Err(ClientError::new(ErrorCode::Unavailable, "no store")));
    assert_eq!(node.take(client, "error")["data"]["error_code"], "UNAVAILABLE");
}

#[test]
fn an_answer_for_a_connection_that_is_gone_is_nobodys() {
    let mut node = Node::new(1);
    let client = node.connect(0, "alice");
    let call = ask(&mut node, client, "preferences");
    node.drop_socket(client);
    let other = node.connect(0, "bob");
    answer(&mut node, &call, Ok(vec![message("preferences", "{}")]));
    assert!(node.take_all(other).is_empty(), "the slot has another user now");
}

#[test]
fn a_full_queue_is_answered_by_the_shard() {
    let mut node = Node::new(1);
    let client = node.connect(0, "alice");
    let call = ask(&mut node, client, "notifications");
    let refused = ControlMessage::Call(Box::new(call));
    node.shards[0].handle_control_refused(node.now, refused);
    node.settle();
    assert_eq!(node.take(client, "error")["data"]["error_code"], "UNAVAILABLE");
}

#[test]
fn strangers_and_nodes_without_a_store_get_a_reason() {
    let mut node = Node::with(1, {
        let mut settings = settings();
        settings.auth.anonymous = true;
        settings
    });
    let client = node.upgrade(0, "/ws", "");
    node.send(client, &json!({"type": "auth", "id": "1", "data": {}}));
    node.settle();
    node.take(client, "welcome");
    let error = node.call(client, "notifications", json!({}));
    assert_eq!(error["data"]["error_code"], "PERMISSION_DENIED");
    assert!(calls(&mut node).is_empty());

    let mut node = Node::with(1, {
        let mut settings = settings();
        settings.notifications = false;
        settings
    });
    let client = node.connect(0, "alice");
    assert!(calls(&mut node).is_empty());
    let error = node.call(client, "notifications", json!({}));
    assert_eq!(error["data"]["error_code"], "NOT_FOUND");
}

#[test]
fn calls_are_bounded_like_other_commands() {
    let mut node = Node::new(1);
    let client = node.connect(0, "alice");
    let max = settings().limits.requests_in_flight_max;
    for _ in 0..max {
        node.send(client, &json!({"type": "notifications", "id": "q"}));
    }
    node.settle();
    assert!(node.take_all(client).is_empty());
    let error = node.call(client, "notifications", json!({}));
    assert_eq!(error["data"]["error_code"], "LIMIT_EXCEEDED");
}
