//! The message decoder as a client's bytes meet it: cut anywhere, broken in every way, compressed, oversized.
//!
//! What must hold: the items depend on the bytes only, never on how they were cut into inputs; violations are found no
//! later than the byte that makes them certain; memory follows what has arrived.

#![allow(clippy::unwrap_used)]

use gateway_core::error::Disconnect;
use gateway_core::ws::deflate::{Deflater, Inflater};
use gateway_core::ws::frame::{self, Header, Opcode};
use gateway_core::ws::message::{Decoder, DecoderLimits, Item};
use proptest::prelude::*;

const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 1 << 20, fragments_max: 1_000 };
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// An item that outlives its input.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Item<'_>> for Owned {
    fn from(item: Item<'_>) -> Self {
        match item {
            Item::Text(payload) => Self::Text(payload.to_vec()),
            Item::Binary(payload) => Self::Binary(payload.to_vec()),
            Item::Ping(payload) => Self::Ping(payload.to_vec()),
            Item::Pong(payload) => Self::Pong(payload.to_vec()),
            Item::Close { code, reason } => Self::Close(code, reason.to_owned()),
        }
    }
}

/// A decoder with all that it needs, and what came out of it.
struct Reader {
    decoder: Decoder,
    inflater: Inflater,
    limits: DecoderLimits,
    items: Vec<Owned>,
}

impl Reader {
    fn new(deflate: bool, limits: DecoderLimits) -> Self {
        let decoder = Decoder::new(deflate);
        Self { decoder, inflater: Inflater::new(), limits, items: Vec::new() }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), Disconnect> {
        let mut bytes = bytes.to_vec();
        let mut input = bytes.as_mut_slice();
        while let Some(item) = self.decoder.next(&mut input, &self.limits, &mut self.inflater)? {
            self.items.push(item.into());
        }
        assert!(input.is_empty());
        Ok(())
    }
}

/// Items of a stream that is cut at the given places.
fn read_cut(bytes: &[u8], cuts: &[usize]) -> (Vec<Owned>, Result<(), Disconnect>) {
    let mut reader = Reader::new(true, LIMITS);
    let mut start = 0;
    let mut result = Ok(());
    for &end in cuts.iter().chain([&bytes.len()]) {
        result = reader.read(&bytes[start..end]);
        start = end;
        if result.is_err() {
            break;
        }
    }
    (reader.items, result)
}

/// One client frame: opcode, last fragment or not, compressed or not.
fn client_frame(opcode: Opcode, fin: bool, rsv1: bool, payload: &[u8]) -> Vec<u8> {
    let header = Header { fin, rsv1, opcode, mask: Some(MASK), payload_len: payload.len() as u64 };
    let mut out = Vec::new();
    frame::encode_with(&mut out, &header, payload);
    out
}

fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::new(6).deflate(payload, &mut out);
    out
}

/// Every kind of message and where they may meet, with the items that must come out.
fn conversation() -> (Vec<u8>, Vec<Owned>) {
    use Opcode::{Binary, Close, Continuation, Ping, Pong, Text};
    let word = "gr\u{fc}n \u{20ac} \u{1f600}".as_bytes();
    let packed = deflated(&word.repeat(9));
    let (packed_head, packed_tail) = packed.split_at(packed.len() / 2);
    let bytes = [
        client_frame(Text, true, false, word),
        client_frame(Text, true, false, b""),
        client_frame(Binary, true, false, &[0xFF; 130]),
        client_frame(Text, false, false, &word[..3]),
        client_frame(Ping, true, false, b"between"),
        client_frame(Continuation, false, false, b""),
        client_frame(Continuation, false, false, &word[3..7]),
        client_frame(Pong, true, false, b""),
        client_frame(Continuation, true, false, &word[7..]),
        client_frame(Text, true, true, &packed),
        client_frame(Binary, false, true, packed_head),
        client_frame(Ping, true, false, b"x"),
        client_frame(Continuation, true, false, packed_tail),
        client_frame(Binary, false, false, b""),
        client_frame(Continuation, true, false, b""),
        client_frame(Close, true, false, b"\x03\xe8bye"),
    ]
    .concat();
    let items = vec![
        Owned::Text(word.to_vec()),
        Owned::Text(Vec::new()),
        Owned::Binary(vec![0xFF; 130]),
        Owned::Ping(b"between".to_vec()),
        Owned::Pong(Vec::new()),
        Owned::Text(word.to_vec()),
        Owned::Text(word.repeat(9)),
        Owned::Ping(b"x".to_vec()),
        Owned::Binary(word.repeat(9)),
        Owned::Binary(Vec::new()),
        Owned::Close(Some(1000), "bye".to_owned()),
    ];
    (bytes, items)
}

