//! The native protocol `archmesh.v1`: reading commands and writing replies and pushes.
//!
//! Pure text work. What a command *does* is decided in [`crate::Shard`]; payloads are checked for syntax and depth
//! and then passed on as they are.

pub mod command;
pub mod encode;
pub mod json;
pub mod push;
pub mod reply;

pub use command::{Command, CommandError, Envelope};
pub use encode::EnvelopeWriter;

/// Name of the subprotocol.
pub const SUBPROTOCOL: &str = "archmesh.v1";

/// Envelope types that only the gateway may send or that are commands; a publisher cannot use them as its own type.
const RESERVED_KINDS: &[&str] = &[
    "auth",
    "disconnect",
    "error",
    "fault",
    "history",
    "join",
    "large_data",
    "large_data_received",
    "leave",
    "lost",
    "notification_ack",
    "notification_archive",
    "notification_read",
    "notification_seen",
    "notification_update",
    "notifications",
    "ping",
    "pong",
    "preferences",
    "presence",
    "presence_stats",
    "publish",
    "published",
    "push_subscription",
    "refresh",
    "refreshed",
    "rpc",
    "rpc_result",
    "subscribe",
    "subscribed",
    "unsubscribe",
    "unsubscribed",
    "welcome",
];

/// Whether `kind` can be a publisher's own envelope type: 1-64 characters of `a-z`, `0-9`, `_`, `-`, `.`, and none of
/// the protocol's own.
pub fn is_publishable_kind(kind: &str) -> bool {
    (1..=64).contains(&kind.len())
        && kind.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.')
        })
        && !RESERVED_KINDS.contains(&kind)
}

/// Whether `name` can name a channel: not empty, within `bytes_max`, printable ASCII or any non-ASCII text, without
/// control characters, spaces, `*` and `?`.
pub fn is_channel_name(name: &str, bytes_max: usize) -> bool {
    !name.is_empty()
        && name.len() <= bytes_max
        && !name.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '*' | '?'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_channel_names() {
        assert!(is_publishable_kind("workflow_update"));
        assert!(is_publishable_kind("cursor.v2"));
        for bad in ["", "welcome", "Cursor", "a b", &"x".repeat(65)] {
            assert!(!is_publishable_kind(bad), "{bad}");
        }
        assert!(is_channel_name("chat:räume/7", 255));
        for bad in ["", "a b", "a\n", "a\0", "x*", "what?", "\u{2028}"] {
            assert!(!is_channel_name(bad, 255), "{bad:?}");
        }
        assert!(!is_channel_name(&"x".repeat(256), 255));
    }
}
