//! Frames of RFC 6455 section 5.2: reading and writing headers, and encoding whole frames.
//!
//! [`Header::parse`] refuses whatever is wrong in a frame by itself and as early as the bytes tell. What is wrong only
//! in its place (a missing mask, a continuation of nothing) is for the reader of the stream to find.

use crate::error::Disconnect;
use crate::ws::{close, mask};

/// Longest frame header: two bytes, eight of length and four of mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// Longest payload of a control frame.
pub const CONTROL_BYTES_MAX: usize = 125;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_RSV3: u8 = 0x30;
const MASKED: u8 = 0x80;

/// Values of the short length that stand for a length in the next two or eight bytes.
const LEN_IN_2: u8 = 0x7E;
const LEN_IN_8: u8 = 0x7F;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Next fragment of a message.
    Continuation = 0x0,
    /// First (or only) fragment of a UTF-8 message.
    Text = 0x1,
    /// First (or only) fragment of a binary message.
    Binary = 0x2,
    /// Start or answer of the closing handshake.
    Close = 0x8,
    /// Wants a pong with the same payload.
    Ping = 0x9,
    /// Answer to a ping, or a sign of life.
    Pong = 0xA,
}

impl Opcode {
    /// Whether it is a control frame: short, never fragmented, allowed between fragments.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }
}

/// Everything of a frame but its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Last fragment of its message.
    pub fin: bool,
    /// Set on the first frame of a message compressed by permessage-deflate.
    pub rsv1: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// Mask of the payload; every frame of a client has one, no frame of a server does.
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload.
    pub payload_len: u64,
}

impl Header {
    /// Reads a header and its own length from the front of `bytes`; `Ok(None)` when more bytes are needed.
    ///
    /// # Errors
    /// `ProtocolError` for RSV2 or RSV3, an unknown opcode, a control frame that is fragmented, compressed or too
    /// long, and a length that is not in its shortest form or has its highest bit set. RSV1 on data frames is left
    /// to the caller, who knows what was negotiated.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Disconnect> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let opcode = Opcode::from_bits(first & 0x0F).ok_or(Disconnect::ProtocolError)?;
        let (fin, rsv1) = (first & FIN != 0, first & RSV1 != 0);
        if first & RSV2_RSV3 != 0 || (opcode.is_control() && (!fin || rsv1)) {
            return Err(Disconnect::ProtocolError);
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let short_len = second & !MASKED;
        if opcode.is_control() && usize::from(short_len) > CONTROL_BYTES_MAX {
            return Err(Disconnect::ProtocolError);
        }
        let Some((payload_len, mask_at)) = parse_len(short_len, &bytes[2..])? else {
            return Ok(None);
        };
        let (mask, len) = if second & MASKED == 0 {
            (None, mask_at)
        } else {
            let Some(mask) = bytes[mask_at..].first_chunk::<4>() else { return Ok(None) };
            (Some(*mask), mask_at + 4)
        };
        Ok(Some((Self { fin, rsv1, opcode, mask, payload_len }, len)))
    }

    /// Appends the header.
    pub fn write(&self, out: &mut Vec<u8>) {
        let flags = if self.fin { FIN } else { 0 } | if self.rsv1 { RSV1 } else { 0 };
        out.push(flags | self.opcode as u8);
        let masked = if self.mask.is_some() { MASKED } else { 0 };
        if self.payload_len <= CONTROL_BYTES_MAX as u64 {
            out.push(masked | self.payload_len as u8);
        } else if let Ok(len) = u16::try_from(self.payload_len) {
            out.push(masked | LEN_IN_2);
            out.extend_from_slice(&len.to_be_bytes());
        } else {
            out.push(masked | LEN_IN_8);
            out.extend_from_slice(&self.payload_len.to_be_bytes());
        }
        if let Some(mask) = self.mask {
            out.extend_from_slice(&mask);
        }
    }
}

/// Payload length and the place after the length field; `extended` begins at byte 2 of the frame.
fn parse_len(short_len: u8, extended: &[u8]) -> Result<Option<(u64, usize)>, Disconnect> {
    let (len, end, shortest) = match short_len {
        LEN_IN_2 => {
            let Some(bytes) = extended.first_chunk::<2>() else { return Ok(None) };
            let len = u64::from(u16::from_be_bytes(*bytes));
            (len, 4, len > CONTROL_BYTES_MAX as u64)
        }
        LEN_IN_8 => {
            let Some(bytes) = extended.first_chunk::<8>() else { return Ok(None) };
            let len = u64::from_be_bytes(*bytes);
            (len, 10, len > u64::from(u16::MAX) && len >> 63 == 0)
        }
        len => (u64::from(len), 2, true),
    };
    if shortest { Ok(Some((len, end))) } else { Err(Disconnect::ProtocolError) }
}

