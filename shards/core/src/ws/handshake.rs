//! The opening handshake (RFC 6455 section 4.2): request head in, 101 or refusal out.
//!
//! A head is parsed once, when its end has arrived; until then only cheap checks run, which refuse at once what can
//! never become an HTTP/1 request (a TLS hello on a plain port). Line ends are CR LF and nothing else, so that no two
//! readers of the same bytes can disagree about where a header ends.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smallvec::SmallVec;
use tungstenite::handshake::derive_accept_key;

use crate::ws::deflate::{self, Negotiated};

mod refusal;

pub use refusal::Refusal;

/// Longest method name that is waited for.
const METHOD_BYTES_MAX: usize = 32;

/// Headers that are parsed without a heap allocation.
const HEADERS_INLINE: usize = 32;

/// Headers of which a second one could only mean that two readers see two different requests.
const SINGLE_HEADERS: [&str; 6] = [
    "host",
    "origin",
    "authorization",
    "content-length",
    "sec-websocket-key",
    "sec-websocket-version",
];

/// Place of a header in the head.
#[derive(Clone, Copy)]
struct HeaderSpan {
    name: (u32, u32),
    value: (u32, u32),
}

/// A complete request head.
#[derive(Clone)]
pub struct RequestHead {
    /// Method as sent.
    pub method: Box<str>,
    /// Path as sent (not decoded): before the first `?`, without scheme and authority.
    pub path: Box<str>,
    /// What follows the first `?`, as sent.
    pub query: Option<Box<str>>,
    /// Minor version: 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub version: u8,
    /// Bytes of the head, the blank line included.
    pub len: usize,
    /// The head, with lower-case header names.
    bytes: Box<[u8]>,
    headers: Box<[HeaderSpan]>,
}

impl fmt::Debug for RequestHead {
    /// Leaves the query and the headers out, because they may hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("version", &self.version)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl RequestHead {
    /// Reads the head at the front of `buf`; `Ok(None)` when more bytes are needed. `bytes_max` bounds the head with
    /// its blank line.
    ///
    /// # Errors
    /// The refusal to answer with before closing.
    pub fn parse(
        buf: &[u8],
        bytes_max: usize,
        headers_max: usize,
    ) -> Result<Option<Self>, Refusal> {
        check_method(buf)?;
        let window = &buf[..buf.len().min(bytes_max)];
        let Some(len) = find_end(window)? else {
            return if buf.len() < bytes_max {
                Ok(None)
            } else {
                let message = format!("the request head is longer than {bytes_max} bytes");
                Err(Refusal::new(431, "head_too_large", message))
            };
        };
        Self::parse_complete(&buf[..len], headers_max).map(Some)
    }

    /// Reads a head that is known to be complete.
    fn parse_complete(head: &[u8], headers_max: usize) -> Result<Self, Refusal> {
        let mut storage: SmallVec<[httparse::Header<'_>; HEADERS_INLINE]> =
            SmallVec::from_elem(httparse::EMPTY_HEADER, headers_max);
        let mut request = httparse::Request::new(&mut storage);
        match request.parse(head) {
            Ok(httparse::Status::Complete(len)) if len == head.len() => {}
            Ok(_) => return Err(bad_request("the request head is malformed")),
            Err(httparse::Error::TooManyHeaders) => {
                let message = format!("the request has more than {headers_max} headers");
                return Err(Refusal::new(431, "too_many_headers", message));
            }
            Err(error) => return Err(bad_request(format!("malformed request head: {error}"))),
        }
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(bad_request("the request line is incomplete"));
        };
        let origin_form = origin_form(target);
        let (path, query) = match origin_form.split_once('?') {
            Some((path, query)) => (path, Some(query.into())),
            None => (origin_form, None),
        };
        let mut bytes: Box<[u8]> = head.into();
        let mut headers = Vec::with_capacity(request.headers.len());
        for header in request.headers.iter() {
            let name = span(head, header.name.as_bytes());
            bytes[name.0 as usize..name.1 as usize].make_ascii_lowercase();
            headers.push(HeaderSpan { name, value: span(head, header.value) });
        }
        Ok(Self {
            method: method.into(),
            path: path.into(),
            query,
            version,
            len: head.len(),
            bytes,
            headers: headers.into(),
        })
    }

