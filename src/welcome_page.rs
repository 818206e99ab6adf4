//! Serves `examples/quickstart.html` at `/`, so that a developer who starts a node has a page to try it with.
//!
//! For the development environment only: the caller mounts it there and nowhere else.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::get;

use crate::schema::Document;

/// The page: one file without anything to load.
pub(crate) const PAGE: &str = include_str!("../examples/quickstart.html");

/// The page may run its own script and talk to WebSockets, and do nothing else.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

static DOCUMENT: LazyLock<Document> =
    LazyLock::new(|| Document::new(PAGE, "text/html; charset=utf-8", "no-cache"));

/// `GET /`.
pub(crate) fn router() -> Router {
    Router::new().route("/", get(serve))
}

async fn serve(request: Request) -> Response {
    let mut response = DOCUMENT.respond(request.headers());
    let policy = HeaderValue::from_static(CONTENT_SECURITY_POLICY);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::StatusCode;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn the_page_is_served_with_a_policy_that_lets_it_connect() {
        let request = Request::builder().uri("/").body(Body::empty()).unwrap();
        let response = router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("connect-src 'self' ws: wss:"), "{policy}");
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(body, PAGE.as_bytes());
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for part in ["src=", "href=", "@import", "http://", "https://", "innerHTML ="] {
            assert!(!PAGE.contains(part), "{part}");
        }
    }
}
