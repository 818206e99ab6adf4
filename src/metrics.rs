//! `/metrics`: Prometheus text, made at scrape from the shards' own counters.
//!
//! Shards record without locks and copy their counters out when asked; nothing on the data path knows Prometheus. No
//! label is a user, channel, address or path chosen by a client, so the number of series is bounded. A shard that does
//! not answer within the snapshot deadline is shown with its last known numbers and `archmesh_scrape_partial` is 1.

mod broker_metrics;
mod control;
mod event_metrics;
mod families;
mod hook_metrics;
mod process;
mod shards;
mod store_metrics;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;
use prometheus::{Encoder as _, TextEncoder};

pub(crate) use control::ControlMetrics;
use families::Families;
pub(crate) use process::cpu_time;
pub(crate) use shards::loop_lag_json;

use crate::bridge::Snapshots;
use crate::plane::{Plane, SharedPlane};
use crate::routes;

/// `GET /metrics`.
pub(crate) async fn scrape(State(plane): State<SharedPlane>) -> Response<Body> {
    let snapshots = plane.bridge.snapshots().await;
    match render(&plane, &snapshots) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(category = "error", event = "metrics_not_encoded", %error);
            routes::error_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "metrics cannot be encoded",
            )
        }
    }
}

/// All series as text.
fn render(plane: &Plane, snapshots: &Snapshots) -> prometheus::Result<Vec<u8>> {
    let mut families = Families::default();
    shards::collect(&mut families, plane, snapshots);
    control::collect(&mut families, plane);
    process::collect(&mut families);
    families.gauge(
        "archmesh_scrape_partial",
        "1 when at least one shard did not answer this scrape and its last known numbers are shown.",
        f64::from(u8::from(snapshots.partial)),
    );
    let mut all = families.into_families();
    all.extend(plane.metrics.gather());
    all.sort_by(|a, b| a.name().cmp(b.name()));
    let mut text = Vec::with_capacity(32 * 1024);
    TextEncoder::new().encode(&all, &mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
