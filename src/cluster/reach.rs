//! Which nodes this one can reach over HTTP, as their clients must.
//!
//! A node may hold its lease in Redis while nobody gets through to it. Each of the others is asked for `/ready` at the host
//! of its URL; after so many failures in a row its breaker opens, and no client is sent there until it answers again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use reqwest::{Client, Url};

use super::node::Node;
use crate::breaker::{Breaker, BreakerLimits, BreakerState, Change};
use crate::config::sections::ClusterSection;
use crate::web_client::{self, Trust, TrustError};

/// Nodes asked at one time.
const PROBES_MAX: usize = 16;

/// Breakers of the other nodes.
#[derive(Debug)]
pub(crate) struct Reach {
    interval: Duration,
    limits: BreakerLimits,
    client: Client,
    breakers: Mutex<HashMap<String, Arc<Breaker>>>,
}

impl Reach {
    /// `None` when nodes are not asked.
    ///
    /// # Errors
    /// When the client cannot be made, as without certificates of authorities on the host.
    pub(super) fn new(section: &ClusterSection) -> Result<Option<Self>, TrustError> {
        let interval = section.probe_interval;
        if interval.is_zero() {
            return Ok(None);
        }
        let builder = web_client::builder(Trust::Host(None))?
            .timeout(section.probe_timeout)
            .pool_max_idle_per_host(0);
        let client = web_client::build(builder)?;
        // Every probe after the opening is a trial.
        let limits = BreakerLimits { failures: section.probe_failures, open: interval / 2 };
        Ok(Some(Self { interval, limits, client, breakers: Mutex::default() }))
    }

    /// Between two rounds.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    fn breakers(&self) -> MutexGuard<'_, HashMap<String, Arc<Breaker>>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a node answers, or was not asked yet.
    pub(super) fn reaches(&self, id: &str) -> bool {
        self.breakers().get(id).is_none_or(|breaker| breaker.state() == BreakerState::Closed)
    }

    /// Asks all nodes that have a URL, but this one.
    pub(super) async fn round(&self, nodes: &[Node], own: &str) {
        let others = nodes.iter().filter(|node| node.id != own);
        let asked: Vec<(&Node, Url)> =
            others.filter_map(|node| Some((node, ready_url(node.url.as_deref()?)?))).collect();
        self.breakers().retain(|id, _| asked.iter().any(|(node, _)| node.id == *id));
        stream::iter(asked)
            .for_each_concurrent(PROBES_MAX, |(node, url)| self.ask(node, url))
            .await;
    }

    async fn ask(&self, node: &Node, url: Url) {
        let breaker = {
            let mut breakers = self.breakers();
            let made = || Arc::new(Breaker::new(self.limits));
            Arc::clone(breakers.entry(node.id.clone()).or_insert_with(made))
        };
        if !breaker.try_enter(Instant::now()) {
            return;
        }
        let answer =
            self.client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        match breaker.report(Instant::now(), answer.is_ok()) {
            Some(Change::Opened) => tracing::warn!(
                category = "system",
                event = "node_unreachable",
                node = node.id,
                url = node.url,
                error = answer.err().map(|error| error.without_url().to_string()),
                "no client is sent there",
            ),
            Some(Change::Closed) => {
                tracing::info!(category = "system", event = "node_reachable", node = node.id);
            }
            None => {}
        }
    }
}

/// `/ready` at the host that clients connect to.
fn ready_url(websocket: &str) -> Option<Url> {
    let mut url = Url::parse(websocket).ok()?;
    let scheme = match url.scheme() {
        "ws" => "http",
        "wss" => "https",
        _ => return None,
    };
    url.set_scheme(scheme).ok()?;
    url.set_path("/ready");
    url.set_query(None);
    url.set_fragment(None);
    Some(url)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_asked_whether_it_is_ready() {
        let ready = |url| ready_url(url).map(|url| url.to_string());
        let secure = Some("https://a.example/ready".to_owned());
        assert_eq!(ready("wss://a.example/ws?x=1"), secure);
        assert_eq!(ready("ws://a.example:81/ws"), Some("http://a.example:81/ready".to_owned()));
        assert_eq!(ready("a.example"), None);
        assert_eq!(ready("ftp://a.example/ws"), None);
    }
}
