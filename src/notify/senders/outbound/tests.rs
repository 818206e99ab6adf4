//! Against services on the loopback interface, some of which behave badly.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::Mutex;

use reqwest::dns::{Addrs, Name, Resolving};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::notify::senders::testing::{LONG, NOW, Service, http_settings};

/// Shorter than a person's patience, longer than a connection on the loopback interface takes.
const SHORT: Duration = Duration::from_millis(300);

async fn post(outbound: &Outbound, url: &str) -> Result<Reply, SendError> {
    let url = Url::parse(url).unwrap();
    outbound.post(&url, HeaderMap::new(), b"body".to_vec(), NOW).await
}

async fn failure(settings: HttpSettings, url: &str) -> SendError {
    let error = post(&Outbound::new(settings).unwrap(), url).await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("token"), "{shown} shows the path");
    error
}

/// A service that reads a request, writes a fixed beginning, and then does what it is told.
async fn raw_service<F>(beginning: &'static str, then: fn(TcpStream) -> F) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            stream.write_all(beginning.as_bytes()).await.unwrap();
            tokio::spawn(then(stream));
        }
    });
    url
}

async fn hold(mut stream: TcpStream) {
    let _ = stream.read(&mut [0]).await;
}

async fn close(stream: TcpStream) {
    drop(stream);
}

async fn write_forever(mut stream: TcpStream) {
    while stream.write_all(b"400\r\n").await.is_ok()
        && stream.write_all(&[b'x'; 1024]).await.is_ok()
        && stream.write_all(b"\r\n").await.is_ok()
    {}
}

#[test]
fn the_status_decides() {
    for (status, expected) in [
        (200, "sent"),
        (201, "sent"),
        (204, "sent"),
        (299, "sent"),
        (301, "refused"),
        (302, "refused"),
        (400, "refused"),
        (401, "refused"),
        (403, "refused"),
        (404, "refused"),
        (408, "unavailable"),
        (410, "gone"),
        (413, "refused"),
        (425, "unavailable"),
        (429, "unavailable"),
        (500, "unavailable"),
        (503, "unavailable"),
        (599, "unavailable"),
    ] {
        let asked = Some(Duration::from_secs(9));
        let outcome = Reply { status, retry_after: asked }.outcome(&[410]);
        let name = outcome.as_ref().map_or_else(|error| error.kind.as_str(), |_| "sent");
        assert_eq!(name, expected, "{status}");
        if let Err(error) = outcome {
            assert_eq!(error.retry_after, asked.filter(|_| expected == "unavailable"), "{status}");
            assert!(error.to_string().contains(&format!("HTTP {status}")), "{error}");
        }
    }
}

#[test]
fn a_wait_is_seconds_or_a_date() {
    let read = |text: &str| {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        retry_after(&headers, Duration::from_hours(490_000))
    };
    assert_eq!(read("120"), Some(Duration::from_mins(2)));
    assert_eq!(read("0"), Some(Duration::ZERO));
    assert_eq!(read("Mon, 24 Nov 2025 16:00:30 GMT"), Some(Duration::from_secs(30)));
    assert_eq!(read("Mon, 24 Nov 2025 15:00:30 GMT"), Some(Duration::ZERO), "already over");
    for odd in ["", "-1", "1.5", "soon", "99999999999999999999999"] {
        assert_eq!(read(odd), None, "{odd}");
    }
    assert_eq!(retry_after(&HeaderMap::new(), NOW), None);
}

#[tokio::test]
async fn the_wait_that_is_asked_for_is_bounded() {
    let service = Service::start().await;
    service.reply(429, &[("retry-after", "60")]);
    service.reply(503, &[("retry-after", "999999999")]);
    let outbound = Outbound::new(http_settings()).unwrap();
    for expected in [60, 3600] {
        let error = post(&outbound, &service.url).await.unwrap().outcome(&[]).unwrap_err();
        assert_eq!(error.retry_after, Some(Duration::from_secs(expected)));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (first, second) = (Service::start().await, Service::start().await);
    first.reply(307, &[("location", &second.url)]);
    let reply = post(&Outbound::new(http_settings()).unwrap(), &first.url).await.unwrap();
    assert_eq!(reply.status, 307);
    assert_eq!(second.arrived().len(), 0);
}

#[tokio::test]
async fn only_https_unless_allowed() {
    let settings = HttpSettings { allow_http: false, ..http_settings() };
    for url in ["http://example.com/token", "ftp://example.com/token"] {
        assert_eq!(failure(settings.clone(), url).await.kind.as_str(), "unfit");
    }
    let error = failure(http_settings(), "https://user:token@example.com/").await;
    assert_eq!(error.kind.as_str(), "unfit");
}

#[tokio::test]
async fn addresses_inside_are_refused_however_they_are_written() {
    let service = Service::start().await;
    let port = service.url.rsplit(':').next().unwrap();
    let settings = HttpSettings { allow_private_addresses: false, ..http_settings() };
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "localhost",
        "LocalHost",
        "169.254.169.254",
    ] {
        let error = failure(settings.clone(), &format!("http://{host}:{port}/token")).await;
        assert_eq!(error.kind, SendErrorKind::PrivateAddress, "{host}");
        assert!(!error.is_retryable() && !error.is_gone());
    }
    assert_eq!(service.arrived().len(), 0);
    let allowed = Outbound::new(http_settings()).unwrap();
    for host in ["127.0.0.1", "localhost"] {
        post(&allowed, &format!("http://{host}:{port}/token")).await.unwrap();
    }
    assert_eq!(service.arrived().len(), 2);
}

