//! Any order of reads, changes, invalidations and failures, against a model of what may be seen.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, advance};

use super::super::*;
use super::support::*;

#[derive(Clone, Debug)]
enum Step {
    /// A node reads a key.
    Read(usize, u8),
    /// A node reads several keys.
    ReadMany(usize, Vec<u8>),
    /// The source changes, or loses, a value; a node invalidates it and tells the others.
    Change(usize, u8, bool),
    /// The source changes a value and says so to nobody.
    ChangeSilently(u8),
    /// Time passes.
    Wait(u64),
    /// The second level fails, or works again. Only reads happen while it fails.
    Second(bool),
    /// The source fails, or works again.
    Source(bool),
    Sweep,
    Clear(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2_usize, 0..4_u8).prop_map(|(node, key)| Step::Read(node, key)),
        2 => (0..2_usize, prop::collection::vec(0..4_u8, 0..6)).prop_map(|(node, keys)| Step::ReadMany(node, keys)),
        3 => (0..2_usize, 0..4_u8, any::<bool>()).prop_map(|(node, key, some)| Step::Change(node, key, some)),
        1 => (0..4_u8).prop_map(Step::ChangeSilently),
        3 => (1..60_u64).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Second),
        1 => any::<bool>().prop_map(Step::Source),
        1 => Just(Step::Sweep),
        1 => (0..2_usize).prop_map(Step::Clear),
    ];
    prop::collection::vec(step, 1..80)
}

/// What a key has been, newest last: from when, and whether older values may still be seen after it.
#[derive(Debug, Default)]
struct History(Vec<(Option<String>, Instant, bool)>);

struct Model {
    keys: HashMap<u8, History>,
    changes: u64,
    source_up: bool,
}

impl Model {
    fn now(&self, key: u8) -> Option<String> {
        self.keys[&key].0.last().unwrap().0.clone()
    }

    fn change(&mut self, key: u8, some: bool, told: bool) {
        self.changes += 1;
        let value = some.then(|| format!("{key}:{}", self.changes));
        self.keys.get_mut(&key).unwrap().0.push((value, Instant::now(), told));
    }

    /// Whether a value that was read may be seen: it is the present one, or was replaced silently less than a time to
    /// live ago, and nobody was told of a change since.
    fn allows(&self, key: u8, seen: Option<&String>) -> bool {
        let history = &self.keys[&key].0;
        let mut ended: Option<Instant> = None;
        for (value, from, told) in history.iter().rev() {
            let fresh = ended.is_none_or(|ended| ended.elapsed() <= TTL.mul_f64(1.1));
            if value.as_ref() == seen && fresh {
                return true;
            }
            if *told {
                return false;
            }
            ended = Some(*from);
        }
        false
    }

    fn load(&self, key: u8) -> Result<Option<String>, Down> {
        if self.source_up { Ok(self.now(key)) } else { Err(Down) }
    }
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let second = Memory::new();
    let spec = RegionSpec { negative_ttl: Some(TTL / 2), ..spec() };
    let nodes = [node(&second, spec.clone()), node(&second, spec)];
    let mut second_up = true;
    let mut model = Model { keys: HashMap::new(), changes: 0, source_up: true };
    for key in 0..4 {
        model.keys.insert(key, History::default());
        model.change(key, key != 3, true);
    }
    for step in steps {
        match step {
            Step::Read(node, key) => {
                let name = key.to_string();
                let read = nodes[node].1.get_or_load(&name, || async { model.load(key) });
                match read.await {
                    Ok(seen) => prop_assert!(model.allows(key, seen.as_deref()), "{key}: {seen:?}"),
                    Err(_) => prop_assert!(!model.source_up),
                }
            }
            Step::ReadMany(node, keys) => {
                let names: Vec<String> = keys.iter().map(u8::to_string).collect();
                let load = |names: Vec<String>| {
                    let values = names.iter().map(|name| model.load(name.parse().unwrap()));
                    std::future::ready(values.collect())
                };
                match nodes[node].1.get_many_or_load(&names, load).await {
                    Ok(seen) => {
                        prop_assert_eq!(seen.len(), keys.len());
                        for (key, seen) in keys.iter().zip(&seen) {
                            prop_assert!(model.allows(*key, seen.as_deref()), "{key}: {seen:?}");
                        }
                    }
                    Err(_) => prop_assert!(!model.source_up),
                }
            }
            Step::Change(node, key, some) if second_up => {
                model.change(key, some, true);
                nodes[node].1.invalidate(&key.to_string()).await.unwrap();
                nodes[1 - node].0.invalidate_local(RegionName::Contacts, &key.to_string());
            }
            Step::Change(..) => (),
            Step::ChangeSilently(key) => model.change(key, true, false),
            Step::Wait(seconds) => advance(Duration::from_secs(seconds)).await,
            Step::Second(up) => {
                second_up = up;
                second.set_mood(if up { Mood::Well } else { Mood::Failing });
            }
            Step::Source(up) => model.source_up = up,
            Step::Sweep => nodes.iter().for_each(|(cache, _)| cache.sweep()),
            Step::Clear(node) => nodes[node].0.clear_local(),
        }
    }
    for (cache, _) in &nodes {
        prop_assert!(stats(cache).entries <= 4);
        cache.clear_local();
        prop_assert_eq!((stats(cache).entries, stats(cache).bytes), (0, 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_what_may_be_seen_is_seen(steps in steps()) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(steps))?;
    }
}
