//! Hooks: the application is asked before a client may do something.
//!
//! A question comes from a shard through the control queue, waits for its turn in its own lane, is posted to the
//! application, and its answer goes into the mailbox of the connection's shard. The four hooks share a client and nothing else,
//! so that a slow one holds up no other; no shard and no other connection ever waits. Every question is answered within its
//! timeout, unless its client has left.

mod answer;
mod application;
mod lane;
mod question;

use std::sync::Arc;

use gateway_core::hook::{HookKind, HookQuestion};
use reqwest::Url;

use crate::breaker::{Breaker, BreakerLimits, BreakerState};
use crate::bridge::Bridge;
use crate::config::Config;
use crate::config::sections::OnFailure;
use crate::notify::senders::SetupError;
use application::Application;
use lane::{Lane, LaneSetup};
pub(crate) use lane::{LaneTimes, OUTCOMES};

/// All hooks. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Hooks {
    /// By [`HookKind`].
    lanes: [Arc<Lane>; 4],
}

/// What the hooks are to work with, checked.
#[derive(Debug)]
pub(crate) struct HookSetups([Option<Arc<LaneSetup>>; 4]);

/// A hook at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HookState {
    /// Which one.
    pub kind: HookKind,
    /// Its breaker; `None` when it is off.
    pub breaker: Option<BreakerState>,
    /// Questions that wait for their turn.
    pub waiting: usize,
    /// Questions that the application is being asked.
    pub in_flight: usize,
    /// Answers by [`OUTCOMES`].
    pub outcomes: [u64; OUTCOMES.len()],
}

impl HookSetups {
    /// Checks the configuration and makes the client.
    ///
    /// # Errors
    /// A CA file that cannot be used, or a system without certificates where TLS is needed.
    pub(crate) fn new(config: &Config) -> Result<Self, SetupError> {
        let (connect, subscribe) = (&config.hook_connect, &config.hook_subscribe);
        let (publish, rpc) = (&config.hook_publish, &config.hook_rpc);
        let sections = [
            (&connect.url, connect.timeout, connect.concurrency_max, connect.waiting_max),
            (&subscribe.url, subscribe.timeout, subscribe.concurrency_max, subscribe.waiting_max),
            (&publish.url, publish.timeout, publish.concurrency_max, publish.waiting_max),
            (&rpc.url, rpc.timeout, rpc.concurrency_max, rpc.waiting_max),
        ];
        let mut setups = [const { None }; 4];
        if sections.iter().all(|(url, ..)| url.is_none()) {
            return Ok(Self(setups));
        }
        let urls = sections.iter().filter_map(|(url, ..)| url.as_deref());
        let https = urls.clone().any(|url| url.starts_with("https:"));
        let application = Arc::new(Application::new(config, https)?);
        for (kind, (url, timeout, concurrency_max, waiting_max)) in
            HookKind::ALL.into_iter().zip(sections)
        {
            let Some(url) = url else { continue };
            let url = Url::parse(url).map_err(|_| SetupError::Setting {
                setting: "the URL of a hook",
                problem: "is no URL such as http://app.internal:3000/hooks",
            })?;
            let on_failure = match kind {
                HookKind::Subscribe => subscribe.on_failure,
                HookKind::Publish => publish.on_failure,
                HookKind::Connect | HookKind::Rpc => OnFailure::Deny,
            };
            setups[kind as usize] = Some(Arc::new(LaneSetup {
                url,
                timeout,
                concurrency_max: concurrency_max as usize,
                waiting_max: waiting_max as usize,
                waiting_bytes_max: config.hooks.waiting_bytes_max,
                allow_on_failure: on_failure == OnFailure::Allow,
                depth_max: config.limits.json_depth_max,
                breaker: Breaker::new(BreakerLimits {
                    failures: config.hooks.breaker_failures,
                    open: config.hooks.breaker_open,
                }),
                application: Arc::clone(&application),
            }));
        }
        Ok(Self(setups))
    }
}

impl Hooks {
    /// Lanes whose answers go to the shards behind `bridge`; log lines of a lane are bounded to `lines_per_second`.
    pub(crate) fn new(setups: HookSetups, bridge: &Bridge, lines_per_second: u32) -> Self {
        let lane = |kind| Arc::new(Lane::new(kind, bridge.clone(), lines_per_second));
        let hooks = Self { lanes: HookKind::ALL.map(lane) };
        hooks.replace(setups);
        hooks
    }

    /// Questions from now on are asked in the new way; those under way end in the old one.
    pub(crate) fn replace(&self, setups: HookSetups) {
        for (lane, setup) in self.lanes.iter().zip(setups.0) {
            lane.replace(setup);
        }
    }

    /// Takes a question. Must be called inside the runtime.
    pub(crate) fn ask(&self, question: HookQuestion) {
        self.lanes[question.ask.kind() as usize].submit(question);
    }

    /// Every hook that is on, or was.
    pub(crate) fn states(&self) -> impl Iterator<Item = HookState> {
        self.lanes.iter().map(|lane| lane.state()).filter(|state| {
            state.breaker.is_some() || state.outcomes.iter().any(|count| *count > 0)
        })
    }

    /// How long the application took to answer.
    pub(crate) fn times(&self, kind: HookKind) -> LaneTimes {
        self.lanes[kind as usize].times()
    }

    /// Whether one of them is left alone because the application does not answer.
    pub(crate) fn any_open(&self) -> bool {
        self.states()
            .any(|state| state.breaker.is_some_and(|breaker| breaker != BreakerState::Closed))
    }
}
