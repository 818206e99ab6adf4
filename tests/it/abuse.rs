//! Setup: peers that send what no honest client would, at every stage of a connection.
//!
//! Must hold: each gets a clear refusal, honest clients do not notice, nothing crashes, and in the end memory and file
//! descriptors are back where they were.

use std::io::Write as _;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::DeflateEncoder;
use gateway_core::random::Random;
use serde_json::json;

use crate::gateway::{Gateway, Setup};
use crate::raw::{self, Raw, frame, text, upgrade};
use crate::socket::Socket;
use crate::support::{eventually, read_to_end, token};

/// The gateway is as before: no connection, no more descriptors, no memory kept.
fn assert_recovered(gateway: &Gateway, files: usize, rss_kib: u64) {
    gateway.await_metric("archmesh_sessions", &[], |now| now == 0.0);
    eventually("the descriptors are given back", || {
        (gateway.numbers().files <= files + 2).then_some(())
    });
    let now = gateway.numbers().rss_kib;
    assert!(now <= rss_kib + rss_kib / 5 + 16 * 1024, "RSS grew from {rss_kib} to {now} KiB");
    assert_eq!(gateway.metric("archmesh_panics_total", &[]), 0.0);
    assert_eq!(gateway.metric("archmesh_engine_panics_total", &[]), 0.0);
    Socket::connect(gateway, "ada").close();
}

fn baseline(gateway: &Gateway) -> (usize, u64) {
    for n in 0..50 {
        Socket::connect(gateway, &format!("u{n}")).close();
    }
    gateway.metrics_text();
    gateway.await_metric("archmesh_sessions", &[], |now| now == 0.0);
    let numbers = gateway.numbers();
    (numbers.files, numbers.rss_kib)
}

/// The upgrade request with one thing changed.
fn changed(from: &str, to: &str) -> Vec<u8> {
    let request = upgrade(&format!("/ws?token={}", token("ada")));
    assert!(request.contains(from));
    request.replacen(from, to, 1).into_bytes()
}

fn malformed_handshakes() -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    let header = |line: &str| {
        changed("Upgrade: websocket\r\n", &format!("Upgrade: websocket\r\n{line}\r\n"))
    };
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    vec![
        ("no key", changed("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), &[400]),
        ("short key", changed("dGhlIHNhbXBsZSBub25jZQ==", "AAAA"), &[400]),
        ("key no base64", changed("dGhlIHNhbXBsZSBub25jZQ==", "????????????????????????"), &[400]),
        ("two keys", header("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), &[400]),
        ("version 12", changed("Version: 13", "Version: 12"), &[426]),
        ("no version", changed("Sec-WebSocket-Version: 13\r\n", ""), &[426]),
        ("no connection", changed("Connection: Upgrade\r\n", ""), &[400]),
        ("no host", changed("Host: gateway.test\r\n", ""), &[400]),
        ("two hosts", header("Host: other.test"), &[400]),
        ("HTTP/1.0", changed("HTTP/1.1", "HTTP/1.0"), &[400, 505]),
        ("HTTP/2.0", changed("HTTP/1.1", "HTTP/2.0"), &[400, 505]),
        ("POST", changed("GET ", "POST "), &[405]),
        ("a body", header("Content-Length: 5"), &[400]),
        ("chunked", header("Transfer-Encoding: chunked"), &[400]),
        ("long header", header(&format!("X-Long: {}", "x".repeat(20_000))), &[431]),
        ("endless line", vec![b'x'; 1_000_000], &[400, 431]),
        (
            "endless target",
            changed("/ws?", &format!("/{}?", "w".repeat(100_000))),
            &[400, 414, 431],
        ),
        ("many headers", changed("Host:", &format!("{many}Host:")), &[431]),
        ("bare LF", changed("Host: gateway.test\r\n", "Host: gateway.test\n"), &[400]),
        ("bare CR", changed("Host: gateway.test\r\n", "Host: gate\rway\r\n"), &[400]),
        ("NUL", changed("Host: gateway.test", "Host: gate\0way"), &[400]),
        ("space in name", header("X Bad: 1"), &[400]),
        ("folded", header("X-A: 1\r\n folded: 2"), &[400]),
        ("no request line", changed("GET ", "\r\nGET "), &[400]),
        ("no method", changed("GET ", " "), &[400]),
        ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[400]),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), &[400]),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[400, 404, 405, 505]),
        ("bad percent in token", upgrade("/ws?token=%zz").into_bytes(), &[101, 400, 401]),
        ("two origins", header("Origin: https://a.example\r\nOrigin: https://b.example"), &[400]),
    ]
}

