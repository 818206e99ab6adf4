//! An event on its way into the log.

use gateway_core::occurrence::{Happening, PlacedMessage};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use crate::config::sections::EventKind;
use crate::notify::now_ms;

/// Roughly what an entry takes besides its texts, in bytes.
const ENTRY_BYTES: usize = 200;

/// See the module's documentation. No text holds a zero byte, which PostgreSQL does not take.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Unix milliseconds.
    pub at: i64,
    /// What happened.
    pub kind: EventKind,
    /// To whom.
    pub user: Option<String>,
    /// To which session.
    pub session: Option<String>,
    /// From where.
    pub address: Option<String>,
    /// Where.
    pub channel: Option<String>,
    /// JSON object of what else there is to say.
    pub detail: String,
}

/// The `sender` object of an envelope.
#[derive(Deserialize)]
struct Sender<'a> {
    user_id: String,
    session_id: String,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct MessageDetail<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a RawValue>,
}

impl Entry {
    /// An event of now, with nothing but its kind and detail.
    pub(crate) fn new(kind: EventKind, detail: &serde_json::Value) -> Self {
        Self::at(now_ms(), kind, detail.to_string())
    }

    pub(super) fn at(at: i64, kind: EventKind, detail: String) -> Self {
        Self { at, kind, user: None, session: None, address: None, channel: None, detail }
    }

    /// Of a user, unless that is nobody.
    #[must_use]
    pub(crate) fn user(mut self, user: &str) -> Self {
        self.user = (!user.is_empty()).then(|| clean(user));
        self
    }

    /// Of a session.
    #[must_use]
    pub(crate) fn session(mut self, session: &str) -> Self {
        self.session = Some(clean(session));
        self
    }

    /// From an address.
    #[must_use]
    pub(crate) fn address(mut self, address: &(impl ToString + ?Sized)) -> Self {
        self.address = Some(address.to_string());
        self
    }

    /// In a channel.
    #[must_use]
    pub(crate) fn channel(mut self, channel: &str) -> Self {
        self.channel = Some(clean(channel));
        self
    }

    /// What a shard tells; `left_out` are like ones that were not told. `None` when it is no event, or cannot be read.
    pub(super) fn of_happening(at: i64, what: &Happening, left_out: u64) -> Option<Self> {
        let entry = |kind, detail: serde_json::Value| Self::at(at, kind, detail.to_string());
        Some(match what {
            Happening::Connected { session, user, address, user_agent } => {
                let detail = match user_agent {
                    Some(agent) => json!({"user_agent": clean(agent)}),
                    None => json!({}),
                };
                let entry = entry(EventKind::Connected, detail);
                entry.user(user).session(&session.text()).address(address)
            }
            Happening::Disconnected { session, user, address, reason, duration } => {
                let detail = json!({
                    "reason": reason.reason(), "code": reason.close_code(),
                    "duration_ms": duration.as_millis() as u64,
                });
                let entry = entry(EventKind::Disconnected, detail);
                entry.user(user).session(&session.text()).address(address)
            }
            Happening::AuthenticationFailed { address, error } => {
                let mut detail = json!({"reason": error.as_str()});
                if left_out > 0 {
                    detail["left_out"] = left_out.into();
                }
                entry(EventKind::AuthenticationFailed, detail).address(address)
            }
            Happening::Message(message) => Self::of_message(at, message)?,
            Happening::Watched { .. } => return None,
        })
    }

    fn of_message(at: i64, message: &PlacedMessage) -> Option<Self> {
        let sender: Option<Sender<'_>> =
            message.sender.as_deref().and_then(|sender| serde_json::from_slice(sender).ok());
        let placed = message.position.offset > 0;
        let detail = MessageDetail {
            kind: if message.kind.is_empty() { "message" } else { &message.kind },
            data: serde_json::from_slice(&message.data).ok()?,
            offset: placed.then_some(message.position.offset),
            epoch: placed.then_some(message.position.epoch.as_str()),
            info: sender.as_ref().and_then(|sender| sender.info),
        };
        let entry = Self::at(at, EventKind::Message, serde_json::to_string(&detail).ok()?);
        let entry = entry.channel(&message.channel);
        Some(match &sender {
            Some(sender) => entry.user(&sender.user_id).session(&sender.session_id),
            None => entry,
        })
    }

    /// Roughly what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let texts = [&self.user, &self.session, &self.address, &self.channel];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        ENTRY_BYTES + texts + self.detail.len()
    }
}

/// Without zero bytes.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use gateway_core::auth::AuthError;
    use gateway_core::ids::SessionId;
    use gateway_core::message::{Epoch, StreamPosition};
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_message_keeps_its_payload_as_it_came() {
        let data = br#"{"n":12345678901234567890.50,"s":"\u0000"}"#;
        let message = PlacedMessage {
            channel: "chat:a".into(),
            position: StreamPosition { offset: 3, epoch: Epoch(*b"abcdefgh") },
            kind: "".into(),
            data: data.as_slice().into(),
            sender: Some(br#"{"user_id":"ann","session_id":"s","info":{"x":1}}"#.as_slice().into()),
        };
        let entry = Entry::of_message(5, &message).unwrap();
        assert!(entry.detail.contains(std::str::from_utf8(data).unwrap()), "{}", entry.detail);
        let detail: Value = serde_json::from_str(&entry.detail).unwrap();
        assert_eq!((&detail["type"], &detail["offset"]), (&json!("message"), &json!(3)));
        assert_eq!((&detail["epoch"], &detail["info"]), (&json!("abcdefgh"), &json!({"x": 1})));
        assert_eq!((entry.user.as_deref(), entry.session.as_deref()), (Some("ann"), Some("s")));
        assert_eq!((entry.channel.as_deref(), entry.at), (Some("chat:a"), 5));
    }

    #[test]
    fn nobody_is_no_user_and_zero_bytes_are_gone() {
        let happening = Happening::Connected {
            session: SessionId::from_random([1; 16]),
            user: "".into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            user_agent: None,
        };
        let entry = Entry::of_happening(1, &happening, 0).unwrap();
        assert_eq!((entry.user, entry.detail.as_str()), (None, "{}"));
        let entry = Entry::new(EventKind::Revoked, &json!({})).user("a\0b");
        assert_eq!(entry.user.unwrap(), "a\u{fffd}b");
    }

    #[test]
    fn a_refused_token_tells_how_many_were_not_told() {
        let happening = Happening::AuthenticationFailed {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            error: AuthError::Expired,
        };
        let entry = Entry::of_happening(1, &happening, 7).unwrap();
        assert_eq!(entry.detail, r#"{"left_out":7,"reason":"expired"}"#);
        assert_eq!(entry.address.as_deref(), Some("127.0.0.1"));
    }
}
