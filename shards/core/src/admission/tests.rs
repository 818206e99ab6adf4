//! Limits by example, exact rollback, and the odds stated in the module's table.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn v4(host: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(host))
}

fn v6(network: u64, host: u64) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits((u128::from(network) << 64) | u128::from(host)))
}

fn is_untouched(admission: &Admission) -> bool {
    let zero = |sketch: &CountSketch| sketch.0.iter().all(|c| c.load(Ordering::Relaxed) == 0);
    admission.connections() == 0
        && zero(&admission.user_connections)
        && zero(&admission.address_connections)
}

#[test]
fn the_node_limit_leaves_room_for_health_checks_and_is_exact_above_it() {
    let admission = Admission::new(1);
    let limits = Limits { connections_max: 80, ..Limits::for_tests() };
    for host in 0..106 {
        assert_eq!(admission.try_connect(ms(0), v4(host), &limits), Ok(()));
    }
    assert_eq!(admission.try_connect(ms(0), v4(106), &limits), Err(RefusalReason::NodeFull));
    admission.disconnect(v4(0));
    assert_eq!(admission.connections(), 105);
    assert_eq!(admission.try_connect(ms(0), v4(106), &limits), Ok(()));
    for host in 1..107 {
        admission.disconnect(v4(host));
    }
    assert!(is_untouched(&admission));
}

#[test]
fn an_address_is_refused_alone_and_leaves_no_trace() {
    let admission = Admission::new(1);
    let limits = Limits { connections_per_address_max: 2, ..Limits::for_tests() };
    for _ in 0..2 {
        assert_eq!(admission.try_connect(ms(0), v4(1), &limits), Ok(()));
    }
    for _ in 0..10 {
        let refused = admission.try_connect(ms(0), v4(1), &limits);
        assert_eq!(refused, Err(RefusalReason::AddressLimit));
    }
    assert_eq!(admission.connections(), 2);
    assert_eq!(admission.try_connect(ms(0), v4(2), &limits), Ok(()));
    admission.disconnect(v4(1));
    assert_eq!(admission.try_connect(ms(0), v4(1), &limits), Ok(()));
    for address in [1, 1, 2] {
        admission.disconnect(v4(address));
    }
    assert!(is_untouched(&admission));
}

#[test]
fn a_proxy_has_no_limit_and_its_clients_have() {
    let admission = Admission::new(7);
    let limits = Limits { connections_per_address_max: 1, ..Limits::for_tests() };
    let (proxy, client) = (v4(1), v4(2));
    for _ in 0..3 {
        assert_eq!(admission.try_connect_proxy(ms(0), proxy, &limits), Ok(()));
    }
    assert_eq!(admission.readdress(proxy, client, &limits), Ok(()));
    let refused = admission.readdress(proxy, client, &limits);
    assert_eq!(refused, Err(RefusalReason::AddressLimit));
    assert_eq!(admission.try_connect(ms(0), client, &limits), Err(RefusalReason::AddressLimit));
    admission.disconnect(client);
    assert_eq!(admission.readdress(proxy, client, &limits), Ok(()));
    for address in [client, proxy] {
        admission.disconnect(address);
    }
    assert!(is_untouched(&admission), "every count was undone");
}

#[test]
fn ipv6_is_counted_by_network_and_mapped_ipv4_as_ipv4() {
    let admission = Admission::new(1);
    let limits = Limits { connections_per_address_max: 1, ..Limits::for_tests() };
    assert_eq!(admission.try_connect(ms(0), v6(7, 1), &limits), Ok(()));
    let same_network = admission.try_connect(ms(0), v6(7, 2), &limits);
    assert_eq!(same_network, Err(RefusalReason::AddressLimit));
    assert_eq!(admission.try_connect(ms(0), v6(8, 1), &limits), Ok(()));
    let mapped = IpAddr::V6(Ipv4Addr::from_bits(9).to_ipv6_mapped());
    assert_eq!(admission.try_connect(ms(0), mapped, &limits), Ok(()));
    assert_eq!(admission.try_connect(ms(0), v4(9), &limits), Err(RefusalReason::AddressLimit));
}

#[test]
fn handshakes_are_limited_first() {
    let admission = Admission::new(1);
    let handshakes = Rate { per_second: 10, burst: 2 };
    let limits = Limits { handshakes, connections_per_address_max: 2, ..Limits::for_tests() };
    assert_eq!(admission.try_connect(ms(0), v4(1), &limits), Ok(()));
    assert_eq!(admission.try_connect(ms(0), v4(1), &limits), Ok(()));
    assert_eq!(admission.try_connect(ms(0), v4(1), &limits), Err(RefusalReason::HandshakeRate));
    assert_eq!(admission.try_connect(ms(100), v4(1), &limits), Err(RefusalReason::AddressLimit));
}

