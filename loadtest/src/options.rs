//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;

use crate::load::{ApiAccess, Environment};
use crate::plan::{Plan, Scenario, Size};
use crate::schedule::nanos;
use crate::target::Target;
use crate::thresholds::Assignment;
use crate::tls::{self, Trust};
use crate::values::{Span, Values};
use crate::worker::Assigned;

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
    /// WebSocket endpoint of the gateway, ws:// or wss://. Several, separated by commas or repeated, take turns; they
    /// must lead to one gateway.
    #[arg(long = "url", value_delimiter = ',', default_value = "ws://127.0.0.1:8080/ws")]
    urls: Vec<Target>,
    /// Endpoints of other nodes of the same cluster. Publishers are there from the beginning, and `reconnect` brings everybody
    /// back there.
    #[arg(long = "other-url", value_delimiter = ',')]
    other_urls: Vec<Target>,
    /// Process that `reconnect` kills in the moment in which it cuts everybody off: the node they are on.
    #[arg(long, value_name = "PID", requires = "other_urls")]
    kill_pid: Option<u32>,
    /// PEM file of a certificate authority to trust besides those of the system.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Takes any certificate of the server.
    #[arg(long, conflicts_with = "ca")]
    insecure: bool,
    /// Offers permessage-deflate, and compresses when the server agrees.
    #[arg(long)]
    deflate: bool,
    /// Addresses of this machine to connect from, in turns; each has about 28,000 ports.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    local_addresses: Vec<IpAddr>,
    /// Spreads the load over so many processes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) processes: u32,
    /// Cores that the processes are pinned to, in turns.
    #[arg(long, value_name = "CORE", value_delimiter = ',')]
    pub(crate) cores: Vec<usize>,
    /// What the process that started this one has it do.
    #[arg(long, hide = true)]
    pub(crate) worker: Option<Assigned>,
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
    /// A limit that the run must keep to; `none` takes one away. See the scenario files for names.
    #[arg(long = "threshold", value_name = "NAME=VALUE")]
    thresholds: Vec<Assignment>,
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
        let thresholds = self.thresholds.iter().cloned().collect();
        let flags = Values { thresholds, ..self.values.clone() };
        let mut plans = Vec::new();
        for asked in &self.scenarios {
            let names: Vec<String> = if asked == "all" {
                Scenario::names().map(str::to_owned).collect()
            } else {
                vec![asked.clone()]
            };
            for name in &names {
                plans.push(Scenario::load(name)?.plan(name, self.size, &flags)?);
            }
        }
        Ok(plans)
    }

    /// Everything that is the same for all of them.
    pub(crate) fn environment(&self) -> Result<Environment, String> {
        let or = |given: &Option<String>, default: &str| {
            given.clone().unwrap_or_else(|| default.to_owned())
        };
        let mut targets = self.urls.clone();
        for target in &mut targets {
            target.settle()?;
        }
        let mut others = self.other_urls.clone();
        for target in &mut others {
            target.settle()?;
        }
        let first = targets.first().ok_or("an empty --url")?;
        let mut metrics = self.metrics_url.clone().unwrap_or_else(|| first.with_path("/metrics"));
        metrics.settle()?;
        let mut api = self.api_url.clone();
        api.as_mut().map_or(Ok(()), Target::settle)?;
        let all = || targets.iter().chain(&others).chain([&metrics]).chain(&api);
        if all().any(Target::is_secure) {
            let trust = match &self.ca {
                _ if self.insecure => Trust::Anybody,
                Some(path) => Trust::File(path.clone()),
                None => Trust::System,
            };
            let config = tls::client(&trust)?;
            let all = targets.iter_mut().chain(&mut others).chain([&mut metrics]).chain(&mut api);
            for target in all {
                target.trust(&config);
            }
        }
        Ok(Environment {
            targets,
            others,
            kill_pid: self.kill_pid,
            metrics,
            deflate: self.deflate,
            local_addresses: self.local_addresses.clone(),
            api: api.map(|target| ApiAccess {
                target,
                key: or(&self.api_key, DEVELOPMENT_API_KEY),
                connections: API_CONNECTIONS,
            }),
            secret: or(&self.secret, DEVELOPMENT_SECRET),
            user_claim: self.user_claim.clone(),
            issuer_audience: (self.issuer.clone(), self.audience.clone()),
            patience: nanos(self.patience.0),
        })
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
            "--threshold",
            "p99_ms_max=50",
            "--local-addresses",
            "127.0.0.1,::1",
        ])
        .unwrap();
        let plans = options.plans().unwrap();
        assert_eq!(plans.len(), 10);
        assert!(plans.iter().all(|plan| plan.duration == 3_000_000_000));
        let verdicts = plans[0].thresholds.judge(|_| Some(60.0));
        let p99 = verdicts.iter().find(|verdict| verdict.name.as_str() == "p99_ms_max").unwrap();
        assert!((40.0..60.0).contains(&p99.limit) && !p99.ok);
        let environment = options.environment().unwrap();
        assert_eq!(environment.metrics.path, "/metrics");
        assert_eq!(environment.local_addresses.len(), 2);
    }

    #[test]
    fn several_urls_may_be_given_in_both_ways() {
        let line = ["x", "--url", "ws://127.0.0.1:1/a,ws://[::1]:2/b", "--url", "ws://127.0.0.1:3"];
        let environment = Options::try_parse_from(line).unwrap().environment().unwrap();
        let paths: Vec<_> = environment.targets.iter().map(|target| &*target.path).collect();
        assert_eq!(paths, ["/a", "/b", "/"]);
        assert_eq!(environment.target(4, true).path, "/b", "there are no others");
        let line = ["x", "--url", "ws://127.0.0.1:1/a", "--other-url", "ws://127.0.0.1:2/b"];
        let environment = Options::try_parse_from(line).unwrap().environment().unwrap();
        assert_eq!(environment.target(4, false).path, "/a");
        assert_eq!(environment.target(4, true).path, "/b");
    }

    #[test]
    fn tls_needs_certificates_that_can_be_read() {
        let line = ["x", "--url", "wss://127.0.0.1/ws", "--ca", "missing.pem"];
        let error = Options::try_parse_from(line).unwrap().environment().unwrap_err();
        assert!(error.contains("missing.pem"), "{error}");
        let line = ["x", "--url", "wss://127.0.0.1/ws", "--insecure"];
        let environment = Options::try_parse_from(line).unwrap().environment().unwrap();
        assert!(environment.targets[0].session().unwrap().is_some());
    }

    #[test]
    fn bad_usage_is_refused() {
        for line in [
            &["--url", "ftp://127.0.0.1/ws"][..],
            &["--threshold", "p99=5"],
            &["--processes", "0"],
            &["--insecure", "--ca", "x.pem"],
            &["--kill-pid", "1"],
            &["--local-addresses", "localhost"],
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
