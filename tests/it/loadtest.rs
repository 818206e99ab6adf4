//! Setup: the load generator as users run it, against a gateway, with scenario files of a hundred connections; its report
//! opened in headless Chromium.
//!
//! Must hold: every kind of scenario passes with exit code 0 on a healthy gateway, also in several processes, over TLS
//! and compressed; a threshold that cannot be met ends with exit code 1 and is named in the report. The page has a section
//! for each scenario with its charts and thresholds, asks for nothing from elsewhere and makes no error, in light and in
//! dark; the JSON report has the run second by second and no secret.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

use crate::gateway::{BINARY, Gateway, Setup};
use crate::program::{Kind, Program};
use crate::redis::Redis;
use crate::support::{SECRET, heavy, root};
use crate::tls::Authority;

/// The generator, built like the gateway that is tested, unless whoever runs all tests has built it.
fn generator() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(built) = std::env::var_os("LOADTEST_BINARY") {
            return root().join(built);
        }
        let folder = PathBuf::from(BINARY).parent().unwrap().to_owned();
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--package", "gateway-loadtest"])
            .args(folder.ends_with("release").then_some("--release"))
            .arg("--target-dir")
            .arg(folder.parent().unwrap())
            .current_dir(root())
            .status()
            .expect("cargo runs");
        let place = folder.join("archmesh-loadtest");
        assert!(status.success() && place.is_file(), "{} is built", place.display());
        place
    })
}

fn run(gateway: &Gateway, scenario: &str, more: &[&str]) -> Output {
    let name = scenario.lines().next().unwrap().replace(['"', ' ', '='], "");
    let file = gateway.folder().join(format!("{name}.toml"));
    std::fs::write(&file, scenario).unwrap();
    let scheme = if gateway.tls.is_some() { "wss" } else { "ws" };
    Command::new(generator())
        .arg("--quiet")
        .args(["--secret", SECRET, "--url", &format!("{scheme}://{}/ws", gateway.public)])
        .arg("--json")
        .arg(gateway.folder().join("report.json"))
        .arg("--scenario")
        .arg(&file)
        .args(more)
        .output()
        .unwrap()
}

/// The run passes; its report.
fn passes(gateway: &Gateway, scenario: &str, more: &[&str]) -> Value {
    let output = run(gateway, scenario, more);
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("PASSED"), "{said}");
    let report = std::fs::read_to_string(gateway.folder().join("report.json")).unwrap();
    serde_json::from_str::<Value>(&report).unwrap()[0].take()
}

const STORM: &str = r#"kind = "connect_storm"
about = "A hundred connects in a second."
[values]
connections = 100
channels = 10
connect_rate = 100.0
warmup = "200ms"
[thresholds]
ready_p99_ms_max = 20000
fd_growth_max = 100
"#;

const FANOUT: &str = r#"kind = "fanout"
about = "A hundred connections, ten channels."
[values]
connections = 100
channels = 10
rate = 100.0
duration = "1s"
warmup = "200ms"
[thresholds]
p99_ms_max = 20000
deliveries_per_second_min = 1
"#;

const SOAK: &str = r#"kind = "soak"
about = "A little of everything."
[values]
connections = 60
channels = 6
rate = 60.0
churn_rate = 20.0
away = "200ms"
duration = "3s"
warmup = "200ms"
[thresholds]
p99_ms_max = 20000
fd_slope_per_hour_max = 1000000
"#;

const PRESENCE: &str = r#"kind = "presence"
about = "Members come and go."
[values]
channel_prefix = "session:"
connections = 60
channels = 3
watchers = 2
churn_rate = 40.0
abort_every = 5
duration = "2s"
warmup = "200ms"
[thresholds]
p99_ms_max = 20000
"#;

const SLOW: &str = r#"kind = "slow_consumers"
about = "Some stop reading."
[values]
connections = 20
channels = 1
slow_percent = 10
payload_bytes = 32768
rate = 200.0
publishers = 5
pause = "4s"
duration = "6s"
warmup = "200ms"
[thresholds]
slow_noticed_min = 1
"#;

/// Each second is of all processes together: connections, deliveries and latencies.
fn check_series(report: &Value, delivered: u64) {
    let points = report["series"]["points"].as_array().unwrap();
    assert!(points.iter().any(|point| point["connections"] == 100), "{points:?}");
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let mut before = 0.0;
    let rates = points.iter().map(|point| {
        let at = number(&point["at_seconds"]);
        number(&point["delivered_per_second"])
            * (at - std::mem::replace(&mut before, at)).max(0.001)
    });
    let sum: f64 = rates.sum();
    assert!((sum - delivered as f64).abs() < 1.0, "{sum} of {delivered}: {points:?}");
    let timed = points.iter().map(|point| number(&point["latencies_ms"]["deliver"]["count"]));
    let expected = number(&report["latencies_ms"]["deliver"]["count"]);
    assert!((timed.sum::<f64>() - expected).abs() < 0.5, "{expected}: {points:?}");
    assert!(!report["series"]["server"].as_array().unwrap().is_empty());
}