    /// First value of the header; `None` when absent or no UTF-8.
    pub fn header(&self, lower_case_name: &str) -> Option<&str> {
        self.values(lower_case_name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Every value of the header that is UTF-8, in order.
    pub fn header_all<'a, 'n>(
        &'a self,
        lower_case_name: &'n str,
    ) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.values(lower_case_name).filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// Whether `token` is an element of the header's comma-separated lists, in any case.
    pub fn header_has_token(&self, lower_case_name: &str, token: &str) -> bool {
        self.header_all(lower_case_name)
            .flat_map(|value| value.split(','))
            .any(|element| element.trim().eq_ignore_ascii_case(token))
    }

    /// First query parameter of that name, percent-decoded; `+` stays `+`, because tokens in Base64 contain it.
    /// `None` when absent, badly escaped or no UTF-8.
    pub fn query_param(&self, name: &str) -> Option<Cow<'_, str>> {
        let query = self.query.as_deref()?;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key)? == name).then(|| percent_decode(value))
        })?
    }

    /// Whether the request asks for a WebSocket, rightly or not.
    pub fn is_upgrade(&self) -> bool {
        self.header_has_token("upgrade", "websocket")
    }

    fn values<'a, 'n>(
        &'a self,
        lower_case_name: &'n str,
    ) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.headers
            .iter()
            .filter(move |header| self.slice(header.name) == lower_case_name.as_bytes())
            .map(|header| self.slice(header.value))
    }

    fn slice(&self, (start, end): (u32, u32)) -> &[u8] {
        &self.bytes[start as usize..end as usize]
    }
}

/// What the gateway supports.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Subprotocols, the preferred one first. A client that asks for none of them gets none and may go on.
    pub subprotocols: &'a [&'a str],
    /// Whether permessage-deflate may be negotiated.
    pub compression: bool,
}

/// An accepted handshake.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The whole 101 response.
    pub response: Vec<u8>,
    /// Set when messages may be compressed.
    pub deflate: Option<Negotiated>,
    /// The chosen subprotocol.
    pub protocol: Option<Box<str>>,
}

/// Accepts or refuses an upgrade. Origin, path and token are for the caller to judge.
///
/// # Errors
/// The refusal to answer with before closing.
pub fn accept(head: &RequestHead, offer: &Offer<'_>) -> Result<Accepted, Refusal> {
    check_request(head)?;
    check_upgrade(head)?;
    let key = check_key(head)?;
    let protocol = offer
        .subprotocols
        .iter()
        .find(|ours| {
            head.header_all("sec-websocket-protocol")
                .flat_map(|value| value.split(','))
                .any(|theirs| theirs.trim() == **ours)
        })
        .map(|protocol| Box::<str>::from(*protocol));
    let deflate = offer
        .compression
        .then(|| deflate::negotiate(head.header_all("sec-websocket-extensions")))
        .flatten();
    let mut response = String::with_capacity(320);
    response.push_str(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: ",
    );
    response.push_str(&derive_accept_key(key.as_bytes()));
    if let Some(protocol) = &protocol {
        response.push_str("\r\nSec-WebSocket-Protocol: ");
        response.push_str(protocol);
    }
    if let Some(deflate) = &deflate {
        response.push_str("\r\nSec-WebSocket-Extensions: ");
        response.push_str(&deflate.response);
    }
    response.push_str("\r\n\r\n");
    Ok(Accepted { response: response.into_bytes(), deflate, protocol })
}

/// What any request that opens a WebSocket must be.
fn check_request(head: &RequestHead) -> Result<(), Refusal> {
    if &*head.method != "GET" {
        let refusal = Refusal::new(405, "method_not_allowed", "a WebSocket is opened with GET");
        return Err(refusal.with_header("Allow", "GET"));
    }
    if head.version != 1 {
        return Err(Refusal::new(505, "http_version", "a WebSocket is opened with HTTP/1.1"));
    }
    if !head.path.starts_with('/')
        || head.path.contains('#')
        || head.query.as_deref().is_some_and(|query| query.contains('#'))
    {
        return Err(bad_request("the request target is not an absolute path"));
    }
    for name in SINGLE_HEADERS {
        if head.values(name).nth(1).is_some() {
            return Err(bad_request(format!("more than one {name} header")));
        }
    }
    if head.values("host").next().is_none() {
        return Err(bad_request("the Host header is missing"));
    }
    let no_body = head.values("content-length").all(|value| value == b"0");
    if !no_body || head.values("transfer-encoding").next().is_some() {
        return Err(bad_request("an upgrade request has no body"));
    }
    Ok(())
}

