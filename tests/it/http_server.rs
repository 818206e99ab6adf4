//! Setup: HTTP clients that behave, dawdle or err, on the port that also takes WebSockets, and on an internal one.
//!
//! Must hold: one port serves everything; kept and pipelined connections are answered in order; slow heads and
//! oversized bodies are refused within their limits; operators' paths live on the internal listener when there is one.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::gateway::{Gateway, Setup};
use crate::http::Http;
use crate::socket::{Opening, Socket};
use crate::support::{API_KEY, connect, read_to_end, token};

fn key() -> String {
    format!("X-API-Key: {API_KEY}")
}

#[test]
fn one_port_serves_everything() {
    let gateway = Gateway::start();
    for (path, field, value) in [
        ("/health", "status", "healthy"),
        ("/live", "status", "live"),
        ("/ready", "status", "ready"),
        ("/health/detailed", "status", "healthy"),
        ("/api/v1/websocket/health", "status", "healthy"),
    ] {
        let answer = gateway.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.json()[field], value, "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
    assert!(gateway.metrics_text().contains("archmesh_build_info"));
    assert_eq!(gateway.get("/api/openapi.json").json()["openapi"].as_str().unwrap()[..2], *"3.");
    let numbers = gateway.get("/api/v1/websocket/metrics").json();
    assert!(numbers["connections"]["active_connections"].is_number(), "{numbers}");
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    gateway.publish("chat:room", json!(1));
    assert_eq!(ada.take("message")["data"], 1);
    let detailed = gateway.get("/health/detailed").json();
    assert_eq!(detailed["components"]["shards"].as_array().unwrap().len(), 2, "{detailed}");
}

#[test]
fn unknown_paths_and_methods_are_told() {
    let gateway = Gateway::start();
    let mut http = gateway.http();
    let cases = [
        ("GET", "/nothing", 404),
        ("GET", "/ws/deeper", 404),
        ("POST", "/health", 405),
        ("GET", "/api/publish", 401),
        ("DELETE", "/live", 405),
        ("HEAD", "/live", 200),
        ("HEAD", "/nothing", 404),
        ("OPTIONS", "/nothing", 404),
    ];
    for (method, path, status) in cases {
        let answer = http.request(method, path, &[], &[]).unwrap();
        let allowed = status == 401 && answer.status == 405 || answer.status == status;
        assert!(
            allowed || method == "OPTIONS" && answer.status == 200,
            "{method} {path}: {answer:?}"
        );
    }
    // The path of the WebSocket without an upgrade is HTTP like any other.
    let answer = http.get("/ws").unwrap();
    assert!((400..500).contains(&answer.status), "{answer:?}");
}

#[test]
fn a_kept_connection_answers_again_and_again() {
    let gateway = Gateway::start();
    let mut http = gateway.http();
    for n in 0..50 {
        let path = if n % 2 == 0 { "/live" } else { "/nothing" };
        let answer = http.get(path).unwrap();
        assert_eq!(answer.status, if n % 2 == 0 { 200 } else { 404 });
    }
    let body = json!({"channel": "chat:a", "data": "x".repeat(100_000)}).to_string();
    for offset in 1..=5 {
        let answer = http.request("POST", "/api/publish", &[key()], body.as_bytes()).unwrap();
        assert_eq!(answer.json()["result"]["offset"], offset);
    }
    let before = gateway.metric("archmesh_http_connections", &[]);
    assert!(before >= 1.0);
    drop(http);
    gateway.await_metric("archmesh_http_connections", &[], |now| now < before);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let gateway = Gateway::start();
    let mut http = gateway.http();
    let publish = |n: usize| {
        let body = json!({"channel": "chat:pipe", "data": n}).to_string();
        format!(
            "POST /api/publish HTTP/1.1\r\nHost: x\r\n{}\r\nContent-Length: {}\r\n\r\n{body}",
            key(),
            body.len()
        )
    };
    let requests: String =
        (1..=20).map(|n| format!("GET /live HTTP/1.1\r\nHost: x\r\n\r\n{}", publish(n))).collect();
    http.send(requests.as_bytes()).unwrap();
    for n in 1..=20 {
        assert_eq!(http.answer(false).unwrap().json()["status"], "live");
        assert_eq!(http.answer(false).unwrap().json()["result"]["offset"], n);
    }
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let gateway = Gateway::start();
    let mut http = gateway.http();
    for byte in b"GET /live HTTP/1.1\r\nHost: slow.example\r\nX-Filler: abcdef\r\n\r\n" {
        http.send(&[*byte]).unwrap();
    }
    assert_eq!(http.answer(false).unwrap().status, 200);
    for byte in b"GET /ready HTTP/1.1\r\nHost: slow.example\r\n\r\n" {
        http.send(&[*byte]).unwrap();
    }
    assert_eq!(http.answer(false).unwrap().status, 200, "the second is read by the control plane");
}

#[test]
fn slow_heads_and_idle_connections_end() {
    let gateway = Setup::new()
        .set("limits.handshake_timeout", "400ms")
        .set("http.header_timeout", "400ms")
        .set("http.keep_alive_timeout", "600ms")
        .start();
    let limit = Duration::from_secs(15);
    for sent in ["", "G", "GET /live HTTP/1.1\r\nHost: x\r\n"] {
        let mut socket = connect(gateway.public).unwrap();
        std::io::Write::write_all(&mut socket, sent.as_bytes()).unwrap();
        assert!(read_to_end(&mut socket, limit).is_some(), "ended after {sent:?}");
    }
    let mut http = gateway.http();
    assert_eq!(http.get("/live").unwrap().status, 200);
    assert!(read_to_end(&mut http.stream, limit).is_some(), "an idle kept connection ends");
    let mut http = gateway.http();
    assert_eq!(http.get("/live").unwrap().status, 200);
    http.send(b"GET /live HTTP/1.1\r\nHost: x\r\n").unwrap();
    assert!(read_to_end(&mut http.stream, limit).is_some(), "a second slow head ends");
}

#[test]
fn bodies_have_a_limit() {
    let gateway = Setup::new().set("api.body_bytes_max", "100KiB").start();
    let call = |bytes: usize| {
        let data = "x".repeat(bytes);
        let body = json!({"channel": "chat:big", "data": data}).to_string();
        let answer = gateway.http().request("POST", "/api/publish", &[key()], body.as_bytes());
        answer.map(|answer| (answer.status, answer.json()))
    };
    let (status, body) = call(90_000).unwrap();
    assert_eq!((status, &body["result"]["offset"]), (200, &json!(1)), "{body}");
    for bytes in [150_000, 3_000_000] {
        // The peer may cut the connection while the rest of the body is still on its way.
        if let Ok((status, body)) = call(bytes) {
            assert!(status == 413 || body["error"]["code"].is_number(), "{status} {body}");
        }
    }
    assert_eq!(call(90_000).unwrap().1["result"]["offset"], 2, "the gateway goes on");
    let chunked = [key(), "Transfer-Encoding: chunked".to_owned()];
    let mut http = gateway.http();
    let body = r#"{"channel":"chat:big","data":1}"#;
    let head = format!("POST /api/publish HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n", chunked.join("\r\n"));
    http.send(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes()).unwrap();
    assert_eq!(http.answer(false).unwrap().json()["result"]["offset"], 3);
}

#[test]
fn an_upgrade_on_a_kept_connection_is_sent_elsewhere() {
    let gateway = Gateway::start();
    let mut http = gateway.http();
    assert_eq!(http.get("/live").unwrap().status, 200);
    let upgrade = format!(
        "GET /ws?token={} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        token("ada")
    );
    http.send(upgrade.as_bytes()).unwrap();
    let answer = http.answer(false).unwrap();
    assert_eq!(answer.status, 421, "{}", answer.text());
    assert_eq!(answer.header("connection"), Some("close"));
    // The same bytes on a connection of their own are a WebSocket.
    let mut http = gateway.http();
    http.send(upgrade.as_bytes()).unwrap();
    assert_eq!(http.answer(false).unwrap().status, 101);
}

#[test]
fn operators_paths_move_to_the_internal_listener() {
    let gateway = Setup::new().internal().start();
    for path in ["/metrics", "/health/detailed", "/api/publish", "/api/openapi.json"] {
        assert_eq!(gateway.get(path).status, 404, "{path} on the public listener");
    }
    for path in ["/health", "/live", "/ready", "/api/v1/websocket/health"] {
        assert_eq!(gateway.get(path).status, 200, "{path} on the public listener");
        assert_eq!(gateway.operators().get(path).unwrap().status, 200, "{path} inside");
    }
    assert_eq!(gateway.operators().get("/health/detailed").unwrap().status, 200);
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    gateway.publish("chat:room", json!("from inside"));
    assert_eq!(ada.take("message")["data"], "from inside");
}

#[test]
fn too_many_http_connections_are_refused_and_sockets_are_not() {
    let gateway = Setup::new().internal().set("http.connections_max", 8).start();
    // `/ready` of the start may still hold a slot.
    let mut kept: Vec<Http> = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    let refused = loop {
        assert!(Instant::now() < deadline && kept.len() <= 8, "nobody is refused");
        let mut http = gateway.http();
        let answer = http.get("/live").unwrap();
        if answer.status != 200 {
            break answer;
        }
        kept.push(http);
    };
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(kept.len() >= 6, "{} were let in", kept.len());
    let operators = gateway.operators().get("/ready").unwrap().status;
    assert_eq!(operators, 200, "the internal listener has places of its own");
    Socket::connect(&gateway, "ada").close();
    kept.clear();
    crate::support::eventually("there is room again", || {
        (gateway.http().get("/live").ok()?.status == 200).then_some(())
    });
}

#[test]
fn pages_of_allowed_origins_get_cors_headers() {
    let toml = "[websocket]\norigins = [\"https://app.example.com\"]\n";
    let gateway = Setup::new().toml(toml).start();
    let origin = |origin: &str| {
        let headers = [format!("Origin: {origin}")];
        gateway.http().request("GET", "/health", &headers, &[]).unwrap()
    };
    let answer = origin("https://app.example.com");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(origin("https://evil.example").header("access-control-allow-origin"), None);
    let open = |origin: &str| {
        let mut opening = Opening::with_token(&token("ada"));
        opening.headers.push(("Origin".into(), origin.into()));
        Socket::open(&gateway, &opening).map(|_| ())
    };
    assert_eq!(open("https://evil.example"), Err(403));
    assert_eq!(open("https://app.example.com"), Ok(()));
}
