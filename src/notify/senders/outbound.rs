//! One HTTP request out of the gateway: bounded in time and size, without redirects, to allowed addresses only.

use std::error::Error as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use reqwest::dns::Resolve;
use reqwest::header::{HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::{Client, Url};
use tokio::time::{Instant, timeout_at};

use super::Sent;
use super::addresses::{GuardedResolver, NoPublicAddress, SystemResolver, is_public};
use super::error::{Answer, SendError, SendErrorKind, SetupError};
use crate::web_client::{self, Trust, root_cause};

/// Idle connections kept for each host.
const IDLE_PER_HOST_MAX: usize = 8;

/// Bounds and rights of the requests of one sender.
#[derive(Clone, Debug)]
pub(crate) struct HttpSettings {
    /// For the whole attempt, from looking up the name to the answer.
    pub deadline: Duration,
    /// Whether URLs may be plain `http`.
    pub allow_http: bool,
    /// Whether requests may go to loopback, private and other addresses that are not public.
    pub allow_private_addresses: bool,
    /// Longest wait that the other side may ask for.
    pub retry_after_max: Duration,
    /// Most bytes of an answer that are read.
    pub answer_bytes_max: usize,
    /// CA certificates that are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Outbound {
    client: Client,
    settings: HttpSettings,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    status: u16,
    retry_after: Option<Duration>,
}

impl Outbound {
    /// Makes the client.
    pub(super) fn new(settings: HttpSettings) -> Result<Self, SetupError> {
        let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver);
        if settings.allow_private_addresses {
            return Self::build(settings, resolver);
        }
        Self::build(settings, Arc::new(GuardedResolver::new(resolver, is_public)))
    }

    fn build(settings: HttpSettings, resolver: Arc<dyn Resolve>) -> Result<Self, SetupError> {
        let trust = Trust::Host(settings.ca_file.as_deref());
        let builder = web_client::builder(trust)?
            .dns_resolver(resolver)
            .https_only(!settings.allow_http)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX);
        Ok(Self { client: web_client::build(builder)?, settings })
    }

    /// Whether requests may go to this URL, as far as the URL alone tells.
    pub(super) fn check(&self, url: &Url) -> Result<(), SendErrorKind> {
        check_scheme(url, self.settings.allow_http).map_err(SendErrorKind::Unfit)?;
        let host = url.host_str().unwrap_or_default();
        // Every way to write an IPv4 address is already the usual one here.
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if !self.settings.allow_private_addresses && address.is_ok_and(|ip| !is_public(ip)) {
            return Err(SendErrorKind::PrivateAddress);
        }
        Ok(())
    }

    /// Posts and waits for the answer.
    ///
    /// # Errors
    /// There was no answer. An answer of any kind is a [`Reply`].
    pub(super) async fn post(
        &self,
        url: &Url,
        headers: HeaderMap,
        body: Vec<u8>,
        now_unix: Duration,
    ) -> Result<Reply, SendError> {
        self.check(url)?;
        let deadline = Instant::now() + self.settings.deadline;
        let request = self.client.post(url.clone()).headers(headers).body(body).send();
        let response = match timeout_at(deadline, request).await {
            Err(_) => return Err(SendErrorKind::Timeout.into()),
            Ok(Err(error)) => return Err(failure(&error.without_url()).into()),
            Ok(Ok(response)) => response,
        };
        let reply = Reply {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers(), now_unix)
                .map(|asked| asked.min(self.settings.retry_after_max)),
        };
        // The status has decided. The rest is read only so that the connection can be used again.
        let rest = web_client::read_body(response, self.settings.answer_bytes_max);
        let _ = timeout_at(deadline, rest).await;
        Ok(reply)
    }
}

impl Reply {
    /// What the status means. `gone` are those that say that the target is dead.
    pub(super) fn outcome(self, gone: &[u16]) -> Result<Sent, SendError> {
        let answer = Answer::Http(self.status);
        let kind = match self.status {
            200..=299 => return Ok(Sent { answer }),
            status if gone.contains(&status) => SendErrorKind::Gone(answer),
            408 | 425 | 429 | 500..=599 => SendErrorKind::Unavailable(answer),
            _ => SendErrorKind::Refused(answer),
        };
        let retryable = matches!(kind, SendErrorKind::Unavailable(_));
        Err(SendError { kind, retry_after: self.retry_after.filter(|_| retryable) })
    }
}

/// `https` without user and password; `http` only when allowed.
pub(super) fn check_scheme(url: &Url, allow_http: bool) -> Result<(), &'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("its URL holds a user or a password, which is not supported");
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if allow_http => Ok(()),
        _ => Err("its URL is not https"),
    }
}

/// A header whose name is lower case and constant.
pub(super) fn header(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

/// The error must have lost its URL already, which may be secret.
fn failure(error: &reqwest::Error) -> SendErrorKind {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<NoPublicAddress>() {
            return SendErrorKind::PrivateAddress;
        }
        cause = inner.source();
    }
    if error.is_connect() {
        SendErrorKind::Connect(root_cause(error))
    } else if error.is_builder() {
        SendErrorKind::Unfit("no request can be made of it")
    } else {
        SendErrorKind::Interrupted(root_cause(error))
    }
}

/// Seconds or a date.
fn retry_after(headers: &HeaderMap, now_unix: Duration) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(date.saturating_sub(now_unix))
}

#[cfg(test)]
mod tests;
