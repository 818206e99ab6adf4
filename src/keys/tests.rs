//! Hazard: a key server that rotates, lies, hangs or dies takes the gateway's keys with it.
//!
//! Set-up: a real HTTP server on loopback whose answer the test chooses. Tests wait for what can be observed (a new
//! key set, a failure count, a request count), never for a time.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gateway_core::auth::{
    AuthError, Authenticator, KeyAlgorithm, KeySet, SigningKey, TokenRules, mint,
};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;

use super::{JwksSettings, KeyLoadError, KeySource, KeyStore, SharedKeySets};
use crate::breaker::{BreakerLimits, BreakerState};
use crate::cache::{Cache, CacheOptions};

const DEADLINE: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::from_secs(1_800_000_000);

#[derive(Clone, Debug)]
enum Answer {
    Document(String),
    Status(StatusCode),
    Redirect(String),
    /// Sends this many bytes in small pieces, without saying so beforehand.
    Endless(usize),
    /// Never answers.
    Hang,
}

/// A key server.
struct Server {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(answer: Answer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new(answer));
        let requests = Arc::new(AtomicUsize::new(0));
        let (current, count) = (Arc::clone(&answer), Arc::clone(&requests));
        let handler = move || {
            count.fetch_add(1, Ordering::SeqCst);
            respond(current.lock().unwrap().clone())
        };
        let app = Router::new().route("/jwks.json", get(handler));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, answer, requests, task }
    }

    fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn source(&self) -> Vec<KeySource> {
        vec![KeySource::JwksUrl { url: self.url() }]
    }
}

async fn respond(answer: Answer) -> Response {
    match answer {
        Answer::Document(text) => {
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Answer::Status(status) => status.into_response(),
        Answer::Redirect(to) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Answer::Endless(bytes) => Body::from(" ".repeat(bytes)).into_response(),
        Answer::Hang => std::future::pending().await,
    }
}

/// A signing key and its public half as a JWK.
struct TestKey {
    id: &'static str,
    pair: KeyPair,
}

impl TestKey {
    fn new(id: &'static str) -> Self {
        Self { id, pair: KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap() }
    }

    fn jwk(&self) -> serde_json::Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.der_bytes());
        json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.id, "use": "sig"})
    }

    fn token(&self) -> String {
        let pem = self.pair.serialize_pem();
        let key = SigningKey::from_pem(KeyAlgorithm::EdDsa, pem.as_bytes()).unwrap();
        let claims = json!({"sub": "ann", "exp": NOW.as_secs() + 60});
        mint(&key.with_id(Some(self.id.into())), &claims).unwrap()
    }

    fn check(&self, keys: &KeySet) -> Result<(), AuthError> {
        let authenticator = Authenticator::new(TokenRules::default(), keys.clone(), None);
        authenticator.verify(&self.token(), NOW).map(drop)
    }
}

fn document(keys: &[&TestKey]) -> Answer {
    let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
    Answer::Document(json!({ "keys": keys }).to_string())
}

/// Every fetch follows at once: hints are not held back and failures are retried within milliseconds.
fn eager() -> JwksSettings {
    JwksSettings {
        timeout: Duration::from_secs(10),
        interval: Duration::from_secs(3_600),
        interval_min: Duration::ZERO,
        breaker: BreakerLimits { failures: u32::MAX, open: Duration::ZERO },
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(20),
        bytes_max: 16 * 1024,
        ..JwksSettings::default()
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "never: {what}");
}

async fn changed(receiver: &mut tokio::sync::watch::Receiver<KeySet>) -> KeySet {
    tokio::time::timeout(DEADLINE, receiver.changed()).await.unwrap().unwrap();
    receiver.borrow_and_update().clone()
}

fn failures(store: &KeyStore) -> u32 {
    store.status()[0].failures
}

