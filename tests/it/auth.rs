//! Setup: keys of every algorithm, key sets in files and behind a URL, tokens that are good, bad, late and revoked.
//!
//! Must hold: good tokens open a connection wherever they are put, bad ones never; keys rotate without a restart;
//! expiry and revocation end live connections; no log line shows a token.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gateway_core::auth::{KeyAlgorithm, SigningKey, mint};
use rcgen::{KeyPair, PublicKeyData as _, RsaKeySize};
use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::http::Http;
use crate::redis::Redis;
use crate::socket::{Opening, Socket};
use crate::support::{SECRET, claims_of, connect, eventually, token, token_with, unix_now};

/// Longer than the `auth.jwks_retry_interval` of the test that waits for it.
const OLDER: Duration = Duration::from_millis(1_200);

fn refused(gateway: &Gateway, token: &str) -> Option<u16> {
    Socket::open(gateway, &Opening::with_token(token)).err()
}

fn signed(algorithm: KeyAlgorithm, pair: &KeyPair, id: Option<&str>, user: &str) -> String {
    let key = SigningKey::from_pem(algorithm, pair.serialize_pem().as_bytes()).unwrap();
    mint(&key.with_id(id.map(Into::into)), &claims_of(user, json!({}))).unwrap()
}

/// The public half as an entry of a key set.
fn jwk(algorithm: KeyAlgorithm, pair: &KeyPair, id: &str) -> Value {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let raw = pair.der_bytes();
    match algorithm {
        KeyAlgorithm::Es256 => json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": id,
            "x": encode(&raw[1..33]), "y": encode(&raw[33..65]),
        }),
        _ => json!({
            "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": id,
            "x": encode(raw),
        }),
    }
}

/// A setup without the shared secret: an empty value unsets it.
fn without_secret() -> Setup {
    Setup::new().set("auth.secret", "")
}

#[test]
fn public_keys_of_every_algorithm_work() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let ec = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (algorithm, name, pair, wrong) in [
        (KeyAlgorithm::Rs256, "RS256", &rsa, &ec),
        (KeyAlgorithm::Ps256, "PS256", &rsa, &ec),
        (KeyAlgorithm::Es256, "ES256", &ec, &ed),
        (KeyAlgorithm::EdDsa, "EdDSA", &ed, &ec),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, pair.public_key_pem()).unwrap();
        let gateway = without_secret()
            .set("auth.algorithm", name)
            .set("auth.public_key_path", path.display())
            .start();
        let mut ada = Socket::connect_with(&gateway, &signed(algorithm, pair, None, "ada"));
        assert_eq!(ada.welcome()["data"]["user_id"], "ada", "{name}");
        assert_eq!(ada.publish("chat:a", json!(1))["offset"], 1);
        assert_eq!(refused(&gateway, &token("ada")), Some(401), "{name}: another algorithm");
        let other = if wrong.algorithm() == ec.algorithm() {
            signed(KeyAlgorithm::Es256, wrong, None, "ada")
        } else {
            signed(KeyAlgorithm::EdDsa, wrong, None, "ada")
        };
        assert_eq!(refused(&gateway, &other), Some(401), "{name}: another key");
        // The public key as if it were a shared secret.
        let secret = jsonwebtoken::EncodingKey::from_secret(pair.public_key_pem().as_bytes());
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        let claims = claims_of("ada", json!({}));
        let confused = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
        assert_eq!(refused(&gateway, &confused), Some(401), "{name}: key confusion");
    }
}

#[test]
fn a_key_set_file_is_read_again_on_reload() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let (first, second) = (
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
    );
    let (es, ed) = (KeyAlgorithm::Es256, KeyAlgorithm::EdDsa);
    std::fs::write(&path, json!({"keys": [jwk(es, &first, "one")]}).to_string()).unwrap();
    let gateway = without_secret().set("auth.jwks_file", path.display()).start();
    let old = signed(es, &first, Some("one"), "ada");
    let new = signed(ed, &second, Some("two"), "bob");
    let mut ada = Socket::connect_with(&gateway, &old);
    assert_eq!(refused(&gateway, &new), Some(401));
    std::fs::write(&path, json!({"keys": [jwk(ed, &second, "two")]}).to_string()).unwrap();
    gateway.signal("HUP");
    eventually("the new key is in use", || refused(&gateway, &new).is_none().then_some(()));
    assert_eq!(refused(&gateway, &old), Some(401), "the old key is gone, cached results too");
    assert_eq!(ada.call("ping", json!({}))["type"], "pong", "its connections stay");
}

