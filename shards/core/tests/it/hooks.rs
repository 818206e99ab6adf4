//! Commands that ask the application: what waits and what does not, what an answer does, and what happens when it comes late.

use std::time::Duration;

use gateway_core::auth::Grant;
use gateway_core::error::{ClientError, Disconnect};
use gateway_core::hook::{
    ConnectHook, HookAnswer, HookAsk, HookKind, HookQuestion, HookSettings, Verdict,
};
use gateway_core::message::{
    ControlMessage, Revocation, ShardMessage, ShardOp, ShardOutcome, Target,
};
use gateway_core::settings::{Access, Namespace, Namespaces, Settings};
use serde_json::{Value, json};

use crate::node::{Client, Node, settings};

fn with_hooks(connect: ConnectHook) -> Settings {
    let mut settings = settings();
    let mut namespaces: Vec<Namespace> = settings.namespaces.iter().cloned().collect();
    namespaces.push(Namespace {
        subscribe: Access::SignedIn,
        publish: Access::SignedIn,
        history_size: 50,
        history_ttl: Duration::from_secs(600),
        recovery: true,
        subscribe_hook: true,
        publish_hook: true,
        ..Namespace::closed("asked")
    });
    namespaces.push(Namespace {
        subscribe: Access::Hook,
        publish: Access::Hook,
        ..Namespace::closed("open")
    });
    settings.namespaces = Namespaces::new(namespaces);
    settings.hooks = HookSettings { connect, rpc: true };
    settings
}

fn node() -> Node {
    Node::with(2, with_hooks(ConnectHook::Off))
}

fn questions(node: &mut Node) -> Vec<HookQuestion> {
    let questions = node.control.drain(..).filter_map(|message| match message {
        ControlMessage::Hook(question) => Some(*question),
        _ => None,
    });
    questions.collect()
}

fn question(node: &mut Node, kind: HookKind) -> HookQuestion {
    let mut questions = questions(node);
    assert_eq!(questions.len(), 1, "{questions:?}");
    assert_eq!(questions[0].ask.kind(), kind);
    questions.remove(0)
}

fn answer(node: &mut Node, question: &HookQuestion, verdict: Verdict) {
    let (connection, request) = (question.connection, question.request);
    let answer = Box::new(HookAnswer { connection, request, verdict });
    let shard = connection.shard().index();
    node.shards[shard].handle_message(node.now, ShardMessage::Hooked(answer));
    node.settle();
}

fn refuse(code: u32, reason: &str) -> Verdict {
    Verdict::Refuse(ClientError::of_application(code, reason))
}

fn send(node: &mut Node, client: Client, kind: &str, data: Value) {
    node.send(client, &json!({"type": kind, "id": "q", "data": data}));
    node.settle();
}

fn publish(node: &mut Node, client: Client, channel: &str, data: u32) {
    send(node, client, "publish", json!({"channel": channel, "data": data}));
}

fn payloads(messages: &[Value], kind: &str) -> Vec<Value> {
    messages.iter().filter(|m| m["type"] == kind).map(|m| m["data"].clone()).collect()
}

/// A client whose connection the application is being asked about.
fn asking(node: &mut Node, user: &str) -> (Client, HookQuestion) {
    let token = node.token(user, json!({"info": {"name": user}, "channels": ["chat:claimed"]}));
    let client = node.upgrade(0, &format!("/ws?token={token}"), "User-Agent: test/1\r\n");
    node.settle();
    assert!(node.take_all(client).is_empty(), "nothing is said before the application has");
    let question = question(node, HookKind::Connect);
    (client, question)
}

