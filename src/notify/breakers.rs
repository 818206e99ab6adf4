//! Breakers of one way out: one for each other side.
//!
//! Mails and webhooks have one other side. Browsers have as many as there are push services, and users choose their URLs, so
//! the map of them is bounded: the one that was used longest ago is forgotten, and begins anew as one that works.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::senders::Target;
use crate::breaker::{Breaker, BreakerLimits, BreakerState};

/// Other sides that are remembered; the browsers of the world use about a dozen push services.
const HOSTS_MAX: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Breakers {
    limits: BreakerLimits,
    hosts: Mutex<Hosts>,
}

#[derive(Debug, Default)]
struct Hosts {
    /// With the turn in which each was used last.
    known: HashMap<String, (u64, Arc<Breaker>)>,
    turn: u64,
}

impl Breakers {
    /// None yet.
    pub(super) fn new(limits: BreakerLimits) -> Self {
        Self { limits, hosts: Mutex::default() }
    }

    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The breaker in front of what takes a message to `target`.
    pub(super) fn of(&self, target: &Target) -> Arc<Breaker> {
        let host = match target {
            Target::WebPush(subscription) => subscription.endpoint().origin().ascii_serialization(),
            Target::Email(_) | Target::Phone(_) | Target::None => String::new(),
        };
        let mut hosts = self.hosts();
        hosts.turn += 1;
        let turn = hosts.turn;
        if hosts.known.len() >= HOSTS_MAX && !hosts.known.contains_key(&host) {
            let oldest = hosts.known.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(host, _)| host.clone()) {
                hosts.known.remove(&oldest);
            }
        }
        let fresh = || (turn, Arc::new(Breaker::new(self.limits)));
        let (used, breaker) = hosts.known.entry(host).or_insert_with(fresh);
        *used = turn;
        Arc::clone(breaker)
    }

    /// Closed when any of them is, or there are none: an address that a user invented says nothing about the others.
    pub(super) fn state(&self) -> BreakerState {
        let hosts = self.hosts();
        let mut states = hosts.known.values().map(|(_, breaker)| breaker.state());
        let Some(first) = states.next() else { return BreakerState::Closed };
        let better = |a, b| match (a, b) {
            (BreakerState::Closed, _) | (_, BreakerState::Closed) => BreakerState::Closed,
            (BreakerState::HalfOpen, _) | (_, BreakerState::HalfOpen) => BreakerState::HalfOpen,
            (BreakerState::Open, BreakerState::Open) => BreakerState::Open,
        };
        states.fold(first, better)
    }

    /// Those that let nothing through.
    pub(super) fn open(&self) -> usize {
        let hosts = self.hosts();
        hosts.known.values().filter(|(_, one)| one.state() == BreakerState::Open).count()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::senders::PushSubscription;
    use super::*;

    fn breakers() -> Breakers {
        Breakers::new(BreakerLimits { failures: 1, open: Duration::from_mins(1) })
    }

    fn browser(host: &str) -> Target {
        let key = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
        let json = serde_json::json!({
            "endpoint": format!("https://{host}/path"), "keys": {"p256dh": key, "auth": "BTBZMqHH6r4Tts7J_aSIgg"},
        });
        Target::WebPush(PushSubscription::parse(&json.to_string(), false).unwrap())
    }

    #[test]
    fn one_push_service_does_not_stop_another() {
        let (breakers, now) = (breakers(), Instant::now());
        breakers.of(&browser("bad.example")).report(now, false);
        assert!(!breakers.of(&browser("bad.example")).try_enter(now));
        assert!(breakers.of(&browser("good.example")).try_enter(now));
        assert!(
            breakers.of(&browser("bad.example:8443")).try_enter(now),
            "another port is another one"
        );
        assert_eq!((breakers.state(), breakers.open()), (BreakerState::Closed, 1));
    }

    #[test]
    fn those_that_users_invent_are_forgotten() {
        let (breakers, now) = (breakers(), Instant::now());
        breakers.of(&browser("first.example")).report(now, false);
        breakers.of(&browser("used.example")).report(now, false);
        for n in 0..HOSTS_MAX * 2 {
            breakers.of(&browser(&format!("h{n}.example")));
            breakers.of(&browser("used.example"));
        }
        assert_eq!(breakers.hosts().known.len(), HOSTS_MAX);
        assert!(breakers.of(&browser("first.example")).try_enter(now));
        assert!(!breakers.of(&browser("used.example")).try_enter(now));
    }

    #[test]
    fn mails_have_one_other_side() {
        let (breakers, now) = (breakers(), Instant::now());
        assert_eq!(breakers.state(), BreakerState::Closed);
        breakers.of(&Target::Email("a@example.com".to_owned())).report(now, false);
        assert!(!breakers.of(&Target::Email("b@example.net".to_owned())).try_enter(now));
        assert_eq!(breakers.state(), BreakerState::Open);
    }
}
