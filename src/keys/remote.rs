//! Fetching one JSON Web Key Set over HTTP, bounded in time and size.

use std::net::IpAddr;

use gateway_core::auth::{KeyError, KeySet};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Url};

use super::{JwksSettings, KeyLoadError};
use crate::web_client::{self, BodyError, Trust, root_cause};

/// Most redirects followed, all of them to `https`.
const REDIRECTS_MAX: usize = 3;

/// One URL and the client for it.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    url: Url,
    client: Client,
    bytes_max: usize,
}

/// Why a fetch brought no keys. Temporary by nature: always retried.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// No connection, TLS failure, timeout, refused redirect.
    #[error("{}", root_cause(.0))]
    Request(#[source] reqwest::Error),
    /// Another status than 200.
    #[error("the server answered {0}")]
    Status(reqwest::StatusCode),
    /// More bytes than allowed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// No key set.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key set in which no key is usable; taking it would lock everyone out.
    #[error("no usable signature key in the answer ({0})")]
    NoUsableKey(String),
    /// Nothing was sent.
    #[error("the server has failed too often and is left alone for a while")]
    LeftAlone,
}

impl Remote {
    /// Checks the address and makes the client.
    pub(super) fn new(url: &str, settings: &JwksSettings) -> Result<Self, KeyLoadError> {
        let url = check_url(url, settings.allow_http)?;
        let trust = if url.scheme() == "http" {
            Trust::Nobody
        } else {
            Trust::Host(settings.ca_file.as_deref())
        };
        let builder = web_client::builder(trust)?
            .timeout(settings.timeout)
            .redirect(Policy::custom(follow))
            .pool_max_idle_per_host(0);
        Ok(Self { url, client: web_client::build(builder)?, bytes_max: settings.bytes_max })
    }

    /// The address, for logs and health.
    pub(super) fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Gets the document, which has usable keys.
    pub(super) async fn fetch(&self) -> Result<String, FetchError> {
        let failed = |error: reqwest::Error| FetchError::Request(error.without_url());
        let response = self.client.get(self.url.clone()).send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = web_client::read_body(response, self.bytes_max).await;
        let body = body.map_err(|error| match error {
            BodyError::Broken(error) => failed(error),
            BodyError::TooLarge(bytes_max) => FetchError::TooLarge(bytes_max),
        })?;
        let text = String::from_utf8(body).map_err(|_| KeyError::Jwks("not UTF-8 text"))?;
        self.keys_in(&text)?;
        Ok(text)
    }

    /// The keys of a document.
    pub(super) fn keys_in(&self, document: &str) -> Result<KeySet, FetchError> {
        let (keys, skipped) = KeySet::from_jwks(document, self.bytes_max, false)?;
        if keys.is_empty() {
            return Err(FetchError::NoUsableKey(skipped.join("; ")));
        }
        for reason in &skipped {
            tracing::debug!(category = "security", event = "jwks_key_skipped", url = %self.url, reason);
        }
        Ok(keys)
    }
}

fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.url().scheme() != "https" {
        attempt.error("redirect to an address that is not https")
    } else if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error("too many redirects")
    } else {
        attempt.follow()
    }
}

fn check_url(text: &str, allow_http: bool) -> Result<Url, KeyLoadError> {
    let refused = |url: &str, reason| KeyLoadError::Url { url: url.to_owned(), reason };
    // A text that cannot be parsed is not repeated: it might hold a password.
    let url = Url::parse(text).map_err(|_| refused("", "it is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused(
            url.host_str().unwrap_or(""),
            "user and password are not supported in it",
        ));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if allow_http || is_this_machine(&url) => Ok(url),
        "http" => Err(refused(
            url.as_str(),
            "keys over plain HTTP can be forged; use https, or allow plain HTTP explicitly",
        )),
        _ => Err(refused(
            url.as_str(),
            "only https and http are supported; for a file use a JWKS file",
        )),
    }
}

fn is_this_machine(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |url: &str, allow_http| check_url(url, allow_http).is_ok();
        assert!(check("https://issuer.test/.well-known/jwks.json", false));
        for local in ["http://localhost:8080/x", "http://127.0.0.1/x", "http://[::1]:1/x"] {
            assert!(check(local, false), "{local}");
        }
        assert!(!check("http://issuer.test/jwks", false));
        assert!(check("http://issuer.test/jwks", true));
        for bad in ["", "jwks.json", "file:///etc/passwd", "ftp://a/b", "https://u:p@issuer.test/"]
        {
            assert!(!check(bad, true), "{bad}");
        }
        let error = check_url("https://user:hunter2@issuer.test/", true).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