#[test]
fn storms_and_fan_out_pass_alone_and_in_several_processes() {
    let _turn = heavy();
    let gateway = Gateway::start();
    let storm = passes(&gateway, STORM, &[]);
    assert_eq!(storm["counts"]["connected"], 100);
    assert_eq!(storm["latencies_ms"]["ready"]["count"], 80, "20 were part of the warm-up");
    let fanout = passes(&gateway, FANOUT, &[]);
    assert_eq!(fanout["counts"]["delivered"], 120 * 10);
    assert_eq!(fanout["latencies_ms"]["deliver"]["count"], 100 * 10);
    let several = ["--processes", "3", "--local-addresses", "127.0.0.1,127.0.0.2"];
    let fanout = passes(&gateway, FANOUT, &several);
    let published = fanout["counts"]["published"].as_u64().unwrap();
    assert_eq!(fanout["counts"]["acknowledged"], published);
    assert_eq!(fanout["counts"]["delivered"], published * 10, "across the processes");
    check_series(&fanout, published * 10);
    passes(&gateway, STORM, &several);
}

#[test]
fn members_soaking_and_sleeping_pass() {
    let _turn = heavy();
    let gateway = Setup::new()
        .set("outbox.connection_bytes_max", "192KiB")
        .set("limits.message_bytes_max", "64KiB")
        .set("large_data.chunk_bytes_max", "32KiB")
        .set("channels.recovery_bytes_max", "64KiB")
        .start();
    let presence = passes(&gateway, PRESENCE, &[]);
    assert!(presence["latencies_ms"]["presence"]["count"].as_u64().unwrap() > 0);
    let soak = passes(&gateway, SOAK, &["--processes", "2"]);
    assert!(soak["counts"]["returned"].as_u64().unwrap() > 10);
    let slow = passes(&gateway, SLOW, &[]);
    assert!(slow["latencies_ms"]["calm"]["count"].as_u64().unwrap() > 0);
}