#[test]
fn malformed_handshakes_are_refused() {
    let gateway = Setup::new().set("limits.handshake_timeout", "2s").start();
    let (files, rss) = baseline(&gateway);
    for (what, bytes, allowed) in malformed_handshakes() {
        let mut raw = Raw::connect(gateway.public).unwrap();
        // The gateway may answer and close before it has taken everything.
        let sent = raw.send(&bytes);
        match raw.head() {
            Ok(head) => {
                let status: u16 = head[9..12].parse().expect("a status");
                assert!(allowed.contains(&status), "{what}: {head}");
            }
            // A reset may overtake the answer to someone who still sends.
            Err(error) => assert!(sent.is_err() || bytes.len() > 10_000, "{what}: {error}"),
        }
    }
    assert_recovered(&gateway, files, rss);
}

/// Bytes after the welcome and the close code they must lead to; `None` = the connection just ends.
fn bad_frames() -> Vec<(&'static str, Vec<u8>, Option<u16>)> {
    let unmasked = [&[0x81, 4][..], b"text"].concat();
    let fragments: Vec<u8> = std::iter::once(frame(raw::TEXT, b"["))
        .chain((0..65_536).map(|_| frame(0, b"1")))
        .flatten()
        .collect();
    let empty: Vec<u8> = std::iter::once(frame(raw::TEXT, b""))
        .chain((0..65_536).map(|_| frame(0, b"")))
        .flatten()
        .collect();
    vec![
        ("unmasked", unmasked, Some(1002)),
        ("RSV1", frame(0xc1, b"x"), Some(1002)),
        ("RSV2", frame(0xa1, b"x"), Some(1002)),
        ("RSV3", frame(0x91, b"x"), Some(1002)),
        ("opcode 3", frame(0x83, b"x"), Some(1002)),
        ("opcode 11", frame(0x8b, b"x"), Some(1002)),
        ("long ping", frame(0x80 | raw::PING, &[0; 126]), Some(1002)),
        ("fragmented ping", frame(raw::PING, b"x"), Some(1002)),
        ("lone continuation", frame(0x80, b"x"), Some(1002)),
        ("text in text", [frame(raw::TEXT, b"a"), frame(0x81, b"b")].concat(), Some(1002)),
        ("binary", frame(0x80 | raw::BINARY, b"x"), Some(1003)),
        ("bad UTF-8", frame(0x81, b"\xff\xfe"), Some(1007)),
        ("surrogate", frame(0x81, b"\xed\xa0\x80"), Some(1007)),
        ("split bad UTF-8", [frame(raw::TEXT, b"\xce"), frame(0x80, b"\x41")].concat(), Some(1007)),
        ("length over 2^63", vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], Some(1002)),
        ("length 16 MiB", vec![0x81, 0xff, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4], Some(1009)),
        ("close of 1 byte", frame(0x88, b"\x03"), Some(1002)),
        ("close 1005", frame(0x88, &1005_u16.to_be_bytes()), Some(1002)),
        ("close 65535", frame(0x88, &65_535_u16.to_be_bytes()), Some(1002)),
        ("close, bad reason", frame(0x88, b"\x03\xe8\xff"), Some(1007)),
        ("close 1000", frame(0x88, &1000_u16.to_be_bytes()), Some(1000)),
        ("65,536 fragments", fragments, Some(1009)),
        ("65,536 empty fragments", empty, Some(1009)),
    ]
}

#[test]
fn frame_abuse_ends_with_the_right_code() {
    let gateway = Gateway::start();
    let (files, rss) = baseline(&gateway);
    for (what, bytes, code) in bad_frames() {
        let mut raw = Raw::connect(gateway.public).unwrap();
        raw.attach(&token("eve")).unwrap();
        // The gateway may close before it has taken everything.
        let sent = raw.send(&bytes);
        let found = raw.close_code();
        let overtaken = found.is_none() && (sent.is_err() || bytes.len() > 100_000);
        assert!(found == code || overtaken, "{what}: {found:?} instead of {code:?}");
    }
    let mut raw = Raw::connect(gateway.public).unwrap();
    raw.attach(&token("eve")).unwrap();
    let pings: Vec<u8> = (0..20_000).flat_map(|_| frame(0x80 | raw::PING, b"flood")).collect();
    for part in pings.chunks(50_000) {
        raw.send(part).unwrap();
        // Reads a few answers so that the flood is not stopped by its own reader.
        for _ in 0..part.len() / 11 {
            assert_eq!(raw.message().unwrap().0, 10);
        }
    }
    drop(raw);
    assert_recovered(&gateway, files, rss);
}

