//! The HTTP heads of the generator: the WebSocket upgrade and plain responses.

use crate::target::Target;

/// The key of RFC 6455 section 1.3 and its answer. The key proves only that the server speaks WebSocket, so that one
/// fixed pair serves every connection.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const HEADERS_MAX: usize = 64;

/// Bytes of an HTTP body that are taken.
const BODY_BYTES_MAX: usize = 64 << 20;

/// The head of an upgrade request with a bearer token, which offers permessage-deflate or not.
pub(crate) fn request(target: &Target, token: &str, deflate: bool) -> Vec<u8> {
    let offer = if deflate {
        "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; \
         server_no_context_takeover\r\n"
    } else {
        ""
    };
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: archmesh.v1\r\nUser-Agent: archmesh-loadtest\r\n\
         {offer}Authorization: Bearer {token}\r\n\r\n",
        target.path, target.host
    )
    .into_bytes()
}

/// What came in answer to an upgrade request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// The head is not complete.
    Partial,
    /// A WebSocket; frames begin after so many bytes, and permessage-deflate is spoken or not.
    Accepted(usize, bool),
    /// Another status, with the beginning of what came after the head.
    Refused(u16, String),
}

/// Reads the answer to an upgrade request.
pub(crate) fn read_upgrade(input: &[u8]) -> Result<Upgrade, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) =
        response.parse(input).map_err(|_| "malformed HTTP response")?
    else {
        return Ok(Upgrade::Partial);
    };
    let status = response.code.unwrap_or(0);
    if status != 101 {
        let body = &input[end..input.len().min(end + 200)];
        return Ok(Upgrade::Refused(status, String::from_utf8_lossy(body).into_owned()));
    }
    let accept = find(response.headers, "sec-websocket-accept");
    if accept != Some(ACCEPT) {
        return Err("wrong Sec-WebSocket-Accept");
    }
    let deflate = match find(response.headers, "sec-websocket-extensions") {
        None => false,
        Some(value) => {
            let value = String::from_utf8_lossy(value).to_ascii_lowercase();
            // The offer asked for it, and every message is inflated by itself.
            if !value.starts_with("permessage-deflate")
                || !value.contains("server_no_context_takeover")
            {
                return Err("an extension that was not offered");
            }
            true
        }
    };
    Ok(Upgrade::Accepted(end, deflate))
}

fn find<'b>(headers: &[httparse::Header<'b>], name: &str) -> Option<&'b [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// A plain HTTP response in the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// Status code.
    pub(crate) status: u16,
    /// Place of the body.
    pub(crate) body: std::ops::Range<usize>,
}

/// Reads a response with a `Content-Length`; `None` when it is not all there.
pub(crate) fn read_response(input: &[u8]) -> Result<Option<Response>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) =
        response.parse(input).map_err(|_| "malformed HTTP response")?
    else {
        return Ok(None);
    };
    let length = find(response.headers, "content-length")
        .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse::<usize>().ok())
        .filter(|length| *length <= BODY_BYTES_MAX)
        .ok_or("HTTP response without a usable Content-Length")?;
    let body = start..start + length;
    Ok((input.len() >= body.end).then(|| Response { status: response.code.unwrap_or(0), body }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answer(status: &str, accept: &str, rest: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n{rest}").into_bytes()
    }

    #[test]
    fn upgrade_answers() {
        let good = answer("101 Switching Protocols", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "FRAME");
        assert_eq!(read_upgrade(&good).unwrap(), Upgrade::Accepted(good.len() - 5, false));
        let with = |value: &str| {
            let good = String::from_utf8(answer("101 X", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", ""));
            let head = format!("\r\nSec-WebSocket-Extensions: {value}\r\n\r\n");
            good.unwrap().replace("\r\n\r\n", &head).into_bytes()
        };
        let deflate = with("permessage-deflate; server_no_context_takeover");
        assert_eq!(read_upgrade(&deflate).unwrap(), Upgrade::Accepted(deflate.len(), true));
        assert!(read_upgrade(&with("permessage-deflate")).is_err());
        assert!(read_upgrade(&with("x-other")).is_err());
        assert_eq!(read_upgrade(&good[..40]).unwrap(), Upgrade::Partial);
        assert!(read_upgrade(&answer("101 X", "bad", "")).is_err());
        assert_eq!(
            read_upgrade(&answer("429 Too Many", "", "{}")).unwrap(),
            Upgrade::Refused(429, "{}".into())
        );
        assert!(read_upgrade(b"\x81\x05hello").is_err());
    }

    #[test]
    fn the_request_is_what_the_core_accepts() {
        let target: Target = "ws://127.0.0.1:9/ws".parse().unwrap();
        let text = String::from_utf8(request(&target, "TOKEN", false)).unwrap();
        assert!(text.starts_with("GET /ws HTTP/1.1\r\nHost: 127.0.0.1:9\r\n"));
        assert!(text.contains("Authorization: Bearer TOKEN\r\n") && text.ends_with("\r\n\r\n"));
        assert!(!text.contains("Extensions"));
        let text = String::from_utf8(request(&target, "TOKEN", true)).unwrap();
        let offer = text.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        assert!(gateway_core::ws::deflate::negotiate(offer.into_iter()).unwrap().compress);
    }

    #[test]
    fn responses_with_a_length() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbodyHTTP/1.1";
        let response = read_response(text).unwrap().unwrap();
        assert_eq!((response.status, &text[response.body]), (200, &b"body"[..]));
        assert_eq!(read_response(&text[..40]).unwrap(), None);
        assert!(read_response(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
