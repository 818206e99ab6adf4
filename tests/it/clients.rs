//! Setup: WebSocket clients nobody here wrote: npm `ws`, PyPI `websockets`, headless Chromium, and curl for HTTP.
//!
//! Must hold: each connects with a token, subscribes, publishes, receives, and recovers after a lost connection; the
//! first two over TLS as well, checking the certificate.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::program::{Kind, Program};
use crate::support::{API_KEY, WAIT, token, tool};
use crate::tls::Authority;

fn url(gateway: &Gateway) -> String {
    let scheme = if gateway.tls.is_some() { "wss" } else { "ws" };
    format!("{scheme}://{}/ws", gateway.public)
}

fn start(gateway: &Gateway, kind: Kind, options: &[&str]) -> (Program, Value) {
    let token = token("ada");
    let options: Vec<&str> = ["--token", &token].iter().chain(options).copied().collect();
    let mut program = Program::start(kind, &url(gateway), &options);
    assert_eq!(program.named("open")["protocol"], "archmesh.v1");
    let welcome = program.message("a welcome", |message| message["type"] == "welcome");
    (program, welcome)
}

/// What every client does.
fn scenario(gateway: &Gateway, kind: Kind, options: &[&str]) {
    let (mut ada, welcome) = start(gateway, kind, options);
    assert_eq!(welcome["data"]["user_id"], "ada");
    let subscribed = ada.call("subscribe", json!({"channel": "chat:room"}));
    assert_eq!(subscribed["type"], "subscribed", "{subscribed}");
    let text = "grüße \u{1f30d} \"quoted\" \u{0} end";
    let published = ada.call("publish", json!({"channel": "chat:room", "data": {"text": text}}));
    assert_eq!(published["type"], "published", "{published}");
    let message = ada.message("its own publication", |message| message["type"] == "message");
    assert_eq!(message["data"]["text"], text);
    gateway.publish("chat:room", json!("from the API"));
    let message = ada.message("the API's publication", |m| m["data"] == "from the API");
    let big = "x".repeat(300_000);
    gateway.publish("chat:room", json!(big));
    let last = ada.message("a large publication", |m| m["data"] == *big);
    assert_eq!(message["offset"], 2);

    // A page cannot drop its connection without a word; the others do.
    if kind == Kind::Chromium {
        ada.order(&json!({"op": "close", "code": 3000, "reason": "away"}));
    } else {
        ada.order(&json!({"op": "ping"}));
        ada.named("pong");
        ada.order(&json!({"op": "terminate"}));
    }
    ada.named("close");
    for n in 0..3 {
        gateway.publish("chat:room", json!(n));
    }
    let (mut ada, _) = start(gateway, kind, options);
    let recover = json!({"offset": last["offset"], "epoch": last["epoch"]});
    let reply = ada.call("subscribe", json!({"channel": "chat:room", "recover": recover}));
    assert_eq!(reply["data"]["recovered"], true, "{reply}");
    let missed: Vec<&Value> =
        reply["data"]["messages"].as_array().unwrap().iter().map(|m| &m["data"]).collect();
    assert_eq!(missed, [&json!(0), &json!(1), &json!(2)]);
    // Ended by the server: the reason and the code arrive.
    gateway.result("disconnect", &json!({"user": "ada"}));
    ada.message("the reason", |m| m["type"] == "disconnect" && m["data"]["code"] == 4504);
    let close = ada.named("close");
    assert_eq!((&close["code"], &close["reason"]), (&json!(4504), &json!("force_no_reconnect")));
}

fn both_ways(kind: Kind) {
    for shards in [1, 2] {
        scenario(&Setup::new().shards(shards).start(), kind, &[]);
    }
    let compressed = Setup::new().toml("[websocket]\ncompression = true\n").start();
    scenario(&compressed, kind, &[]);
    let authority = Authority::new();
    let gateway = authority.setup().start();
    let ca = authority.ca_file();
    scenario(&gateway, kind, &["--ca", ca.to_str().unwrap(), "--token-by", "header"]);
}

#[test]
fn npm_ws() {
    both_ways(Kind::NpmWs);
}

#[test]
fn pypi_websockets() {
    both_ways(Kind::PyPiWebsockets);
}

#[test]
fn chromium() {
    for shards in [1, 2] {
        let gateway = Setup::new().shards(shards).toml("[websocket]\ncompression = true\n").start();
        scenario(&gateway, Kind::Chromium, &["--token-by", "bearer"]);
    }
}

#[test]
fn chromium_over_tls() {
    let authority = Authority::new();
    scenario(&authority.setup().start(), Kind::Chromium, &["--insecure"]);
}