#[tokio::test]
async fn rotation_is_noticed_through_an_unknown_key() {
    let (old, new) = (TestKey::new("old"), TestKey::new("new"));
    let server = Server::start(document(&[&old])).await;
    let store = KeyStore::load(None, server.source(), eager()).await.unwrap();
    let mut receiver = store.subscribe();
    let _tasks = store.spawn_refresh();
    assert_eq!(old.check(&store.current()), Ok(()));
    assert_eq!(new.check(&store.current()), Err(AuthError::UnknownKey));

    server.set(document(&[&old, &new]));
    store.note_unknown_kid();
    let keys = changed(&mut receiver).await;
    assert_eq!((old.check(&keys), new.check(&keys)), (Ok(()), Ok(())));

    server.set(document(&[&new]));
    store.note_unknown_kid();
    let keys = changed(&mut receiver).await;
    assert_eq!((old.check(&keys), new.check(&keys)), (Err(AuthError::UnknownKey), Ok(())));
    assert_eq!(new.check(&store.current()), Ok(()));
}

#[tokio::test]
async fn rotation_is_noticed_at_the_interval() {
    let (old, new) = (TestKey::new("old"), TestKey::new("new"));
    let server = Server::start(document(&[&old])).await;
    let settings = JwksSettings { interval: Duration::from_millis(5), ..eager() };
    let store = KeyStore::load(None, server.source(), settings).await.unwrap();
    let mut receiver = store.subscribe();
    let _tasks = store.spawn_refresh();
    server.set(document(&[&new]));
    assert_eq!(new.check(&changed(&mut receiver).await), Ok(()));
}

#[tokio::test]
async fn an_unchanged_document_is_no_change() {
    let key = TestKey::new("k");
    let server = Server::start(document(&[&key])).await;
    let settings = JwksSettings { interval: Duration::from_millis(1), ..eager() };
    let store = KeyStore::load(None, server.source(), settings).await.unwrap();
    let receiver = store.subscribe();
    let _tasks = store.spawn_refresh();
    until("ten fetches", || server.requests.load(Ordering::SeqCst) >= 10).await;
    assert!(!receiver.has_changed().unwrap());
}

#[tokio::test]
async fn unknown_keys_are_bounded_by_the_minimum_interval() {
    let key = TestKey::new("k");
    let server = Server::start(document(&[&key])).await;
    let settings = JwksSettings { interval_min: Duration::from_secs(3_600), ..eager() };
    let store = KeyStore::load(None, server.source(), settings).await.unwrap();
    let tasks = store.spawn_refresh();
    for _ in 0..1_000 {
        store.note_unknown_kid();
        tokio::task::yield_now().await;
    }
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
    assert_eq!(tasks.len(), 1);
}