#[test]
fn a_connection_waits_for_the_application_and_its_input_with_it() {
    let mut node = Node::with(2, with_hooks(ConnectHook::WithToken));
    let (client, question) = asking(&mut node, "alice");
    assert_eq!(&*question.client.user, "alice");
    assert_eq!(question.client.user_agent.as_deref(), Some("test/1"));
    assert_eq!(question.client.info.as_deref(), Some(br#"{"name":"alice"}"#.as_slice()));
    send(&mut node, client, "ping", json!({}));
    assert!(node.take_all(client).is_empty());
    let grant = Grant {
        info: Some(br#"{"role":"admin"}"#.as_slice().into()),
        channels: Box::from(["chat:given".into()]),
        expires_at: Some(node.now.unix + Duration::from_secs(60)),
        ..Grant::default()
    };
    answer(&mut node, &question, Verdict::Grant(Box::new(grant)));
    let welcome = node.take(client, "welcome");
    let channels: Vec<_> = welcome["data"]["subscriptions"].as_array().unwrap().iter().collect();
    let named = |name: &str| channels.iter().any(|channel| channel["channel"] == name);
    assert!(named("chat:claimed") && named("chat:given") && named("system"), "{welcome}");
    assert_eq!(welcome["data"]["expires_at"], node.now.unix.as_secs() + 60);
    assert_eq!(node.take(client, "pong")["reply_to"], "q", "what came meanwhile is handled now");
    answer(&mut node, &question, refuse(1, "too late"));
    assert_eq!(node.clients[client].close_code, None, "a question is answered once");
    node.publish(client, "chat:given", json!(1));
    let got = node.take(client, "message");
    assert_eq!(got["sender"]["info"], json!({"role": "admin"}));
    node.advance(Duration::from_secs(70));
    assert_eq!(node.clients[client].close_code, Some(4003), "what the application gave ends");
}

#[test]
fn a_refused_connection_is_told_why_and_an_outage_brings_it_back() {
    let mut node = Node::with(1, with_hooks(ConnectHook::WithToken));
    let (client, question) = asking(&mut node, "alice");
    answer(&mut node, &question, refuse(1_007, "banned until Monday"));
    let error = node.take(client, "error");
    assert_eq!(error["data"]["error_code"], "APPLICATION_ERROR");
    assert_eq!(error["data"]["error_message"], "banned until Monday");
    assert_eq!(error["data"]["error_details"]["code"], 1_007);
    assert_eq!(node.take(client, "disconnect")["data"]["reconnect"], false);
    assert_eq!(node.clients[client].close_code, Some(4505));

    let (client, question) = asking(&mut node, "alice");
    answer(&mut node, &question, Verdict::Fail(ClientError::overloaded()));
    assert_eq!(node.take(client, "error")["data"]["error_code"], "UNAVAILABLE");
    assert_eq!(node.take(client, "disconnect")["data"]["reconnect"], true);
    assert_eq!(node.clients[client].close_code, Some(4009));

    let (client, question) = asking(&mut node, "alice");
    node.shards[0].handle_control_refused(node.now, ControlMessage::Hook(Box::new(question)));
    node.settle();
    assert_eq!(node.clients[client].close_code, Some(4009), "a full queue is an outage too");
}

#[test]
fn the_authentication_timeout_bounds_the_wait() {
    let mut node = Node::with(1, with_hooks(ConnectHook::WithToken));
    let (client, question) = asking(&mut node, "alice");
    node.advance(settings().limits.auth_timeout + Duration::from_secs(1));
    assert_eq!(node.clients[client].close_code, Some(4009));
    assert!(!question.is_wanted());
    answer(&mut node, &question, Verdict::Allow);
    assert!(node.take_all(client).iter().all(|message| message["type"] != "welcome"));
}

#[test]
fn a_connection_that_waits_can_be_ended_and_floods_nothing() {
    let mut node = Node::with(2, with_hooks(ConnectHook::WithToken));
    let (client, first) = asking(&mut node, "alice");
    let target = || Target::User("alice".into());
    let end = || ShardOp::Disconnect { target: target(), reason: Disconnect::ForceNoReconnect };
    let join = || ShardOp::Subscribe { target: target(), channel: "chat:x".into() };
    let affected = |outcomes: Vec<ShardOutcome>| -> u32 {
        let counts = outcomes.iter().map(|outcome| match outcome {
            ShardOutcome::Affected(count) => *count,
            _ => 0,
        });
        counts.sum()
    };
    assert_eq!(affected(node.ask_all(join)), 0, "it is in no channel before it is allowed");
    assert_eq!(affected(node.ask_all(end)), 1);
    assert_eq!(node.clients[client].close_code, Some(4504));
    assert!(!first.is_wanted());

    let (client, _) = asking(&mut node, "bob");
    let issued_before = node.now.unix + Duration::from_secs(1);
    let revoke = || ShardOp::Revoke(Revocation::User { user: "bob".into(), issued_before });
    assert_eq!(affected(node.ask_all(revoke)), 1);
    assert_eq!(node.clients[client].close_code, Some(4501));

    let (client, question) = asking(&mut node, "carol");
    node.drop_socket(client);
    assert!(!question.is_wanted(), "the client has left");
    answer(&mut node, &question, Verdict::Allow);

    let (client, _) = asking(&mut node, "dave");
    let text = "x".repeat(settings().limits.message_bytes_max);
    node.send_raw(client, text.as_bytes());
    node.send_raw(client, b"x");
    node.settle();
    assert_eq!(node.clients[client].close_code, Some(1009), "what waits is bounded");
    node.advance(settings().limits.close_timeout + Duration::from_secs(1));
    let sessions: u64 = node.shards.iter_mut().map(|shard| shard.metrics().sessions).sum();
    assert_eq!(sessions, 0, "every one of them is counted out");
}

#[test]
fn the_application_may_know_the_user_instead_of_a_token() {
    let mut settings = with_hooks(ConnectHook::InsteadOfToken);
    settings.limits.connections_per_user_max = 1;
    let mut node = Node::with(1, settings);
    let first = node.upgrade(0, "/ws?token=cookie-1", "");
    node.settle();
    let asked = question(&mut node, HookKind::Connect);
    assert!(
        matches!(&asked.ask, HookAsk::Connect { token } if token.as_deref() == Some("cookie-1"))
    );
    let alice =
        || Verdict::Grant(Box::new(Grant { user: Some("alice".into()), ..Grant::default() }));
    answer(&mut node, &asked, alice());
    let welcome = node.take(first, "welcome");
    assert_eq!(welcome["data"]["user_id"], "alice");
    let named = |message: &Value| message.to_string().contains("user:alice");
    assert!(named(&welcome), "the user's own channel is subscribed: {welcome}");

    let second = node.upgrade(0, "/ws", "");
    node.send(second, &json!({"type": "auth", "id": "1", "data": {"token": "cookie-2"}}));
    node.settle();
    let asked = question(&mut node, HookKind::Connect);
    answer(&mut node, &asked, alice());
    let error = node.take(second, "error");
    assert_eq!(
        (&error["data"]["error_code"], &error["reply_to"]),
        (&json!("LIMIT_EXCEEDED"), &json!("1"))
    );
    assert_eq!(node.clients[second].close_code, Some(4502));

    let line = node.now.unix + Duration::from_secs(1);
    node.ask_all(|| {
        ShardOp::Revoke(Revocation::User { user: "alice".into(), issued_before: line })
    });
    assert_eq!(node.clients[first].close_code, Some(4501), "revocation reaches it");
    node.advance(Duration::from_secs(5) + Duration::from_secs(1));
    assert_eq!(node.admission.sessions(), 0);
}

#[test]
fn a_subscribe_waits_alone_and_keeps_its_position() {
    let mut node = node();
    let (alice, bob) = (node.connect(0, "alice"), node.connect(1, "bob"));
    send(&mut node, bob, "subscribe", json!({"channel": "asked:1"}));
    let asked = question(&mut node, HookKind::Subscribe);
    answer(&mut node, &asked, Verdict::Allow);
    let position = node.take(bob, "subscribed")["data"].clone();
    publish(&mut node, bob, "asked:1", 1);
    let asked = question(&mut node, HookKind::Publish);
    answer(&mut node, &asked, Verdict::Allow);

    let recover = json!({"offset": position["offset"], "epoch": position["epoch"]});
    send(&mut node, alice, "subscribe", json!({"channel": "asked:1", "recover": recover}));
    let asked = question(&mut node, HookKind::Subscribe);
    assert_eq!(node.call(alice, "ping", json!({}))["type"], "pong", "other commands go on");
    let again = node.call(alice, "subscribe", json!({"channel": "asked:1"}));
    assert_eq!(again["data"]["error_code"], "ALREADY_SUBSCRIBED");
    answer(&mut node, &asked, Verdict::Allow);
    let reply = node.take(alice, "subscribed");
    assert_eq!((&reply["reply_to"], &reply["data"]["recovered"]), (&json!("q"), &json!(true)));
    assert_eq!(reply["data"]["messages"][0]["data"], 1, "{reply}");
}

#[test]
fn a_subscribe_is_refused_given_up_or_overtaken() {
    let mut node = node();
    let client = node.connect(0, "alice");
    send(&mut node, client, "subscribe", json!({"channel": "asked:1"}));
    let asked = question(&mut node, HookKind::Subscribe);
    answer(&mut node, &asked, refuse(4, "members only"));
    let error = node.take(client, "error");
    assert_eq!(error["data"]["error_message"], "members only");

    send(&mut node, client, "subscribe", json!({"channel": "asked:1"}));
    let asked = question(&mut node, HookKind::Subscribe);
    let reply = node.call(client, "unsubscribe", json!({"channel": "asked:1"}));
    assert_eq!(reply["type"], "unsubscribed");
    assert_eq!(node.take(client, "error")["data"]["error_code"], "UNAVAILABLE");
    assert!(!asked.is_wanted());
    answer(&mut node, &asked, Verdict::Allow);
    assert!(node.take_all(client).is_empty(), "the answer comes too late");

    send(&mut node, client, "subscribe", json!({"channel": "asked:1"}));
    let asked = question(&mut node, HookKind::Subscribe);
    let target = || Target::User("alice".into());
    node.ask_all(|| ShardOp::Subscribe { target: target(), channel: "asked:1".into() });
    node.take(client, "subscribed");
    answer(&mut node, &asked, Verdict::Allow);
    assert_eq!(node.take(client, "error")["data"]["error_code"], "ALREADY_SUBSCRIBED");
}

#[test]
fn rules_come_first_and_the_application_decides_where_it_is_the_rule() {
    let mut settings = with_hooks(ConnectHook::Off);
    settings.auth.anonymous = true;
    let mut node = Node::with(1, settings);
    let client = node.upgrade(0, "/ws", "");
    node.send(client, &json!({"type": "auth", "id": "1", "data": {}}));
    node.settle();
    node.take(client, "welcome");
    let error = node.call(client, "subscribe", json!({"channel": "asked:1"}));
    assert_eq!(error["data"]["error_code"], "PERMISSION_DENIED");
    let error = node.call(client, "publish", json!({"channel": "asked:1", "data": 1}));
    assert_eq!(error["data"]["error_code"], "PERMISSION_DENIED");
    assert!(questions(&mut node).is_empty(), "what the rule forbids is not asked");
    send(&mut node, client, "subscribe", json!({"channel": "open:1"}));
    let asked = question(&mut node, HookKind::Subscribe);
    answer(&mut node, &asked, Verdict::Allow);
    node.take(client, "subscribed");
    publish(&mut node, client, "open:1", 7);
    let asked = question(&mut node, HookKind::Publish);
    answer(&mut node, &asked, Verdict::Allow);
    assert_eq!(payloads(&node.take_all(client), "message"), [json!(7)]);
}

#[test]
fn publications_leave_in_the_order_in_which_they_came() {
    let mut node = node();
    let (client, reader) = (node.connect(0, "alice"), node.connect(1, "bob"));
    for channel in ["asked:1", "asked:2"] {
        send(&mut node, reader, "subscribe", json!({"channel": channel}));
        let asked = question(&mut node, HookKind::Subscribe);
        answer(&mut node, &asked, Verdict::Allow);
        node.take(reader, "subscribed");
    }
    for number in 0..4 {
        publish(&mut node, client, "asked:1", number);
    }
    publish(&mut node, client, "asked:2", 9);
    let asked = questions(&mut node);
    assert_eq!(asked.len(), 5, "the application is asked about all of them at once");
    answer(&mut node, &asked[3], Verdict::Allow);
    answer(&mut node, &asked[1], Verdict::Replace(b"\"changed\"".as_slice().into()));
    assert!(node.take_all(reader).is_empty(), "they wait for the first");
    answer(&mut node, &asked[4], Verdict::Allow);
    assert_eq!(payloads(&node.take_all(reader), "message"), [json!(9)], "another channel does not");
    answer(&mut node, &asked[0], Verdict::Allow);
    assert_eq!(payloads(&node.take_all(reader), "message"), [json!(0), json!("changed")]);
    answer(&mut node, &asked[2], refuse(3, "no"));
    assert_eq!(
        payloads(&node.take_all(reader), "message"),
        [json!(3)],
        "a refused one is left out"
    );
    let answers = node.take_all(client);
    assert_eq!(payloads(&answers, "published").len(), 4);
    assert_eq!(payloads(&answers, "error").len(), 1);
    answer(&mut node, &asked[0], Verdict::Allow);
    assert!(node.take_all(reader).is_empty(), "once");
}

#[test]
fn what_is_no_longer_asked_stays_behind_what_was() {
    let mut node = node();
    let client = node.connect(0, "alice");
    publish(&mut node, client, "asked:1", 1);
    let asked = question(&mut node, HookKind::Publish);
    let mut calm = with_hooks(ConnectHook::Off);
    let namespaces = calm.namespaces.iter().cloned().map(|mut namespace| {
        namespace.publish_hook = false;
        namespace.subscribe_hook = false;
        namespace
    });
    calm.namespaces = Namespaces::new(namespaces.collect());
    let calm = std::sync::Arc::new(calm);
    node.ask_all(|| ShardOp::Reconfigure(std::sync::Arc::clone(&calm)));
    node.subscribe(client, "asked:1");
    publish(&mut node, client, "asked:1", 2);
    assert!(node.take_all(client).is_empty());
    answer(&mut node, &asked, Verdict::Allow);
    assert_eq!(payloads(&node.take_all(client), "message"), [json!(1), json!(2)]);
}

#[test]
fn large_transfers_do_not_go_past_the_application() {
    let mut node = node();
    let client = node.connect(0, "alice");
    let chunk = json!({"data_id": "d", "chunk_index": 1, "total_chunks": 1, "chunk_data": "eA==",
        "checksum": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"});
    let message = json!({"type": "large_data", "id": "q", "channel": "asked:1", "data": chunk});
    node.send(client, &message);
    node.settle();
    assert_eq!(node.take(client, "error")["data"]["error_code"], "PERMISSION_DENIED");
}

#[test]
fn rpc_is_answered_refused_and_bounded() {
    let mut node = node();
    let client = node.connect(0, "alice");
    send(&mut node, client, "rpc", json!({"method": "sum", "data": [1, 2]}));
    let asked = question(&mut node, HookKind::Rpc);
    match &asked.ask {
        HookAsk::Rpc { method, data } => {
            assert_eq!((&**method, &data[..]), ("sum", b"[1,2]".as_slice()));
        }
        other => panic!("{other:?}"),
    }
    answer(&mut node, &asked, Verdict::Result(b"3".as_slice().into()));
    let reply = node.take(client, "rpc_result");
    assert_eq!((&reply["data"]["result"], &reply["reply_to"]), (&json!(3), &json!("q")));
    send(&mut node, client, "rpc", json!({"method": "sum"}));
    let asked = question(&mut node, HookKind::Rpc);
    answer(&mut node, &asked, refuse(42, "no such method"));
    assert_eq!(node.take(client, "error")["data"]["error_details"]["code"], 42);
    let error = node.call(client, "rpc", json!({"method": ""}));
    assert_eq!(error["data"]["error_code"], "INVALID_MESSAGE_FORMAT");

    let max = settings().limits.requests_in_flight_max;
    for _ in 0..max {
        send(&mut node, client, "rpc", json!({"method": "wait"}));
    }
    let waiting = questions(&mut node);
    assert_eq!(waiting.len(), max as usize);
    let error = node.call(client, "rpc", json!({"method": "wait"}));
    assert_eq!(error["data"]["error_code"], "LIMIT_EXCEEDED");
    node.drop_socket(client);
    assert!(waiting.iter().all(|question| !question.is_wanted()));
    let other = node.connect(0, "bob");
    for question in &waiting {
        answer(&mut node, question, Verdict::Result(b"1".as_slice().into()));
    }
    assert!(node.take_all(other).is_empty(), "the slot has another user now");
}

#[test]
fn rpc_is_off_unless_configured() {
    let mut node = Node::new(1);
    let client = node.connect(0, "alice");
    let error = node.call(client, "rpc", json!({"method": "x"}));
    assert_eq!(error["data"]["error_code"], "NOT_FOUND");
}
