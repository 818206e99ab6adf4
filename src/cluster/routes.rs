//! The HTTP paths of the cluster.

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Router, routing::get};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

use super::Cluster;
use crate::http::ClientAddress;
use crate::plane::SharedPlane;
use crate::routes::error_response;

/// For everyone: where to connect.
pub(crate) fn public(cluster: &Arc<Cluster>) -> Router<SharedPlane> {
    Router::new().route("/connect", get(connect)).layer(Extension(Arc::clone(cluster)))
}

/// For operators.
pub(crate) fn operators(cluster: &Arc<Cluster>) -> Router<SharedPlane> {
    Router::new().route("/cluster/nodes", get(nodes)).layer(Extension(Arc::clone(cluster)))
}

#[derive(Debug, Deserialize)]
struct ConnectQuery {
    /// Whom the strategy `hash` keeps on one node; without it the client's address.
    user: Option<String>,
}

/// `GET /connect`: the URL of a node that takes clients.
async fn connect(
    Extension(cluster): Extension<Arc<Cluster>>,
    Query(query): Query<ConnectQuery>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
) -> Response<Body> {
    let key = query.user.unwrap_or_else(|| address.to_string());
    let Some(node) = cluster.choose(&key) else {
        let message = "no node of the cluster takes clients now";
        let mut response = error_response(StatusCode::SERVICE_UNAVAILABLE, "no_node", message);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    };
    Json(json!({
        "url": node.url,
        "node": node.name,
        "strategy": cluster.strategy().as_str(),
    }))
    .into_response()
}

/// `GET /cluster/nodes`: all nodes as they were seen last.
async fn nodes(
    State(_): State<SharedPlane>,
    Extension(cluster): Extension<Arc<Cluster>>,
) -> Response<Body> {
    let view = cluster.view();
    Json(json!({
        "self": cluster.id(),
        "nodes": view.nodes,
        "stale": cluster.is_stale(),
        "age_ms": view.seen_at.map(|at| at.elapsed().as_millis() as u64),
    }))
    .into_response()
}
