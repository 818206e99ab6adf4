//! Commands: what clients send.
//!
//! An envelope is read in two steps: the outer object with its `data` left raw, then `data` as the type demands.
//! Unknown fields are ignored, unknown types are an error.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json;
use crate::call::CallKind;
use crate::metrics::MessageKind;

/// The outer object of a client message.
#[derive(Debug, Deserialize)]
pub struct Envelope<'a> {
    /// `type`.
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    /// `id`; empty when left out.
    #[serde(default, borrow)]
    pub id: Cow<'a, str>,
    /// `channel`, when given in the envelope.
    #[serde(default)]
    pub channel: Option<String>,
    /// `session_id` of the application.
    #[serde(default)]
    pub session_id: Option<String>,
    /// `data`, unread.
    #[serde(default, borrow)]
    pub data: Option<&'a RawValue>,
}

/// A place to recover from.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct RecoverFrom {
    /// Offset of the last publication that the client has seen.
    pub offset: u64,
    /// Epoch that came with it.
    #[serde(default)]
    pub epoch: String,
}

/// `auth` and `refresh`.
#[derive(Debug, Default, Deserialize)]
pub struct AuthData {
    /// The token; empty asks for an anonymous session.
    #[serde(default)]
    pub token: String,
    /// Positions of server-side subscriptions by channel.
    #[serde(default)]
    pub recover: std::collections::BTreeMap<String, RecoverFrom>,
}

/// `subscribe`.
#[derive(Debug, Default, Deserialize)]
pub struct SubscribeData {
    /// Channel; the envelope's when left out.
    #[serde(default)]
    pub channel: Option<String>,
    /// Position to recover from.
    #[serde(default)]
    pub recover: Option<RecoverFrom>,
    /// Channel token.
    #[serde(default)]
    pub token: Option<String>,
}

/// Commands that carry a channel and nothing else.
#[derive(Debug, Default, Deserialize)]
pub struct ChannelData {
    /// Channel; the envelope's when left out.
    #[serde(default)]
    pub channel: Option<String>,
}

/// `history`.
#[derive(Debug, Default, Deserialize)]
pub struct HistoryData {
    /// Channel; the envelope's when left out.
    #[serde(default)]
    pub channel: Option<String>,
    /// Page after (before, when reversed) this position.
    #[serde(default)]
    pub since: Option<RecoverFrom>,
    /// Page size.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Newest first.
    #[serde(default)]
    pub reverse: bool,
}

/// `publish`. The payload stays raw.
#[derive(Debug, Deserialize)]
pub struct PublishData<'a> {
    /// Channel; the envelope's when left out.
    #[serde(default)]
    pub channel: Option<String>,
    /// Payload.
    #[serde(borrow)]
    pub data: &'a RawValue,
    /// Envelope type of the publication.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Key for conflation.
    #[serde(default)]
    pub key: Option<String>,
    /// `low`, `normal`, `high` or `critical`.
    #[serde(default)]
    pub priority: Option<String>,
    /// Idempotency key.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

/// `rpc`. The arguments stay raw.
#[derive(Debug, Deserialize)]
pub struct RpcData<'a> {
    /// What is called.
    pub method: String,
    /// Arguments; `null` when left out.
    #[serde(default, borrow)]
    pub data: Option<&'a RawValue>,
}

/// `large_data`: one chunk. Its texts stay where they were received unless they hold escapes.
#[derive(Clone, Debug, Deserialize)]
pub struct LargeDataChunk<'a> {
    /// Names the transfer on this connection.
    #[serde(borrow)]
    pub data_id: Cow<'a, str>,
    /// From 1.
    pub chunk_index: u32,
    /// Number of chunks.
    pub total_chunks: u32,
    /// Base64.
    #[serde(borrow)]
    pub chunk_data: Cow<'a, str>,
    /// SHA-256 of the whole in hex.
    #[serde(borrow)]
    pub checksum: Cow<'a, str>,
}

/// `fault`: only with fault injection switched on.
#[derive(Debug, Deserialize)]
pub struct FaultData {
    /// `panic`, `stall` or `panic_shard`.
    pub kind: String,
    /// Length of a stall in milliseconds.
    #[serde(default)]
    pub ms: u64,
}

