//! Request heads: no input may panic, a head that is refused or incomplete stays so for every reader, and what is
//! accepted must be answered by a well-formed response.

#![no_main]

use gateway_core::ws::handshake::{Offer, RequestHead, accept};
use libfuzzer_sys::fuzz_target;

const BYTES_MAX: usize = 8_192;
const HEADERS_MAX: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let head = match RequestHead::parse(bytes, BYTES_MAX, HEADERS_MAX) {
        Ok(Some(head)) => head,
        Ok(None) => {
            assert!(bytes.len() < BYTES_MAX);
            return;
        }
        Err(refusal) => return check_response(&refusal.to_http()),
    };
    assert!(head.len <= bytes.len() && bytes[..head.len].ends_with(b"\r\n\r\n"));
    // The last byte of the head is what completes it.
    assert!(matches!(RequestHead::parse(&bytes[..head.len - 1], BYTES_MAX, HEADERS_MAX), Ok(None)));
    let _ = head.query_param("token");
    let _ = head.header_has_token("connection", "upgrade");
    match accept(&head, &Offer { subprotocols: &["archmesh.v1"], compression: true }) {
        Ok(accepted) => check_response(&accepted.response),
        Err(refusal) => check_response(&refusal.to_http()),
    }
});

/// No part of the request may break out of a header line of the response.
fn check_response(response: &[u8]) {
    let text = std::str::from_utf8(response).expect("responses are text");
    let (head, _) = text.split_once("\r\n\r\n").expect("responses have a head");
    for line in head.split("\r\n") {
        assert!(!line.contains(['\r', '\n', '\0']));
    }
}