#[test]
fn random_bytes_do_no_harm() {
    let gateway = Setup::new().set("limits.handshake_timeout", "1s").start();
    let (files, rss) = baseline(&gateway);
    let mut random = Random::new([7; 32]);
    let mut bytes = |length: usize| {
        (0..length)
            .map(|_| random.between(Duration::ZERO, Duration::from_nanos(256)).as_nanos() as u8)
            .collect::<Vec<u8>>()
    };
    let good = upgrade(&format!("/ws?token={}", token("eve")));
    for round in 0..300 {
        let mut raw = Raw::connect(gateway.public).unwrap();
        match round % 3 {
            0 => {
                let _ = raw.send(&bytes(700));
            }
            1 => {
                let mut torn = good.clone().into_bytes();
                let at = round * 7 % torn.len();
                torn[at] = bytes(1)[0];
                let _ = raw.send(&torn);
            }
            _ => {
                raw.attach(&token("eve")).unwrap();
                let _ = raw.send(&bytes(3000));
            }
        }
        if round % 2 == 0 { raw.reset() } else { drop(raw) }
    }
    assert_recovered(&gateway, files, rss);
}

#[test]
fn bad_messages_are_answered() {
    let gateway = Setup::new().set("limits.bad_messages_max", 0).start();
    let (files, rss) = baseline(&gateway);
    let mut eve = Socket::connect(&gateway, "eve");
    let deep = format!(
        "{{\"type\":\"publish\",\"id\":\"d\",\"data\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let keys: String = (0..50_000).map(|n| format!("\"k{n}\":1,")).collect();
    let wide = format!("{{\"type\":\"subscribe\",\"data\":{{{keys}\"channel\":\"nowhere:1\"}}}}");
    let long = "x".repeat(60_000);
    let mut cases = vec![deep, wide];
    for bad in [
        "",
        " ",
        "null",
        "7",
        "\"text\"",
        "[]",
        "{}",
        "{",
        "{\"type\":\"ping\"",
        "{\"type\":null}",
        "{\"type\":\"ping\",\"type\":\"pong\"}",
        "{\"type\":\"ping\",\"id\":7}",
        "{\"type\":\"dance\"}",
        "{\"type\":\"subscribe\"}",
        "{\"type\":\"subscribe\",\"data\":[]}",
        "{\"type\":\"subscribe\",\"data\":{\"channel\":\"\"}}",
        "{\"type\":\"subscribe\",\"data\":{\"channel\":\"chat:a b\"}}",
        "{\"type\":\"subscribe\",\"data\":{\"channel\":\"chat:*\"}}",
        "{\"type\":\"subscribe\",\"data\":{\"channel\":\"chat:\\u0000\"}}",
        "{\"type\":\"subscribe\",\"data\":{\"channel\":\"chat:\\n\"}}",
        "{\"type\":\"subscribe\",\"data\":{\"channel\":\"\\ud800\"}}",
        "{\"type\":\"subscribe\",\"data\":{\"channel\":\"user:ada\"}}",
        "{\"type\":\"publish\",\"data\":{\"channel\":\"system\",\"data\":1}}",
        "{\"type\":\"publish\",\"data\":{\"channel\":\"chat:a\"}}",
        "{\"type\":\"publish\",\"data\":{\"channel\":\"chat:a\",\"data\":1,\"type\":\"welcome\"}}",
        "{\"type\":\"large_data\",\"data\":{\"data_id\":\"x\",\"chunk_index\":0,\"total_chunks\":1,\"chunk_data\":\"\",\"checksum\":\"\"}}",
        "{\"type\":\"fault\",\"id\":\"f\",\"data\":{\"kind\":\"panic\"}}",
    ] {
        cases.push(bad.to_owned());
    }
    cases.push(format!("{{\"type\":\"subscribe\",\"data\":{{\"channel\":\"chat:{long}\"}}}}"));
    cases.push(format!("{{\"type\":\"{long}\"}}"));
    cases.push(format!("{{\"type\":\"ping\",\"id\":\"{long}\"}}"));
    for case in &cases {
        assert!(eve.send_text(case));
        let shown: String = case.chars().take(120).collect();
        let error = eve.wait_for(&format!("an error for {shown}"), |m| m["type"] == "error");
        let text = error["data"]["error_message"].as_str().unwrap();
        assert!(text.len() < 500, "{shown}: the answer does not repeat the input");
    }
    assert_eq!(eve.call("ping", json!({}))["type"], "pong");
    eve.close();
    assert_recovered(&gateway, files, rss);
}