#[test]
fn cut_at_every_byte_gives_the_same_items() {
    let (bytes, expected) = conversation();
    for cut in 0..=bytes.len() {
        assert_eq!(read_cut(&bytes, &[cut]), (expected.clone(), Ok(())), "{cut}");
    }
    let everywhere: Vec<_> = (0..bytes.len()).collect();
    assert_eq!(read_cut(&bytes, &everywhere), (expected, Ok(())));
}

#[test]
fn decoder_is_small_and_owns_nothing_between_messages() {
    assert!(size_of::<Decoder>() <= 96, "{}", size_of::<Decoder>());
    let (bytes, _) = conversation();
    let mut reader = Reader::new(true, LIMITS);
    for byte in &bytes {
        reader.read(&[*byte]).unwrap();
    }
    assert_eq!(reader.decoder.buffered_bytes(), 0);
}

#[test]
fn whole_frames_are_lent_out_of_the_input() {
    let mut bytes = client_frame(Opcode::Text, true, false, b"in place");
    let range = bytes.as_ptr_range();
    let mut input = bytes.as_mut_slice();
    let (mut decoder, mut inflater) = (Decoder::new(false), Inflater::new());
    let item = decoder.next(&mut input, &LIMITS, &mut inflater).unwrap().unwrap();
    let Item::Text(payload) = item else { panic!("{item:?}") };
    assert!(range.contains(&payload.as_ptr()));
    assert_eq!(decoder.buffered_bytes(), 0);
}

#[test]
fn violations() {
    use Disconnect::{InvalidUtf8, MessageTooLarge, ProtocolError};
    use Opcode::{Binary, Close, Continuation, Ping, Text};
    let masked = |first: u8, second: u8| vec![first, second | 0x80, 0, 0, 0, 0];
    let table: Vec<(&str, Vec<u8>, Disconnect)> = vec![
        ("not masked", vec![0x81, 0x01, b'a'], ProtocolError),
        ("not masked, long", vec![0x82, 0x7E], ProtocolError),
        ("rsv2", masked(0xA1, 0), ProtocolError),
        ("rsv3", masked(0x91, 0), ProtocolError),
        ("reserved opcode", masked(0x83, 0), ProtocolError),
        ("reserved control opcode", masked(0x8B, 0), ProtocolError),
        ("fragmented ping", client_frame(Ping, false, false, b""), ProtocolError),
        ("compressed ping", client_frame(Ping, true, true, b""), ProtocolError),
        ("ping of 126", client_frame(Ping, true, false, &[0; 126]), ProtocolError),
        ("continuation of nothing", client_frame(Continuation, true, false, b""), ProtocolError),
        (
            "text inside a message",
            [client_frame(Text, false, false, b"a"), client_frame(Text, true, false, b"")].concat(),
            ProtocolError,
        ),
        (
            "compressed continuation",
            [client_frame(Text, false, true, b""), client_frame(Continuation, true, true, b"")]
                .concat(),
            ProtocolError,
        ),
        (
            "continuation after the end",
            [client_frame(Text, true, false, b"a"), client_frame(Continuation, true, false, b"")]
                .concat(),
            ProtocolError,
        ),
        ("close of one byte", client_frame(Close, true, false, b"\x03"), ProtocolError),
        ("close with 1005", client_frame(Close, true, false, b"\x03\xed"), ProtocolError),
        ("close reason", client_frame(Close, true, false, b"\x03\xe8\xc3"), InvalidUtf8),
        ("text", client_frame(Text, true, false, b"\xc0\xaf"), InvalidUtf8),
        ("half a character", client_frame(Text, true, false, b"a\xe2\x82"), InvalidUtf8),
        (
            "half a character before the end",
            [
                client_frame(Text, false, false, b"a\xe2\x82"),
                client_frame(Continuation, true, false, b""),
            ]
            .concat(),
            InvalidUtf8,
        ),
        ("compressed text", client_frame(Text, true, true, &deflated(b"\xff")), InvalidUtf8),
        ("compressed garbage", client_frame(Binary, true, true, &[0xFF; 9]), ProtocolError),
        (
            "bomb",
            client_frame(Binary, true, true, &deflated(&vec![0; (1 << 20) + 1])),
            MessageTooLarge,
        ),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(read_cut(&bytes, &[]).1, Err(expected), "{name}");
        let everywhere: Vec<_> = (0..bytes.len()).collect();
        assert_eq!(read_cut(&bytes, &everywhere).1, Err(expected), "{name}, byte by byte");
    }
    let compressed = client_frame(Text, true, true, &deflated(b"a"));
    let mut reader = Reader::new(false, LIMITS);
    assert_eq!(reader.read(&compressed), Err(ProtocolError), "compression was not negotiated");
}

