//! Which paths are answered where, and what all answers have in common.
//!
//! With an internal listener the server API, `/metrics` and `/health/detailed` are served there only; without one the
//! public listeners serve everything. Every answer is JSON (but `/metrics` and the example page), is counted by route and
//! status, and is not cached unless it says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use gateway_core::proxies::FORWARDED_HEADER;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::http::ClientAddress;
use crate::plane::{Plane, SharedPlane};
use crate::{api, cluster, health, metrics, schema, welcome_page};

/// What the routers contain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteOptions {
    /// Whether an internal listener takes the operators' paths.
    pub internal: bool,
    /// Whether the server API is served at all.
    pub api: bool,
    /// Whether `/metrics` is served at all.
    pub metrics: bool,
    /// Whether `/` is the example page.
    pub example_page: bool,
    /// Whether allowed browser pages get CORS headers, and for how long they may remember them.
    pub cors: Option<Duration>,
}

/// Routers of the public listeners and of the internal one.
#[derive(Debug)]
pub(crate) struct Routers {
    /// For connections handed over by the shards.
    pub public: Router,
    /// For the internal listener.
    pub internal: Router,
}

/// Builds both routers.
pub(crate) fn build(plane: &SharedPlane, options: RouteOptions) -> Routers {
    let mut operators = Router::new().route("/health/detailed", get(health::detailed));
    if options.metrics {
        operators = operators.route("/metrics", get(metrics::scrape));
    }
    if options.api {
        operators = operators.merge(api::router(plane));
    }
    let mut everyone = Router::new()
        .merge(schema::router().with_state(()))
        .route("/health", get(health::summary))
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/api/v1/websocket/health", get(health::websocket_health))
        .route("/api/v1/websocket/metrics", get(health::websocket_metrics));
    if let Some(nodes) = &plane.cluster {
        everyone = everyone.merge(cluster::routes::public(nodes));
        operators = operators.merge(cluster::routes::operators(nodes));
    }
    if options.example_page {
        everyone = everyone.merge(welcome_page::router().with_state(()));
    }
    let everything = everyone.clone().merge(operators);
    let public = if options.internal { everyone } else { everything.clone() };
    Routers { public: finish(public, plane, options), internal: finish(everything, plane, options) }
}

fn finish(router: Router<SharedPlane>, plane: &SharedPlane, options: RouteOptions) -> Router {
    let mut router = router
        .fallback(async || error_response(StatusCode::NOT_FOUND, "not_found", "no such path"))
        .method_not_allowed_fallback(async || {
            error_response(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "the path takes another method",
            )
        })
        .layer(CatchPanicLayer::custom(panicked));
    if let Some(max_age) = options.cors {
        router = router.layer(cors(plane, max_age));
    }
    router.layer(from_fn_with_state(Arc::clone(plane), observe)).with_state(Arc::clone(plane))
}

/// `{"error":{"code":..,"message":..}}` for everything outside the server API's own error form.
pub(crate) fn error_response(
    status: StatusCode,
    code: &'static str,
    message: &str,
) -> Response<Body> {
    let body = serde_json::json!({"error": {"code": code, "message": message}});
    (status, axum::Json(body)).into_response()
}

#[allow(clippy::needless_pass_by_value, reason = "the layer calls it so")]
fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response<Body> {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(
        category = "error",
        event = "handler_panicked",
        panic = text.unwrap_or("no text")
    );
    error_response(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "a fault of the gateway; it has been logged",
    )
}

/// The same allow-list as for WebSocket handshakes.
fn cors(plane: &SharedPlane, max_age: Duration) -> CorsLayer {
    let plane = Arc::clone(plane);
    let allowed = AllowOrigin::predicate(move |origin: &HeaderValue, head| {
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        origin
            .to_str()
            .is_ok_and(|origin| plane.settings.load().websocket.origins.allows(origin, host))
    });
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
            HeaderName::from_static(api::KEY_HEADER),
            HeaderName::from_static(api::ERROR_MODE_HEADER),
        ])
        .max_age(max_age)
}

/// From here on a request of a proxy counts as its client's.
fn learn_client(plane: &Plane, request: &mut Request) {
    let Some(&ClientAddress(peer)) = request.extensions().get() else { return };
    let lines = request.headers().get_all(FORWARDED_HEADER).into_iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let client = plane.settings.load().proxies.client(peer, lines);
    request.extensions_mut().insert(ClientAddress(client));
}

async fn observe(
    State(plane): State<SharedPlane>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let started = Instant::now();
    learn_client(&plane, &mut request);
    let method = request.method().clone();
    // A path that no route matches must not become a label: there are endlessly many of them.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    plane.metrics.count_request(route, &method, response.status(), started.elapsed());
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gateway_core::proxies::Proxies;

    use super::*;
    use crate::plane::testing::plane;

    #[test]
    fn only_a_proxy_says_who_its_client_is() {
        let (_, plane) = plane();
        let mut settings = (**plane.settings.load()).clone();
        settings.proxies = Proxies::new(["10.0.0.0/8".parse().unwrap()]);
        plane.settings.store(Arc::new(settings));
        for (peer, expected) in [("10.0.0.1", "198.51.100.1"), ("192.0.2.1", "192.0.2.1")] {
            let request = Request::get("/connect");
            let request = request.header("X-Forwarded-For", "203.0.113.9");
            let request = request.header("X-Forwarded-For", "198.51.100.1, 10.0.0.2");
            let mut request = request.body(Body::empty()).unwrap();
            request.extensions_mut().insert(ClientAddress(peer.parse().unwrap()));
            learn_client(&plane, &mut request);
            let ClientAddress(client) = *request.extensions().get().unwrap();
            assert_eq!(client.to_string(), expected);
        }
    }
}
