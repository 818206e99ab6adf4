//! From the configuration to what the engine is started with.

use std::sync::Arc;
use std::time::Instant;

use gateway_engine::{Balance, EngineConfig, ListenerConfig, ShardPlacement};

use crate::config::Config;
use crate::config::sections;

/// Random numbers drawn once per process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seeds {
    /// For the shards' random streams.
    pub stream: [u8; 32],
    /// For the keyed hashes that all shards agree on.
    pub hash: u64,
}

/// Shards and where they run.
pub(super) fn placements(config: &Config, usable: &[u16]) -> Vec<ShardPlacement> {
    let engine = &config.engine;
    let cpus = if engine.cpus.is_empty() { usable } else { &engine.cpus };
    let shards = match usize::from(engine.shards) {
        0 => cpus.len().max(1),
        shards => shards,
    };
    // Two shards pinned to one core would only wait for each other; more shards than cores are left to the scheduler.
    let pinned = shards <= cpus.len();
    (0..shards)
        .map(|index| ShardPlacement {
            cpu: pinned.then(|| usize::from(cpus[index])),
            weight: engine.weights.get(index).copied().unwrap_or(1),
        })
        .collect()
}

/// Everything the engine needs.
pub(super) fn engine_config(
    config: &Config,
    shards: Vec<ShardPlacement>,
    tls: Option<Arc<rustls::ServerConfig>>,
    started: Instant,
    seeds: Seeds,
) -> EngineConfig {
    let engine = &config.engine;
    EngineConfig {
        shards,
        listeners: config
            .listen
            .public
            .iter()
            .map(|address| ListenerConfig { address: *address })
            .collect(),
        tls,
        backlog: i32::try_from(config.listen.backlog).unwrap_or(i32::MAX),
        balance: balance(engine.balance, engine.hash_by),
        mailbox_messages_max: engine.mailbox_messages(),
        control_messages_max: engine.control_messages_max,
        receive_buffers: engine.receive_buffers,
        receive_buffer_bytes: engine.receive_buffer_bytes,
        receive_budget_bytes: engine.receive_turn_bytes_max,
        completion_entries: engine.ring_completions,
        accept_pause: engine.accept_pause,
        stall_threshold: engine.stall_threshold,
        log_records_per_second: config.log.sample_per_second,
        started,
        seed: seeds.stream,
        hash_seed: seeds.hash,
    }
}

/// Sockets that can be open at one time: WebSocket connections with those that wait to be refused, and HTTP connections
/// of the public listeners and of the internal one.
pub(super) fn sockets_max(config: &Config) -> u64 {
    let connections = config.limits.connections_max;
    let refused = connections / 8 + 16;
    let http = 2 * u64::from(config.http.connections_max);
    connections.saturating_add(refused).saturating_add(http)
}

fn balance(balance: sections::Balance, hash_by: sections::HashBy) -> Balance {
    match balance {
        sections::Balance::Kernel => Balance::Kernel,
        sections::Balance::RoundRobin => Balance::RoundRobin,
        sections::Balance::LeastConnections => Balance::LeastConnections,
        sections::Balance::LeastLoad => Balance::LeastLoad,
        sections::Balance::Hash => Balance::Hash { by_user: hash_by == sections::HashBy::User },
        sections::Balance::Random => Balance::Random,
        sections::Balance::WeightedRoundRobin => Balance::WeightedRoundRobin,
    }
}

/// CPUs this process may run on, in order, as the kernel lists them; the number of cores when that cannot be read.
pub(super) fn usable_cpus() -> Vec<u16> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.and_then(parse_cpu_list).unwrap_or_else(|| {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..u16::try_from(count).unwrap_or(u16::MAX)).collect()
    })
}

/// `0-3,8,10-11`.
fn parse_cpu_list(text: &str) -> Option<Vec<u16>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u16>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn config(variables: &[(&str, &str)]) -> Config {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&Sources { variables, ..Sources::default() }).unwrap().config
    }

    fn check(variables: &[(&str, &str)], usable: &[u16], expected: &[Option<usize>]) {
        let cpus: Vec<_> =
            placements(&config(variables), usable).iter().map(|shard| shard.cpu).collect();
        assert_eq!(cpus, expected);
    }

    #[test]
    fn shards_are_pinned_where_each_has_a_core() {
        check(&[], &[2, 5], &[Some(2), Some(5)]);
        check(&[("ARCHMESH__ENGINE__SHARDS", "1")], &[2, 5], &[Some(2)]);
        check(&[("ARCHMESH__ENGINE__SHARDS", "3")], &[2, 5], &[None, None, None]);
        check(&[("ARCHMESH__ENGINE__CPUS", "1,0")], &[0, 1, 2], &[Some(1), Some(0)]);
    }

    #[test]
    fn every_kind_of_socket_has_a_descriptor() {
        let variables = [
            ("ARCHMESH__LIMITS__CONNECTIONS_MAX", "800"),
            ("ARCHMESH__HTTP__CONNECTIONS_MAX", "100"),
        ];
        assert_eq!(sockets_max(&config(&variables)), 800 + 100 + 16 + 200);
    }

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(parse_cpu_list("\t0-1,4\n").unwrap(), [0, 1, 4]);
        assert_eq!(parse_cpu_list("7").unwrap(), [7]);
        assert!(parse_cpu_list("x").is_none());
        assert!(!usable_cpus().is_empty());
    }
}