#[test]
fn size_is_judged_by_the_header_alone() {
    let limits = DecoderLimits { message_bytes_max: 100, fragments_max: 4 };
    let header = |opcode, fin, payload_len| {
        let mut out = Vec::new();
        Header { fin, rsv1: false, opcode, mask: Some(MASK), payload_len }.write(&mut out);
        out
    };
    for payload_len in [101, 1 << 20, (1 << 63) - 1] {
        let mut reader = Reader::new(false, limits);
        let result = reader.read(&header(Opcode::Binary, true, payload_len));
        assert_eq!(result, Err(Disconnect::MessageTooLarge));
        assert_eq!(reader.decoder.buffered_bytes(), 0);
    }
    let mut reader = Reader::new(false, limits);
    reader.read(&client_frame(Opcode::Binary, false, false, &[1; 60])).unwrap();
    reader.read(&client_frame(Opcode::Continuation, false, false, &[1; 40])).unwrap();
    let result = reader.read(&header(Opcode::Continuation, true, 1));
    assert_eq!(result, Err(Disconnect::MessageTooLarge));
}

#[test]
fn an_announced_length_allocates_nothing() {
    let mut out = Vec::new();
    let payload_len = LIMITS.message_bytes_max as u64;
    Header { fin: true, rsv1: false, opcode: Opcode::Binary, mask: Some(MASK), payload_len }
        .write(&mut out);
    out.extend_from_slice(&[0; 10]);
    let mut reader = Reader::new(false, LIMITS);
    reader.read(&out).unwrap();
    assert!(reader.decoder.buffered_bytes() <= 64, "{}", reader.decoder.buffered_bytes());
}

#[test]
fn empty_fragments_are_counted() {
    let limits = DecoderLimits { message_bytes_max: 100, fragments_max: 4 };
    let mut reader = Reader::new(false, limits);
    reader.read(&client_frame(Opcode::Text, false, false, b"")).unwrap();
    let empty = client_frame(Opcode::Continuation, false, false, b"");
    for _ in 1..4 {
        reader.read(&empty).unwrap();
    }
    assert_eq!(reader.read(&empty), Err(Disconnect::MessageTooLarge));
}

#[test]
fn incompressible_messages_of_the_greatest_size_pass() {
    let payload: Vec<u8> = (0..LIMITS.message_bytes_max as u32)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut compressed = Vec::new();
    Deflater::new(0).deflate(&payload, &mut compressed);
    assert!(compressed.len() > payload.len());
    let mut reader = Reader::new(true, LIMITS);
    reader.read(&client_frame(Opcode::Binary, true, true, &compressed)).unwrap();
    assert_eq!(reader.items, [Owned::Binary(payload)]);
}

