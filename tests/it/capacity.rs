//! Setup: the enterprise tier, full: 10,000 clients at one time, all held by this test's process.
//!
//! Must hold: all get in, a broadcast reaches every one of them, the next one is refused politely, and memory and
//! health stay sound.

use std::sync::Mutex;

use serde_json::json;

use crate::gateway::Setup;
use crate::raw::{self, Raw};
use crate::socket::{Opening, Socket};
use crate::support::{eventually, heavy, raise_files_limit, token};

const CONNECTIONS: usize = 10_000;
const THREADS: usize = 4;

#[test]
fn ten_thousand_clients_are_held() {
    let _turn = heavy();
    raise_files_limit();
    let gateway = Setup::new()
        .internal()
        .set("node.size", "enterprise")
        .set("log.level", "info,connection=warn,security=warn")
        .start();
    let base = gateway.numbers();
    let held = Mutex::new(Vec::with_capacity(CONNECTIONS));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (gateway, held) = (&gateway, &held);
            scope.spawn(move || {
                let mut mine = Vec::new();
                for n in 0..CONNECTIONS / THREADS {
                    let mut raw = Raw::connect(gateway.public).expect("a connection");
                    raw.attach(&token(&format!("user-{thread}-{n}"))).expect("a session");
                    mine.push(raw);
                }
                held.lock().unwrap().append(&mut mine);
            });
        }
    });
    let mut held = held.into_inner().unwrap();
    gateway.await_metric("archmesh_sessions", &[], |now| now == CONNECTIONS as f64);
    let full = gateway.numbers();
    let each = (full.rss_kib - base.rss_kib) * 1024 / CONNECTIONS as u64;
    assert!(each < 20 * 1024, "a connection costs {each} bytes of the gateway's memory");
    assert!(full.files >= CONNECTIONS + base.files - 4);

    assert_eq!(gateway.get("/ready").status, 200, "health is answered when the node is full");
    let one_more = Socket::open(&gateway, &Opening::with_token(&token("one-more")));
    assert_eq!(one_more.err(), Some(503));

    gateway.publish("system", json!({"to": "everyone"}));
    for raw in &mut held {
        let (opcode, payload) = raw.message().expect("the broadcast");
        assert_eq!(opcode, raw::TEXT);
        let text = String::from_utf8_lossy(&payload);
        assert!(text.contains("\"everyone\""), "{text}");
    }
    held.truncate(CONNECTIONS - 100);
    eventually("there is room again", || {
        Socket::open(&gateway, &Opening::with_token(&token("one-more"))).ok()
    });
    drop(held);
    gateway.await_metric("archmesh_sessions", &[], |now| now == 0.0);
    eventually("the descriptors are given back", || {
        (gateway.numbers().files <= base.files + 2).then_some(())
    });
}