#[test]
fn users_are_limited_and_anonymous_ones_are_not() {
    let admission = Admission::new(1);
    let limits = Limits { connections_per_user_max: 2, ..Limits::for_tests() };
    for _ in 0..2 {
        assert_eq!(admission.try_user("ada", &limits), Ok(()));
    }
    assert_eq!(admission.try_user("ada", &limits), Err(RefusalReason::UserLimit));
    assert_eq!(admission.try_user("bob", &limits), Ok(()));
    for _ in 0..5 {
        assert_eq!(admission.try_user("", &limits), Ok(()));
    }
    admission.release_user("");
    admission.release_user("ada");
    assert_eq!(admission.try_user("ada", &limits), Ok(()));
    for user in ["ada", "ada", "bob"] {
        admission.release_user(user);
    }
    assert!(is_untouched(&admission));
}

#[test]
fn a_limit_set_later_counts_what_is_open() {
    let admission = Admission::new(1);
    for _ in 0..3 {
        assert_eq!(admission.try_user("ada", &Limits::for_tests()), Ok(()));
    }
    let limits = Limits { connections_per_user_max: 3, ..Limits::for_tests() };
    assert_eq!(admission.try_user("ada", &limits), Err(RefusalReason::UserLimit));
}

#[test]
fn messages_are_counted_against_both_rates_or_neither() {
    let admission = Admission::new(1);
    let limits = Limits {
        messages_per_user: Rate { per_second: 10, burst: 2 },
        messages_per_address: Rate { per_second: 10, burst: 3 },
        ..Limits::for_tests()
    };
    let ada = admission.message_keys("ada", v4(1));
    let bob = admission.message_keys("bob", v4(1));
    let anonymous = admission.message_keys("", v4(2));
    assert!(size_of::<MessageKeys>() <= 24);
    let check = |at, keys| admission.check_message(ms(at), keys, &limits);
    assert_eq!(check(0, &ada), Ok(false));
    assert_eq!(check(0, &ada), Ok(false));
    for _ in 0..5 {
        assert_eq!(check(0, &ada), Err((RateScope::User, ms(100))));
    }
    assert_eq!(check(0, &bob), Ok(false));
    for _ in 0..5 {
        assert_eq!(check(0, &bob), Err((RateScope::Address, ms(100))));
    }
    assert_eq!(check(100, &bob), Ok(false), "a refusal by address cost the user nothing");
    for _ in 0..3 {
        assert_eq!(check(0, &anonymous), Ok(false), "no user, no user's rate");
    }
    assert_eq!(check(0, &anonymous), Err((RateScope::Address, ms(100))));
}

#[test]
fn unlimited_rates_cost_no_memory() {
    let admission = Admission::default();
    let keys = admission.message_keys("ada", v4(1));
    for _ in 0..1_000 {
        assert_eq!(admission.check_message(ms(0), &keys, &Limits::for_tests()), Ok(false));
    }
    assert!(admission.user_messages.0.get().is_none());
    assert!(admission.address_messages.0.get().is_none());
}

#[test]
fn busy_users_are_named_once_and_charged_elsewhere() {
    let (here, there) = (Admission::new(1), Admission::new(2));
    let limits = Limits {
        messages_per_user: Rate { per_second: 10, burst: 5 },
        messages_shared_min: 3,
        ..Limits::for_tests()
    };
    let ada = here.message_keys("ada", v4(1));
    let named: Vec<bool> =
        (0..5).map(|_| here.check_message(ms(0), &ada, &limits).unwrap()).collect();
    assert_eq!(named, [false, false, true, false, false]);
    assert_eq!([here.take_reported("ada"), here.take_reported("ada")], [5, 0]);
    // The other node lets nothing through that was used up here, and nobody else is touched.
    there.charge(ms(0), "ada", 5, &limits);
    let (ada, bob) = (there.message_keys("ada", v4(1)), there.message_keys("bob", v4(1)));
    assert_eq!(there.check_message(ms(0), &ada, &limits), Err((RateScope::User, ms(100))));
    assert_eq!(there.check_message(ms(0), &bob, &limits), Ok(false));
    // An empty bucket owes what is used up elsewhere, but not for ever.
    there.charge(ms(0), "ada", 5, &limits);
    assert_eq!(there.check_message(ms(0), &ada, &limits), Err((RateScope::User, ms(500))));
    there.charge(ms(0), "ada", 1_000_000, &limits);
    let wait = there.check_message(ms(0), &ada, &limits).unwrap_err().1;
    assert!(wait <= crate::rate::DEBT_MAX, "{wait:?}");
    // Anonymous clients have no user to be counted by.
    let anonymous = here.message_keys("", v4(1));
    assert!((0..9).all(|_| here.check_message(ms(0), &anonymous, &limits) == Ok(false)));
    here.clear_reported();
    assert_eq!(here.take_reported("ada"), 0);
}

#[test]
fn draining_is_a_flag() {
    let admission = Admission::default();
    assert!(!admission.is_draining());
    admission.set_draining(true);
    assert!(admission.is_draining());
    assert_eq!(admission.try_connect(ms(0), v4(1), &Limits::for_tests()), Ok(()));
    assert_eq!(format!("{admission:?}"), "Admission { connections: 1, draining: true, .. }");
}

