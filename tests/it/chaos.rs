//! Setup: two nodes, a real Redis, and a seed that decides which faults come in which order while clients publish.
//!
//! Must hold, whatever came: every acknowledged publication reaches every subscriber once and in order, or the subscriber is
//! told that something is missing; nobody is told twice; all is well again when the faults are over. `CHAOS_SEED` repeats a
//! run, `CHAOS_FAULTS` makes it longer (`make chaos`).

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::broker::{ROOM, Seen, insist, pair};
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::{eventually, unix_now};

/// Faults of a run in the test suite.
const FAULTS: u64 = 8;
/// Publications between two faults.
const CALM: u64 = 12;

#[derive(Clone, Copy, Debug)]
enum Fault {
    CutSubscribers,
    CutEveryone,
    HangShortly,
    Flush,
    KillAndEmpty,
    ForgetScripts,
    PauseNode,
}

const ALL: [Fault; 7] = [
    Fault::CutSubscribers,
    Fault::CutEveryone,
    Fault::HangShortly,
    Fault::Flush,
    Fault::KillAndEmpty,
    Fault::ForgetScripts,
    Fault::PauseNode,
];

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The runner shows it when the test fails.
fn say(line: &str) {
    // Nothing to do about a stream that is gone.
    let _ = writeln!(io::stderr(), "{line}");
}

/// A stream of numbers from a seed: xorshift.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// Whether both come to `place`, within less time than a publisher would wait for.
fn within_calm(watchers: &mut [Socket], seen: &mut [Seen], place: &(String, u64)) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        for (socket, seen) in watchers.iter_mut().zip(seen.iter_mut()) {
            seen.note(socket);
        }
        if seen.iter().all(|seen| seen.position() == Some((&place.0, place.1))) {
            return true;
        }
    }
    false
}

#[test]
fn whatever_happens_to_redis_nothing_is_lost_silently() {
    let seed = variable("CHAOS_SEED").unwrap_or_else(unix_now);
    let faults = variable("CHAOS_FAULTS").unwrap_or(FAULTS);
    say(&format!("CHAOS_SEED={seed} CHAOS_FAULTS={faults}"));
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut redis = Redis::start(&[]);
    let (a, b) = pair(&redis);
    let mut watchers = [Socket::connect(&a, "ann"), Socket::connect(&b, "bob")];
    let mut seen = [Seen::default(), Seen::default()];
    for socket in &mut watchers {
        socket.subscribe(ROOM);
    }
    let mut publishers = [Socket::connect(&a, "ada"), Socket::connect(&b, "eve")];
    let mut n = 0;
    for _ in 0..faults {
        let fault = ALL[dice.throw(ALL.len())];
        say(&format!("after publication {n}: {fault:?}"));
        let hung = matches!(fault, Fault::HangShortly);
        match fault {
            Fault::CutSubscribers => drop(redis.ask("client kill type pubsub")),
            Fault::CutEveryone => drop(redis.ask("client kill type normal skipme yes")),
            Fault::HangShortly => redis.signal("STOP"),
            Fault::Flush => drop(redis.ask("flushall")),
            Fault::KillAndEmpty => {
                redis.kill();
                redis.restart();
            }
            Fault::ForgetScripts => drop(redis.ask("script flush")),
            Fault::PauseNode => b.signal("STOP"),
        }
        if hung {
            let body = json!({"channel": ROOM, "data": {"n": 0}});
            let refused = publishers[0].call("publish", body);
            assert_eq!(refused["data"]["error_details"]["temporary"], true, "{refused}");
            redis.signal("CONT");
        }
        let paused = matches!(fault, Fault::PauseNode);
        for _ in 0..CALM {
            n += 1;
            let from = if paused { 0 } else { dice.throw(publishers.len()) };
            insist(&mut publishers[from], n);
        }
        if paused {
            b.signal("CONT");
        }
        for (socket, seen) in watchers.iter_mut().zip(&mut seen) {
            seen.note(socket);
        }
    }
    // What is published when all is well reaches everyone, at the same place.
    eventually("both watchers are where the last publication is", || {
        n += 1;
        let last = insist(&mut publishers[0], n);
        let place = (last["epoch"].as_str()?.to_owned(), last["offset"].as_u64()?);
        within_calm(&mut watchers, &mut seen, &place).then_some(())
    });
    for (index, seen) in seen.iter().enumerate() {
        // Number 0 was refused, and perhaps published all the same.
        let came: BTreeSet<u64> = seen.numbers.iter().copied().filter(|n| *n > 0).collect();
        assert!(seen.told || came.len() as u64 == n, "watcher {index}: {seen:?}");
    }
    for publisher in &mut publishers {
        assert!(publisher.settled("error").is_empty());
    }
}
