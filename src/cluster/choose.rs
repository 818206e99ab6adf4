//! Which node a client is sent to.
//!
//! What is known of the other nodes is as old as their last renewal. A burst of clients within that time must not all go to
//! the node that looked emptiest, so every client sent somewhere counts there until the nodes are seen anew.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::node::Node;
use crate::config::sections::Strategy;

/// Chooses by a strategy.
#[derive(Debug)]
pub(crate) struct Chooser {
    strategy: Strategy,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Clients sent to a node since the nodes were seen last.
    sent: HashMap<String, u64>,
    /// Turns taken so far.
    turns: usize,
    /// What a node is owed under smooth weighted round robin.
    credit: HashMap<String, i64>,
    random: RandomState,
}

impl Chooser {
    /// Nobody was sent anywhere yet.
    pub(crate) fn new(strategy: Strategy) -> Self {
        Self { strategy, state: Mutex::default() }
    }

    /// The strategy in force.
    pub(crate) fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// The nodes were seen anew.
    pub(crate) fn nodes_seen(&self, nodes: &[Node]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sent.clear();
        state.credit.retain(|id, _| nodes.iter().any(|node| node.id == *id));
    }

    /// Chooses among the nodes that take clients; `nodes` are in order of their ids. `key` says who is sent, for the strategy
    /// that hashes it. Nodes that `reaches` denies are taken only when there is no other.
    pub(crate) fn choose<'a>(
        &self,
        nodes: &'a [Node],
        key: &str,
        reaches: impl Fn(&Node) -> bool,
    ) -> Option<&'a Node> {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = |node: &Node| state.sent.get(&node.id).copied().unwrap_or(0);
        let (reached, others): (Vec<&Node>, Vec<&Node>) = nodes
            .iter()
            .filter(|node| node.takes_clients())
            .filter(|node| node.connections + sent(node) < node.connections_max)
            .partition(|node| reaches(node));
        let candidates = if reached.is_empty() { others } else { reached };
        let share = |amount: u64, node: &Node| amount as f64 / f64::from(node.weight);
        let least = |score: &dyn Fn(&Node) -> f64| {
            candidates.iter().copied().min_by(|a, b| score(a).total_cmp(&score(b)))
        };
        state.turns = state.turns.wrapping_add(1);
        let turns = state.turns;
        let chosen = match self.strategy {
            Strategy::LeastConnections => least(&|node| share(node.connections + sent(node), node)),
            Strategy::LeastLoad => {
                least(&|node| share(u64::from(node.load_permille) + sent(node), node))
            }
            Strategy::RoundRobin => {
                turns.checked_rem(candidates.len()).map(|turn| candidates[turn])
            }
            Strategy::WeightedRoundRobin => smooth_turn(&candidates, &mut state.credit),
            Strategy::Hash => {
                candidates.iter().copied().max_by(|a, b| rank(a, key).total_cmp(&rank(b, key)))
            }
            Strategy::Random => {
                let random = state.random.hash_one(turns) as usize;
                random.checked_rem(candidates.len()).map(|at| candidates[at])
            }
        }?;
        *state.sent.entry(chosen.id.clone()).or_default() += 1;
        Some(chosen)
    }
}

/// The next of smooth weighted round robin: a node of twice the weight comes twice as often, evenly spread.
fn smooth_turn<'a>(nodes: &[&'a Node], credit: &mut HashMap<String, i64>) -> Option<&'a Node> {
    let total: i64 = nodes.iter().map(|node| i64::from(node.weight)).sum();
    for node in nodes {
        *credit.entry(node.id.clone()).or_default() += i64::from(node.weight);
    }
    let owed = |node: &Node| credit.get(&node.id).copied().unwrap_or(0);
    let chosen = nodes.iter().copied().max_by_key(|node| owed(node))?;
    *credit.entry(chosen.id.clone()).or_default() -= total;
    Some(chosen)
}

