//! The application's HTTP server, as a client sees it: one signed request per question, bounded in time and size.
//!
//! Connections are kept and shared by all hooks. Nothing is asked twice, but on a connection that turned out to be closed before
//! anything was sent on it.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::notify::senders::{SetupError, SigningSecret, signature};
use crate::web_client::{self, BodyError, Trust, root_cause};

/// Header with the name of the node that asks.
const NODE: HeaderName = HeaderName::from_static("x-archmesh-node");
/// Header with the kind of the question.
const HOOK: HeaderName = HeaderName::from_static("x-archmesh-hook");

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Application {
    client: Client,
    secrets: Vec<SigningSecret>,
    node: String,
    answer_bytes_max: usize,
}

/// Why there is no answer. Holds no URL and no text of the application.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("no answer in time; raise the timeout of the hook, or make the application faster")]
    Timeout,
    #[error("no connection: {0}; check host, port, network and certificate")]
    Connect(String),
    #[error("the connection broke before the answer: {0}")]
    Interrupted(String),
    #[error("the application answered {0} instead of 200")]
    Status(StatusCode),
    #[error("the answer is larger than {0} bytes (hooks.answer_bytes_max)")]
    TooLarge(usize),
}

impl Application {
    /// Makes the client; `https`: whether it needs certificates.
    pub(super) fn new(config: &Config, https: bool) -> Result<Self, SetupError> {
        let hooks = &config.hooks;
        let trust = if https { Trust::Host(hooks.ca_path.as_deref()) } else { Trust::Nobody };
        let builder =
            web_client::builder(trust)?.tcp_nodelay(true).pool_idle_timeout(hooks.idle_timeout);
        let secrets = hooks.secrets.iter().map(|secret| SigningSecret::parse(secret.expose()));
        let secrets = secrets.collect::<Option<Vec<_>>>().ok_or(SetupError::Setting {
            setting: "a secret of hooks.secrets",
            problem: "is not whsec_ and the base64 form of 24 to 64 bytes",
        })?;
        Ok(Self {
            client: web_client::build(builder)?,
            secrets,
            node: config.node.name.clone(),
            answer_bytes_max: hooks.answer_bytes_max,
        })
    }

    /// Name of this node.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Posts a question and waits for the body of a 200.
    ///
    /// # Cancel safety
    /// A dropped question may have been answered; its connection is closed.
    pub(super) async fn ask(
        &self,
        url: &Url,
        (id, kind): (&str, &'static str),
        body: Vec<u8>,
        (now_unix, deadline): (Duration, Instant),
    ) -> Result<Vec<u8>, AskError> {
        let headers = self.headers((id, kind), &body, now_unix);
        let request = self.client.post(url.clone()).headers(headers).body(body).send();
        let answered = async {
            let response = request.await.map_err(failure)?;
            if response.status() != StatusCode::OK {
                return Err(AskError::Status(response.status()));
            }
            let body = web_client::read_body(response, self.answer_bytes_max).await;
            body.map_err(|error| match error {
                BodyError::Broken(error) => failure(error),
                BodyError::TooLarge(bytes_max) => AskError::TooLarge(bytes_max),
            })
        };
        timeout_at(deadline, answered).await.unwrap_or(Err(AskError::Timeout))
    }

    fn headers(&self, (id, kind): (&str, &'static str), body: &[u8], now: Duration) -> HeaderMap {
        let seconds = now.as_secs();
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (HOOK, HeaderValue::from_static(kind)),
            (HeaderName::from_static(signature::TIMESTAMP), HeaderValue::from(seconds)),
        ]);
        let signatures: Vec<String> =
            self.secrets.iter().map(|secret| secret.sign(id, seconds, body)).collect();
        for (name, text) in [
            (NODE, self.node.as_str()),
            (HeaderName::from_static(signature::ID), id),
            (HeaderName::from_static(signature::SIGNATURE), &signatures.join(" ")),
        ] {
            // A node's name may hold what a header cannot; the body has it too.
            if let Ok(value) = HeaderValue::from_str(text)
                && !text.is_empty()
            {
                headers.insert(name, value);
            }
        }
        headers
    }
}

fn failure(error: reqwest::Error) -> AskError {
    let error = error.without_url();
    let cause = root_cause(&error);
    if error.is_connect() { AskError::Connect(cause) } else { AskError::Interrupted(cause) }
}
