//! Random life of a node in virtual time: connects, subscriptions, publishes, slow readers, lost sockets, and mailboxes
//! so small that they overflow all the time.
//!
//! Must hold for every seed: per channel each subscriber sees offsets in order without duplicates; every hole is told by
//! `lost` (or bridged by an honest `subscribed`); at rest every subscriber stands at the top; nothing leaks.
//! `SIM_SEEDS=n` runs more seeds, `SIM_SEED=s` one.

use std::collections::BTreeMap;
use std::time::Duration;

use gateway_core::message::{ChannelOp, ChannelOutcome, HistoryQuery};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::node::{Client, Node, settings};

const CHANNELS: [&str; 5] = ["chat:a", "chat:b", "live:c", "live:d", "session:e"];

/// What a client knows of a channel: the offset up to which it has seen or been told everything.
#[derive(Default)]
struct Seen {
    by_channel: BTreeMap<String, (u64, String)>,
}

struct Sim {
    node: Node,
    random: ChaCha8Rng,
    clients: Vec<(Client, Seen)>,
    published: u64,
    seed: u64,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut settings = settings();
        settings.limits.outbox_bytes_max = 64 << 10;
        let mut node = Node::with(1 + (random.next_u32() % 4) as u16, settings);
        node.mailbox_max = 1 + (random.next_u32() % 8) as usize;
        Self { node, random, clients: Vec::new(), published: 0, seed }
    }

    fn pick(&mut self, n: usize) -> usize {
        self.random.next_u32() as usize % n
    }

    fn connect(&mut self) {
        let shard = self.pick(self.node.shards.len()) as u16;
        let user = format!("u{}", self.pick(6));
        let token = self.node.token(&user, json!({}));
        let client = self.node.upgrade(shard, &format!("/ws?token={token}"), "");
        self.clients.push((client, Seen::default()));
    }

    fn act(&mut self) {
        let channel = CHANNELS[self.pick(CHANNELS.len())];
        let index = if self.clients.is_empty() { 0 } else { self.pick(self.clients.len()) };
        let what = self.pick(100);
        if what < 6 || self.clients.len() < 2 {
            return self.connect();
        }
        let client = self.clients[index].0;
        match what {
            6..=25 => {
                let known = self.clients[index].1.by_channel.get(channel).cloned();
                let known = known.filter(|_| self.random.next_u32().is_multiple_of(2));
                // The id carries the position asked for: what is still unread when the client asks does not count.
                let id = known.as_ref().map_or("s".into(), |(offset, _)| format!("s{offset}"));
                let recover =
                    known.map(|(offset, epoch)| json!({"offset": offset, "epoch": epoch}));
                let data = json!({"channel": channel, "recover": recover});
                self.node.send(client, &json!({"type": "subscribe", "id": id, "data": data}));
            }
            26..=33 => {
                let data = json!({"channel": channel});
                self.node.send(client, &json!({"type": "unsubscribe", "id": "u", "data": data}));
            }
            34..=85 => {
                self.published += 1;
                let pad = "x".repeat(self.pick(2000));
                let data = json!({"channel": channel, "data": {"n": self.published, "pad": pad}});
                self.node.send(client, &json!({"type": "publish", "id": "p", "data": data}));
            }
            86..=89 => self.node.clients[client].stalled = true,
            90..=93 => self.node.resume(client),
            94..=96 => self.node.drop_socket(client),
            _ => {
                let pause = Duration::from_millis(self.pick(400) as u64);
                self.node.advance(pause);
            }
        }
    }

    /// Reads what every client got and checks it against what it knew.
    fn check_inboxes(&mut self) {
        for (client, seen) in &mut self.clients {
            for message in self.node.clients[*client].inbox.drain(..) {
                seen.check(&message, self.seed);
            }
        }
    }

    fn run(mut self) {
        for _ in 0..400 {
            self.act();
            let budget = 1 + self.pick(4);
            for _ in 0..self.pick(3) {
                self.node.turn(budget);
            }
            self.check_inboxes();
        }
        for index in 0..self.clients.len() {
            self.node.resume(self.clients[index].0);
        }
        self.node.settle();
        self.check_inboxes();
        self.check_rest();
        for index in 0..self.clients.len() {
            self.node.drop_socket(self.clients[index].0);
        }
        self.node.settle();
        assert_eq!(self.node.count(|m| m.subscriptions), 0, "SIM_SEED={}", self.seed);
        assert_eq!(self.node.count(|m| m.outbox_bytes), 0, "SIM_SEED={}", self.seed);
        assert_eq!(self.node.admission.connections(), 0, "SIM_SEED={}", self.seed);
        self.node.advance(Duration::from_secs(90_000));
        assert_eq!(self.node.count(|m| m.channels), 0, "SIM_SEED={}", self.seed);
    }

    /// At rest every subscriber must know everything up to the top of its channel.
    fn check_rest(&mut self) {
        for channel in CHANNELS {
            let query = HistoryQuery { since: None, limit: 0, reverse: false };
            let outcome = self.node.api(channel, ChannelOp::History(query)).unwrap();
            let ChannelOutcome::History { top, .. } = outcome else { panic!("{outcome:?}") };
            for (client, seen) in &self.clients {
                if self.node.clients[*client].close_code.is_some()
                    || self.node.clients[*client].closed
                {
                    continue;
                }
                if let Some((offset, _)) =
                    seen.by_channel.get(channel).filter(|_| seen.is_live(channel))
                {
                    assert_eq!(
                        *offset, top.offset,
                        "{channel} of client {client}; SIM_SEED={}",
                        self.seed
                    );
                }
            }
        }
    }
}