#[test]
fn a_key_set_file_is_followed_as_it_rotates() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let pair = || KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let (first, second) = (pair(), pair());
    let ed = KeyAlgorithm::EdDsa;
    std::fs::write(&path, json!({"keys": [jwk(ed, &first, "one")]}).to_string()).unwrap();
    let gateway = without_secret()
        .set("auth.jwks_file", path.display())
        .set("auth.jwks_refresh_interval", "1h")
        .set("auth.jwks_retry_interval", "1s")
        .start();
    Socket::connect_with(&gateway, &signed(ed, &first, Some("one"), "ada")).close();
    std::fs::write(&path, json!({"keys": [jwk(ed, &second, "two")]}).to_string()).unwrap();
    // Nobody sends a signal or waits for the interval: a token with an unknown key id is enough.
    let new = signed(ed, &second, Some("two"), "ada");
    eventually("the rotated file is read", || refused(&gateway, &new).is_none().then_some(()));
    assert_eq!(refused(&gateway, &signed(ed, &first, Some("one"), "ada")), Some(401));
}

/// An HTTP server that gives out a key set.
struct KeyServer {
    address: SocketAddr,
    body: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    is_down: Arc<AtomicBool>,
}

impl KeyServer {
    fn start(body: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (body, asked) = (Arc::new(Mutex::new(body.to_string())), Arc::new(AtomicUsize::new(0)));
        let is_down = Arc::new(AtomicBool::new(false));
        let (shared, counter, down) = (Arc::clone(&body), Arc::clone(&asked), Arc::clone(&is_down));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut head = [0; 4096];
                let _ = std::io::Read::read(&mut stream, &mut head);
                counter.fetch_add(1, Ordering::Relaxed);
                if down.load(Ordering::Relaxed) {
                    let _ = write!(stream, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
                    continue;
                }
                let body = shared.lock().unwrap().clone();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self { address, body, asked, is_down }
    }
}

#[test]
fn a_key_set_url_is_followed_as_it_rotates() {
    let (first, second) = (
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
    );
    let ed = KeyAlgorithm::EdDsa;
    let server = KeyServer::start(&json!({"keys": [jwk(ed, &first, "one")]}));
    let gateway = without_secret()
        .set("auth.jwks_url", format!("http://{}/keys", server.address))
        .set("auth.jwks_refresh_interval", "1h")
        .set("auth.jwks_retry_interval", "1s")
        .start();
    Socket::connect_with(&gateway, &signed(ed, &first, Some("one"), "ada")).close();
    let new = signed(ed, &second, Some("two"), "ada");
    *server.body.lock().unwrap() = json!({"keys": [jwk(ed, &second, "two")]}).to_string();
    // Nobody waits for the interval: a token with an unknown key id makes the set be read.
    eventually("the unknown key id is looked up", || {
        refused(&gateway, &new).is_none().then_some(())
    });
    assert_eq!(refused(&gateway, &signed(ed, &first, Some("one"), "ada")), Some(401));
    let asked = server.asked.load(Ordering::Relaxed);
    for n in 0..200 {
        let stranger = signed(ed, &first, Some(&format!("guess-{n}")), "ada");
        assert_eq!(refused(&gateway, &stranger), Some(401));
    }
    let more = server.asked.load(Ordering::Relaxed) - asked;
    assert!(more <= 30, "200 unknown key ids made the set be read {more} times");
}

/// Nodes that share what they fetch, and one that does not.
#[test]
fn nodes_that_share_a_key_set_start_without_its_server() {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed = KeyAlgorithm::EdDsa;
    let server = KeyServer::start(&json!({"keys": [jwk(ed, &pair, "one")]}));
    let redis = Redis::start(&[]);
    let node = |name: &str, shared: &str| {
        without_secret()
            .set("node.name", name)
            .set("redis.url", redis.url())
            .set("auth.jwks_url", format!("http://{}/keys", server.address))
            .set("auth.jwks_refresh_interval", "1h")
            .set("auth.jwks_retry_interval", "1s")
            .set("auth.jwks_shared_ttl", shared)
            .start()
    };
    let token = signed(ed, &pair, Some("one"), "ada");
    let _silent = node("silent", "0s");
    assert!(redis.ask_all("KEYS *key_sets*").is_empty(), "nothing is shared unless it is wished");
    let a = node("a", "1h");
    Socket::connect_with(&a, &token).close();
    // Redis may have been away in its first moment; what is fetched later is shared as well.
    eventually("the key set is shared", || {
        let _refused = refused(&a, &signed(ed, &pair, Some("other"), "ada"));
        (!redis.ask_all("KEYS *key_sets*").is_empty()).then_some(())
    });
    server.is_down.store(true, Ordering::Relaxed);
    // What was fetched within `jwks_retry_interval` is as good as fetched now; this is about what is older.
    let down_at = Instant::now();
    eventually("a's document is older", || (down_at.elapsed() > OLDER).then_some(()));
    let b = node("b", "1h");
    eventually("b has a's keys", || refused(&b, &token).is_none().then_some(()));
    eventually("b says whence", || (!b.log.events("jwks_lent").is_empty()).then_some(()));
    let c = node("c", "0s");
    assert_eq!(refused(&c, &token), Some(401));
    assert_eq!(c.log.events("jwks_lent"), Vec::<Value>::new());
}

fn hostile_tokens() -> Vec<(&'static str, String)> {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = claims_of("ada", json!({})).to_string();
    let good = token("ada");
    let parts: Vec<&str> = good.split('.').collect();
    let none = |name: &str| {
        format!(
            "{}.{}.",
            encode(&format!("{{\"alg\":\"{name}\",\"typ\":\"JWT\"}}")),
            encode(&claims)
        )
    };
    let with = |more: Value| token_with("ada", more);
    let now = unix_now();
    let mut flipped = parts[2].to_owned();
    let last = if flipped.starts_with('A') { "B" } else { "A" };
    flipped.replace_range(0..1, last);
    let other = SigningKey::from_secret(KeyAlgorithm::Hs256, &[b'k'; 64]).unwrap();
    let hs512 = SigningKey::from_secret(KeyAlgorithm::Hs512, SECRET.as_bytes()).unwrap();
    vec![
        ("alg none", none("none")),
        ("alg None", none("None")),
        ("alg nOnE", none("nOnE")),
        ("alg empty", none("")),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("five parts", format!("{good}.a.b")),
        ("flipped signature", format!("{}.{}.{flipped}", parts[0], parts[1])),
        (
            "other claims",
            format!("{}.{}.{}", parts[0], encode(&claims.replace("ada", "eve")), parts[2]),
        ),
        ("other secret", mint(&other, &claims_of("ada", json!({}))).unwrap()),
        ("other algorithm", mint(&hs512, &claims_of("ada", json!({}))).unwrap()),
        ("expired", with(json!({"exp": now - 3600}))),
        ("exp as text", with(json!({"exp": (now + 3600).to_string()}))),
        ("exp null-ish", with(json!({"exp": false}))),
        ("no exp", with(json!({"exp": null}))),
        ("nbf later", with(json!({"nbf": now + 3600}))),
        ("nbf as text", with(json!({"nbf": now.to_string()}))),
        ("iat later", with(json!({"iat": now + 3600}))),
        ("no user", with(json!({"sub": null}))),
        ("empty user", with(json!({"sub": ""}))),
        ("user as number", with(json!({"sub": 7}))),
        ("channel token", with(json!({"channel": "chat:a"}))),
        ("too long", with(json!({"filler": "x".repeat(2500)}))),
        ("rubbish", "rubbish".into()),
        ("dots", "..".into()),
        ("percent", "%00.%00.%00".into()),
    ]
}

#[test]
fn hostile_tokens_open_nothing() {
    let gateway = Setup::new().set("auth.token_bytes_max", "2KiB").start();
    for (what, token) in hostile_tokens() {
        assert_eq!(refused(&gateway, &token), Some(401), "{what} in the query");
        let mut opening = Opening { target: "/ws".into(), ..Opening::default() };
        let mut first = Socket::open(&gateway, &opening).unwrap();
        let answer = first.call("auth", json!({"token": token}));
        let code = answer["data"]["error_code"].as_str().unwrap_or_default();
        assert!(["AUTHENTICATION_FAILED", "TOKEN_EXPIRED"].contains(&code), "{what}: {answer}");
        assert_eq!(first.wait_close().code, Some(4500), "{what} as the first message");
        if !token.contains('%') {
            opening.headers.push(("Authorization".into(), format!("Bearer {token}")));
            assert_eq!(Socket::open(&gateway, &opening).err(), Some(401), "{what} in the header");
        }
    }
    assert!(gateway.connections().is_empty());
    assert!(gateway.metric("archmesh_auth_failures_total", &[]) >= 70.0);
    // Every token of these tests begins with the same header. The greeting of development is no log.
    let header = token("ada").split('.').next().unwrap().to_owned();
    let logged = gateway.log.lines().into_iter().filter(|line| line.starts_with('{'));
    assert_eq!(logged.filter(|line| line.contains(&header)).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_token_may_come_in_four_ways() {
    let gateway = Gateway::start();
    let good = token("ada");
    let plain = Opening { target: "/ws".into(), ..Opening::default() };
    let mut header = plain.clone();
    header.headers.push(("Authorization".into(), format!("Bearer {good}")));
    let mut subprotocol = plain.clone();
    subprotocol.subprotocols = vec!["archmesh.v1".into(), format!("bearer.{good}")];
    for opening in [Opening::with_token(&good), header, subprotocol] {
        let mut socket = Socket::open(&gateway, &opening).expect("an upgrade");
        assert_eq!(socket.take("welcome")["data"]["user_id"], "ada");
    }
    let mut socket = Socket::open(&gateway, &plain).unwrap();
    let welcome = socket.call("auth", json!({"token": good}));
    assert_eq!(welcome["data"]["user_id"], "ada");
    let mut early = Socket::open(&gateway, &plain).unwrap();
    early.send("publish", &json!({"channel": "chat:a", "data": 1}));
    assert_eq!(early.wait_close().code, Some(4500), "commands before the token end it");
    assert!(!gateway.log.text().contains(&good));

    let strict = Setup::new().set("auth.query_token", false).start();
    let mut socket = Socket::open(&strict, &Opening::with_token(&good)).unwrap();
    assert_eq!(socket.call("auth", json!({"token": good}))["type"], "welcome", "it was ignored");
}

#[test]
fn who_never_shows_a_token_is_closed() {
    let gateway = Setup::new()
        .set("limits.handshake_timeout", "500ms")
        .set("limits.auth_timeout", "1s")
        .start();
    let opening = Opening { target: "/ws".into(), ..Opening::default() };
    let mut socket = Socket::open(&gateway, &opening).unwrap();
    assert_eq!(socket.wait_close().code, Some(4007));
    let anonymous = Setup::new().set("auth.anonymous", true).start();
    let mut socket = Socket::open(&anonymous, &Opening::with_token("")).unwrap();
    assert_eq!(socket.take("welcome")["data"]["user_id"], "");
    let refused = socket.call("subscribe", json!({"channel": "chat:a"}));
    assert_eq!(refused["data"]["error_code"], "PERMISSION_DENIED", "{refused}");
}

#[test]
fn an_expired_token_ends_the_connection_unless_refreshed() {
    let gateway = Setup::new().set("auth.leeway", "0s").set("auth.expiry_grace", "500ms").start();
    let short = |user: &str| token_with(user, json!({"exp": unix_now() + 3}));
    let mut late = Socket::connect_with(&gateway, &short("ada"));
    let mut fresh = Socket::connect_with(&gateway, &short("bob"));
    let stranger = fresh.call("refresh", json!({"token": token("eve")}));
    assert_eq!(stranger["data"]["error_code"], "AUTHENTICATION_FAILED", "{stranger}");
    let refreshed = fresh.call("refresh", json!({"token": token("bob")}));
    assert_eq!(refreshed["type"], "refreshed", "{refreshed}");
    assert_eq!(late.wait_close().code, Some(4003));
    assert_eq!(fresh.call("ping", json!({}))["type"], "pong");
}

#[test]
fn revocation_works_at_once_and_for_new_connections() {
    let gateway = Gateway::start();
    let now = unix_now();
    let by_id = token_with("ada", json!({"jti": "token-17", "iat": now}));
    let of_ada = token_with("ada", json!({"jti": "token-18", "iat": now}));
    let old = token_with("bob", json!({"iat": now - 100}));
    let mut first = Socket::connect_with(&gateway, &by_id);
    let mut second = Socket::connect_with(&gateway, &of_ada);
    let mut third = Socket::connect_with(&gateway, &old);
    let revoke = json!({"token_id": "token-17", "expires_at": now + 3600});
    assert_eq!(gateway.result("revoke", &revoke)["affected"], 1);
    assert_eq!(first.wait_close().code, Some(4501));
    assert_eq!(refused(&gateway, &by_id), Some(401));
    assert_eq!(second.call("ping", json!({}))["type"], "pong");
    assert_eq!(
        gateway.result("revoke", &json!({"user": "ada", "issued_before": now + 1}))["affected"],
        1
    );
    assert_eq!(second.wait_close().code, Some(4501));
    assert_eq!(refused(&gateway, &of_ada), Some(401));
    assert_eq!(third.call("ping", json!({}))["type"], "pong");
    assert_eq!(gateway.result("revoke", &json!({"issued_before": now - 50}))["affected"], 1);
    assert_eq!(third.wait_close().code, Some(4501));
    Socket::connect(&gateway, "carl").close();
}

#[test]
fn private_channels_need_a_capability_or_a_channel_token() {
    let gateway = Gateway::start();
    let caps = json!({"caps": [{"channels": ["private:team-*"], "allow": ["sub", "pub"]}]});
    let mut ada = Socket::connect_with(&gateway, &token_with("ada", caps));
    ada.subscribe("private:team-1");
    ada.publish("private:team-1", json!(1));
    let mut bob = Socket::connect(&gateway, "bob");
    let denied = bob.call("subscribe", json!({"channel": "private:team-1"}));
    assert_eq!(denied["data"]["error_code"], "PERMISSION_DENIED");
    let for_bob = token_with("bob", json!({"channel": "private:team-1"}));
    let for_eve = token_with("eve", json!({"channel": "private:team-1"}));
    let wrong = bob.call("subscribe", json!({"channel": "private:team-1", "token": for_eve}));
    assert_eq!(wrong["data"]["error_code"], "PERMISSION_DENIED", "another user's");
    let wrong = bob.call("subscribe", json!({"channel": "private:team-2", "token": for_bob}));
    assert_eq!(wrong["data"]["error_code"], "PERMISSION_DENIED", "another channel's");
    let right = bob.call("subscribe", json!({"channel": "private:team-1", "token": for_bob}));
    assert_eq!(right["type"], "subscribed", "{right}");
    let denied = bob.call("publish", json!({"channel": "private:team-1", "data": 1}));
    assert_eq!(denied["data"]["error_code"], "PERMISSION_DENIED");
}

#[test]
fn a_refusal_says_why_in_json() {
    let gateway = Gateway::start();
    let mut http = Http::connect(gateway.public, None).unwrap();
    let head = "GET /ws?token=x HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    http.send(head.as_bytes()).unwrap();
    let answer = http.answer(false).unwrap();
    assert_eq!(answer.status, 401);
    assert_eq!(answer.json()["error"]["code"], "AUTHENTICATION_FAILED");
    assert_eq!(answer.header("connection"), Some("close"));
    let mut socket = connect(gateway.public).unwrap();
    socket.write_all(head.as_bytes()).unwrap();
    let all =
        crate::support::read_to_end(&mut socket, crate::support::WAIT).expect("closed after it");
    assert!(all.starts_with(b"HTTP/1.1 401"));
}