/// The invalid byte is the last that arrives, far from the end of the frame and of the message.
#[test]
fn utf8_fails_fast() {
    let prefix = "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}".as_bytes();
    // A surrogate, an overlong form, a value above U+10FFFF, a stray continuation; and where it becomes certain.
    let table: [(&[u8], usize); 4] =
        [(b"\xed\xa0\x80", 2), (b"\xe0\x80\x80", 2), (b"\xf4\x90\x80\x80", 2), (b"\x80", 1)];
    for (bad, certain_at) in table {
        let text = [prefix, bad, b"the rest"].concat();
        let certain = prefix.len() + certain_at;
        let whole = client_frame(Opcode::Text, true, false, &text);
        let header_len = whole.len() - text.len();
        for split in 0..certain {
            let mut reader = Reader::new(false, LIMITS);
            reader.read(&whole[..header_len + split]).unwrap();
            reader.read(&whole[header_len + split..header_len + certain - 1]).unwrap();
            let result = reader.read(&whole[header_len + certain - 1..header_len + certain]);
            assert_eq!(result, Err(Disconnect::InvalidUtf8), "{bad:?} after {split}");

            let mut reader = Reader::new(false, LIMITS);
            reader.read(&client_frame(Opcode::Text, false, false, &text[..split])).unwrap();
            let rest = client_frame(Opcode::Continuation, false, false, &text[split..certain]);
            assert_eq!(reader.read(&rest), Err(Disconnect::InvalidUtf8), "{bad:?} after {split}");
        }
    }
}

/// A message as a client may send it: text or binary, fragmented or not, compressed or not.
#[derive(Clone, Debug)]
struct Sent {
    text: Option<String>,
    bytes: Vec<u8>,
    compressed: bool,
    fragments: usize,
    ping: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..400);
    (proptest::option::of(".{0,120}"), bytes, any::<bool>(), 1_usize..5, any::<bool>()).prop_map(
        |(text, bytes, compressed, fragments, ping)| Sent {
            text,
            bytes,
            compressed,
            fragments,
            ping,
        },
    )
}

impl Sent {
    fn encode(&self, out: &mut Vec<u8>, items: &mut Vec<Owned>) {
        let (first, payload) = match &self.text {
            Some(text) => (Opcode::Text, text.as_bytes().to_vec()),
            None => (Opcode::Binary, self.bytes.clone()),
        };
        let wire = if self.compressed { deflated(&payload) } else { payload.clone() };
        let step = wire.len().div_ceil(self.fragments).max(1);
        let pieces: Vec<&[u8]> =
            if wire.is_empty() { vec![&[]] } else { wire.chunks(step).collect() };
        for (index, piece) in pieces.iter().enumerate() {
            let opcode = if index == 0 { first } else { Opcode::Continuation };
            let (fin, rsv1) = (index + 1 == pieces.len(), self.compressed && index == 0);
            out.extend(client_frame(opcode, fin, rsv1, piece));
            if self.ping && !fin {
                out.extend(client_frame(Opcode::Ping, true, false, b"between"));
                items.push(Owned::Ping(b"between".to_vec()));
            }
        }
        items.push(match first {
            Opcode::Text => Owned::Text(payload),
            _ => Owned::Binary(payload),
        });
    }
}

proptest! {
    #[test]
    fn any_conversation_in_any_pieces(
        messages in proptest::collection::vec(sent(), 1..6),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for message in &messages {
            message.encode(&mut bytes, &mut expected);
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(read_cut(&bytes, &cuts), (expected, Ok(())));
    }

    #[test]
    fn garbage_gives_the_same_end_in_any_pieces(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        opcode in prop_oneof![Just(0x81_u8), Just(0x01), Just(0x82), Just(0xC1), Just(0x88)],
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = opcode;
        }
        let everywhere: Vec<_> = (0..bytes.len()).collect();
        let (whole, whole_end) = read_cut(&bytes, &[]);
        let (pieces, pieces_end) = read_cut(&bytes, &everywhere);
        prop_assert_eq!(whole, pieces);
        prop_assert_eq!(whole_end, pieces_end);
    }
}