#[test]
fn half_heads_keep_nobody_out() {
    const HALVES: usize = 400;
    let gateway = Setup::new().internal().set("limits.handshake_timeout", "5s").start();
    let (files, rss) = baseline(&gateway);
    let half = upgrade("/ws");
    let mut open: Vec<Raw> = (0..HALVES)
        .map(|n| {
            let mut raw = Raw::connect(gateway.public).unwrap();
            raw.send(&half.as_bytes()[..n % half.len()]).unwrap();
            raw
        })
        .collect();
    let mut waits: Vec<Duration> = (0..50)
        .map(|n| {
            let began = Instant::now();
            let mut raw = Raw::connect(gateway.public).unwrap();
            raw.attach(&token(&format!("u{n}"))).expect("an honest client gets in");
            began.elapsed()
        })
        .collect();
    waits.sort_unstable();
    assert!(waits[25] < Duration::from_millis(250), "half of the clients waited {:?}", waits[25]);
    assert!(waits[49] < Duration::from_secs(3), "one client waited {:?}", waits[49]);
    // A byte now and then buys no time: the deadline counts from the accept.
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Some(mut raw) = open.pop() {
        let ended = eventually("a half head is cut off", || {
            let _ = raw.send(b"x");
            let left = deadline.saturating_duration_since(Instant::now());
            read_to_end(&mut raw.socket, left.min(Duration::from_millis(60)))
        });
        assert!(!ended.starts_with(b"HTTP/1.1 101"));
    }
    let reason = [("reason", "handshake_timeout")];
    gateway.await_metric("archmesh_connections_refused_total", &reason, |n| n >= 100.0);
    assert_recovered(&gateway, files, rss);
}

fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(payload).unwrap();
    encoder.flush().unwrap();
    let mut bytes = encoder.get_ref().clone();
    // The end of a flushed block is left out on the wire (RFC 7692, section 7.2.1).
    assert!(bytes.ends_with(&[0, 0, 0xff, 0xff]));
    bytes.truncate(bytes.len() - 4);
    bytes
}

#[test]
fn deflate_bombs_are_cut_short() {
    let gateway = Setup::new().toml("[websocket]\ncompression = true\n").start();
    let (files, rss) = baseline(&gateway);
    let request = upgrade(&format!("/ws?token={}", token("eve")));
    let offer = "Upgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
    let request = request.replacen("Upgrade: websocket\r\n", offer, 1);
    let open = || {
        let mut raw = Raw::connect(gateway.public).unwrap();
        raw.send(request.as_bytes()).unwrap();
        let head = raw.head().unwrap();
        assert!(head.contains("permessage-deflate"), "{head}");
        // The welcome may be compressed.
        raw.message().unwrap();
        raw
    };
    let bomb = deflated(&vec![b'0'; 64 << 20]);
    assert!(bomb.len() < 100_000);
    for _ in 0..20 {
        let mut raw = open();
        raw.send(&frame(0xc0 | raw::TEXT, &bomb)).unwrap();
        assert_eq!(raw.close_code(), Some(1009), "64 MiB in {} bytes", bomb.len());
    }
    let mut raw = open();
    raw.send(&frame(0xc0 | raw::TEXT, b"\xff\xff\xff no deflate")).unwrap();
    let code = raw.close_code();
    assert!([Some(1002), Some(1007)].contains(&code), "{code:?}");
    let mut raw = open();
    let ping = deflated(b"{\"type\":\"ping\",\"id\":\"7\"}");
    raw.send(&frame(0xc0 | raw::TEXT, &ping)).unwrap();
    assert_eq!(raw.message().unwrap().0, raw::TEXT, "an honest one is answered");
    drop(raw);
    assert_recovered(&gateway, files, rss);
}

/// A message that is never finished holds no more than its own bytes.
#[test]
fn unfinished_messages_are_bounded() {
    let gateway = Gateway::start();
    let (files, rss) = baseline(&gateway);
    let open: Vec<Raw> = (0..50)
        .map(|_| {
            let mut raw = Raw::connect(gateway.public).unwrap();
            raw.attach(&token("eve")).unwrap();
            raw.send(&[0x01, 0xff, 0, 0, 0, 0, 0, 0x0f, 0, 0, 1, 2, 3, 4, b'{' ^ 1]).unwrap();
            raw
        })
        .collect();
    let now = gateway.numbers().rss_kib;
    assert!(now < rss + 40 * 1024, "50 announced messages of 960 KiB cost {} KiB", now - rss);
    let mut ada = Socket::connect(&gateway, "ada");
    assert_eq!(ada.call("ping", json!({}))["type"], "pong");
    ada.close();
    for mut raw in open {
        let _ = raw.send(&text("{}"));
        raw.reset();
    }
    assert_recovered(&gateway, files, rss);
}
