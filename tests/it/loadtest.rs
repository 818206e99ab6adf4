//! Setup: the load generator against a gateway, its report opened in headless Chromium.
//!
//! Must hold: the run passes; the page has a section for each scenario with its charts, asks for nothing from elsewhere
//! and makes no error, in light and in dark; the JSON report has the run second by second and no secret.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::gateway::Gateway;
use crate::program::{Kind, Program};
use crate::support::{SECRET, heavy, root};

/// The load generator, built like the gateway that is tested.
fn generator() -> PathBuf {
    let place = PathBuf::from(env!("CARGO_BIN_EXE_archmesh")).with_file_name("archmesh-loadtest");
    let release = place.parent().is_some_and(|folder| folder.ends_with("release"));
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "gateway-loadtest"])
        .args(release.then_some("--release"))
        .current_dir(root())
        .status()
        .expect("cargo runs");
    assert!(status.success() && place.is_file(), "{} is built", place.display());
    place
}

/// Runs two scenarios; answers where the JSON and the HTML report are.
fn run(gateway: &Gateway) -> (PathBuf, PathBuf) {
    let (json, html) = (gateway.folder().join("load.json"), gateway.folder().join("load.html"));
    let output = Command::new(generator())
        .args(["--url", &format!("ws://{}/ws", gateway.public), "--secret", SECRET])
        .args(["--scenario", "fanout", "--scenario", "publish_ack", "--channel-prefix", "chat:"])
        .args(["--connections", "20", "--channels", "4", "--rate", "100"])
        .args(["--warmup", "1s", "--duration", "3s"])
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
    let (json, html) = run(&gateway);
    check_json(&std::fs::read_to_string(json).unwrap());
    assert!(!std::fs::read_to_string(&html).unwrap().contains(SECRET));
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
