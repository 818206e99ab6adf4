//! `GET /api/v1/websocket/health` and `/metrics`: the JSON that the product's dashboards read.
//!
//! Times of responses are in milliseconds, durations of connections and the uptime in seconds, rates per second or
//! from 0 to 1. A connection without a finished handshake or token counts as idle.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

use crate::plane::SharedPlane;
use crate::sampler::{Totals, ratio};

/// `GET /api/v1/websocket/health`.
pub(crate) async fn health(State(plane): State<SharedPlane>) -> Response<Body> {
    let totals = totals(&plane).await;
    let rates = plane.sampler.rates(&totals);
    let status = plane.status();
    let code = if status == "healthy" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "status": status,
        "connections": {
            "total": totals.connections,
            "active": totals.sessions,
            "idle": totals.connections.saturating_sub(totals.sessions),
        },
        "performance": {
            "messages_per_second": rates.messages_per_second,
            "average_response_time": rates.response_ms,
            "error_rate": rates.error_rate,
        },
        "uptime": plane.uptime().as_secs(),
    });
    (code, Json(body)).into_response()
}

/// `GET /api/v1/websocket/metrics`.
pub(crate) async fn metrics(State(plane): State<SharedPlane>) -> Response<Body> {
    let totals = totals(&plane).await;
    let rates = plane.sampler.rates(&totals);
    let messages = totals.messages_in + totals.messages_out;
    let recoveries = totals.recoveries_ok + totals.recoveries_failed;
    // Without any recovery none has failed.
    let recovery_success_rate =
        if recoveries == 0 { 1.0 } else { ratio(totals.recoveries_ok as f64, recoveries as f64) };
    let body = json!({
        "connections": {
            "total_connections": totals.connections_total,
            "active_connections": totals.sessions,
            "connection_duration_avg": ratio(totals.session_ms as f64, totals.sessions_ended as f64) / 1000.0,
            "connection_duration_max": totals.session_ms_max as f64 / 1000.0,
        },
        "messages": {
            "total_sent": totals.messages_out,
            "total_received": totals.messages_in,
            "messages_per_second": rates.messages_per_second,
            "average_message_size": ratio(totals.message_bytes as f64, messages as f64),
        },
        "errors": {
            "total_errors": totals.errors,
            "error_rate": rates.error_rate,
            "recovery_success_rate": recovery_success_rate,
        },
    });
    Json(body).into_response()
}

async fn totals(plane: &SharedPlane) -> Totals {
    let snapshots = plane.bridge.snapshots().await;
    Totals::of(&snapshots, plane.uptime())
}