/// Answers with one list after the other, the last one for ever.
struct Rebinding(Mutex<Vec<Vec<[u8; 4]>>>);

impl Resolve for Rebinding {
    fn resolve(&self, _: Name) -> Resolving {
        let mut lists = self.0.lock().unwrap();
        let list = if lists.len() > 1 { lists.remove(0) } else { lists[0].clone() };
        let found = list.into_iter().map(|octets| (Ipv4Addr::from(octets), 0).into());
        let found: Addrs = Box::new(found.collect::<Vec<_>>().into_iter());
        Box::pin(async { Ok(found) })
    }
}

#[tokio::test]
async fn the_address_that_was_checked_is_the_one_that_is_called() {
    let service = Service::start().await;
    let port: u16 = service.url.rsplit(':').next().unwrap().parse().unwrap();
    // Stands in for the public Internet: one address of the loopback network, and only that one.
    let allows = |address: IpAddr| address == IpAddr::from([127, 0, 0, 1]);
    // Something listens at the address that must not be called, on the same port.
    let inside = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).await.unwrap();
    let lists = vec![vec![[127, 0, 0, 2], [127, 0, 0, 1]], vec![[127, 0, 0, 2]]];
    let resolver = Arc::new(Rebinding(Mutex::new(lists)));
    let guarded = Arc::new(GuardedResolver::new(resolver, allows));
    let outbound = Outbound::build(http_settings(), guarded).unwrap();
    let url = format!("http://rebinding.example:{port}/token");
    post(&outbound, &url).await.unwrap();
    assert_eq!(service.arrived().len(), 1, "the name answered with a good address among others");

    // A new client has no connection left, so the name is looked up again, and has changed.
    let resolver = Arc::new(Rebinding(Mutex::new(vec![vec![[127, 0, 0, 2]]])));
    let guarded = Arc::new(GuardedResolver::new(resolver, allows));
    let outbound = Outbound::build(http_settings(), guarded).unwrap();
    let error = post(&outbound, &url).await.unwrap_err();
    assert_eq!(error.kind, SendErrorKind::PrivateAddress);
    let mut accept = std::pin::pin!(inside.accept());
    let called = std::future::poll_fn(|context| {
        std::task::Poll::Ready(accept.as_mut().poll(context).is_ready())
    });
    assert!(!called.await, "nobody may have connected to the address inside");
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_worth_another_attempt() {
    let settings = HttpSettings { allow_private_addresses: false, ..http_settings() };
    let error = failure(settings, "http://absent.invalid/token").await;
    assert_eq!(error.kind.as_str(), "connect");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_worth_another_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    drop(listener);
    let error = failure(http_settings(), &url).await;
    assert!(error.to_string().contains("Connection refused"), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let url = raw_service("", hold).await;
    let settings = HttpSettings { deadline: SHORT, ..http_settings() };
    let error = failure(settings, &url).await;
    assert_eq!(error.kind, SendErrorKind::Timeout);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_connection_that_breaks_may_have_delivered() {
    let url = raw_service("HTTP/1.1 2", close).await;
    let error = failure(http_settings(), &url).await;
    assert_eq!(error.kind.as_str(), "interrupted");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn the_rest_of_an_answer_changes_nothing() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let outbound = Outbound::new(http_settings()).unwrap();
    let endless = raw_service(CHUNKED, write_forever).await;
    let reply = timeout(LONG / 2, post(&outbound, &endless)).await.expect("reading is bounded");
    assert_eq!(reply.unwrap().status, 200);
    let cut = raw_service(CHUNKED, close).await;
    assert_eq!(post(&outbound, &cut).await.unwrap().status, 200);
    let settings = HttpSettings { deadline: SHORT, ..http_settings() };
    let stuck = raw_service(CHUNKED, hold).await;
    assert_eq!(post(&Outbound::new(settings).unwrap(), &stuck).await.unwrap().status, 200);
}