#[test]
fn the_stated_odds_hold() {
    // The estimate of a user without connections is what others add to it.
    let extra_at_least = |admission: &Admission, bound: u32| {
        let strangers = 20_000;
        let limits = Limits { connections_per_user_max: bound, ..Limits::for_tests() };
        let refused = (0..strangers)
            .filter(|n| {
                let user = format!("stranger-{n}");
                let refused = admission.try_user(&user, &limits).is_err();
                if !refused {
                    admission.release_user(&user);
                }
                refused
            })
            .count();
        refused as f64 / f64::from(strangers)
    };
    let admission = Admission::new(42);
    let fill = |range: std::ops::Range<u32>| {
        for n in range {
            assert_eq!(admission.try_user(&format!("user-{n}"), &Limits::for_tests()), Ok(()));
        }
    };
    fill(0..10_000);
    assert!(extra_at_least(&admission, 1) < 1e-3);
    assert!(extra_at_least(&admission, 2) == 0.0);
    fill(10_000..100_000);
    let at_least_one = extra_at_least(&admission, 1);
    assert!((0.35..0.41).contains(&at_least_one), "{at_least_one}");
    let at_least_two = extra_at_least(&admission, 2);
    assert!((0.034..0.049).contains(&at_least_two), "{at_least_two}");
    assert!(extra_at_least(&admission, 3) < 4e-3);
    assert!(extra_at_least(&admission, 5) == 0.0);
}

#[allow(clippy::disallowed_methods)] // Only threads can show that the counters are shared safely.
#[test]
fn shards_share_the_counters() {
    let admission = Admission::new(3);
    let limits = Limits { connections_max: 500, ..Limits::for_tests() };
    let sockets_max = sockets_max(500);
    let admitted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for shard in 0..4_u32 {
            let (admission, limits, admitted) = (&admission, &limits, &admitted);
            scope.spawn(move || {
                for n in 0..1_000 {
                    let address = v4(n % 7 + shard);
                    let connected = admission.try_connect(ms(0), address, limits).is_ok();
                    if connected && n % 2 == 0 {
                        admission.disconnect(address);
                    } else if connected {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(admission.connections() <= sockets_max);
                }
            });
        }
    });
    assert_eq!(admission.connections(), u64::from(admitted.load(Ordering::Relaxed)));
    assert_eq!(admission.connections(), sockets_max);
}

proptest! {
    // The seed is fixed per case, and three users share a sketch of 65,536 cells, so estimates are exact here.
    #[test]
    fn no_user_passes_the_rate(
        per_second in 1u32..50,
        burst in 1u32..10,
        events in prop::collection::vec((0u32..3, 0u64..200), 1..200),
    ) {
        let admission = Admission::new(5);
        let messages_per_user = Rate { per_second, burst };
        let limits = Limits { messages_per_user, ..Limits::for_tests() };
        let mut cells = [crate::rate::Gcra::new(); 3];
        let mut now = Duration::ZERO;
        for (user, gap) in events {
            now += ms(gap);
            let keys = admission.message_keys(&format!("u{user}"), v4(1));
            let expected = cells[user as usize].check(now, messages_per_user);
            let result = admission.check_message(now, &keys, &limits);
            prop_assert_eq!(result, expected.map(|()| false).map_err(|wait| (RateScope::User, wait)));
        }
    }

    #[test]
    fn everything_counted_is_released(
        steps in prop::collection::vec((0u32..6, any::<bool>()), 0..100),
        max in 0u32..4,
    ) {
        let admission = Admission::new(9);
        let limits = Limits {
            connections_max: 0,
            connections_per_address_max: max,
            connections_per_user_max: max,
            ..Limits::for_tests()
        };
        let mut open: Vec<(u32, bool)> = Vec::new();
        for (who, connect) in steps {
            let user = format!("u{who}");
            if connect {
                let held = open.iter().filter(|(other, _)| *other == who).count() as u32;
                let connected = admission.try_connect(ms(0), v4(who), &limits);
                let expected = if open.len() as u64 >= sockets_max(0) {
                    Err(RefusalReason::NodeFull)
                } else if max > 0 && held >= max {
                    Err(RefusalReason::AddressLimit)
                } else {
                    Ok(())
                };
                prop_assert_eq!(connected, expected);
                if connected.is_ok() {
                    open.push((who, admission.try_user(&user, &limits).is_ok()));
                }
            } else if let Some(at) = open.iter().position(|(other, _)| *other == who) {
                let (_, signed_in) = open.swap_remove(at);
                admission.disconnect(v4(who));
                if signed_in {
                    admission.release_user(&user);
                }
            }
            prop_assert_eq!(admission.connections(), open.len() as u64);
        }
        for (who, signed_in) in open {
            admission.disconnect(v4(who));
            if signed_in {
                admission.release_user(&format!("u{who}"));
            }
        }
        prop_assert!(is_untouched(&admission));
    }
}
