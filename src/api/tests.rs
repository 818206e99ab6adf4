//! Calls of the server API against shards that the test plays itself: answers, refusals, and what each error says.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use axum::http::{Request, StatusCode};
use gateway_core::message::{
    ChannelOp, ChannelOutcome, ControlMessage, Epoch, Origin, ShardMessage, ShardOp, ShardOutcome,
    StreamPosition,
};
use gateway_core::settings::Priority;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::bridge::testing::TestShards;
use crate::plane::testing::{KEY, plane, routers};

/// Calls a method; the shards are played by `answer_all`.
async fn call(method: &str, body: &str, headers: &[(&str, &str)]) -> (StatusCode, Value) {
    let (shards, plane) = plane();
    let mut request = Request::post(format!("/api/{method}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let router = routers(&plane).internal;
    let answering = tokio::spawn(answer_all(shards, plane.bridge.clone()));
    let response = router.oneshot(request).await.unwrap();
    answering.abort();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn authorized(method: &str, body: &str) -> Value {
    let (status, answer) = call(method, body, &[("x-api-key", KEY)]).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

/// Answers like shards would, until aborted.
async fn answer_all(shards: Arc<TestShards>, bridge: crate::bridge::Bridge) {
    let position = StreamPosition { offset: 7, epoch: Epoch(*b"abcdefgh") };
    loop {
        for shard in [0, 1] {
            let Some(message) = shards.take(shard) else { continue };
            match message {
                ShardMessage::Request(request) => {
                    let Origin::Control(correlation) = request.origin else {
                        panic!("not from the control plane")
                    };
                    let outcome = match request.op {
                        ChannelOp::Publish(publish) => {
                            check_publish(&publish);
                            ChannelOutcome::Published(position)
                        }
                        ChannelOp::PresenceStats => {
                            ChannelOutcome::PresenceStats { clients: 3, users: 2, partial: false }
                        }
                        ChannelOp::UserStatus => {
                            ChannelOutcome::UserStatus { connections: 1, last_seen: None }
                        }
                        ChannelOp::History(query) => {
                            assert_eq!((query.limit, query.reverse), (5, true));
                            ChannelOutcome::History {
                                top: position,
                                publications: Vec::new(),
                                partial: false,
                            }
                        }
                        other => panic!("unexpected {other:?}"),
                    };
                    bridge.handle_message(ControlMessage::Channel {
                        correlation,
                        outcome: Ok(outcome),
                    });
                }
                ShardMessage::Control(request) => {
                    let outcome = match request.op {
                        ShardOp::Connection { .. } => ShardOutcome::Connection(None),
                        _ => ShardOutcome::Affected(u32::from(shard) + 1),
                    };
                    let shard = gateway_core::ids::ShardId(shard);
                    bridge.handle_message(ControlMessage::Shard {
                        correlation: request.correlation,
                        shard,
                        outcome,
                    });
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        tokio::task::yield_now().await;
    }
}

fn check_publish(publish: &gateway_core::message::Publish) {
    match &*publish.kind {
        "notification" => {
            assert_eq!(&publish.data[..], br#"{"keep":  "this spacing", "n": 1.50}"#);
            assert_eq!(publish.priority, Some(Priority::High));
            assert_eq!(publish.extra.as_deref(), Some(&br#""tags":{"a":"b"}"#[..]));
        }
        "large_data" => {
            let chunk: Value = serde_json::from_slice(&publish.data).unwrap();
            assert_eq!(chunk["total_chunks"], 3);
            assert!(publish.transient, "chunks stay out of the history");
        }
        _ => {}
    }
}

#[tokio::test]
async fn calls_need_a_key() {
    let (status, answer) = call("info", "{}", &[]).await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::UNAUTHORIZED, &json!(101)));
    let (status, _) = call("info", "{}", &[("authorization", "apikey wrong")]).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (status, _) = call("info", "{}", &[("authorization", &format!("apikey {KEY}"))]).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn publish_passes_the_payload_on_as_it_is() {
    let body = r#"{"channel":"system","type":"notification","priority":"high","tags":{"a":"b"},
        "data":{"keep":  "this spacing", "n": 1.50}}"#;
    assert_eq!(
        authorized("publish", body).await,
        json!({"result": {"offset": 7, "epoch": "abcdefgh"}})
    );
}

async fn check_error(method: &str, body: &str, code: u16, text: &str) {
    let answer = authorized(method, body).await;
    assert_eq!(answer["error"]["code"], code, "{body}: {answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains(text), "{body}: {answer}");
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong() {
    check_error("publish", r#"{"channel":"nope:1","data":1}"#, 102, "unknown namespace `nope`")
        .await;
    check_error(
        "publish",
        r#"{"channel":"system","data":1,"chanel":2}"#,
        107,
        "unknown field `chanel`",
    )
    .await;
    check_error("publish", r#"{"channel":"system"}"#, 107, "missing field `data`").await;
    check_error("publish", r#"{"channel":"","data":1}"#, 107, "`channel` is empty").await;
    check_error("publish", r#"{"channel":"system x","data":1}"#, 107, "white space").await;
    check_error("publish", r#"{"channel":7,"data":1}"#, 107, "invalid type").await;
    check_error(
        "publish",
        r#"{"channel":"system","data":1,"type":"welcome"}"#,
        107,
        "none of the protocol's own",
    )
    .await;
    check_error("publish", r#"{"channel":"system","b64data":"e30=","data":1}"#, 107, "not both")
        .await;
    check_error("publish", r#"{"channel":"system","b64data":"/w=="}"#, 107, "does not hold JSON")
        .await;
    check_error("publish", "[", 107, "malformed request").await;
    check_error("presence", r#"{"channel":"system"}"#, 102, "presence is switched off").await;
    check_error("disconnect", "{}", 107, "missing field `user`").await;
    check_error("revoke", r#"{"token_id":"x"}"#, 107, "`expires_at` is needed").await;
    check_error("connections", r#"{"cursor":"x"}"#, 107, "`cursor`").await;
    check_error("connection", r#"{"session":"x"}"#, 102, "no connection").await;
    check_error("batch", r#"{"commands":[]}"#, 107, "1 to").await;
    let deep = format!(r#"{{"channel":"system","data":{}{}}}"#, "[".repeat(100), "]".repeat(100));
    check_error("publish", &deep, 107, "nested deeper").await;
}

#[tokio::test]
async fn tags_count_towards_the_size_of_a_message() {
    let max = plane().1.settings.load().limits.message_bytes_max;
    let with_tag = |bytes: usize| {
        json!({"channel": "system", "data": 1, "tags": {"a": "x".repeat(bytes)}}).to_string()
    };
    // `"tags":{"a":""}` and the payload are 16 bytes.
    let answer = authorized("publish", &with_tag(max - 16)).await;
    assert_eq!(answer["result"]["offset"], 7, "{}", answer["error"]);
    let answer = authorized("publish", &with_tag(max - 15)).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("`tags`") && message.contains(&max.to_string()), "{message}");
}

#[tokio::test]
async fn refused_keys_are_logged_so_many_times_a_second() {
    let (_, plane) = plane();
    let now = Instant::now();
    let lines = (0..1_000).filter(|_| plane.refused_keys.pass(now).is_some()).count();
    assert_eq!(lines, 10, "as `log.sample_per_second` says");
}

#[tokio::test]
async fn transport_mode_gives_a_status() {
    for header in ["x-error-mode", "x-centrifugo-error-mode"] {
        let headers = [("x-api-key", KEY), (header, "transport")];
        let (status, answer) = call("publish", r#"{"channel":"nope","data":1}"#, &headers).await;
        assert_eq!((status, &answer["error"]["code"]), (StatusCode::NOT_FOUND, &json!(102)));
        let (status, _) = call("publish", "{", &headers).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn broadcast_and_batch_answer_in_order() {
    let answer =
        authorized("broadcast", r#"{"channels":["user:1","nope:1","user:22"],"data":{}}"#).await;
    let responses = &answer["result"]["responses"];
    assert_eq!(responses[0]["result"]["offset"], 7);
    assert_eq!(responses[1]["error"]["code"], 102);
    assert_eq!(responses[2]["result"]["offset"], 7);
    for parallel in [true, false] {
        let body = json!({"parallel": parallel, "commands": [
            {"publish": {"channel": "user:1", "data": 1}},
            {"presence_stats": {"channel": "nope"}},
            {"presence_stats": {"channel": "workflow:1"}},
            {"user_status": {"users": ["u"]}},
        ]});
        let answer = authorized("batch", &body.to_string()).await;
        let replies = &answer["result"]["replies"];
        assert_eq!(replies[0], json!({"publish": {"offset": 7, "epoch": "abcdefgh"}}));
        assert_eq!(replies[1]["error"]["code"], 102);
        assert_eq!(replies[2], json!({"presence_stats": {"num_clients": 3, "num_users": 2}}));
        assert_eq!(replies[3]["user_status"]["statuses"][0]["online"], true);
    }
}

#[tokio::test]
async fn user_calls_add_up_over_the_shards() {
    for (method, body) in [
        ("disconnect", r#"{"user":"u","reconnect":true}"#),
        ("subscribe", r#"{"session":"s","channel":"workflow:1"}"#),
        ("unsubscribe", r#"{"client":"s","channel":"workflow:1"}"#),
        ("revoke", r#"{"user":"u"}"#),
    ] {
        assert_eq!(authorized(method, body).await, json!({"result": {"affected": 3}}), "{method}");
    }
}

#[tokio::test]
async fn history_reads_a_page() {
    let answer = authorized("history", r#"{"channel":"user:1","limit":5,"reverse":true}"#).await;
    assert_eq!(answer, json!({"result": {"publications": [], "offset": 7, "epoch": "abcdefgh"}}));
}

#[tokio::test]
async fn large_data_is_split_and_checksummed() {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD.encode(vec![7u8; 150_000]);
    let body = json!({"channel": "workflow:1", "data_id": "d1", "payload": payload}).to_string();
    let answer = authorized("large_data", &body).await;
    let result = &answer["result"];
    assert_eq!((&result["total_chunks"], &result["total_size"]), (&json!(3), &json!(150_000)));
    assert_eq!(result["checksum"].as_str().unwrap().len(), 64);
}

#[test]
fn the_document_describes_every_method() {
    let document = serde_json::to_value(openapi::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    for method in [
        "publish",
        "broadcast",
        "batch",
        "subscribe",
        "unsubscribe",
        "disconnect",
        "presence",
        "presence_stats",
        "history",
        "history_remove",
        "channels",
        "connections",
        "connection",
        "info",
        "revoke",
        "user_status",
        "large_data",
    ] {
        assert!(paths.contains_key(&format!("/api/{method}")), "{method}");
    }
    for path in ["/connect", "/cluster/nodes"] {
        let get = &paths[path]["get"];
        let schema = &get["responses"]["200"]["content"]["application/json"]["schema"];
        let name = schema["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{path}: {name}");
    }
    assert_eq!(paths["/connect"]["get"]["parameters"][0]["name"], "user");
    assert!(document["components"]["schemas"]["Node"]["properties"]["state"].is_object());
    assert!(document["components"]["securitySchemes"]["api_key"].is_object());
    for (schema, property) in [
        ("InfoResult", "partial"),
        ("ChannelsResult", "partial"),
        ("ConnectionsResult", "partial"),
        ("UserStatusResult", "partial"),
        ("PresenceResult", "partial"),
        ("PresenceStatsResult", "partial"),
        ("HistoryResult", "partial"),
        ("ConnectionResult", "node"),
        ("ChannelSummary", "num_clients"),
        ("NodeInfo", "num_clients"),
    ] {
        let properties = &document["components"]["schemas"][schema]["properties"];
        assert!(properties[property].is_object(), "{schema} has {property}");
    }
}
