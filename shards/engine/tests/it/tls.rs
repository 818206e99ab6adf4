//! TLS on the shard: echo, large data, reload, abuse, hand-over.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use tungstenite::{Message, WebSocket};

use crate::node::{Node, connect, echoes, start_with};

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

struct Authority {
    certificate: CertificateDer<'static>,
    server: Arc<ServerConfig>,
}

fn authority() -> Authority {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key))
        .unwrap();
    Authority { certificate, server: Arc::new(server) }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn tls_node(authority: &Authority) -> Node {
    let server = Arc::clone(&authority.server);
    start_with(1, |config, _| config.tls = Some(server))
}

fn stream(node: &Node, authority: &Authority) -> TlsStream {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, connect(node.address()))
}

fn echo(node: &Node, authority: &Authority) -> WebSocket<TlsStream> {
    tungstenite::client("wss://localhost/echo", stream(node, authority)).unwrap().0
}

#[test]
fn echo_of_small_and_large_messages() {
    let authority = authority();
    let mut node = tls_node(&authority);
    let mut client = echo(&node, &authority);
    echoes(&mut client, "hello");
    echoes(&mut client, &"large".repeat(1 << 19));
    let messages: Vec<_> = (0..8).map(|n: u32| n.to_string().repeat(1 << 20)).collect();
    for message in &messages {
        client.send(Message::text(message.clone())).unwrap();
    }
    for message in &messages {
        assert_eq!(client.read().unwrap(), Message::text(message.clone()));
    }
    client.close(None).unwrap();
    while client.read().is_ok() {}
    // The end is a close_notify, not a cut: rustls tells the difference.
    assert_eq!(client.get_mut().read(&mut [0; 1]).unwrap(), 0);
    drop(client);
    node.until("the slot is free", 0, |snapshot| snapshot.core.connections == 0);
    node.stop();
}

#[test]
fn a_new_certificate_is_for_new_connections_only() {
    let (old, new) = (authority(), authority());
    let mut node = tls_node(&old);
    let mut first = echo(&node, &old);
    node.handle.replace_tls(Arc::clone(&new.server));
    // A request that the shard answers after it took the certificate.
    node.snapshot(0);
    let mut second = echo(&node, &new);
    echoes(&mut first, "old");
    echoes(&mut second, "new");
    node.stop();
}

#[test]
fn plain_http_gets_a_plain_answer() {
    let authority = authority();
    let mut node = tls_node(&authority);
    let mut client = connect(node.address());
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("TLS"), "{answer}");
    let snapshot = node.until("the slot is free", 0, |snapshot| snapshot.connections == 0);
    assert_eq!(snapshot.engine.tls_failures, 1);
    node.stop();
}

#[test]
fn garbage_is_answered_with_an_alert_and_closed() {
    let authority = authority();
    let mut node = tls_node(&authority);
    let mut client = connect(node.address());
    // A handshake record that is no ClientHello.
    client.write_all(&[22, 3, 1, 0, 4, 99, 0, 0, 0]).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.first(), Some(&21), "an alert record: {answer:?}");
    let snapshot = node.until("the slot is free", 0, |snapshot| snapshot.connections == 0);
    assert_eq!(snapshot.engine.tls_failures, 1);
    node.stop();
}

#[test]
fn a_request_is_handed_over_with_its_tls_state() {
    let authority = authority();
    let mut node = tls_node(&authority);
    let mut client = stream(&node, &authority);
    client.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    client.flush().unwrap();
    let http = node.http();
    assert!(http.peer.tls);
    assert!(http.received.starts_with(b"GET /health HTTP/1.1\r\n"), "{:?}", http.received);
    let socket = TcpStream::from(http.socket);
    socket.set_nonblocking(false).unwrap();
    let mut server = StreamOwned::new(*http.tls.unwrap(), socket);
    server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    server.flush().unwrap();
    let mut answer = [0; 27];
    client.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 204"));
    node.stop();
}