/// Rendezvous hashing: every node ranks a key by itself, the highest takes it, and a node that leaves moves only its own
/// keys. By the node's name, so that a restarted node gets its clients back.
fn rank(node: &Node, key: &str) -> f64 {
    let digest =
        Sha256::new().chain_update(&node.name).chain_update([0]).chain_update(key).finalize();
    let mut high = [0; 8];
    high.copy_from_slice(&digest[..8]);
    // In (0, 1]: the weight bends the even distribution.
    let even = (u64::from_be_bytes(high) as f64 + 1.0) / (u64::MAX as f64 + 1.0);
    -f64::from(node.weight) / even.ln().min(-f64::MIN_POSITIVE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::node::NodeState;
    use super::*;

    fn node(name: &str) -> Node {
        Node {
            id: format!("{name}-1"),
            name: name.to_owned(),
            url: Some(format!("wss://{name}.example/ws")),
            state: NodeState::Up,
            version: "1".to_owned(),
            uptime_seconds: 1,
            shards: 2,
            connections: 0,
            connections_max: 10_000,
            load_permille: 0,
            cpu_permille: None,
            loop_lag_us: None,
            weight: 100,
            channels_on: String::new(),
        }
    }

    fn counts(strategy: Strategy, nodes: &[Node], clients: usize) -> Vec<usize> {
        let chooser = Chooser::new(strategy);
        let mut counts = vec![0; nodes.len()];
        for client in 0..clients {
            let chosen = chooser.choose(nodes, &format!("user-{client}"), |_| true).unwrap();
            counts[nodes.iter().position(|node| node.id == chosen.id).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn strategies_spread_as_they_say() {
        let even = [node("a"), node("b"), node("c")];
        assert_eq!(counts(Strategy::LeastConnections, &even, 9), [3, 3, 3]);
        assert_eq!(counts(Strategy::LeastLoad, &even, 9), [3, 3, 3]);
        assert_eq!(counts(Strategy::RoundRobin, &even, 9), [3, 3, 3]);
        let heavy = [node("a"), Node { weight: 300, ..node("b") }];
        assert_eq!(counts(Strategy::WeightedRoundRobin, &heavy, 8), [2, 6]);
        assert_eq!(counts(Strategy::LeastConnections, &heavy, 8), [2, 6]);
        for strategy in [Strategy::Random, Strategy::Hash] {
            let counts = counts(strategy, &even, 3_000);
            assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
        }
        let hashed = counts(Strategy::Hash, &heavy, 4_000);
        assert!((850..1_150).contains(&hashed[0]), "{hashed:?}");
    }

    #[test]
    fn the_emptier_and_the_idler_come_first() {
        let nodes = [Node { connections: 50, load_permille: 10, ..node("a") }, node("b")];
        assert_eq!(counts(Strategy::LeastConnections, &nodes, 50), [0, 50]);
        assert_eq!(counts(Strategy::LeastConnections, &nodes, 70), [10, 60]);
        assert_eq!(counts(Strategy::LeastLoad, &nodes, 10), [0, 10]);
    }

    #[test]
    fn nobody_is_sent_to_a_node_that_takes_nobody() {
        let away = [
            Node { state: NodeState::Draining, ..node("a") },
            Node { state: NodeState::Starting, ..node("b") },
            Node { url: None, ..node("c") },
            Node { connections: 10_000, ..node("d") },
        ];
        for name in Strategy::NAMES {
            let chooser = Chooser::new(Strategy::parse(name).unwrap());
            assert_eq!(chooser.choose(&away, "ada", |_| true), None, "{name}");
            assert_eq!(chooser.choose(&[], "ada", |_| true), None, "{name}");
        }
        let nearly_full = [Node { connections: 9_998, ..node("a") }];
        let chooser = Chooser::new(Strategy::RoundRobin);
        assert!(chooser.choose(&nearly_full, "", |_| true).is_some());
        assert!(chooser.choose(&nearly_full, "", |_| true).is_some());
        assert_eq!(chooser.choose(&nearly_full, "", |_| true), None, "those sent there count");
        chooser.nodes_seen(&nearly_full);
        assert!(
            chooser.choose(&nearly_full, "", |_| true).is_some(),
            "until the nodes are seen anew"
        );
    }

    #[test]
    fn a_node_out_of_reach_is_the_last_choice() {
        let nodes = [node("a"), Node { connections: 9_999, ..node("b") }];
        for name in Strategy::NAMES {
            let chooser = Chooser::new(Strategy::parse(name).unwrap());
            let without_a = |node: &Node| node.name != "a";
            let chosen = chooser.choose(&nodes, "ada", without_a).unwrap();
            assert_eq!(chosen.name, "b", "{name}");
            let chosen = chooser.choose(&nodes, "ada", without_a).unwrap();
            assert_eq!(chosen.name, "a", "{name}: better than none, and b is full");
        }
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_keys() {
        let all = [node("a"), node("b"), node("c")];
        let fewer = [node("a"), node("c")];
        let chooser = Chooser::new(Strategy::Hash);
        let mut moved = 0;
        for user in 0..1_000 {
            let key = format!("user-{user}");
            let before = chooser.choose(&all, &key, |_| true).unwrap();
            let after = chooser.choose(&fewer, &key, |_| true).unwrap();
            if before.name == "b" {
                moved += 1;
            } else {
                assert_eq!(before.name, after.name, "{key}");
            }
        }
        assert!((250..420).contains(&moved), "{moved}");
    }
}
