//! The HTTP paths of the cluster.

use axum::Json;
use axum::body::Body;
use axum::extract::Query;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Router, routing::get};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{OpenApi, ToSchema};

use super::{Cluster, Node};
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

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ConnectQuery {
    /// Whom the strategy `hash` keeps on one node; without it the client's address.
    user: Option<String>,
}

/// Where to connect.
#[derive(Debug, Serialize, ToSchema)]
struct ConnectAnswer {
    /// WebSocket URL of the node.
    url: String,
    /// `node.name` of it.
    node: String,
    /// `cluster.balance`, by which it was chosen.
    #[schema(example = "least_connections")]
    strategy: &'static str,
}

/// A node, and what this one knows of it itself.
#[derive(Debug, Serialize, ToSchema)]
struct SeenNode {
    #[serde(flatten)]
    node: Node,
    /// Whether it answers over HTTP; absent for the node itself, and when `cluster.probe_interval` is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    reachable: Option<bool>,
}

/// The cluster as the node sees it.
#[derive(Debug, Serialize, ToSchema)]
struct NodesAnswer {
    /// Id of the node that answers.
    #[serde(rename = "self")]
    own: String,
    /// All nodes, in order of their ids.
    nodes: Vec<SeenNode>,
    /// Whether this is so old that some of them may be gone.
    stale: bool,
    /// Milliseconds since the nodes were seen; null before the first time.
    age_ms: Option<u64>,
}

/// An error outside the server API's own form.
#[derive(Debug, Serialize, ToSchema)]
struct PlainError {
    error: PlainErrorBody,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct PlainErrorBody {
    /// Stable word.
    #[schema(example = "no_node")]
    code: String,
    /// For people.
    message: String,
}

/// Paths and schemas of the cluster, for the document of the server API.
#[derive(Debug, OpenApi)]
#[openapi(paths(connect, nodes))]
pub(crate) struct Paths;

/// The URL of a node that takes clients. For everyone; only with Redis.
#[utoipa::path(
    get, path = "/connect", params(ConnectQuery),
    responses(
        (status = 200, description = "Where to connect", body = ConnectAnswer),
        (
            status = 503, description = "No node takes clients now", body = PlainError,
            headers(("Retry-After" = u64, description = "Seconds until asking again makes sense")),
        ),
    ),
)]
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
    let strategy = cluster.strategy().as_str();
    // A node without a URL is not chosen.
    let url = node.url.unwrap_or_default();
    Json(ConnectAnswer { url, node: node.name, strategy }).into_response()
}

/// All nodes as they were seen last. For operators: with an internal listener only there; only with Redis.
#[utoipa::path(
    get, path = "/cluster/nodes",
    responses((status = 200, description = "The nodes", body = NodesAnswer)),
)]
async fn nodes(Extension(cluster): Extension<Arc<Cluster>>) -> Response<Body> {
    let (view, own) = (cluster.view(), cluster.id());
    let seen = |node: &Node| SeenNode {
        reachable: cluster.reaches(&node.id).filter(|_| node.id != own),
        node: node.clone(),
    };
    let nodes = view.nodes.iter().map(seen).collect();
    let age_ms = view.seen_at.map(|at| at.elapsed().as_millis() as u64);
    Json(NodesAnswer { own, nodes, stale: cluster.is_stale(), age_ms }).into_response()
}
