//! Serves the machine-readable contract of the WebSocket protocol: the JSON Schema and the AsyncAPI document that are
//! part of the binary, so that what a node serves is always what it speaks.
//!
//! It does not check messages: the core does that by its own rules, and its tests hold the two together.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use gateway_core::large_data::checksum_hex;

/// JSON Schema (2020-12) of every message of `archmesh.v1`.
pub(crate) const JSON_SCHEMA: &str = include_str!("../docs/schema/archmesh.v1.schema.json");

/// AsyncAPI 3.0 document; refers to the schema by its path.
pub(crate) const ASYNCAPI: &str = include_str!("../docs/schema/asyncapi.json");

/// Caches ask again after five minutes; the entity tag makes that cheap.
const CACHE_CONTROL: &str = "public, max-age=300";

/// A text of the binary with its entity tag.
#[derive(Debug)]
pub(crate) struct Document {
    body: &'static str,
    content_type: &'static str,
    cache_control: &'static str,
    etag: HeaderValue,
}

impl Document {
    /// `body` does not change while the process runs.
    pub(crate) fn new(
        body: &'static str,
        content_type: &'static str,
        cache_control: &'static str,
    ) -> Self {
        let etag = format!("\"{}\"", &checksum_hex(body.as_bytes())[..32]);
        let etag = HeaderValue::from_str(&etag).expect("digits in quotes are a header value");
        Self { body, content_type, cache_control, etag }
    }

    /// 200 with the text, or 304 when the client holds it already.
    pub(crate) fn respond(&self, request: &HeaderMap) -> Response {
        let headers = [
            (header::ETAG, self.etag.clone()),
            (header::CACHE_CONTROL, HeaderValue::from_static(self.cache_control)),
        ];
        if self.is_known(request) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let kind = [
            (header::CONTENT_TYPE, self.content_type),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (headers, kind, self.body).into_response()
    }

    fn is_known(&self, request: &HeaderMap) -> bool {
        let tags = request.get_all(header::IF_NONE_MATCH).iter();
        tags.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag
        })
    }
}

static SCHEMA_DOCUMENT: LazyLock<Document> =
    LazyLock::new(|| Document::new(JSON_SCHEMA, "application/schema+json", CACHE_CONTROL));
static ASYNCAPI_DOCUMENT: LazyLock<Document> =
    LazyLock::new(|| Document::new(ASYNCAPI, "application/json", CACHE_CONTROL));

/// `GET /schema/archmesh.v1.json` and `GET /asyncapi.json`. Public: nothing in them is secret.
pub(crate) fn router() -> Router {
    Router::new()
        .route(
            "/schema/archmesh.v1.json",
            get(async |request: Request| serve(&SCHEMA_DOCUMENT, &request)),
        )
        .route("/asyncapi.json", get(async |request: Request| serve(&ASYNCAPI_DOCUMENT, &request)))
}

fn serve(document: &'static Document, request: &Request) -> Response {
    document.respond(request.headers())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt as _;

    use super::*;

    async fn fetch(path: &str, known: Option<&str>) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().uri(path);
        if let Some(known) = known {
            request = request.header(header::IF_NONE_MATCH, known);
        }
        let response = router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn documents_are_served_and_revalidated() {
        for (path, content_type, text) in [
            ("/schema/archmesh.v1.json", "application/schema+json", JSON_SCHEMA),
            ("/asyncapi.json", "application/json", ASYNCAPI),
        ] {
            let (status, headers, body) = fetch(path, None).await;
            assert_eq!((status, body.as_str()), (StatusCode::OK, text), "{path}");
            assert_eq!(headers[header::CONTENT_TYPE], content_type);
            assert_eq!(headers[header::CACHE_CONTROL], CACHE_CONTROL);
            let etag = headers[header::ETAG].to_str().unwrap().to_owned();
            for known in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".into()] {
                let (status, headers, body) = fetch(path, Some(&known)).await;
                assert_eq!((status, body.as_str()), (StatusCode::NOT_MODIFIED, ""), "{known}");
                assert_eq!(headers[header::ETAG], etag);
            }
            assert_eq!(fetch(path, Some("\"another\"")).await.0, StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn the_documents_are_json_and_differ_in_their_tags() {
        let tag = async |path| fetch(path, None).await.1[header::ETAG].clone();
        assert_ne!(tag("/schema/archmesh.v1.json").await, tag("/asyncapi.json").await);
        for text in [JSON_SCHEMA, ASYNCAPI] {
            serde_json::from_str::<serde_json::Value>(text).unwrap();
        }
    }
}
