//! Publications and members as bytes between nodes.
//!
//! Numbers are little-endian. A publication: version, flags, priority, Unix time in ms, node, connection, monotonic time at
//! its node in ns, then type, key, sender, extra members and data, each with its length. With the flag for compression
//! everything after the priority is one LZ4 block with its length before it. What cannot be read is dropped and counted;
//! a newer version begins with another byte.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use gateway_core::broker::MemberId;
use gateway_core::ids::{ConnectionId, SessionId};
use gateway_core::message::{Member, Publish};
use gateway_core::settings::Priority;

const VERSION: u8 = 1;
const TRANSIENT: u8 = 1;
const NO_ECHO: u8 = 2;
const HAS_KEY: u8 = 4;
const HAS_SENDER: u8 = 8;
const HAS_EXTRA: u8 = 16;
const COMPRESSED: u8 = 32;
/// Most bytes that a record may unpack to: far above the largest message.
const UNPACKED_MAX: usize = 256 << 20;

/// Where and when a publication was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Which node.
    pub node: u64,
    /// The publishing connection, when it wants no copy.
    pub sender: Option<ConnectionId>,
    /// Unix time.
    pub unix: Duration,
}

/// Writes a publication; compresses it when it has `compress_min` bytes or more and becomes smaller by that.
pub(super) fn encode(publish: &Publish, stamp: Stamp, compress_min: usize) -> Vec<u8> {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let flags = flag(publish.transient, TRANSIENT)
        | flag(stamp.sender.is_some(), NO_ECHO)
        | flag(publish.key.is_some(), HAS_KEY)
        | flag(publish.sender.is_some(), HAS_SENDER)
        | flag(publish.extra.is_some(), HAS_EXTRA);
    let mut body = Vec::with_capacity(publish.data.len() + 128);
    body.put_u64_le(u64::try_from(stamp.unix.as_millis()).unwrap_or(u64::MAX));
    body.put_u64_le(stamp.node);
    body.put_u64_le(stamp.sender.map_or(0, ConnectionId::to_bits));
    body.put_u64_le(u64::try_from(publish.accepted_at.as_nanos()).unwrap_or(u64::MAX));
    put_text(&mut body, publish.kind.as_bytes());
    for text in [
        publish.key.as_deref().map(str::as_bytes),
        publish.sender.as_deref(),
        publish.extra.as_deref(),
    ]
    .into_iter()
    .flatten()
    {
        put_text(&mut body, text);
    }
    put_text(&mut body, &publish.data);
    let priority = publish.priority.map_or(0, priority_code);
    if body.len() >= compress_min {
        let packed = lz4_flex::compress_prepend_size(&body);
        if packed.len() < body.len() {
            return framed(flags | COMPRESSED, priority, &packed);
        }
    }
    framed(flags, priority, &body)
}

fn framed(flags: u8, priority: u8, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(body.len() + 3);
    record.extend_from_slice(&[VERSION, flags, priority]);
    record.extend_from_slice(body);
    record
}

/// Reads a publication. Its texts are views into `record` unless that is compressed.
pub(super) fn decode(mut record: Bytes) -> Option<(Publish, Stamp)> {
    if record.len() < 3 {
        return None;
    }
    let (version, flags, priority) = (record.get_u8(), record.get_u8(), record.get_u8());
    if version != VERSION {
        return None;
    }
    let mut body = record;
    if flags & COMPRESSED != 0 {
        let unpacked = usize::try_from(u32::from_le_bytes(*body.first_chunk()?)).ok()?;
        if unpacked > UNPACKED_MAX {
            return None;
        }
        body = lz4_flex::decompress_size_prepended(&body).ok()?.into();
    }
    let unix = Duration::from_millis(body.try_get_u64_le().ok()?);
    let node = body.try_get_u64_le().ok()?;
    let connection = body.try_get_u64_le().ok()?;
    let accepted_at = Duration::from_nanos(body.try_get_u64_le().ok()?);
    let kind = take_string(&mut body)?;
    let key = if flags & HAS_KEY != 0 { Some(take_string(&mut body)?) } else { None };
    let sender = if flags & HAS_SENDER != 0 { Some(take_text(&mut body)?) } else { None };
    let extra = if flags & HAS_EXTRA != 0 { Some(take_text(&mut body)?) } else { None };
    let data = take_text(&mut body)?;
    if usize::from(priority) > PRIORITIES.len() {
        return None;
    }
    let priority = self::priority(priority);
    let no_echo = flags & NO_ECHO != 0;
    let publish = Publish {
        kind,
        data,
        priority,
        key,
        idempotency_key: None,
        skip_history: false,
        transient: flags & TRANSIENT != 0,
        sender,
        extra,
        no_echo,
        told: false,
        accepted_at,
    };
    let sender = no_echo.then(|| ConnectionId::from_bits(connection));
    Some((publish, Stamp { node, sender, unix }))
}

/// Field of a member in the hash of its channel.
pub(crate) fn member_field(node: u64, id: ConnectionId) -> String {
    format!("{}{:016x}", node_fields(node), id.to_bits())
}

/// What the fields of all members of a node begin with.
pub(super) fn node_fields(node: u64) -> String {
    format!("{node:016x}/")
}

