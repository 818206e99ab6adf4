//! Hazard: a node that is stalled, starting or draining tells its balancer that all is well.

#![allow(clippy::unwrap_used)]

use axum::http::Request;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::plane::testing::{plane, routers};

async fn get(plane: &SharedPlane, path: &str) -> (StatusCode, Value) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = routers(plane).internal.oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn readiness_follows_the_phases() {
    let (_, plane) = plane();
    for (phase, code, word) in [
        (LifePhase::Starting, 503, "starting"),
        (LifePhase::Ready, 200, "ready"),
        (LifePhase::Draining, 503, "draining"),
    ] {
        plane.health.enter(phase);
        let (status, body) = get(&plane, "/ready").await;
        assert_eq!((status.as_u16(), &body["status"]), (code, &json!(word)));
        assert_eq!(get(&plane, "/live").await.0, 200, "{phase:?}");
    }
}

#[tokio::test]
async fn probes_say_how_full_the_node_is() {
    let (shards, plane) = plane();
    *shards.load_permille.lock().unwrap() = 120;
    (0..20).for_each(|_| plane.admission.add_session());
    for path in ["/ready", "/health"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = routers(&plane).public.oneshot(request).await.unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let found = ["", "-max"].map(|end| header(&format!("x-archmesh-connections{end}")));
        assert_eq!(found, ["20", "100"], "{path}");
        assert_eq!(header("x-archmesh-load"), "20", "{path}");
    }
}

#[tokio::test]
async fn a_stalled_shard_is_unhealthy_and_named() {
    let (shards, plane) = plane();
    assert_eq!(get(&plane, "/health").await, (StatusCode::OK, json!({"status": "healthy"})));
    *shards.heartbeat.lock().unwrap() = Duration::from_secs(3);
    let unhealthy = json!({"status": "unhealthy"});
    assert_eq!(get(&plane, "/health").await, (StatusCode::SERVICE_UNAVAILABLE, unhealthy));
    assert_eq!(get(&plane, "/live").await.0, 503);
    assert_eq!(get(&plane, "/ready").await.0, 503);
    let (status, body) = get(&plane, "/health/detailed").await;
    assert_eq!(status, 503);
    assert_eq!(body["components"]["shards"][1]["status"], "stalled");
    assert_eq!(body["components"]["tls"]["expires_at"], 1_900_000_000);
    let broker = json!({"status": "healthy", "kind": "memory", "history_bytes": 0});
    assert_eq!(body["components"]["broker"], broker);
}

#[tokio::test]
async fn dashboards_get_exactly_their_fields() {
    let (_, plane) = plane();
    let fields =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let (_, body) = get(&plane, "/api/v1/websocket/health").await;
    assert_eq!(fields(&body), ["connections", "performance", "status", "uptime"]);
    assert_eq!(fields(&body["connections"]), ["active", "idle", "total"]);
    assert_eq!(
        fields(&body["performance"]),
        ["average_response_time", "error_rate", "messages_per_second"]
    );
    let (_, body) = get(&plane, "/api/v1/websocket/metrics").await;
    assert_eq!(fields(&body), ["connections", "errors", "messages"]);
    assert_eq!(
        fields(&body["connections"]),
        [
            "active_connections",
            "connection_duration_avg",
            "connection_duration_max",
            "total_connections"
        ]
    );
    assert_eq!(
        fields(&body["messages"]),
        ["average_message_size", "messages_per_second", "total_received", "total_sent"]
    );
    assert_eq!(fields(&body["errors"]), ["error_rate", "recovery_success_rate", "total_errors"]);
}

#[tokio::test]
async fn operators_paths_are_internal_only() {
    let (_, plane) = plane();
    for path in ["/metrics", "/health/detailed", "/api/openapi.json"] {
        let request = || Request::get(path).body(Body::empty()).unwrap();
        let routers = routers(&plane);
        assert_eq!(routers.public.oneshot(request()).await.unwrap().status(), 404, "{path}");
        assert_eq!(routers.internal.oneshot(request()).await.unwrap().status(), 200, "{path}");
    }
}