/// The headers that ask for the upgrade.
fn check_upgrade(head: &RequestHead) -> Result<(), Refusal> {
    if !head.is_upgrade() {
        return Err(bad_request("Upgrade: websocket is missing"));
    }
    if !head.header_has_token("connection", "upgrade") {
        return Err(bad_request("Connection: Upgrade is missing"));
    }
    if head.header("sec-websocket-version") != Some("13") {
        let message = "only version 13 of the WebSocket protocol is spoken here";
        return Err(Refusal::new(426, "websocket_version", message)
            .with_header("Sec-WebSocket-Version", "13")
            .with_header("Upgrade", "websocket"));
    }
    Ok(())
}

/// The client's nonce, which is 16 bytes in Base64.
fn check_key(head: &RequestHead) -> Result<&str, Refusal> {
    let key = head
        .header("sec-websocket-key")
        .ok_or_else(|| bad_request("the Sec-WebSocket-Key header is missing"))?;
    let mut nonce = [0; 18];
    match STANDARD.decode_slice(key, &mut nonce) {
        Ok(16) => Ok(key),
        _ => Err(bad_request("Sec-WebSocket-Key is not 16 bytes in Base64")),
    }
}

/// A 400 with the common reason.
fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "bad_request", message)
}

/// Refuses a first line that does not begin with a method.
fn check_method(buf: &[u8]) -> Result<(), Refusal> {
    let window = &buf[..buf.len().min(METHOD_BYTES_MAX + 1)];
    let len = window.iter().position(|&byte| byte == b' ').unwrap_or(window.len());
    let empty = len == 0 && !buf.is_empty();
    if empty || len > METHOD_BYTES_MAX || !window[..len].iter().all(|&byte| is_token(byte)) {
        return Err(bad_request("this is not an HTTP/1.1 request"));
    }
    Ok(())
}

/// Characters of a method (RFC 9110 `tchar`).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Length of the head up to and with its blank line. Refuses NUL and any CR or LF that is not part of a CR LF.
fn find_end(buf: &[u8]) -> Result<Option<usize>, Refusal> {
    let mut line_start = 0;
    let mut index = 0;
    while index < buf.len() {
        match buf[index] {
            b'\r' if index + 1 == buf.len() => return Ok(None),
            b'\r' if buf[index + 1] == b'\n' => {
                if index == line_start {
                    return Ok(Some(index + 2));
                }
                index += 2;
                line_start = index;
            }
            b'\r' | b'\n' | 0 => return Err(bad_request("stray control character in the head")),
            _ => index += 1,
        }
    }
    Ok(None)
}

/// Path and query of a request target, which may carry scheme and authority.
fn origin_form(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once("://") else { return target };
    let known = ["http", "https", "ws", "wss"].iter().any(|name| scheme.eq_ignore_ascii_case(name));
    if !known {
        return target;
    }
    match rest.find(['/', '?']) {
        Some(at) if rest[at..].starts_with('/') => &rest[at..],
        // An authority followed by a query has an empty path, which no endpoint has.
        Some(_) => target,
        None => "/",
    }
}

/// Place of `part` in `whole`, of which it is a slice.
fn span(whole: &[u8], part: &[u8]) -> (u32, u32) {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    (start as u32, (start + part.len()) as u32)
}

