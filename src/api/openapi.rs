//! The OpenAPI document of the server API.

use std::sync::OnceLock;

use axum::body::Body;
use axum::http::{Response, header};
use axum::response::IntoResponse;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi as Document};
use utoipa::{Modify, OpenApi};

use super::call::Paths;
use super::events::Paths as EventPaths;
use crate::cluster::routes::Paths as ClusterPaths;

/// The whole document.
pub(super) fn document() -> Document {
    let mut document = Paths::openapi();
    document.merge(ClusterPaths::openapi());
    document.merge(EventPaths::openapi());
    document.info = InfoBuilder::new()
        .title("ArchMesh gateway server API")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Calls for backend services. Errors come as status 200 with `{\"error\":{..}}`; with the header \
             `X-Error-Mode: transport` they come with an HTTP status.",
        ))
        .build();
    KeySecurity.modify(&mut document);
    document
}

/// Declares the header that carries the key.
struct KeySecurity;

impl Modify for KeySecurity {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        document.components.get_or_insert_default().add_security_scheme("api_key", scheme);
    }
}

/// Serves the document; it is made once.
pub(super) async fn serve() -> Response<Body> {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| document().to_json().expect("the document is plain data"));
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}
