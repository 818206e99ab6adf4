//! The messages of the native protocol that a load needs: reading envelopes, writing commands.
//!
//! All subscribers of a channel get the same bytes, so a [`Reader`] remembers what it has read and compares bytes
//! instead of parsing again: the generator shares its machine with the gateway.

use std::borrow::Cow;
use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use gateway_core::message::Epoch;
use gateway_core::proto::json::Object;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::schedule::Nanos;

/// Publications remembered; a power of two.
const MEMORY: usize = 4096;

/// The outer object of a server message.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope<'a> {
    /// `type`.
    #[serde(rename = "type", borrow)]
    pub(crate) kind: Cow<'a, str>,
    /// Id of the command that is answered.
    #[serde(default, borrow)]
    pub(crate) reply_to: Option<Cow<'a, str>>,
    /// Channel.
    #[serde(default, borrow)]
    pub(crate) channel: Option<Cow<'a, str>>,
    /// Place in the channel's stream.
    #[serde(default)]
    pub(crate) offset: Option<u64>,
    /// Incarnation of the stream.
    #[serde(default, borrow)]
    pub(crate) epoch: Option<Cow<'a, str>>,
    /// `data`, unread.
    #[serde(default, borrow)]
    pub(crate) data: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Reads `data`; `None` when it is not what is expected.
    pub(crate) fn typed<T: Deserialize<'a>>(&self) -> Option<T> {
        serde_json::from_str(self.data?.get()).ok()
    }
}

/// `data` of `subscribed`.
#[derive(Debug, Deserialize)]
pub(crate) struct Subscribed<'a> {
    /// Newest offset.
    pub(crate) offset: u64,
    /// Epoch.
    #[serde(borrow)]
    pub(crate) epoch: Cow<'a, str>,
    /// Whether everything missed is in `messages`.
    #[serde(default)]
    pub(crate) recovered: Option<bool>,
    /// What was missed.
    #[serde(default, borrow)]
    pub(crate) messages: Vec<&'a RawValue>,
}

/// `data` of `published`, and `result` of the server API's publish.
#[derive(Debug, Deserialize)]
pub(crate) struct Published<'a> {
    /// Offset given to the publication.
    pub(crate) offset: u64,
    /// Epoch.
    #[serde(borrow)]
    pub(crate) epoch: Cow<'a, str>,
}

/// Answer of the server API.
#[derive(Debug, Deserialize)]
pub(crate) struct ApiAnswer<'a> {
    /// On success.
    #[serde(default, borrow)]
    pub(crate) result: Option<Published<'a>>,
}

/// `data` of `error`.
#[derive(Debug, Deserialize)]
pub(crate) struct Refusal<'a> {
    /// Stable code.
    #[serde(borrow)]
    pub(crate) error_code: Cow<'a, str>,
    /// What is wrong.
    #[serde(default, borrow)]
    pub(crate) error_message: Cow<'a, str>,
}

/// `data` of `disconnect`.
#[derive(Debug, Deserialize)]
pub(crate) struct Disconnect<'a> {
    /// Close code.
    pub(crate) code: u16,
    /// Stable reason.
    #[serde(borrow)]
    pub(crate) reason: Cow<'a, str>,
}

/// `data` of `welcome`.
#[derive(Debug, Deserialize)]
pub(crate) struct Welcome<'a> {
    /// Name of the connection in presence.
    #[serde(borrow)]
    pub(crate) session_id: Cow<'a, str>,
}

/// `data` of `lost`; without offsets what was lost is outside of the stream.
#[derive(Debug, Deserialize)]
pub(crate) struct Lost {
    /// First offset that does not come.
    #[serde(default)]
    pub(crate) from_offset: Option<u64>,
    /// Last one.
    #[serde(default)]
    pub(crate) to_offset: Option<u64>,
}

/// `data` of `join` and `leave`, and a member in `presence`.
#[derive(Debug, Deserialize)]
pub(crate) struct Presence<'a> {
    /// User.
    #[serde(borrow)]
    pub(crate) user_id: Cow<'a, str>,
    /// Connection.
    #[serde(borrow)]
    pub(crate) session_id: Cow<'a, str>,
}

