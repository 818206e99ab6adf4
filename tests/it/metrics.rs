//! Setup: a gateway under a little of everything, scraped; `promtool` from Prometheus judges the format.
//!
//! Must hold: the exposition is clean, counters move as things happen, and neither clients nor their input can make
//! new series.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::gateway::{Gateway, Setup};
use crate::socket::{Opening, Socket};
use crate::support::{root, token, tool};

fn exercise(gateway: &Gateway) {
    let mut ada = Socket::connect(gateway, "ada");
    ada.subscribe("chat:room");
    for n in 0..10 {
        ada.publish("chat:room", json!(n));
        ada.take("message");
    }
    ada.call("publish", json!({"channel": "nowhere:x", "data": 1}));
    gateway.publish("chat:room", json!("api"));
    assert_eq!(Socket::open(gateway, &Opening::with_token("rubbish")).err(), Some(401));
    gateway.get("/nothing");
    ada.close();
}

#[test]
fn promtool_finds_nothing() {
    let gateway = Gateway::start();
    exercise(&gateway);
    let promtool = tool("PROMTOOL", &["promtool", ".cache/bin/promtool"]);
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    child.stdin.take().unwrap().write_all(gateway.metrics_text().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
}

/// The rules are valid, and those that count or join series fire when they should and not before.
#[test]
fn alerts_fire_for_what_they_are_meant_for() {
    let promtool = tool("PROMTOOL", &["promtool", ".cache/bin/promtool"]);
    let calls: [&[&str]; 2] = [
        &["check", "rules", "config/alerts.yml"],
        &["test", "rules", "tests/it/alerts.yml", "tests/it/alerts_day.yml"],
    ];
    for arguments in calls {
        let output = Command::new(&promtool).args(arguments).current_dir(root()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(
            output.status.success() && said.contains("SUCCESS"),
            "promtool {arguments:?}: {said}"
        );
    }
}

#[test]
fn counters_move_as_things_happen() {
    let gateway = Gateway::start();
    exercise(&gateway);
    let expect = |name: &str, labels: &[(&str, &str)], value: f64| {
        gateway.await_metric(name, labels, |now| (now - value).abs() < 1e-9);
    };
    expect("archmesh_sessions", &[], 0.0);
    expect("archmesh_connections_accepted_total", &[], 1.0);
    expect("archmesh_connections_refused_total", &[("reason", "unauthorized")], 1.0);
    expect("archmesh_publications_total", &[], 11.0);
    expect("archmesh_messages_received_total", &[("type", "publish")], 11.0);
    expect("archmesh_messages_received_total", &[("type", "subscribe")], 1.0);
    expect("archmesh_disconnects_total", &[("reason", "closed_by_client")], 1.0);
    expect("archmesh_error_replies_total", &[], 1.0);
    expect("archmesh_http_requests_total", &[("route", "/api/publish"), ("status", "200")], 1.0);
    expect("archmesh_http_requests_total", &[("route", "unmatched"), ("status", "404")], 1.0);
    gateway.await_metric("archmesh_delivery_latency_seconds_count", &[], |now| now >= 10.0);
    let open: Vec<Socket> = (0..7).map(|n| Socket::connect(&gateway, &format!("u{n}"))).collect();
    expect("archmesh_sessions", &[], 7.0);
    drop(open);
    expect("archmesh_sessions", &[], 0.0);
    assert!(gateway.metric("process_resident_memory_bytes", &[]) > 1e6);
    assert!(gateway.metric("process_open_fds", &[]) > 10.0);
    assert!((gateway.metric("archmesh_scrape_partial", &[])).abs() < 1e-9);
}

fn series(gateway: &Gateway) -> BTreeSet<String> {
    let text = gateway.metrics_text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

#[test]
fn nobody_outside_can_make_new_series() {
    let gateway = Gateway::start();
    exercise(&gateway);
    gateway.get("/live");
    let mut http = gateway.http();
    assert_eq!(http.request("BREW", "/live", &[], &[]).unwrap().status, 405);
    assert_eq!(http.request("BREW", "/nothing", &[], &[]).unwrap().status, 404);
    let mut eve = Socket::connect(&gateway, "eve");
    eve.call("dance", json!({}));
    // The scrape itself is a request, which the next one shows.
    gateway.metrics_text();
    let before = series(&gateway);
    for n in 0..40 {
        let answer = http.get(&format!("/guess/{n}?{n}")).unwrap();
        assert_eq!(answer.status, 404);
        assert_eq!(http.request(&format!("BREW{n}"), "/live", &[], &[]).unwrap().status, 405);
        let mut socket = Socket::connect(&gateway, &format!("guest-{n}"));
        socket.subscribe(&format!("chat:room-{n}"));
    }
    let mut eve = Socket::connect(&gateway, "eve");
    for n in 0..8 {
        eve.call(&format!("dance{n}"), json!({}));
    }
    let fresh: Vec<String> = series(&gateway).difference(&before).cloned().collect();
    assert_eq!(fresh, Vec::<String>::new());
}

#[test]
fn without_metrics_there_is_no_scrape() {
    let gateway = Setup::new().set("metrics.enabled", false).start();
    assert_eq!(gateway.get("/metrics").status, 404);
    assert_eq!(Socket::open(&gateway, &Opening::with_token(&token("ada"))).err(), None);
}
