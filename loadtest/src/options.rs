//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::load::{ApiAccess, Environment};
use crate::plan::{Plan, Scenario, Size};
use crate::schedule::nanos;
use crate::target::Target;
use crate::values::{Span, Values};

/// The token secret that the gateway uses in its development environment when none is configured; known to everybody.
const DEVELOPMENT_SECRET: &str =
    "archmesh-development-secret-known-to-everybody-never-use-it-anywhere-else";

/// The API key of the same kind.
const DEVELOPMENT_API_KEY: &str = "archmesh-development-api-key-known-to-everybody";

/// Connections to the server API.
const API_CONNECTIONS: u32 = 16;

/// Loads a gateway with thousands of connections from one thread and checks what it promises meanwhile: every
/// publication once and in order, nothing acknowledged that is not delivered.
///
/// Exit codes: 0 passed, 1 a threshold or promise was broken, 2 wrong usage, 3 the run could not be made.
#[derive(Debug, Parser)]
#[command(name = "archmesh-loadtest", version)]
pub(crate) struct Options {
    /// WebSocket endpoint of the gateway.
    #[arg(long, default_value = "ws://127.0.0.1:8080/ws")]
    url: Target,
    /// What to do: a name (see --list), `all`, or the path of a scenario file; may be given several times.
    #[arg(long = "scenario", value_name = "NAME|FILE", default_value = "fanout")]
    scenarios: Vec<String>,
    /// Size tier that the scenario's values are taken from.
    #[arg(long, value_enum, default_value_t = Size::Small)]
    size: Size,
    /// Print the built-in scenarios and end.
    #[arg(long)]
    pub(crate) list: bool,
    /// HS256 secret that tokens are made with. Default: the gateway's built-in one of the development environment.
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// Claim that carries the user id.
    #[arg(long, default_value = "sub")]
    user_claim: String,
    /// `iss` of the tokens.
    #[arg(long, default_value = "", hide_default_value = true)]
    issuer: String,
    /// `aud` of the tokens.
    #[arg(long, default_value = "", hide_default_value = true)]
    audience: String,
    /// What every channel name begins with: a namespace in which tokens may allow to publish.
    #[arg(long, default_value = "workflow:")]
    channel_prefix: String,
    /// Publishes through the server API here (http://host:port/api/publish) instead of the sockets.
    #[arg(long)]
    api_url: Option<Target>,
    /// Key of the server API. Default: the gateway's built-in one of the development environment.
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Metrics of the gateway. Default: /metrics where the WebSocket endpoint is.
    #[arg(long)]
    metrics_url: Option<Target>,
    /// Between two questions for the metrics while the load goes on; 0s = none, only between the phases.
    #[arg(long, default_value = "1s")]
    pub(crate) metrics_interval: Span,
    /// Gives up a phase when nothing at all has come or happened for this long.
    #[arg(long, default_value = "15s")]
    patience: Span,
    /// Also writes the reports to this file, as a JSON array.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Also writes the reports to this file, as one page with charts that needs no network.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// No progress on standard error.
    #[arg(long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    values: Values,
}

impl Options {
    /// The scenarios to be run.
    pub(crate) fn plans(&self) -> Result<Vec<Plan>, String> {
        let mut plans = Vec::new();
        for asked in &self.scenarios {
            let names: Vec<String> = if asked == "all" {
                Scenario::names().map(str::to_owned).collect()
            } else {
                vec![asked.clone()]
            };
            for name in &names {
                plans.push(Scenario::load(name)?.plan(name, self.size, &self.values)?);
            }
        }
        Ok(plans)
    }

    /// Everything that is the same for all of them.
    pub(crate) fn environment(&self) -> Environment {
        let or = |given: &Option<String>, default: &str| {
            given.clone().unwrap_or_else(|| default.to_owned())
        };
        Environment {
            target: self.url.clone(),
            metrics: self.metrics_url.clone().unwrap_or_else(|| self.url.with_path("/metrics")),
            api: self.api_url.clone().map(|target| ApiAccess {
                target,
                key: or(&self.api_key, DEVELOPMENT_API_KEY),
                connections: API_CONNECTIONS,
            }),
            secret: or(&self.secret, DEVELOPMENT_SECRET),
            user_claim: self.user_claim.clone(),
            issuer_audience: (self.issuer.clone(), self.audience.clone()),
            channel_prefix: self.channel_prefix.clone(),
            patience: nanos(self.patience.0),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn flags_reach_plan_and_environment() {
        let options = Options::try_parse_from([
            "archmesh-loadtest",
            "--url",
            "ws://127.0.0.1:9/ws",
            "--scenario",
            "all",
            "--size",
            "medium",
            "--duration",
            "3s",
            "--max-p99-ms",
            "50",
        ])
        .unwrap();
        let plans = options.plans().unwrap();
        assert_eq!(plans.len(), 5);
        assert!(plans.iter().all(|plan| plan.duration == 3_000_000_000));
        assert_eq!(plans[0].thresholds.max_p99_ms, Some(50.0));
        assert_eq!(options.environment().metrics.path, "/metrics");
    }

    #[test]
    fn bad_usage_is_refused() {
        for line in [
            &["--url", "wss://127.0.0.1/ws"][..],
            &["--connections", "0"],
            &["--duration", "5"],
            &["--size", "huge"],
        ] {
            assert!(Options::try_parse_from([&["x"], line].concat()).is_err(), "{line:?}");
        }
        let options = Options::try_parse_from(["x", "--scenario", "nothing"]).unwrap();
        assert!(options.plans().is_err());
    }
}