/// `data` of `presence`.
#[derive(Debug, Deserialize)]
pub(crate) struct PresenceList<'a> {
    /// Connections.
    pub(crate) clients: u64,
    /// Users.
    pub(crate) users: u64,
    /// Who is there.
    #[serde(borrow)]
    pub(crate) members: Vec<Presence<'a>>,
}

/// Payload of a publication of this load.
#[derive(Debug, Deserialize)]
struct Payload {
    run: u64,
    n: u64,
    #[serde(default)]
    t: Option<Nanos>,
}

/// What a publication carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    /// Its number.
    pub(crate) number: u64,
    /// When it was due, for those who do not know it and where it counts.
    pub(crate) due: Option<Nanos>,
    /// Its size.
    pub(crate) bytes: usize,
}

/// A publication in a channel of this load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// Index of the channel.
    pub(crate) channel: u32,
    /// Place in its stream.
    pub(crate) offset: u64,
    /// Incarnation of the stream.
    pub(crate) epoch: Epoch,
    /// Number that the load gave the publication; absent when its payload is not ours.
    pub(crate) number: Option<u64>,
    /// When it was due, when its payload says so.
    pub(crate) due: Option<Nanos>,
}

/// What a message is.
#[derive(Debug)]
pub(crate) enum Incoming<'a> {
    /// A publication in a channel of this load.
    Publication(Delivered),
    /// Everything else.
    Other(Envelope<'a>),
}

/// Names of the load's channels and of its publications.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// What every channel name begins with.
    pub(crate) stem: String,
    /// Number of the run, in every payload.
    pub(crate) run: u64,
}

impl Names {
    /// Name of a channel.
    pub(crate) fn channel(&self, index: u32) -> String {
        format!("{}{index}", self.stem)
    }

    /// Index of a channel; `None` when it is not one of the load.
    pub(crate) fn index(&self, channel: &str) -> Option<u32> {
        channel.strip_prefix(self.stem.as_str())?.parse().ok()
    }
}

/// Reads server messages.
#[derive(Debug)]
pub(crate) struct Reader {
    names: Names,
    hash: FixedState,
    memory: Vec<Option<(Box<[u8]>, Delivered)>>,
}

impl Reader {
    /// A reader that has seen nothing.
    pub(crate) fn new(names: Names) -> Self {
        Self { names, hash: FixedState::default(), memory: vec![None; MEMORY] }
    }

    /// Reads a message; `None` when it is no envelope.
    pub(crate) fn read<'a>(&mut self, payload: &'a [u8]) -> Option<Incoming<'a>> {
        let slot = self.hash.hash_one(payload) as usize % MEMORY;
        if let Some((seen, delivered)) = &self.memory[slot]
            && **seen == *payload
        {
            return Some(Incoming::Publication(*delivered));
        }
        let envelope: Envelope<'a> =
            serde_json::from_str(std::str::from_utf8(payload).ok()?).ok()?;
        let Some(delivered) = self.publication(&envelope) else {
            return Some(Incoming::Other(envelope));
        };
        self.memory[slot] = Some((payload.into(), delivered));
        Some(Incoming::Publication(delivered))
    }

    /// Reads an envelope as a publication of this load.
    fn publication(&self, envelope: &Envelope<'_>) -> Option<Delivered> {
        let (channel, offset) = (envelope.channel.as_deref()?, envelope.offset?);
        if envelope.reply_to.is_some() {
            return None;
        }
        let payload = envelope.typed::<Payload>().filter(|payload| payload.run == self.names.run);
        Some(Delivered {
            channel: self.names.index(channel)?,
            offset,
            epoch: epoch(envelope.epoch.as_deref().unwrap_or_default()),
            number: payload.as_ref().map(|payload| payload.n),
            due: payload.and_then(|payload| payload.t),
        })
    }
}

/// An epoch; one that cannot be one of the gateway's is none at all.
pub(crate) fn epoch(text: &str) -> Epoch {
    Epoch::parse(text).unwrap_or(Epoch::NONE)
}

/// What a command is about, and thereby its `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandId {
    /// Subscribes to the channel with this index.
    Subscribe(u32),
    /// Ends that subscription.
    Unsubscribe(u32),
    /// Asks who is in the channel.
    Presence(u32),
    /// Publishes the publication with this number.
    Publish(u64),
    /// Asks for a sign of life.
    Ping,
}