/// Every kind of bad answer: counted, retried, and the old keys stay; a good one mends it.
#[tokio::test]
async fn bad_answers_keep_the_old_keys() {
    let (key, other) = (TestKey::new("k"), TestKey::new("other"));
    let symmetric = json!({"keys": [{"kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 64])}]});
    let server = Server::start(document(&[&key])).await;
    let elsewhere = Server::start(document(&[&other])).await;
    let store = KeyStore::load(None, server.source(), eager()).await.unwrap();
    let mut receiver = store.subscribe();
    let _tasks = store.spawn_refresh();
    for bad in [
        Answer::Status(StatusCode::INTERNAL_SERVER_ERROR),
        Answer::Status(StatusCode::NOT_FOUND),
        Answer::Status(StatusCode::NO_CONTENT),
        Answer::Document(String::new()),
        Answer::Document("<html>maintenance</html>".to_owned()),
        Answer::Document(r#"{"keys":[]}"#.to_owned()),
        Answer::Document(r#"{"keys":[{"kty":"RSA"}]}"#.to_owned()),
        Answer::Document(symmetric.to_string()),
        Answer::Endless(16 * 1024 + 1),
        Answer::Endless(8 * 1024 * 1024),
        Answer::Redirect(server.url()),
        Answer::Redirect(elsewhere.url()),
        Answer::Redirect("file:///etc/passwd".to_owned()),
    ] {
        server.set(bad.clone());
        store.note_unknown_kid();
        until(&format!("two failures of {bad:?}"), || failures(&store) >= 2).await;
        assert_eq!(key.check(&store.current()), Ok(()), "{bad:?}");
        assert!(!receiver.has_changed().unwrap(), "{bad:?}");
        server.set(document(&[&key]));
        until("recovery", || failures(&store) == 0).await;
    }
    server.set(document(&[&other]));
    store.note_unknown_kid();
    assert_eq!(other.check(&changed(&mut receiver).await), Ok(()));
}

#[tokio::test]
async fn a_hanging_server_costs_one_timeout() {
    let key = TestKey::new("k");
    let server = Server::start(Answer::Hang).await;
    let settings = JwksSettings { timeout: Duration::from_millis(50), ..eager() };
    let store =
        tokio::time::timeout(DEADLINE, KeyStore::load(None, server.source(), settings)).await;
    let store = store.unwrap().unwrap();
    assert!(store.current().is_empty());
    assert_eq!(failures(&store), 1);
    let mut receiver = store.subscribe();
    let _tasks = store.spawn_refresh();
    until("a retry into the hanging server", || failures(&store) >= 2).await;
    server.set(document(&[&key]));
    assert_eq!(key.check(&changed(&mut receiver).await), Ok(()));
}

#[tokio::test]
async fn a_server_that_dies_and_a_start_without_it() {
    let key = TestKey::new("k");
    let server = Server::start(document(&[&key])).await;
    let store = KeyStore::load(None, server.source(), eager()).await.unwrap();
    let tasks = store.spawn_refresh();
    server.task.abort();
    assert!((&mut { server.task }).await.unwrap_err().is_cancelled());
    store.note_unknown_kid();
    until("failures against a dead server", || failures(&store) >= 3).await;
    assert_eq!(key.check(&store.current()), Ok(()));
    drop(tasks);

    let source = vec![KeySource::JwksUrl { url: format!("http://{}/jwks.json", server.address) }];
    let fresh = KeyStore::load(None, source.clone(), eager()).await.unwrap();
    assert!(fresh.current().is_empty(), "a start must not fail because the key server is down");
    let reloaded = store.load_again(source, eager()).await.unwrap();
    assert_eq!(key.check(&reloaded.current()), Ok(()), "a reload keeps the keys of the same URL");
    assert_eq!(failures(&reloaded), 1);
}

#[tokio::test]
async fn refresh_ends_with_its_handle() {
    let key = TestKey::new("k");
    let server = Server::start(document(&[&key])).await;
    let store = KeyStore::load(None, server.source(), eager()).await.unwrap();
    let mut tasks = store.spawn_refresh();
    tasks.shutdown().await;
    assert!(tasks.is_empty());
}

/// A key server with a certificate of its own CA; answers every connection with `body`. Gives its port.
fn tls_server(ca: &rcgen::Issuer<'_, KeyPair>, body: &str) -> u16 {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&pair, ca).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // Ends with the test process: it only waits for connections.
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, socket.unwrap());
            // A client that does not trust the certificate ends the handshake here.
            if stream.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {
                stream.write_all(answer.as_bytes()).unwrap();
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
        }
    });
    port
}

#[tokio::test]
async fn https_is_verified_and_a_ca_file_is_trusted() {
    let key = TestKey::new("k");
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ca_pem = params.self_signed(&ca_pair).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, ca_pair);
    let body = json!({"keys": [key.jwk()]}).to_string();
    let port = tls_server(&issuer, &body);
    let source = |host: &str| vec![KeySource::JwksUrl { url: format!("https://{host}:{port}/") }];

    let directory = tempfile::tempdir().unwrap();
    let ca_file = Some(file(&directory, "ca.pem", ca_pem.as_bytes()));
    let settings = JwksSettings { ca_file, ..eager() };
    let store = KeyStore::load(None, source("127.0.0.1"), settings.clone()).await.unwrap();
    assert_eq!(key.check(&store.current()), Ok(()), "{:?}", store.status());
    let store = KeyStore::load(None, source("localhost"), settings.clone()).await.unwrap();
    assert!(store.current().is_empty(), "the certificate is for another name");
    // Without the CA file: refused by the handshake, or already for want of any CA certificate.
    match KeyStore::load(None, source("127.0.0.1"), eager()).await {
        Ok(store) => assert!(store.current().is_empty() && failures(&store) == 1),
        Err(error) => assert!(matches!(error, KeyLoadError::Client(_)), "{error}"),
    }
    let ca_file = Some(file(&directory, "no.pem", b"no certificate"));
    let error =
        KeyStore::load(None, source("127.0.0.1"), JwksSettings { ca_file, ..eager() }).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no.pem") && error.contains("CA certificates"), "{error}");
}

fn file(directory: &tempfile::TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test]
async fn local_sources_and_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let (pem, jwks) = (TestKey::new("pem"), TestKey::new("jwks"));
    let algorithm = KeyAlgorithm::Hs256;
    let secret = "0123456789abcdef0123456789abcdef";
    let pem_path = file(&directory, "public.pem", pem.pair.public_key_pem().as_bytes());
    let jwks_text = json!({"keys": [jwks.jwk(), {"kty": "unknown"}]}).to_string();
    let jwks_path = file(&directory, "jwks.json", jwks_text.as_bytes());
    let sources = vec![
        KeySource::Secret { algorithm, id: Some("inline".into()), secret: secret.into() },
        KeySource::PemFile {
            algorithm: KeyAlgorithm::EdDsa,
            id: Some("pem".into()),
            path: pem_path,
        },
        KeySource::JwksFile { path: jwks_path },
    ];
    let text = format!("{sources:?}");
    assert!(!text.contains(secret), "{text}");
    let store = KeyStore::load(None, sources, JwksSettings::default()).await.unwrap();
    let keys = store.current();
    let ids: Vec<_> = keys.iter().map(|key| key.id.as_deref().unwrap()).collect();
    assert_eq!(ids, ["inline", "pem", "jwks"]);
    assert_eq!((pem.check(&keys), jwks.check(&keys)), (Ok(()), Ok(())));
    let signing = SigningKey::from_secret(algorithm, secret.as_bytes()).unwrap();
    let claims = json!({"sub": "ann", "exp": NOW.as_secs() + 60});
    let token = mint(&signing.with_id(Some("inline".into())), &claims).unwrap();
    let authenticator = Authenticator::new(TokenRules::default(), keys, None);
    assert!(authenticator.verify(&token, NOW).is_ok());
    assert!(store.spawn_refresh().is_empty());
}

#[tokio::test]
async fn errors_name_the_file_and_the_mend() {
    let directory = tempfile::tempdir().unwrap();
    let private = TestKey::new("k").pair.serialize_pem();
    let missing = directory.path().join("missing.pem");
    let pem = |path: PathBuf| KeySource::PemFile { algorithm: KeyAlgorithm::EdDsa, id: None, path };
    let cases = [
        (pem(missing), "missing.pem", "check that it exists"),
        (pem(file(&directory, "private.pem", private.as_bytes())), "private.pem", "-pubout"),
        (pem(file(&directory, "huge.pem", &vec![b'x'; 20_000])), "huge.pem", "larger than 16384"),
        (pem(file(&directory, "empty.pem", b"")), "empty.pem", "PEM"),
        (KeySource::JwksFile { path: file(&directory, "a.json", b"{}") }, "a.json", "`keys`"),
        (KeySource::JwksFile { path: file(&directory, "b.json", b"\xff") }, "b.json", "UTF-8"),
        (
            KeySource::JwksFile { path: file(&directory, "c.json", br#"{"keys":[]}"#) },
            "c.json",
            "no usable signature key",
        ),
        (KeySource::JwksUrl { url: "http://issuer.test/".to_owned() }, "issuer.test", "use https"),
    ];
    for (source, place, mend) in cases {
        let error = KeyStore::load(None, vec![source], eager()).await.unwrap_err().to_string();
        assert!(error.contains(place) && error.contains(mend), "{error}");
    }
    let inline =
        KeySource::Secret { algorithm: KeyAlgorithm::Hs256, id: None, secret: "hunter2".into() };
    let error = KeyStore::load(None, vec![inline], eager()).await.unwrap_err();
    assert!(matches!(error, KeyLoadError::Secret(_)));
    assert!(!error.to_string().contains("hunter2"));
}

#[tokio::test]
async fn a_server_that_fails_is_left_alone_whatever_tokens_come() {
    let server = Server::start(Answer::Status(StatusCode::BAD_GATEWAY)).await;
    let breaker = BreakerLimits { failures: 3, open: Duration::from_secs(3_600) };
    let settings = JwksSettings { breaker, ..eager() };
    let store = KeyStore::load(None, server.source(), settings).await.unwrap();
    let _tasks = store.spawn_refresh();
    let state = || store.status()[0].breaker;
    until("the breaker opens", || state() == BreakerState::Open).await;
    assert_eq!(server.requests.load(Ordering::SeqCst), 3);
    server.set(document(&[&TestKey::new("new")]));
    for _ in 0..50 {
        store.note_unknown_kid();
        tokio::task::yield_now().await;
    }
    assert_eq!((server.requests.load(Ordering::SeqCst), failures(&store)), (3, 3));
}

#[tokio::test]
async fn a_server_that_is_back_is_found() {
    let server = Server::start(Answer::Status(StatusCode::BAD_GATEWAY)).await;
    let breaker = BreakerLimits { failures: 2, open: Duration::from_millis(20) };
    let settings = JwksSettings { breaker, ..eager() };
    let store = KeyStore::load(None, server.source(), settings).await.unwrap();
    let _tasks = store.spawn_refresh();
    until("the breaker opens", || store.status()[0].breaker == BreakerState::Open).await;
    server.set(document(&[&TestKey::new("new")]));
    until("the keys come", || failures(&store) == 0 && !store.current().is_empty()).await;
    assert_eq!(store.status()[0].breaker, BreakerState::Closed);
}

/// Two nodes over one cache.
fn shared() -> Option<SharedKeySets> {
    let options = CacheOptions { memory_max: 1 << 20, shares: Vec::new() };
    let cache = Cache::new(&options, None).unwrap();
    Some(SharedKeySets::open(&cache, Duration::from_secs(3_600)).unwrap())
}

#[tokio::test]
async fn what_one_node_has_fetched_serves_the_others_for_a_while() {
    let (old, new) = (TestKey::new("old"), TestKey::new("new"));
    let server = Server::start(document(&[&old])).await;
    let shared = shared();
    let minute = JwksSettings { interval_min: Duration::from_secs(60), ..eager() };
    let load = |settings: JwksSettings| KeyStore::load(shared.clone(), server.source(), settings);
    let first = load(minute.clone()).await.unwrap();
    server.set(document(&[&new]));
    let second = load(minute).await.unwrap();
    assert_eq!(old.check(&second.current()), Ok(()), "fetched a moment ago");
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
    let third = load(eager()).await.unwrap();
    assert_eq!(new.check(&third.current()), Ok(()), "this one takes nothing that is shared");
    assert_eq!(server.requests.load(Ordering::SeqCst), 2);
    let reloaded = first.load_again(server.source(), eager()).await.unwrap();
    assert_eq!(new.check(&reloaded.current()), Ok(()));
}

#[tokio::test]
async fn a_node_that_cannot_reach_the_server_starts_with_what_others_have_fetched() {
    let (old, new) = (TestKey::new("old"), TestKey::new("new"));
    let server = Server::start(document(&[&old])).await;
    let shared = shared();
    KeyStore::load(shared.clone(), server.source(), eager()).await.unwrap();
    server.set(Answer::Status(StatusCode::BAD_GATEWAY));
    let alone = KeyStore::load(None, server.source(), eager()).await.unwrap();
    assert!(alone.current().is_empty());
    let store = KeyStore::load(shared, server.source(), eager()).await.unwrap();
    assert_eq!(old.check(&store.current()), Ok(()));
    assert_eq!(failures(&store), 1, "the server is asked again");
    let _tasks = store.spawn_refresh();
    server.set(document(&[&new]));
    until("the server's own keys", || new.check(&store.current()) == Ok(())).await;
    assert_eq!(old.check(&store.current()), Err(AuthError::UnknownKey));
}

#[tokio::test]
async fn keys_that_are_shared_later_are_found() {
    let key = TestKey::new("k");
    let server = Server::start(Answer::Status(StatusCode::BAD_GATEWAY)).await;
    let breaker = BreakerLimits { failures: 2, open: Duration::from_millis(10) };
    let settings = JwksSettings { breaker, ..eager() };
    let shared = shared();
    let store = KeyStore::load(shared.clone(), server.source(), settings).await.unwrap();
    let _tasks = store.spawn_refresh();
    until("the breaker opens", || store.status()[0].breaker == BreakerState::Open).await;
    let Answer::Document(text) = document(&[&key]) else { unreachable!() };
    let KeySource::JwksUrl { url } = &server.source()[0] else { unreachable!() };
    let remote = super::remote::Remote::new(url, &eager()).unwrap();
    let shared = shared.unwrap();
    // It may join a fetch that fails.
    while shared.get(&remote, Duration::ZERO, || async { Ok(text.clone()) }).await.is_err() {}
    until("another node's keys are found", || key.check(&store.current()) == Ok(())).await;
    assert!(failures(&store) > 0, "the server still does not answer");
}