/// Every command of a page, in its order, as it stands there but for the address and the key.
fn run_examples(text: &str) {
    let gateway = Gateway::start();
    let address = gateway.public.to_string();
    let examples: Vec<&str> = text
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|example| example.starts_with("curl"))
        .collect();
    assert!(examples.len() > 10, "{}", examples.len());
    for example in examples {
        let example = example
            .replace("localhost:8080", &address)
            .replace("archmesh-development-api-key-known-to-everybody", API_KEY);
        let output = Command::new("sh").args(["-c", &example]).output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("\"result\""), "{example}\n{said}");
    }
}

#[test]
fn the_examples_about_notifications_work() {
    run_examples(include_str!("../../docs/notifications.md"));
}

#[test]
fn the_examples_about_the_server_api_work() {
    run_examples(include_str!("../../docs/api.md"));
}

/// The page of the server API names every path, the other ones about notifications by their end.
#[test]
fn every_path_of_the_server_api_is_documented() {
    let gateway = Gateway::start();
    let page = include_str!("../../docs/api.md");
    let document = gateway.get("/api/openapi.json").json();
    for path in document["paths"].as_object().unwrap().keys() {
        let name = path.strip_prefix("/api/v1/notifications").filter(|rest| !rest.is_empty());
        let name = format!("{}`", name.unwrap_or(path));
        assert!(page.contains(&name), "{path} is not in docs/api.md");
    }
}

/// Two tabs of one user and one of another, through a restart of the gateway.
#[test]
fn notification_centre() {
    let folder = tempfile::tempdir().unwrap();
    let setup = || Setup::new().set("database.sqlite_path", folder.path().join("a.db").display());
    let mut gateway = setup().start();
    let (one, other) = (token("alice"), token("bob"));
    let options = ["--one", &one, "--other", &other, "--api-key", API_KEY];
    let mut page = Program::start(Kind::Notifications, &url(&gateway), &options);
    page.named("restart");
    gateway.signal("TERM");
    gateway.await_exit(WAIT);
    let gateway = setup().start();
    page.order(&json!({"op": "restarted", "url": url(&gateway)}));
    page.named("passed");
}

#[test]
fn refusals_reach_the_client_libraries() {
    let gateway = Gateway::start();
    for kind in [Kind::NpmWs, Kind::PyPiWebsockets] {
        let mut program = Program::start(kind, &url(&gateway), &["--token", "rubbish"]);
        let refused = program.named("refused");
        assert_eq!(refused["status"], 401, "{refused}");
        assert_eq!(refused["body"]["error"]["code"], "AUTHENTICATION_FAILED", "{refused}");
    }
}

fn curl(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(tool("CURL", &["curl"]))
        .args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*"])
        .args(arguments)
        .output()
        .expect("curl runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn curl_scenario(gateway: &Gateway, ca: Option<&Path>) {
    let scheme = if ca.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{}", gateway.public);
    let trust: Vec<&str> = ca.map_or(vec![], |path| vec!["--cacert", path.to_str().unwrap()]);
    let run = |arguments: &[&str]| curl(&[&trust[..], arguments].concat());
    let (success, said) = run(&[&format!("{base}/health")]);
    assert!(success && said.contains("healthy"), "{said}");
    let key = format!("X-API-Key: {API_KEY}");
    let publish = format!("{base}/api/publish");
    let body = r#"{"channel":"chat:curl","data":{"n":1}}"#;
    let (success, said) = run(&["-H", &key, "-d", body, &publish]);
    assert!(success && said.contains("\"offset\":"), "{said}");
    let (success, said) = run(&["--write-out", "%{http_code}", "-d", body, &publish]);
    assert!(success && said.ends_with("401"), "{said}");
    // Two requests on one connection, with `Expect: 100-continue` before a large body.
    let big = format!(r#"{{"channel":"chat:curl","data":"{}"}}"#, "x".repeat(200_000));
    let file = gateway.folder().join("body.json");
    std::fs::write(&file, big).unwrap();
    let data = format!("@{}", file.display());
    let expect = "Expect: 100-continue";
    let (success, said) =
        run(&["-H", &key, "-H", expect, "--data-binary", &data, &publish, &publish]);
    assert!(success && said.matches("\"offset\":").count() == 2, "{said}");
    let (success, said) = run(&["--head", &format!("{base}/live")]);
    assert!(success && said.starts_with("HTTP/1.1 200"), "{said}");
}

#[test]
fn curl_speaks_with_every_part() {
    curl_scenario(&Gateway::start(), None);
    let authority = Authority::new();
    curl_scenario(&authority.setup().start(), Some(&authority.ca_file()));
}