#[test]
fn a_threshold_that_is_not_met_fails_the_run() {
    let _turn = heavy();
    let gateway = Gateway::start();
    let output = run(&gateway, FANOUT, &["--threshold", "deliveries_per_second_min=1e9"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED") && said.contains("deliveries_per_second_min"), "{said}");
    let unknown = FANOUT.replace("p99_ms_max", "p98_ms_max");
    let output = run(&gateway, &unknown, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no threshold p98_ms_max"));
}

#[test]
fn encrypted_and_compressed() {
    let _turn = heavy();
    let authority = Authority::new();
    let gateway = authority.setup().set("websocket.compression", true).start();
    let ca = authority.ca_file();
    let ca = ca.to_str().unwrap();
    passes(&gateway, STORM, &["--ca", ca]);
    let fanout = passes(&gateway, FANOUT, &["--insecure", "--deflate", "--payload-bytes", "2000"]);
    assert!(fanout["counts"]["inflated"].as_u64().unwrap() >= 1_200);
    let output = run(&gateway, FANOUT, &["--threshold", "errors_max=0", "--connections", "1"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "nobody trusts this authority: {said}");
    assert!(said.contains("TLS: "), "{said}");
}

const DEATH: &str = r#"kind = "reconnect"
about = "Those of a dead node come back to two others."
[values]
connections = 300
publishers = 20
channels = 9
missed = 10
rate = 20.0
[thresholds]
p99_ms_max = 60000
"#;

/// Everybody of a node that dies recovers on the two others, and these read each channel once for all of them.
#[test]
fn clients_of_a_dead_node_recover_on_the_others() {
    let _turn = heavy();
    let redis = Redis::start(&[]);
    let nodes = ["a", "b", "c"]
        .map(|name| Setup::new().set("node.name", name).set("redis.url", redis.url()).start());
    for node in &nodes {
        node.await_metric("archmesh_broker_probe_seconds", &[], |seconds| seconds > 0.0);
    }
    let [a, b, c] = &nodes;
    let others = format!("ws://{}/ws,ws://{}/ws", b.public, c.public);
    let (pid, metrics) = (a.pid().to_string(), format!("http://{}/metrics", b.public));
    let more = ["--channel-prefix", "chat:", "--other-url", &others, "--kill-pid", &pid];
    let report = passes(a, DEATH, &[&more[..], &["--metrics-url", &metrics]].concat());
    assert!(report["counts"]["recovered"].as_u64() >= Some(280 * 10), "{}", report["counts"]);
    let sum = |name: &str| [b, c].map(|node| node.metric(name, &[])).iter().sum::<f64>();
    // Each user has a channel of its own, and each node one for all.
    let needed = 300.0 + 2.0 + 2.0 * 9.0;
    // What a node found to be missing was read once more.
    let again = sum("archmesh_broker_gaps_total") + sum("archmesh_broker_missed_total");
    let read = sum("archmesh_broker_snapshots_total");
    assert!(read <= needed + again, "{read} of {needed} and {again}");
}

/// Runs two scenarios; answers where the JSON and the HTML report are.
/// Limits of time and memory of the shipped scenarios, so high that no machine fails them.
const LAX: &[&str] = &[
    "p50_ms_max=20000",
    "p99_ms_max=20000",
    "late_percent_max=100",
    "operations_per_second_min=0",
    "server_cpu_us_per_operation_max=1e6",
    "rss_growth_percent_max=1e6",
];

fn report(gateway: &Gateway) -> (PathBuf, PathBuf) {
    let (json, html) = (gateway.folder().join("load.json"), gateway.folder().join("load.html"));
    let output = Command::new(generator())
        .args(["--url", &format!("ws://{}/ws", gateway.public), "--secret", SECRET])
        .args(["--scenario", "fanout", "--scenario", "publish_ack", "--channel-prefix", "chat:"])
        .args(["--connections", "20", "--channels", "4", "--rate", "100"])
        .args(["--warmup", "1s", "--duration", "3s"])
        // How fast this machine is with a development build is not the question.
        .args(LAX.iter().flat_map(|limit| ["--threshold", limit]))
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .output()
        .expect("the load generator runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{told}");
    assert!(!said.contains(SECRET) && !told.contains(SECRET), "{said}{told}");
    (json, html)
}

fn check_json(text: &str) {
    let reports: Value = serde_json::from_str(text).unwrap();
    for (report, latency) in reports.as_array().unwrap().iter().zip(["deliver", "acknowledge"]) {
        let points = report["series"]["points"].as_array().unwrap();
        assert!(points.len() >= 4, "{} points for 4 seconds", points.len());
        let with_latency = points.iter().filter(|point| point["latencies_ms"][latency].is_object());
        assert!(with_latency.count() >= 3, "{points:?}");
        assert!(points.iter().any(|point| point["connections"] == 20), "{points:?}");
        let server = report["series"]["server"].as_array().unwrap();
        assert!(server.iter().any(|point| point["cpu_percent"].is_number()), "{server:?}");
        let ladder = report["percentiles_ms"][latency].as_array().unwrap();
        assert!(ladder.iter().any(|step| step["percentile"] == 99.99), "{ladder:?}");
        assert!(report["machine"]["command"].as_str().unwrap().contains("--secret ***"));
    }
    assert!(!text.contains(SECRET));
}

fn check_view(view: &Value) {
    let headings = view["headings"].to_string();
    for expected in ["Load test passed", "fanout passed", "publish_ack passed"] {
        assert!(headings.contains(expected), "{headings}");
    }
    assert_eq!(view["wide"], false, "the page scrolls sideways");
    let charts = view["charts"].as_array().unwrap();
    let labels: Vec<&str> = charts.iter().map(|chart| chart["label"].as_str().unwrap()).collect();
    for expected in [
        "Latency by percentile.",
        "Throughput.",
        "Latency of deliver over time.",
        "Latency of acknowledge over time.",
        "Server CPU.",
        "Server memory.",
        "Connections.",
    ] {
        let found = labels.iter().filter(|label| label.starts_with(expected)).count();
        assert_eq!(found, if expected.starts_with("Latency of") { 1 } else { 2 }, "{labels:?}");
    }
    for chart in charts {
        assert!(chart["width"].as_f64() > Some(300.0) && chart["height"].as_f64() > Some(100.0));
        assert!(chart["lines"].as_u64() > Some(0), "{chart}");
        assert!(chart["titles"].as_u64() > Some(0), "{chart}");
        let lengths = chart["lengths"].as_array().unwrap();
        assert!(lengths.iter().any(|length| length.as_f64() > Some(50.0)), "{chart}");
        assert_eq!(chart["outside"].as_array().map(Vec::len), Some(0), "{chart}");
    }
}

#[test]
fn the_report_is_a_page_of_its_own() {
    let _turn = heavy();
    let gateway = Gateway::start();
    let (json, html) = report(&gateway);
    check_json(&std::fs::read_to_string(json).unwrap());
    let text = std::fs::read_to_string(&html).unwrap();
    assert!(!text.contains(SECRET));
    for expected in ["violations_max", "errors_max", "<b class=\"good\">met</b>"] {
        assert!(text.contains(expected), "{expected}");
    }
    let address = format!("file://{}", html.display());
    let page = Program::start(Kind::Page, &address, &[]).named("page");
    assert_eq!(page["problems"].as_array().map(Vec::len), Some(0), "{}", page["problems"]);
    let requests = page["requests"].as_array().unwrap();
    let local =
        |request: &&Value| **request == *address || request.as_str().unwrap().starts_with("data:");
    assert!(requests.iter().all(|request| local(&request)) && !requests.is_empty(), "{requests:?}");
    check_view(&page["light"]);
    check_view(&page["dark"]);
    assert_ne!(page["light"]["background"], page["dark"]["background"]);
    assert_ne!(page["light"]["charts"][0]["colour"], page["dark"]["charts"][0]["colour"]);
}
