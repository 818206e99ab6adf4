//! Setup: starts that must fail, what the other commands print, and systemd's side of the start.
//!
//! Must hold: a start that cannot work ends with one clear sentence and the documented status; no command shows a
//! secret; systemd hears READY, WATCHDOG and STOPPING.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::{BINARY, Gateway, Setup};
use crate::socket::Socket;
use crate::support::{SECRET, within};

const EXIT_CONFIG: i32 = 78;

fn archmesh(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().envs(variables.iter().copied()).current_dir(folder.path());
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_port_in_use_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut gateway = Setup::new().set("listen.public", &address).spawn();
    let status = gateway.await_exit(Duration::from_secs(20));
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    assert!(gateway.log.text().contains(&address), "{}", gateway.log.text());
    let internal = Setup::new().set("listen.internal", &address);
    let mut gateway = internal.spawn();
    let status = gateway.await_exit(Duration::from_secs(20));
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    assert!(gateway.log.text().contains("listen.internal"), "{}", gateway.log.text());
}

#[test]
fn all_errors_of_a_configuration_are_told_at_once() {
    let bad = "[limits]\nconnections_max = 0\nno_such_key = 1\n[log]\nformat = \"loud\"\n\
               [heartbeat]\nping_interval = \"3 fortnights\"\n";
    let mut gateway = Setup::new().toml(bad).spawn();
    let status = gateway.await_exit(Duration::from_secs(20));
    assert_eq!(status.code(), Some(EXIT_CONFIG));
    let log = gateway.log.text();
    for key in ["limits.connections_max", "no_such_key", "log.format", "heartbeat.ping_interval"] {
        assert!(log.contains(key), "{key} is named: {log}");
    }
}

#[test]
fn production_without_a_certificate_does_not_start() {
    let secret = "x1".repeat(40);
    let variables =
        [("ENVIRONMENT", "production"), ("JWT_SECRET", &*secret), ("API_KEY", &*secret)];
    let output = archmesh(&["serve", "--listen", "127.0.0.1:0"], &variables);
    assert_eq!(output.status.code(), Some(EXIT_CONFIG));
    let said = text(&output.stderr);
    assert!(said.contains("SSL_CERT_PATH") && !said.contains(&secret), "{said}");
}

