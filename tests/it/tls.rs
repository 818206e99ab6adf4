//! Setup: a certificate authority of the test, TLS on the public listener, peers that speak something else.
//!
//! Must hold: sockets and HTTP work over TLS 1.2 and 1.3; a reload brings the new certificate to new connections and
//! keeps the old ones; plain text, old versions and garbage end the connection and nothing else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::json;

use crate::gateway::{Gateway, Setup};
use crate::http::Http;
use crate::socket::Socket;
use crate::support::{connect, eventually, read_to_end, tool};

/// A certificate authority and the files of one server certificate.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Tests of archmesh");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let authority = Self { issuer, folder: tempfile::tempdir().unwrap() };
        fs::write(authority.ca_file(), authority.issuer.pem()).unwrap();
        authority.issue();
        authority
    }

    /// Writes a fresh certificate and key over the files; answers the certificate.
    pub fn issue(&self) -> Vec<u8> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.certificate(), certificate.pem()).unwrap();
        fs::write(self.key(), key.serialize_pem()).unwrap();
        certificate.der().to_vec()
    }

    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("server.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.path().join("server.key")
    }

    /// A client that trusts the authority and speaks these versions.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(versions).unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }

    /// A gateway setup with the certificate.
    pub fn setup(&self) -> Setup {
        Setup::new().tls(&self.certificate(), &self.key(), self.client(rustls::ALL_VERSIONS))
    }
}

/// The server's certificate on a connection that has been used.
fn certificate_of(http: &Http) -> Vec<u8> {
    let crate::support::Stream::Tls(stream) = &http.stream else { panic!("not TLS") };
    stream.conn.peer_certificates().expect("after the handshake")[0].to_vec()
}

fn fresh_certificate(gateway: &Gateway) -> Option<Vec<u8>> {
    let mut http = Http::connect(gateway.public, gateway.tls.as_ref()).ok()?;
    (http.get("/live").ok()?.status == 200).then(|| certificate_of(&http))
}

#[test]
fn sockets_and_http_over_both_versions() {
    let authority = Authority::new();
    let mut gateway = authority.setup().start();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        gateway.tls = Some(authority.client(&[version]));
        let mut ada = Socket::connect(&gateway, "ada");
        let mut bob = Socket::connect(&gateway, "bob");
        ada.subscribe("chat:room");
        let big = "x".repeat(300_000);
        bob.publish("chat:room", json!(big));
        assert_eq!(ada.take("message")["data"], big);
        let mut http = gateway.http();
        for _ in 0..3 {
            assert_eq!(http.get("/ready").unwrap().status, 200);
        }
        gateway.publish("chat:room", json!("over https"));
        assert_eq!(ada.take("message")["data"], "over https");
        let seen = gateway.result("connection", &json!({"session": ada.session()}));
        assert_eq!(seen["tls"], true);
        ada.close();
    }
    assert!(gateway.metric("archmesh_tls_certificate_expiry_timestamp_seconds", &[]) > 1e9);
    let detailed = gateway.get("/health/detailed").json();
    assert_eq!(detailed["components"]["tls"]["status"], "healthy", "{detailed}");
}

#[test]
fn a_reload_brings_the_new_certificate_and_drops_nobody() {
    let authority = Authority::new();
    let gateway = authority.setup().start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    let mut kept = gateway.http();
    assert_eq!(kept.get("/live").unwrap().status, 200);
    let old = certificate_of(&kept);

    // A key that does not belong to the certificate is refused, and the old pair stays.
    let stray = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    fs::write(authority.key(), stray.serialize_pem()).unwrap();
    gateway.signal("HUP");
    eventually("the mismatch is refused", || gateway.log.events("reload_refused").pop());
    assert_eq!(fresh_certificate(&gateway), Some(old.clone()));
    gateway.await_metric("archmesh_config_last_reload_success", &[], |value| value == 0.0);

    let new = authority.issue();
    gateway.signal("HUP");
    eventually("new connections see the new certificate", || {
        (fresh_certificate(&gateway)? == new).then_some(())
    });
    assert_eq!(kept.get("/live").unwrap().status, 200, "the old connection still works");
    gateway.publish("chat:room", json!("still here"));
    assert_eq!(ada.take("message")["data"], "still here");
    gateway.await_metric("archmesh_config_last_reload_success", &[], |value| value == 1.0);
}