/// Reads [`member_field`].
pub(crate) fn member_id(field: &[u8]) -> Option<MemberId> {
    let (node, id) = std::str::from_utf8(field).ok()?.split_once('/')?;
    let node = u64::from_str_radix(node, 16).ok()?;
    let connection = ConnectionId::from_bits(u64::from_str_radix(id, 16).ok()?);
    Some(MemberId { node, connection })
}

/// Writes a member: session, user, and what its token says of it.
pub(super) fn encode_member(member: &Member) -> Vec<u8> {
    let info = member.info.as_deref().unwrap_or_default();
    let mut record = Vec::with_capacity(member.user.len() + info.len() + 24);
    record.extend_from_slice(&member.session.to_bytes());
    put_text(&mut record, member.user.as_bytes());
    put_text(&mut record, info);
    record
}

/// Reads a member from the front of `record`.
pub(super) fn take_member(record: &mut Bytes) -> Option<Member> {
    if record.len() < 16 {
        return None;
    }
    let mut session = [0; 16];
    record.copy_to_slice(&mut session);
    let user = take_string(record)?;
    let info = take_text(record)?;
    Some(Member {
        user: user.into(),
        session: SessionId::from_bytes(session),
        info: (!info.is_empty()).then(|| info.as_ref().into()),
    })
}

fn put_text(to: &mut Vec<u8>, text: &[u8]) {
    to.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
    to.extend_from_slice(text);
}

fn take_text(from: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(from.try_get_u32_le().ok()?).ok()?;
    (length <= from.len()).then(|| from.split_to(length))
}

fn take_string(from: &mut Bytes) -> Option<Box<str>> {
    let text = take_text(from)?;
    std::str::from_utf8(&text).ok().map(Box::from)
}

const PRIORITIES: [Priority; 4] =
    [Priority::Low, Priority::Normal, Priority::High, Priority::Critical];

/// A priority as one byte; 0 is none.
pub(crate) fn priority_code(priority: Priority) -> u8 {
    PRIORITIES.iter().zip(1..).find(|(known, _)| **known == priority).map_or(0, |(_, code)| code)
}

/// Reads [`priority_code`].
pub(crate) fn priority(code: u8) -> Option<Priority> {
    PRIORITIES.get(usize::from(code).checked_sub(1)?).copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gateway_core::ids::ShardId;

    use super::*;

    static LONG: [u8; 4096] = [b'x'; 4096];

    fn publish(data: &'static [u8]) -> Publish {
        Publish {
            kind: "edit".into(),
            data: Bytes::from_static(data),
            priority: Some(Priority::High),
            key: Some("k".into()),
            sender: Some(Bytes::from_static(b"{\"user_id\":\"a\"}")),
            accepted_at: Duration::from_nanos(77),
            transient: true,
            ..Publish::default()
        }
    }

    fn stamp(sender: Option<ConnectionId>) -> Stamp {
        Stamp {
            node: 0xfedc_ba98_7654_3210,
            sender,
            unix: Duration::from_millis(1_800_000_000_123),
        }
    }

    fn same(a: &Publish, b: &Publish) -> bool {
        format!("{a:?}") == format!("{b:?}")
    }

    #[test]
    fn publications_are_read_as_written() {
        let id = ConnectionId::new(ShardId(3), 70_000, 9);
        for (mut publish, sender) in [
            (publish(b"{\"x\":1}"), Some(id)),
            (Publish { kind: "".into(), ..Publish::default() }, None),
            (publish(&LONG), None),
        ] {
            publish.no_echo = sender.is_some();
            let record = encode(&publish, stamp(sender), 1024);
            assert!(record.len() < 512, "{}", record.len());
            let (read, read_stamp) = decode(record.into()).unwrap();
            assert!(same(&read, &publish), "{read:?}");
            assert_eq!(read_stamp, stamp(sender));
        }
    }

    /// Neither a cut nor a changed byte may panic or allocate without bound.
    #[test]
    fn damaged_records_are_refused_or_read() {
        for compress_min in [1, usize::MAX] {
            let record =
                encode(&publish(b"{\"text\":\"aaaaaaaaaaaaaaaaaaaa\"}"), stamp(None), compress_min);
            for cut in 0..record.len() {
                assert!(decode(Bytes::copy_from_slice(&record[..cut])).is_none(), "{cut}");
            }
            for at in 0..record.len() {
                let mut damaged = record.clone();
                damaged[at] ^= 0x80;
                let _either = decode(damaged.into());
            }
        }
    }

    #[test]
    fn members_are_read_as_written() {
        let member = Member {
            user: "alice".into(),
            session: SessionId::from_random([7; 16]),
            info: Some(b"{\"name\":\"A\"}".as_slice().into()),
        };
        let anonymous = Member { user: "".into(), session: SessionId::NONE, info: None };
        for member in [member, anonymous] {
            let mut record = encode_member(&member).into();
            assert_eq!(take_member(&mut record).unwrap(), member);
            assert!(record.is_empty());
        }
        let id = ConnectionId::new(ShardId(1), 5, 6);
        let field = member_field(42, id);
        assert_eq!(member_id(field.as_bytes()), Some(MemberId { node: 42, connection: id }));
        assert!(field.starts_with(&node_fields(42)));
        assert_eq!(member_id(b"zz/1"), None);
    }
}
