//! Real sockets on loopback: hand-over with and without TLS, pipelining, the bounds of connections, stopping.

#![allow(clippy::unwrap_used)]
#![allow(
    clippy::disallowed_methods,
    reason = "the clients of these tests are blocking, on loopback"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream as StdStream};
use std::os::fd::OwnedFd;

use gateway_core::settings::Peer;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;
use crate::plane::testing::{HTTP_LIMITS, plane, routers};

/// Both ends of a TCP connection.
fn pair() -> (StdStream, StdStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = StdStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (client, listener.accept().unwrap().0)
}

fn handed_over(
    socket: StdStream,
    received: &[u8],
    tls: Option<Box<ServerConnection>>,
) -> HttpConnection {
    let peer = Peer { address: [127, 0, 0, 1].into(), port: 1, tls: tls.is_some() };
    HttpConnection { socket: OwnedFd::from(socket), peer, received: received.to_vec(), tls }
}

/// Serves what a shard would have handed over and runs `client` against it.
async fn serve(
    received: &'static [u8],
    client: impl FnOnce(StdStream) -> String + Send + 'static,
) -> String {
    let (_, plane) = plane();
    let (near, far) = pair();
    let server = HttpServer::new(HTTP_LIMITS);
    server.serve_handed_over(routers(&plane).public, handed_over(far, received, None));
    tokio::task::spawn_blocking(move || client(near)).await.unwrap()
}

fn read_to_end(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_read_by_the_shard_are_part_of_the_request() {
    let answer = serve(b"GET /live HTTP/1.1\r\nHo", |mut client| {
        client.write_all(b"st: a\r\nConnection: close\r\n\r\n").unwrap();
        read_to_end(client)
    });
    let answer = answer.await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with(r#"{"status":"live"}"#), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let requests = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\nGET /none HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = serve(requests, |mut client| {
        client.write_all(b"GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        read_to_end(client)
    });
    let answer = answer.await;
    let statuses: Vec<&str> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404", "200"], "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_on_a_kept_connection_is_sent_away() {
    let requests = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = serve(requests, |mut client| {
        client
            .write_all(
                b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n",
            )
            .unwrap();
        read_to_end(client)
    });
    let answer = answer.await;
    assert!(answer.contains("HTTP/1.1 421 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("new_connection_needed"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_above_the_bound_get_a_whole_503() {
    let (_, plane) = plane();
    let server = HttpServer::new(HttpLimits { connections_max: 1, ..HTTP_LIMITS });
    let (_held, far) = pair();
    server.serve_handed_over(routers(&plane).public, handed_over(far, b"GET", None));
    let (near, far) = pair();
    server.serve_handed_over(routers(&plane).public, handed_over(far, b"", None));
    let answer = tokio::task::spawn_blocking(move || read_to_end(near)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    assert_eq!((server.connections(), server.refused()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_closes_idle_connections() {
    let (_, plane) = plane();
    let server = HttpServer::new(HTTP_LIMITS);
    let (near, far) = pair();
    server.serve_handed_over(
        routers(&plane).public,
        handed_over(far, b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n", None),
    );
    let mut near = tokio::task::spawn_blocking(move || {
        let mut near = near;
        let mut answer = [0; 4096];
        let count = near.read(&mut answer).unwrap();
        assert!(answer[..count].starts_with(b"HTTP/1.1 200 OK"));
        near
    })
    .await
    .unwrap();
    server.stop();
    let rest = tokio::task::spawn_blocking(move || near.read(&mut [0; 64]).unwrap()).await.unwrap();
    assert_eq!(rest, 0, "the connection is closed");
    server.stopped().await;
}

/// A client and a server session that have shaken hands, as on a shard.
fn tls_pair(
    client_socket: &mut StdStream,
    server_socket: &mut StdStream,
) -> (ClientConnection, ServerConnection) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let private_key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private_key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        while client.wants_write() {
            client.write_tls(client_socket).unwrap();
        }
        if server.is_handshaking() {
            server.read_tls(server_socket).unwrap();
            server.process_new_packets().unwrap();
        }
        while server.wants_write() {
            server.write_tls(server_socket).unwrap();
        }
        if client.is_handshaking() {
            client.read_tls(client_socket).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    (client, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_session_goes_on_where_the_shard_left_it() {
    let (_, plane) = plane();
    let (mut near, mut far) = pair();
    let (mut client, mut session) = tls_pair(&mut near, &mut far);
    // One request is decrypted already but not taken from the session, one more comes later.
    client.writer().write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.write_tls(&mut near).unwrap();
    session.read_tls(&mut far).unwrap();
    session.process_new_packets().unwrap();
    let server = HttpServer::new(HTTP_LIMITS);
    let router = routers(&plane).internal;
    server.serve_handed_over(
        router,
        handed_over(far, b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n", Some(Box::new(session))),
    );
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = rustls::Stream::new(&mut client, &mut near);
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    })
    .await
    .unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    assert!(
        answer.contains(r#"{"status":"ready"}"#) && answer.contains(r#"{"status":"live"}"#),
        "{answer}"
    );
    assert!(answer.contains("archmesh_build_info"), "{answer}");
}
