//! Setup: clients that come and go, 100,000 times, in every way to go.
//!
//! Must hold: afterwards the file descriptors are what they were, and memory within 5 % of what it was once warm.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::gateway::{Gateway, Setup, sum_of};
use crate::raw::{Raw, frame, upgrade};
use crate::socket::Socket;
use crate::support::{eventually, heavy, token};

const WARM_UP: usize = 40_000;
/// A little more than `heartbeat.ping_interval`: the furthest timer of a new session.
const TIMER_HORIZON: Duration = Duration::from_secs(35);
const CYCLES: usize = 100_000;
/// The machine's two cores are shared with the gateway.
const THREADS: usize = 4;

/// One client's short life; there are four kinds of it.
fn live_and_die(gateway: &Gateway, cycle: usize, tokens: &[String]) {
    // Each address has ports of its own, so that none is met again while the kernel still remembers it.
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 1, (cycle % 32) as u8 + 1));
    let mut raw = Raw::connect_from(source, gateway.public).expect("a connection");
    match cycle % 8 {
        0 => {
            raw.attach(&tokens[cycle % tokens.len()]).expect("a session");
            raw.send(&frame(0x88, &1000_u16.to_be_bytes())).expect("a close");
            assert_eq!(raw.close_code(), Some(1000));
        }
        1 | 2 => {
            raw.attach(&tokens[cycle % tokens.len()]).expect("a session");
            raw.reset();
        }
        3 => {
            let request = upgrade("/ws?token=refused");
            raw.send(request.as_bytes()).expect("a request");
            assert!(raw.head().expect("a refusal").starts_with("HTTP/1.1 401"));
        }
        4 | 5 => {
            raw.send(b"GET /ws HTTP/1.1\r\nHos").expect("half a head");
            raw.reset();
        }
        6 => raw.reset(),
        _ => drop(raw),
    }
}

fn churn(gateway: &Gateway, cycles: usize, tokens: &[String]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(cycle) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < cycles)
                {
                    live_and_die(gateway, cycle, tokens);
                }
            });
        }
    });
}

#[test]
fn a_hundred_thousand_connections_leave_nothing_behind() {
    let _turn = heavy();
    let gateway = Setup::new()
        .set("notifications.enabled", false)
        .internal()
        .set("log.level", "info,connection=warn,security=warn")
        .start();
    let tokens: Vec<String> = (0..64).map(|n| token(&format!("user-{n}"))).collect();
    // One connection for all scrapes: it is in every count of descriptors.
    let mut kept = gateway.operators();
    let mut settled = |files: Option<usize>| {
        eventually("nobody is connected and the descriptors are what they were", || {
            let scrape = kept.get("/metrics").unwrap().text();
            let idle = sum_of(&scrape, "archmesh_connections", &[]) == 0.0;
            let numbers = gateway.numbers();
            (idle && files.is_none_or(|files| files == numbers.files)).then_some(numbers)
        })
    };
    let base = settled(None);
    // Timers of connections that are gone stay filed until they are due, so memory levels off only after so much churn.
    let began = Instant::now();
    while began.elapsed() < TIMER_HORIZON {
        churn(&gateway, WARM_UP, &tokens);
    }
    let before = settled(Some(base.files));
    churn(&gateway, CYCLES, &tokens);
    let after = settled(Some(base.files));
    let bound = before.rss_kib + before.rss_kib / 20;
    assert!(after.rss_kib <= bound, "RSS grew from {} to {} KiB", before.rss_kib, after.rss_kib);
    let accepted = gateway.metric("archmesh_sockets_accepted_total", &[]);
    assert!(accepted >= (WARM_UP + CYCLES) as f64, "{accepted} were accepted");
    Socket::connect(&gateway, "ada").close();
}
