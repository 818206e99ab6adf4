//! What a developer sees after `archmesh serve`: where the node listens, a token, and a line that shows a message.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::cli::{output, token};
use crate::config::{Config, DEVELOPMENT_API_KEY};

/// User of the ready-made token.
const USER: &str = "developer";

/// Prints the greeting; development only, because it shows a token.
pub(super) fn print(config: &Config, listening: &[SocketAddr], now_unix: Duration) {
    if let Some(address) = listening.first() {
        let token = token::development_token(config, USER, now_unix);
        output::print(&text(config, reachable(*address), token.as_deref()));
    }
}

fn text(config: &Config, address: SocketAddr, token: Option<&str>) -> String {
    let secure = if config.tls.enabled { "s" } else { "" };
    let socket = format!("ws{secure}://{address}{}", config.websocket.path);
    let mut text = format!(
        "\narchmesh is listening\n  WebSocket  {socket}\n  HTTP       http{secure}://{address}\n"
    );
    let api = config.listen.internal.map_or(address, reachable);
    let api_secure = if config.listen.internal.is_some() { "" } else { secure };
    if config.listen.internal.is_some() {
        line(&mut text, &format!("  internal   http://{api}"));
    }
    let Some(token) = token else {
        line(
            &mut text,
            "\nno shared secret is configured, so no token can be made here; see `archmesh token --help`",
        );
        return text;
    };
    line(&mut text, &format!("\na token for user `{USER}`, valid for a day:\n{token}"));
    let url = if config.auth.query_token { format!("{socket}?token={token}") } else { socket };
    let header = if config.auth.query_token {
        String::new()
    } else {
        format!(" -H 'Authorization: Bearer {token}'")
    };
    let accept_any = if secure.is_empty() { "" } else { " --no-check" };
    let listen = format!("npx --yes wscat{accept_any} -c '{url}'{header}");
    let known = config.api_keys.iter().any(|key| key.key.expose() == DEVELOPMENT_API_KEY);
    if config.api.enabled && known {
        let insecure = if api_secure.is_empty() { "" } else { " -k" };
        let publish = format!(
            "curl -s{insecure} http{api_secure}://{api}/api/publish -H 'X-API-Key: {DEVELOPMENT_API_KEY}' \
             -d '{{\"channel\":\"system\",\"data\":{{\"message\":\"hello\"}}}}'"
        );
        line(&mut text, &format!("\nsee a message arrive:\n(sleep 3; {publish}) & {listen}\n"));
    } else {
        line(&mut text, &format!("\nconnect:\n{listen}\n"));
    }
    text
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a String takes all writes");
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port())
        }
        _ => address,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn greeting_is_usable_as_it_stands() {
        let config = Config::load(&Sources::default()).unwrap().config;
        let text = text(&config, reachable("0.0.0.0:8080".parse().unwrap()), Some("a.b.c"));
        assert!(text.contains("ws://127.0.0.1:8080/ws\n"), "{text}");
        assert!(text.contains("npx --yes wscat -c 'ws://127.0.0.1:8080/ws?token=a.b.c'"), "{text}");
        assert!(text.contains("curl -s http://127.0.0.1:8080/api/publish"), "{text}");
    }

    #[test]
    fn without_a_secret_there_is_no_token() {
        let config = Config::load(&Sources::default()).unwrap().config;
        let text = text(&config, "[::1]:1".parse().unwrap(), None);
        assert!(text.contains("no token can be made here"), "{text}");
    }
}