impl CommandId {
    fn text(self) -> String {
        match self {
            Self::Subscribe(channel) => format!("s{channel}"),
            Self::Unsubscribe(channel) => format!("u{channel}"),
            Self::Presence(channel) => format!("q{channel}"),
            Self::Publish(number) => format!("p{number}"),
            Self::Ping => "g".to_owned(),
        }
    }

    /// Reads a `reply_to`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_at_checked(1)? {
            ("s", rest) => rest.parse().ok().map(Self::Subscribe),
            ("u", rest) => rest.parse().ok().map(Self::Unsubscribe),
            ("q", rest) => rest.parse().ok().map(Self::Presence),
            ("p", rest) => rest.parse().ok().map(Self::Publish),
            ("g", "") => Some(Self::Ping),
            _ => None,
        }
    }
}

fn command(kind: &str, id: CommandId, fill: impl FnOnce(&mut Object<'_>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let mut object = Object::begin(&mut out);
    object.str("type", kind).str("id", &id.text());
    object.object("data", fill);
    object.end();
    out
}

/// `subscribe`, recovering from a position when one is given.
pub(crate) fn subscribe(names: &Names, channel: u32, recover: Option<(Epoch, u64)>) -> Vec<u8> {
    command("subscribe", CommandId::Subscribe(channel), |data| {
        data.str("channel", &names.channel(channel));
        if let Some((epoch, offset)) = recover {
            data.object("recover", |from| {
                from.u64("offset", offset).str("epoch", epoch.as_str());
            });
        }
    })
}

/// `unsubscribe`.
pub(crate) fn unsubscribe(names: &Names, channel: u32) -> Vec<u8> {
    command("unsubscribe", CommandId::Unsubscribe(channel), |data| {
        data.str("channel", &names.channel(channel));
    })
}

/// `presence`.
pub(crate) fn presence(names: &Names, channel: u32) -> Vec<u8> {
    command("presence", CommandId::Presence(channel), |data| {
        data.str("channel", &names.channel(channel));
    })
}

/// `ping`.
pub(crate) fn ping() -> Vec<u8> {
    command("ping", CommandId::Ping, |_| {})
}

/// `publish` over a socket.
pub(crate) fn publish(names: &Names, channel: u32, content: Content) -> Vec<u8> {
    command("publish", CommandId::Publish(content.number), |data| {
        data.str("channel", &names.channel(channel));
        data.raw("data", &payload(names.run, content));
    })
}

/// Body of a publish of the server API.
pub(crate) fn api_publish(names: &Names, channel: u32, content: Content) -> Vec<u8> {
    let mut out = Vec::with_capacity(128 + content.bytes);
    let mut object = Object::begin(&mut out);
    object.str("channel", &names.channel(channel));
    object.raw("data", &payload(names.run, content));
    object.end();
    out
}

/// JSON text of about the wanted size that names a publication.
fn payload(run: u64, Content { number, due, bytes }: Content) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.max(64));
    let mut object = Object::begin(&mut out);
    object.u64("run", run).u64("n", number);
    if let Some(due) = due {
        object.u64("t", due);
    }
    object.end();
    let rest = bytes.saturating_sub(out.len() + 9);
    if rest > 0 {
        out.pop();
        let mut pad = vec![b'x'; rest];
        // Something to look at for a compressor: not one letter only.
        for (index, byte) in pad.iter_mut().enumerate() {
            *byte = b'a' + ((index as u64 ^ number).wrapping_mul(0x9e37_79b9) >> 7) as u8 % 26;
        }
        out.extend_from_slice(b",\"pad\":\"");
        out.extend_from_slice(&pad);
        out.extend_from_slice(b"\"}");
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn content(number: u64, bytes: usize) -> Content {
        Content { number, due: None, bytes }
    }

    fn names() -> Names {
        Names { stem: "workflow:load-9-".into(), run: 9 }
    }

    #[test]
    fn commands_are_what_the_core_reads() {
        use gateway_core::proto::command::{Command, Envelope as CoreEnvelope};
        let epoch = Epoch(*b"abcdefgh");
        let text = String::from_utf8(subscribe(&names(), 3, Some((epoch, 7)))).unwrap();
        let envelope = CoreEnvelope::read(&text, 32).unwrap();
        let Command::Subscribe(data) = envelope.command().unwrap() else { panic!("{text}") };
        assert_eq!(data.channel.as_deref(), Some("workflow:load-9-3"));
        assert_eq!(data.recover.unwrap().offset, 7);
        let text = String::from_utf8(publish(&names(), 3, content(12, 256))).unwrap();
        let envelope = CoreEnvelope::read(&text, 32).unwrap();
        let Command::Publish(data) = envelope.command().unwrap() else { panic!("{text}") };
        assert_eq!(data.data.get().len(), 256);
        assert_eq!(CommandId::parse(&envelope.id), Some(CommandId::Publish(12)));
        let text = String::from_utf8(ping()).unwrap();
        assert!(matches!(CoreEnvelope::read(&text, 32).unwrap().command().unwrap(), Command::Ping));
        for (bytes, id) in [
            (unsubscribe(&names(), 3), CommandId::Unsubscribe(3)),
            (presence(&names(), 4), CommandId::Presence(4)),
        ] {
            let text = String::from_utf8(bytes).unwrap();
            let envelope = CoreEnvelope::read(&text, 32).unwrap();
            let command = envelope.command().unwrap();
            assert!(matches!(command, Command::Unsubscribe(_) | Command::Presence(_)), "{text}");
            assert_eq!(CommandId::parse(&envelope.id), Some(id));
        }
    }

    #[test]
    fn payloads_have_their_size() {
        for bytes in [64, 100, 1_000, 65_536] {
            let text = payload(1, content(2, bytes));
            assert_eq!(text.len(), bytes);
            let read: Payload = serde_json::from_slice(&text).unwrap();
            assert_eq!((read.run, read.n), (1, 2));
        }
        serde_json::from_slice::<Payload>(&payload(1, content(2, 0))).unwrap();
        let timed = payload(1, Content { due: Some(77), ..content(2, 128) });
        assert_eq!(timed.len(), 128);
        assert_eq!(serde_json::from_slice::<Payload>(&timed).unwrap().t, Some(77));
    }

    #[test]
    fn publications_are_told_from_the_rest() {
        let mut reader = Reader::new(names());
        let text = |channel: &str, run: u64| {
            format!(
                r#"{{"type":"message","id":"1","timestamp":"t","channel":"{channel}","offset":5,"epoch":"abcdefgh",
                   "sender":{{"user_id":"u"}},"data":{{"run":{run},"n":4,"pad":"x"}}}}"#
            )
        };
        let ours = text("workflow:load-9-2", 9);
        let expected = Delivered {
            channel: 2,
            offset: 5,
            epoch: Epoch(*b"abcdefgh"),
            number: Some(4),
            due: None,
        };
        for _ in 0..2 {
            let Some(Incoming::Publication(delivered)) = reader.read(ours.as_bytes()) else {
                panic!("not a publication");
            };
            assert_eq!(delivered, expected);
        }
        let foreign = text("workflow:load-9-2", 8);
        let Some(Incoming::Publication(delivered)) = reader.read(foreign.as_bytes()) else {
            panic!("not a publication");
        };
        assert_eq!(delivered.number, None);
        let elsewhere = text("system", 9);
        assert!(matches!(reader.read(elsewhere.as_bytes()), Some(Incoming::Other(_))));
        assert!(reader.read(b"[]").is_none() && reader.read(b"\xff").is_none());
    }

    #[test]
    fn answers() {
        let text = r#"{"type":"subscribed","id":"s1","reply_to":"s3","channel":"c","data":{"channel":"c","offset":2,
            "epoch":"abcdefgh","recovered":true,"messages":[{"type":"message","id":"1"}]}}"#;
        let envelope: Envelope<'_> = serde_json::from_str(text).unwrap();
        let data: Subscribed<'_> = envelope.typed().unwrap();
        assert_eq!((data.offset, data.recovered, data.messages.len()), (2, Some(true), 1));
        let answer: ApiAnswer<'_> =
            serde_json::from_str(r#"{"result":{"offset":1,"epoch":"abcdefgh"}}"#).unwrap();
        assert_eq!(answer.result.unwrap().offset, 1);
        let answer: ApiAnswer<'_> = serde_json::from_str(r#"{"error":{"code":102}}"#).unwrap();
        assert!(answer.result.is_none());
    }
}