#[test]
fn who_does_not_speak_tls_is_cut_off() {
    let authority = Authority::new();
    let gateway = authority.setup().set("limits.handshake_timeout", "500ms").start();
    let mut ada = Socket::connect(&gateway, "ada");
    let files = gateway.numbers().files;
    let hello: Vec<u8> = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 60]].concat();
    let cases: [&[u8]; 7] = [
        b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\x01\x02\x03\xff\xff\xff\xff",
        &[0x16, 3, 1, 0xff, 0xff],
        &hello,
        &[0x80, 0x2e, 1, 0, 2],
        &[0x15, 3, 3, 0, 2, 2, 40],
        b"",
    ];
    for bytes in cases {
        for _ in 0..5 {
            let mut socket = connect(gateway.public).unwrap();
            let _ = socket.write_all(bytes);
            let answer = read_to_end(&mut socket, Duration::from_secs(15));
            let answer = answer.unwrap_or_else(|| panic!("{bytes:?} is cut off"));
            assert!(!answer.starts_with(b"HTTP/1.1 2") && answer.len() < 200, "{bytes:?}");
        }
    }
    assert_eq!(ada.call("ping", json!({}))["type"], "pong");
    gateway.await_metric("archmesh_connections_refused_total", &[("reason", "tls")], |n| n >= 20.0);
    eventually("the sockets are closed", || (gateway.numbers().files <= files + 4).then_some(()));
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let authority = Authority::new();
    let gateway = authority.setup().start();
    let config = authority.client(rustls::ALL_VERSIONS);
    let name = rustls::pki_types::ServerName::from(gateway.public.ip());
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut socket = connect(gateway.public).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    for byte in hello {
        socket.write_all(&[byte]).unwrap();
    }
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answer = read_to_end(&mut stream, Duration::from_secs(20)).expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

fn s_client(gateway: &Gateway, ca: &Path, version: &str) -> (bool, String) {
    let openssl = tool("OPENSSL", &["openssl"]);
    let mut child = Command::new(openssl)
        .args(["s_client", "-connect", &gateway.public.to_string(), "-CAfile"])
        .arg(ca)
        .args([version, "-cipher", "DEFAULT@SECLEVEL=0", "-verify_return_error"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().success(), said)
}

#[test]
fn old_versions_are_refused() {
    let authority = Authority::new();
    let gateway = authority.setup().start();
    for (version, accepted) in [("-tls1", false), ("-tls1_1", false), ("-tls1_2", true)] {
        let (success, said) = s_client(&gateway, &authority.ca_file(), version);
        assert_eq!(success, accepted, "{version}: {said}");
    }
    let only_1_3 = authority.setup().set("tls.min_version", "1.3").start();
    let (success, said) = s_client(&only_1_3, &authority.ca_file(), "-tls1_2");
    assert!(!success, "{said}");
    let (success, said) = s_client(&only_1_3, &authority.ca_file(), "-tls1_3");
    assert!(success, "{said}");
}

#[test]
fn broken_off_handshakes_leave_nothing_behind() {
    let authority = Authority::new();
    let gateway = authority.setup().internal().start();
    let attempt = |cycle: usize| {
        let name = rustls::pki_types::ServerName::from(gateway.public.ip());
        let config = gateway.tls.clone().unwrap();
        let mut session = rustls::ClientConnection::new(config, name).unwrap();
        let mut socket = crate::raw::Raw::connect(gateway.public).unwrap();
        let mut hello = Vec::new();
        session.write_tls(&mut hello).unwrap();
        match cycle % 4 {
            0 => socket.send(&hello[..hello.len() / 2]).unwrap(),
            1 => socket.send(&hello).unwrap(),
            2 => socket.send(&[&hello[..], b"no handshake"].concat()).unwrap(),
            _ => Socket::connect(&gateway, "ada").reset(),
        }
        if cycle % 8 < 4 { socket.reset() } else { drop(socket) }
    };
    let settle = || {
        gateway.await_metric("archmesh_connections", &[], |now| now < 1.0);
        gateway.numbers()
    };
    (0..400).for_each(attempt);
    let before = settle();
    (0..2000).for_each(attempt);
    settle();
    // The connection that asked for the metrics may still be closing, in the first count as well.
    let after = eventually("descriptors come back", || {
        let now = gateway.numbers();
        (now.files <= before.files).then_some(now)
    });
    let bound = before.rss_kib + before.rss_kib / 10;
    assert!(after.rss_kib <= bound, "RSS grew from {} to {} KiB", before.rss_kib, after.rss_kib);
    Socket::connect(&gateway, "ada").close();
}