/// A command with its data read.
#[derive(Debug)]
pub enum Command<'a> {
    /// `auth`.
    Auth(AuthData),
    /// `refresh`.
    Refresh(AuthData),
    /// `ping`.
    Ping,
    /// `pong`.
    Pong,
    /// `subscribe`.
    Subscribe(SubscribeData),
    /// `unsubscribe`.
    Unsubscribe(ChannelData),
    /// `publish`.
    Publish(PublishData<'a>),
    /// `presence`.
    Presence(ChannelData),
    /// `presence_stats`.
    PresenceStats(ChannelData),
    /// `history`.
    History(HistoryData),
    /// `large_data`.
    LargeData(Box<LargeDataChunk<'a>>),
    /// What the control plane answers, with the text of `data`.
    Call(CallKind, &'a str),
    /// `rpc`.
    Rpc(RpcData<'a>),
    /// `fault`.
    Fault(FaultData),
}

/// Why a text is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// Not an envelope, or its data does not fit its type: what is wrong.
    Invalid(String),
    /// The `type` is unknown.
    UnknownKind,
}

impl<'a> Envelope<'a> {
    /// Reads the outer object. `text` is valid UTF-8 (the WebSocket layer has checked it).
    pub fn read(text: &'a str, depth_max: u32) -> Result<Self, CommandError> {
        let invalid = |message: String| CommandError::Invalid(message);
        if json::depth(text.as_bytes()) > depth_max {
            return Err(invalid(format!("nested deeper than {depth_max} levels")));
        }
        // Serde would read an array as an object without names.
        if !is_object(text) {
            return Err(invalid("not a message envelope: a JSON object is expected".into()));
        }
        let envelope: Self = serde_json::from_str(text).map_err(|error| {
            invalid(format!("not a message envelope: {}", json::describe(&error)))
        })?;
        if envelope.id.len() > 128 || envelope.kind.len() > 64 {
            return Err(invalid("`id` is longer than 128 bytes or `type` longer than 64".into()));
        }
        Ok(envelope)
    }

    /// What to count the message as.
    pub fn message_kind(&self) -> MessageKind {
        match &*self.kind {
            "auth" => MessageKind::Auth,
            "refresh" => MessageKind::Refresh,
            "ping" => MessageKind::Ping,
            "pong" => MessageKind::Pong,
            "subscribe" => MessageKind::Subscribe,
            "unsubscribe" => MessageKind::Unsubscribe,
            "publish" => MessageKind::Publish,
            "presence" => MessageKind::Presence,
            "presence_stats" => MessageKind::PresenceStats,
            "history" => MessageKind::History,
            "large_data" => MessageKind::LargeData,
            "notifications" => MessageKind::Notifications,
            "notification_seen"
            | "notification_read"
            | "notification_ack"
            | "notification_archive" => MessageKind::NotificationMark,
            "preferences" | "push_subscription" => MessageKind::Preferences,
            "rpc" => MessageKind::Rpc,
            _ => MessageKind::Other,
        }
    }

    /// Reads `data` as the type demands.
    pub fn command(&self) -> Result<Command<'a>, CommandError> {
        Ok(match &*self.kind {
            "auth" => Command::Auth(self.typed()?),
            "refresh" => Command::Refresh(self.typed()?),
            "ping" => Command::Ping,
            "pong" => Command::Pong,
            "subscribe" => Command::Subscribe(self.typed()?),
            "unsubscribe" => Command::Unsubscribe(self.typed()?),
            "publish" => Command::Publish(self.typed()?),
            "presence" => Command::Presence(self.typed()?),
            "presence_stats" => Command::PresenceStats(self.typed()?),
            "history" => Command::History(self.typed()?),
            "large_data" => Command::LargeData(Box::new(self.typed()?)),
            "notifications" => self.call(CallKind::Notifications)?,
            "notification_seen" => self.call(CallKind::Seen)?,
            "notification_read" => self.call(CallKind::Read)?,
            "notification_ack" => self.call(CallKind::Ack)?,
            "notification_archive" => self.call(CallKind::Archive)?,
            "preferences" => self.call(CallKind::Preferences)?,
            "push_subscription" => self.call(CallKind::PushSubscription)?,
            "rpc" => Command::Rpc(self.typed()?),
            "fault" => Command::Fault(self.typed()?),
            _ => return Err(CommandError::UnknownKind),
        })
    }

    fn data_text(&self) -> Result<&'a str, CommandError> {
        let text = self.data.map_or("{}", RawValue::get);
        if is_object(text) {
            Ok(text)
        } else {
            Err(CommandError::Invalid("`data` must be a JSON object".into()))
        }
    }

    fn call(&self, kind: CallKind) -> Result<Command<'a>, CommandError> {
        Ok(Command::Call(kind, self.data_text()?))
    }

    fn typed<T: Deserialize<'a>>(&self) -> Result<T, CommandError> {
        serde_json::from_str(self.data_text()?)
            .map_err(|error| CommandError::Invalid(format!("`data`: {}", json::describe(&error))))
    }
}

fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let got = match Envelope::read(text, 16) {
            Ok(envelope) => format!("{:?}", envelope.command()),
            Err(error) => format!("{error:?}"),
        };
        assert!(got.contains(expected), "{text} gave {got}");
    }

    #[test]
    fn commands_are_read() {
        check(r#"{"type":"ping","id":"1","timestamp":"x","data":{}}"#, "Ping");
        check(
            r#"{"type":"subscribe","id":"1","data":{"channel":"a:b","recover":{"offset":3,"epoch":"e"},"new":1}}"#,
            "offset: 3",
        );
        check(r#"{"type":"publish","data":{"channel":"a","data":[1, {"x":2}]}}"#, "Publish");
        check(r#"{"type":"unsubscribe","channel":"a"}"#, "channel: None");
        check(r#"{"type":"notification_read","data":{"ids":["a"]}}"#, "Call(Read");
        check(r#"{"type":"notifications"}"#, "Call(Notifications");
    }

    #[test]
    fn bad_commands_are_named() {
        check("", "not a message envelope");
        check("[]", "not a message envelope");
        check(r#"{"id":"1"}"#, "missing field `type`");
        check(r#"{"type":"dance","id":"1"}"#, "UnknownKind");
        check(r#"{"type":"publish","data":{"channel":"a"}}"#, "missing field `data`");
        check(r#"{"type":"subscribe","data":{"channel":7}}"#, "wrong type");
        check(r#"{"type":"ping","id":7}"#, "wrong type");
        check(r#"{"type":"preferences","data":[]}"#, "must be a JSON object");
        check(r#"{"type":"ping","type":"pong"}"#, "duplicate field");
        check(
            &format!(r#"{{"type":"publish","data":{}1{}}}"#, "[".repeat(40), "]".repeat(40)),
            "deeper",
        );
        check(&format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(200)), "128 bytes");
    }
}
