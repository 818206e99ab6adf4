//! Finds the user id in the first bytes of a connection, to choose a shard by it.
//!
//! Nothing is verified here and nothing is decided but the shard: a forged id only costs its sender the shard it
//! would otherwise have come to.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Bytes looked at.
pub(crate) const PEEK_BYTES_MAX: usize = 4096;

/// `sub` of the token in a complete HTTP request head; `None` when there is no complete head, no token or no `sub`.
pub(crate) fn user_of(bytes: &[u8]) -> Option<String> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let target = lines.next()?.split(' ').nth(1)?;
    subject(token_of_target(target).or_else(|| lines.find_map(token_of_header))?)
}

fn token_of_target(target: &str) -> Option<&str> {
    let (_, query) = target.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix("token="))
}

fn token_of_header(line: &str) -> Option<&str> {
    let (name, value) = line.split_once(':')?;
    if name.eq_ignore_ascii_case("authorization") {
        let (scheme, token) = value.trim().split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim());
    }
    if name.eq_ignore_ascii_case("sec-websocket-protocol") {
        return value.split(',').find_map(|entry| entry.trim().strip_prefix("bearer."));
    }
    None
}

fn subject(token: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let text = std::str::from_utf8(&payload).ok()?;
    let (_, rest) = text.split_once("\"sub\"")?;
    let value = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    let (user, _) = value.split_once('"')?;
    Some(user.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let payload = part(r#"{"exp":1,"sub": "u-42","aud":"x"}"#);
        format!("{}.{payload}.sig", part(r#"{"alg":"HS256"}"#))
    }

    fn check(head: &str, expected: Option<&str>) {
        assert_eq!(user_of(head.as_bytes()).as_deref(), expected, "{head}");
    }

    #[test]
    fn finds_the_user_wherever_the_token_is() {
        let token = token();
        check(&format!("GET /ws?a=1&token={token} HTTP/1.1\r\nHost: x\r\n\r\n"), Some("u-42"));
        check(&format!("GET /ws HTTP/1.1\r\naUthorization: Bearer {token}\r\n\r\n"), Some("u-42"));
        check(
            &format!("GET /ws HTTP/1.1\r\nSec-WebSocket-Protocol: a.v1, bearer.{token}\r\n\r\n"),
            Some("u-42"),
        );
    }

    #[test]
    fn gives_up_quietly() {
        check(&format!("GET /ws?token={} HTTP/1.1\r\nHost: x", token()), None);
        check("GET /ws?token=a.b HTTP/1.1\r\n\r\n", None);
        check("GET /ws HTTP/1.1\r\n\r\n", None);
        check("\r\n\r\n", None);
        check("\u{16}\u{3}\u{1}\r\n\r\n", None);
    }
}