#[test]
fn too_few_descriptors_are_told_with_the_mend() {
    let mut gateway = Setup::new().set("node.size", "large").files_max(600).spawn();
    let status = gateway.await_exit(Duration::from_secs(20));
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    let log = gateway.log.text();
    assert!(log.contains("600") && log.contains("LimitNOFILE"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn config_print_shows_sources_and_no_secret() {
    let variables = [
        ("JWT_SECRET", SECRET),
        ("API_KEY", "an-api-key-that-nobody-may-see"),
        ("ARCHMESH__LIMITS__AUTH_TIMEOUT", "7s"),
    ];
    let output = archmesh(&["config", "print"], &variables);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(
        shown.contains("auth_timeout") && shown.contains("ARCHMESH__LIMITS__AUTH_TIMEOUT"),
        "{shown}"
    );
    assert!(!shown.contains(SECRET) && !shown.contains("nobody-may-see"), "{shown}");
    let checked = archmesh(&["config", "check"], &variables);
    assert!(checked.status.success());
    let refused = archmesh(&["config", "check", "--set", "limits.auth_timeout=never"], &variables);
    assert_eq!(refused.status.code(), Some(EXIT_CONFIG));
    let version = archmesh(&["version"], &[]);
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_token_command_makes_tokens_that_work() {
    let gateway = Gateway::start();
    let caps = r#"[{"channels":["private:*"],"allow":["sub","pub"]}]"#;
    let arguments =
        ["token", "--user", "ada", "--channel", "chat:room", "--caps", caps, "--expires-in", "5m"];
    let output = archmesh(&arguments, &[("JWT_SECRET", SECRET)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let token = text(&output.stdout).trim().to_owned();
    let mut ada = Socket::connect_with(&gateway, &token);
    assert_eq!(ada.publish("private:x", json!(1))["offset"], 1);
    gateway.publish("chat:room", json!("hello"));
    assert_eq!(ada.take("message")["data"], "hello");
    let stranger = archmesh(&["token", "--user", "ada"], &[]);
    let other = text(&stranger.stdout).trim().to_owned();
    let opening = crate::socket::Opening::with_token(&other);
    assert_eq!(Socket::open(&gateway, &opening).err(), Some(401), "another secret");
}

#[test]
fn systemd_hears_what_happens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut gateway = Setup::new()
        .variable("NOTIFY_SOCKET", path.to_str().unwrap())
        .variable("WATCHDOG_USEC", "2000000")
        .set("drain.connections_per_second", 0)
        .start();
    let mut heard = Vec::new();
    let mut await_state = |wanted: &str, times: usize| {
        within(Duration::from_secs(20), wanted, || {
            let mut buffer = [0; 4096];
            if let Ok(length) = socket.recv(&mut buffer) {
                heard.extend(text(&buffer[..length]).lines().map(str::to_owned));
            }
            (heard.iter().filter(|line| *line == wanted).count() >= times).then_some(())
        });
    };
    await_state("READY=1", 1);
    await_state("WATCHDOG=1", 3);
    gateway.signal("TERM");
    await_state("STOPPING=1", 1);
    assert_eq!(gateway.await_exit(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn a_developer_is_greeted_with_what_works() {
    let gateway = Setup::new().start();
    let greeting = gateway.log.text();
    let url = greeting.split_whitespace().find(|word| word.starts_with("ws://")).expect("a URL");
    assert_eq!(url, format!("ws://{}/ws", gateway.public));
    let token = greeting
        .split_whitespace()
        .find(|word| word.matches('.').count() == 2 && word.starts_with("eyJ"))
        .expect("a ready-made token");
    let mut socket = Socket::connect_with(&gateway, token);
    gateway.publish("system", json!({"message": "hello"}));
    assert_eq!(socket.take("message")["data"]["message"], "hello");
}

#[test]
fn log_lines_are_json_with_category_and_error_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("errors.log");
    let gateway = Setup::new().set("log.error_file", path.display()).start();
    let opening = crate::socket::Opening::with_token("rubbish");
    assert_eq!(Socket::open(&gateway, &opening).err(), Some(401));
    let mut http = gateway.http();
    http.request("POST", "/api/info", &[], b"{}").unwrap();
    Socket::connect(&gateway, "ada").close();
    let connected = crate::support::eventually("`connected` is logged", || {
        gateway.log.events("connected").pop()
    });
    assert_eq!((&connected["category"], &connected["user"]), (&json!("connection"), &json!("ada")));
    crate::support::eventually("a warning is in the error file", || {
        let file = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> =
            file.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines
            .iter()
            .any(|line| line["category"] == "security" && line["level"] == "WARN")
            .then_some(())
    });
}

#[test]
fn what_delivery_channels_lack_is_told_before_anything_starts() {
    let bad = "[email]\nhost = \"127.0.0.1\"\n[webhook]\nurl = \"https://example.com/\"\n\
               [web_push]\nprivate_key = \"nonsense\"\npublic_key = \"nonsense\"\ncontact = \"mailto:a@example.com\"\n\
               [notifications]\ndefault_preferences = '{\"colour\": 1}'\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.toml");
    std::fs::write(&path, bad).unwrap();
    for command in [&["config", "check"][..], &["serve", "--listen", "127.0.0.1:0"][..]] {
        let arguments = [command, &["--config", path.to_str().unwrap()]].concat();
        let output = archmesh(&arguments, &[]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(EXIT_CONFIG), "{said}");
        for word in [
            "email.from",
            "webhook.secrets",
            "VAPID",
            "archmesh vapid",
            "default_preferences",
            "colour",
        ] {
            assert!(said.contains(word) && !said.contains("nonsense"), "{word}: {said}");
        }
    }
}