/// Bytes of the header of an unmasked frame with so many bytes of payload.
pub fn header_len(payload_len: usize) -> usize {
    match payload_len {
        0..=CONTROL_BYTES_MAX => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

/// Appends the header of an unmasked frame.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, fin: bool, rsv1: bool, payload_len: usize) {
    Header { fin, rsv1, opcode, mask: None, payload_len: payload_len as u64 }.write(out);
}

/// Appends an unmasked, unfragmented frame. A control frame's payload is at most [`CONTROL_BYTES_MAX`] bytes.
pub fn encode(out: &mut Vec<u8>, opcode: Opcode, rsv1: bool, payload: &[u8]) {
    debug_assert!(!opcode.is_control() || payload.len() <= CONTROL_BYTES_MAX);
    out.reserve(header_len(payload.len()) + payload.len());
    write_header(out, opcode, true, rsv1, payload.len());
    out.extend_from_slice(payload);
}

/// Appends an unmasked close frame; the reason is cut to what fits.
pub fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = close::cut_reason(reason);
    write_header(out, Opcode::Close, true, false, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends a masked, unfragmented frame, as a client sends it.
pub fn encode_masked(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: [u8; 4]) {
    let payload_len = payload.len() as u64;
    let header = Header { fin: true, rsv1: false, opcode, mask: Some(mask), payload_len };
    encode_with(out, &header, payload);
}

/// Appends a frame with any header; the payload is masked when the header has a mask. `header.payload_len` is
/// written as it stands.
pub fn encode_with(out: &mut Vec<u8>, header: &Header, payload: &[u8]) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    header.write(out);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = header.mask {
        mask::apply(mask, 0, &mut out[start..]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opcodes() -> impl Strategy<Value = Opcode> {
        prop_oneof![Just(Opcode::Continuation), Just(Opcode::Text), Just(Opcode::Binary)]
    }

    proptest! {
        #[test]
        fn header_round_trip_from_every_prefix(
            fin: bool,
            rsv1: bool,
            opcode in opcodes(),
            mask: Option<[u8; 4]>,
            payload_len in prop_oneof![0_u64..300, 65_000_u64..66_000, 0_u64..1 << 63],
        ) {
            let header = Header { fin, rsv1, opcode, mask, payload_len };
            let mut bytes = Vec::new();
            header.write(&mut bytes);
            prop_assert!(bytes.len() <= HEADER_BYTES_MAX);
            for end in 0..bytes.len() {
                prop_assert_eq!(Header::parse(&bytes[..end]), Ok(None));
            }
            prop_assert_eq!(Header::parse(&bytes), Ok(Some((header, bytes.len()))));
        }
    }

    #[test]
    fn lengths_at_the_borders() {
        for len in [0, 1, 125, 126, 127, 65_535, 65_536] {
            let mut bytes = Vec::new();
            encode(&mut bytes, Opcode::Binary, false, &vec![7; len]);
            let (header, at) = Header::parse(&bytes).unwrap().unwrap();
            assert_eq!(header.payload_len, len as u64);
            assert_eq!(at, header_len(len));
            assert_eq!(bytes.len(), at + len);
        }
    }

    #[test]
    fn refused_headers() {
        let table: &[(&str, &[u8])] = &[
            ("rsv2", &[0xA1]),
            ("rsv3", &[0x91]),
            ("reserved data opcode 3", &[0x83]),
            ("reserved data opcode 7", &[0x87]),
            ("reserved control opcode 11", &[0x8B]),
            ("reserved control opcode 15", &[0x8F]),
            ("fragmented ping", &[0x09]),
            ("compressed ping", &[0xC9]),
            ("long ping", &[0x89, 0xFE]),
            ("longer close", &[0x88, 0x7F]),
            ("125 in two bytes", &[0x82, 0xFE, 0, 125]),
            ("65535 in eight bytes", &[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]),
            ("highest bit of the length", &[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (name, bytes) in table {
            assert_eq!(Header::parse(bytes), Err(Disconnect::ProtocolError), "{name}");
        }
    }

    #[test]
    fn close_frame() {
        let mut bytes = Vec::new();
        encode_close(&mut bytes, 4001, &"x".repeat(300));
        let (header, at) = Header::parse(&bytes).unwrap().unwrap();
        assert_eq!((header.opcode, header.payload_len), (Opcode::Close, 125));
        let (code, reason) = close::parse(&bytes[at..]).unwrap();
        assert_eq!((code, reason.len()), (Some(4001), 123));
    }
}