/// Decodes `%XX`; `None` for a bad escape or when the result is no UTF-8.
fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push((high * 16 + low) as u8);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    /// An acceptable request with the given request line and further header lines.
    fn request(line: &str, headers: &str) -> String {
        format!(
            "{line}\r\nHost: gateway.example\r\nUpgrade: WebSocket\r\n\
             Connection: keep-alive, Upgrade\r\n{KEY}Sec-WebSocket-Version: 13\r\n{headers}\r\n"
        )
    }

    fn parse(text: &str) -> Result<Option<RequestHead>, Refusal> {
        RequestHead::parse(text.as_bytes(), 8_192, 64)
    }

    fn head(text: &str) -> RequestHead {
        parse(text).unwrap().unwrap()
    }

    fn try_accept(text: &str) -> Result<Accepted, Refusal> {
        accept(&head(text), &Offer { subprotocols: &["one", "two"], compression: true })
    }

    #[test]
    fn accepts_the_example_of_the_rfc() {
        let accepted = try_accept(&request("GET /chat HTTP/1.1", "")).unwrap();
        let response = String::from_utf8(accepted.response).unwrap();
        assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
        assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(response.ends_with("\r\n\r\n"));
        assert!(!response.contains("Extensions") && !response.contains("Protocol:"));
        assert_eq!((accepted.deflate, accepted.protocol), (None, None));
    }

    #[test]
    fn negotiates_protocol_and_compression() {
        let headers = "Sec-WebSocket-Protocol: zero, two\r\nSec-WebSocket-Protocol: one\r\n\
                       Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
        let text = request("GET /ws HTTP/1.1", headers);
        let accepted = try_accept(&text).unwrap();
        let response = String::from_utf8(accepted.response).unwrap();
        assert!(response.contains("\r\nSec-WebSocket-Protocol: one\r\n"));
        assert!(response.contains(
            "\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
             client_no_context_takeover\r\n"
        ));
        assert_eq!(accepted.protocol.as_deref(), Some("one"));
        assert!(accepted.deflate.is_some());
        let plain = accept(&head(&text), &Offer { subprotocols: &["ONE"], compression: false });
        let plain = plain.unwrap();
        assert_eq!((plain.deflate, plain.protocol), (None, None));
    }

    #[test]
    fn refusals_of_upgrades() {
        let good = request("GET /ws HTTP/1.1", "");
        let table: Vec<(&str, u16, String)> = vec![
            ("method", 405, good.replace("GET", "POST")),
            ("http/1.0", 505, good.replace("HTTP/1.1", "HTTP/1.0")),
            ("target", 400, good.replace("/ws", "*")),
            ("fragment", 400, good.replace("/ws", "/ws#x")),
            ("fragment in query", 400, good.replace("/ws", "/ws?a=b#x")),
            ("no host", 400, good.replace("Host: gateway.example\r\n", "")),
            ("two hosts", 400, request("GET /ws HTTP/1.1", "HOST: other\r\n")),
            ("two keys", 400, request("GET /ws HTTP/1.1", KEY)),
            ("two origins", 400, request("GET /ws HTTP/1.1", "Origin: a\r\nOrigin: b\r\n")),
            ("body", 400, request("GET /ws HTTP/1.1", "Content-Length: 1\r\n")),
            ("odd length", 400, request("GET /ws HTTP/1.1", "Content-Length: 00\r\n")),
            ("chunked", 400, request("GET /ws HTTP/1.1", "Transfer-Encoding: chunked\r\n")),
            ("no upgrade", 400, good.replace("Upgrade: WebSocket\r\n", "")),
            ("other upgrade", 400, good.replace("WebSocket\r\n", "h2c\r\n")),
            ("connection", 400, good.replace("keep-alive, Upgrade", "keep-alive")),
            ("no version", 426, good.replace("Sec-WebSocket-Version: 13\r\n", "")),
            ("old version", 426, good.replace("Version: 13", "Version: 8")),
            ("version list", 426, good.replace("Version: 13", "Version: 13, 8")),
            ("no key", 400, good.replace(KEY, "")),
            ("short key", 400, good.replace("dGhlIHNhbXBsZSBub25jZQ==", "AAAA")),
            ("long key", 400, good.replace("dGhlIHNhbXBsZSBub25jZQ==", "AAAAAAAAAAAAAAAAAAAAAAAA")),
            ("longer key", 400, good.replace("dGhlIHNhbXBsZSBub25jZQ==", &"A".repeat(64))),
            (
                "no base64",
                400,
                good.replace("dGhlIHNhbXBsZSBub25jZQ==", "!GhlIHNhbXBsZSBub25jZQ=="),
            ),
        ];
        for (name, status, text) in table {
            let refusal = try_accept(&text).expect_err(name);
            assert_eq!(refusal.status, status, "{name}: {refusal:?}");
        }
        assert!(try_accept(&request("GET /ws HTTP/1.1", "Content-Length: 0\r\n")).is_ok());
        let refusal = try_accept(&good.replace("Version: 13", "Version: 8")).unwrap_err();
        assert!(refusal.extra_headers.contains(&("Sec-WebSocket-Version", "13")));
    }

    #[test]
    fn refusals_of_heads() {
        let table: &[(&str, u16, &[u8])] = &[
            ("tls hello", 400, &[0x16]),
            ("empty line first", 400, b"\r\n"),
            ("space first", 400, b" GET"),
            ("endless method", 400, &[b'A'; 40]),
            ("http/2 preface", 400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ("bare line feed", 400, b"GET / HTTP/1.1\nHost: a\n\n"),
            ("bare carriage return", 400, b"GET / HTTP/1.1\r\nA: b\rHost: a\r\n\r\n"),
            ("nul", 400, b"GET /\0 "),
            ("folded header", 400, b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n"),
            ("space before colon", 400, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
            ("no colon", 400, b"GET / HTTP/1.1\r\nHost\r\n\r\n"),
            ("no version", 400, b"GET /\r\n\r\n"),
            ("too long", 431, &[b"GET /".as_slice(), &[b'a'; 300]].concat()),
            ("too many", 431, b"GET / HTTP/1.1\r\nA: a\r\nB: b\r\nC: c\r\nD: d\r\n\r\n"),
        ];
        for (name, status, bytes) in table {
            let refusal = RequestHead::parse(bytes, 256, 3).expect_err(name);
            assert_eq!(refusal.status, *status, "{name}: {refusal:?}");
        }
    }

    #[test]
    fn every_prefix_waits_for_more() {
        let text = request("GET /ws?token=a HTTP/1.1", "");
        for end in 0..text.len() {
            assert!(parse(&text[..end]).unwrap().is_none(), "{end}");
        }
        let with_frames = format!("{text}\u{81}\u{80}");
        assert_eq!(head(&with_frames).len, text.len());
    }

    #[test]
    fn head_limit_is_exact() {
        let text = request("GET /ws HTTP/1.1", "");
        let len = text.len();
        assert!(RequestHead::parse(text.as_bytes(), len, 8).unwrap().is_some());
        assert_eq!(RequestHead::parse(text.as_bytes(), len - 1, 8).unwrap_err().status, 431);
        assert!(RequestHead::parse(&text.as_bytes()[..len - 1], len, 8).unwrap().is_none());
    }

    #[test]
    fn headers_and_targets() {
        let text = request(
            "GET /a%20b?token=x%2By+z&e=%ff&t=%4&%61=1&flag HTTP/1.1",
            "X-Raw: \u{e9}\r\nAccept: a\r\nACCEPT: b , C\r\n",
        );
        let head = head(&text);
        assert_eq!((&*head.method, &*head.path, head.version), ("GET", "/a%20b", 1));
        assert_eq!(head.header("x-raw"), Some("\u{e9}"));
        assert_eq!(head.header("missing"), None);
        assert_eq!(head.header_all("accept").collect::<Vec<_>>(), ["a", "b , C"]);
        assert!(head.header_has_token("accept", "c") && !head.header_has_token("accept", "b c"));
        assert_eq!(head.query_param("token").as_deref(), Some("x+y+z"));
        assert_eq!(head.query_param("a").as_deref(), Some("1"));
        assert_eq!(head.query_param("flag").as_deref(), Some(""));
        for absent in ["e", "t", "missing"] {
            assert_eq!(head.query_param(absent), None, "{absent}");
        }
        assert!(head.is_upgrade());
        assert!(!format!("{head:?}").contains("token"));
    }

    #[test]
    fn absolute_targets() {
        let table = [
            ("http://gateway.example/ws?a=b", "/ws", Some("a=b")),
            ("WSS://gateway.example", "/", None),
            ("/ws?next=http://other/", "/ws", Some("next=http://other/")),
            ("*", "*", None),
        ];
        for (target, path, query) in table {
            let head = head(&request(&format!("GET {target} HTTP/1.1"), ""));
            assert_eq!((&*head.path, head.query.as_deref()), (path, query), "{target}");
        }
    }
}