impl Seen {
    fn is_live(&self, channel: &str) -> bool {
        self.by_channel.contains_key(&format!("live {channel}"))
    }

    fn check(&mut self, message: &Value, seed: u64) {
        let channel = message["channel"].as_str().unwrap_or_default().to_owned();
        let live = format!("live {channel}");
        match message["type"].as_str().unwrap() {
            "subscribed" => {
                let data = &message["data"];
                let top = data["offset"].as_u64().unwrap();
                let epoch = data["epoch"].as_str().unwrap().to_owned();
                if data["recovered"] == true {
                    let (_, known) = self.by_channel[&channel].clone();
                    let asked = message["reply_to"].as_str().unwrap();
                    let mut at: u64 = asked[1..].parse().unwrap();
                    assert_eq!(known, epoch, "recovered across epochs; SIM_SEED={seed}");
                    for missed in data["messages"].as_array().unwrap() {
                        at += 1;
                        assert_eq!(missed["offset"].as_u64(), Some(at), "SIM_SEED={seed}");
                    }
                    assert_eq!(at, top, "recovered but not to the top; SIM_SEED={seed}");
                }
                self.by_channel.insert(channel, (top, epoch.clone()));
                self.by_channel.insert(live, (0, epoch));
            }
            "unsubscribed" => {
                self.by_channel.remove(&live);
            }
            "lost" => {
                let data = &message["data"];
                let (from, to) =
                    (data["from_offset"].as_u64().unwrap(), data["to_offset"].as_u64().unwrap());
                let at = &mut self.by_channel.get_mut(&channel).unwrap().0;
                assert_eq!(from, *at + 1, "a loss that does not follow; SIM_SEED={seed}");
                *at = to;
            }
            "message" => {
                assert!(
                    self.is_live(&channel),
                    "a publication without subscription; SIM_SEED={seed}"
                );
                let at = &mut self.by_channel.get_mut(&channel).unwrap().0;
                let offset = message["offset"].as_u64().unwrap();
                assert_eq!(offset, *at + 1, "gap or duplicate in {channel}; SIM_SEED={seed}");
                *at = offset;
            }
            _ => {}
        }
    }
}

#[allow(clippy::disallowed_methods)] // The seeds to run come from whoever runs the test.
#[test]
fn any_life_of_a_node_keeps_the_promises() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = variable("SIM_SEED") {
        return Sim::new(seed).run();
    }
    for seed in 0..variable("SIM_SEEDS").unwrap_or(300) {
        Sim::new(seed).run();
    }
}
