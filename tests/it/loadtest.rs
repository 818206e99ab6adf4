//! Setup: the load generator as users run it, against a gateway, with scenario files of a hundred connections.
//!
//! Must hold: every kind of scenario passes with exit code 0 on a healthy gateway, also in several processes, over TLS
//! and compressed; a threshold that cannot be met ends with exit code 1 and is named in the report.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

use crate::gateway::{BINARY, Gateway, Setup};
use crate::support::{SECRET, heavy, root};
use crate::tls::Authority;

/// The generator beside the gateway. A run of the whole workspace has built it; otherwise it is built now.
fn binary() -> &'static PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let folder = PathBuf::from(BINARY).parent().unwrap().to_owned();
        let path = folder.join("archmesh-loadtest");
        if !path.is_file() {
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--locked", "--package", "gateway-loadtest"]).current_dir(root());
            build.arg("--target-dir").arg(folder.parent().unwrap());
            if folder.ends_with("release") {
                build.arg("--release");
            }
            assert!(build.status().unwrap().success(), "the load generator is built");
        }
        path
    })
}

fn run(gateway: &Gateway, scenario: &str, more: &[&str]) -> Output {
    let name = scenario.lines().next().unwrap().replace(['"', ' ', '='], "");
    let file = gateway.folder().join(format!("{name}.toml"));
    std::fs::write(&file, scenario).unwrap();
    let scheme = if gateway.tls.is_some() { "wss" } else { "ws" };
    Command::new(binary())
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
