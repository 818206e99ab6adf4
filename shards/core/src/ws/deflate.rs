//! permessage-deflate (RFC 7692): negotiation, and one inflater and deflater that all connections of a shard share.
//!
//! Sharing is possible because neither side keeps its window between messages: `server_no_context_takeover` and
//! `client_no_context_takeover` stand in every answer. A publication can therefore be compressed once for everyone,
//! with the full window of 32 KiB; an offer that wants a smaller server window is declined.

use std::fmt;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::error::Disconnect;

/// End of a sync flush, which is cut from every compressed message (RFC 7692 section 7.2.1).
const FLUSH_TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// Window that the shared deflater uses, as its base-2 logarithm.
const SERVER_WINDOW_BITS: u8 = 15;

/// Streams that one message may consist of. A sender that ends its stream (BFINAL) may go on with a new one; each
/// costs a reset, so thousands of empty ones would be an attack.
const STREAMS_MAX: u32 = 16;

/// Output buffers grow by at least this much.
const GROWTH_BYTES_MIN: usize = 512;

/// The accepted offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Value of `Sec-WebSocket-Extensions` in the response.
    pub response: String,
    /// Whether we may compress what we send. A client that demands a smaller window than the one that shared frames are
    /// compressed with gets everything uncompressed, which the extension allows for any message.
    pub compress: bool,
}

/// Picks the first acceptable offer from the values of the request's `Sec-WebSocket-Extensions` headers. Offers that
/// are malformed, unknown or cannot be honoured are passed over.
pub fn negotiate<'a>(extension_headers: impl Iterator<Item = &'a str>) -> Option<Negotiated> {
    extension_headers.flat_map(|header| split_unquoted(header, b',')).find_map(accept_offer)
}

/// One offer: `permessage-deflate; name; name=value; name="value"`.
fn accept_offer(offer: &str) -> Option<Negotiated> {
    let mut parts = split_unquoted(offer, b';');
    if !parts.next()?.trim().eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut seen = [false; 4];
    let mut server_bits = None;
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(unquote(value.trim())?)),
            None => (part.trim(), None),
        };
        let (index, acceptable) = match (name, value) {
            ("server_no_context_takeover", None) => (0, true),
            ("client_no_context_takeover", None) => (1, true),
            ("server_max_window_bits", Some(value)) => {
                server_bits = Some(window_bits(value)?);
                (2, true)
            }
            // The inflater reads any window, so a narrower one of the client needs no answer.
            ("client_max_window_bits", None) => (3, true),
            ("client_max_window_bits", Some(value)) => (3, window_bits(value).is_some()),
            _ => return None,
        };
        if !acceptable || std::mem::replace(&mut seen[index], true) {
            return None;
        }
    }
    let mut response =
        String::from("permessage-deflate; server_no_context_takeover; client_no_context_takeover");
    if let Some(bits) = server_bits {
        response.push_str("; server_max_window_bits=");
        response.push_str(&bits.to_string());
    }
    let compress = server_bits.is_none_or(|bits| bits == SERVER_WINDOW_BITS);
    Some(Negotiated { response, compress })
}

/// 8 to 15, without leading zeros or sign.
fn window_bits(text: &str) -> Option<u8> {
    let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|bits| plain && (8..=15).contains(bits))
}

/// A token, or the token inside a quoted string. No parameter of this extension needs an escape.
fn unquote(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|inner| !inner.contains(['"', '\\'])),
        None => (!value.contains('"')).then_some(value),
    }
}

/// Splits at `separator` outside of quoted strings.
fn split_unquoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let current = rest?;
        let (mut quoted, mut escaped) = (false, false);
        for (index, byte) in current.bytes().enumerate() {
            if escaped {
                escaped = false;
            } else if byte == b'"' {
                quoted = !quoted;
            } else if byte == b'\\' && quoted {
                escaped = true;
            } else if byte == separator && !quoted {
                rest = Some(&current[index + 1..]);
                return Some(&current[..index]);
            }
        }
        rest = None;
        Some(current)
    })
}

/// Decompresses messages of every connection of a shard. The zlib state is allocated by the first message.
#[derive(Default)]
pub struct Inflater {
    zlib: Option<Decompress>,
    /// The last message, lent to whoever handles it.
    scratch: Vec<u8>,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater")
            .field("scratch_capacity", &self.scratch.capacity())
            .finish_non_exhaustive()
    }
}

impl Inflater {
    /// An inflater without any memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the message that `compressed` (all fragments, unmasked) stands for to `out`.
    ///
    /// # Errors
    /// `MessageTooLarge` as soon as it grows beyond `bytes_max`; `ProtocolError` when it is no deflate stream.
    pub fn inflate(
        &mut self,
        compressed: &[u8],
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<(), Disconnect> {
        let zlib = self.zlib.get_or_insert_with(|| Decompress::new(false));
        zlib.reset(false);
        let start = out.len();
        let end_max = start.saturating_add(bytes_max);
        // Text compresses to about a third; a wrong guess only costs a reallocation.
        let guess = compressed.len().saturating_mul(3).max(GROWTH_BYTES_MIN);
        out.reserve(guess.min(bytes_max.saturating_add(1)));
        // A sender may end the stream (BFINAL) and say nothing more; then the tail belongs to nothing.
        let ended = feed(zlib, compressed, out, end_max)?;
        if !ended {
            feed(zlib, &FLUSH_TAIL, out, end_max)?;
        }
        Ok(())
    }

    /// Like [`Inflater::inflate`], into memory of the inflater's own that lives until the next call.
    pub fn inflate_in_place(
        &mut self,
        compressed: &[u8],
        bytes_max: usize,
    ) -> Result<&mut [u8], Disconnect> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let result = self.inflate(compressed, &mut scratch, bytes_max);
        self.scratch = scratch;
        result.map(|()| self.scratch.as_mut_slice())
    }
}

/// Inflates all of `input`; answers whether the stream ended with its last byte.
fn feed(
    zlib: &mut Decompress,
    mut input: &[u8],
    out: &mut Vec<u8>,
    end_max: usize,
) -> Result<bool, Disconnect> {
    let mut streams = 0;
    while !input.is_empty() {
        if out.len() == out.capacity() {
            // One byte more than allowed is enough to tell that there is more.
            let room = end_max.saturating_add(1).saturating_sub(out.len()).max(1);
            out.reserve(room.min(out.len().max(GROWTH_BYTES_MIN)));
        }
        let (in_before, out_before) = (zlib.total_in(), out.len());
        let status = zlib
            .decompress_vec(input, out, FlushDecompress::Sync)
            .map_err(|_| Disconnect::ProtocolError)?;
        let consumed = (zlib.total_in() - in_before) as usize;
        input = &input[consumed..];
        if out.len() > end_max {
            return Err(Disconnect::MessageTooLarge);
        }
        if status == Status::StreamEnd {
            zlib.reset(false);
            streams += 1;
            if input.is_empty() {
                return Ok(true);
            }
            if streams == STREAMS_MAX {
                return Err(Disconnect::ProtocolError);
            }
        } else if consumed == 0 && out.len() == out_before {
            return Err(Disconnect::ProtocolError);
        }
    }
    drain(zlib, out, end_max)
}

/// Takes what the inflater still holds back for want of room.
fn drain(zlib: &mut Decompress, out: &mut Vec<u8>, end_max: usize) -> Result<bool, Disconnect> {
    while out.len() == out.capacity() {
        let room = end_max.saturating_add(1).saturating_sub(out.len()).max(1);
        out.reserve(room.min(out.len().max(GROWTH_BYTES_MIN)));
        let status = zlib
            .decompress_vec(&[], out, FlushDecompress::Sync)
            .map_err(|_| Disconnect::ProtocolError)?;
        if out.len() > end_max {
            return Err(Disconnect::MessageTooLarge);
        }
        if status == Status::StreamEnd {
            zlib.reset(false);
            return Ok(true);
        }
    }
    Ok(false)
}

/// Compresses messages for every connection of a shard. The zlib state is allocated by the first message.
pub struct Deflater {
    level: Compression,
    zlib: Option<Compress>,
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflater").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Deflater {
    /// A deflater of zlib level 0-9 (higher values count as 9) without any memory yet.
    pub fn new(level: u32) -> Self {
        Self { level: Compression::new(level.min(9)), zlib: None }
    }

    /// Appends `payload` compressed as one message, for a frame with RSV1.
    pub fn deflate(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let level = self.level;
        let zlib = self.zlib.get_or_insert_with(|| Compress::new(level, false));
        zlib.reset();
        // What stored blocks of an incompressible payload need, plus the end of the flush.
        out.reserve(payload.len() + payload.len() / 1000 + 64);
        let mut input = payload;
        loop {
            let before = zlib.total_in();
            let status = zlib
                .compress_vec(input, out, FlushCompress::Sync)
                .expect("a deflate state that was just reset takes any input");
            input = &input[(zlib.total_in() - before) as usize..];
            // Room left over means that the flush is complete.
            if input.is_empty() && (out.len() < out.capacity() || status == Status::BufError) {
                break;
            }
            out.reserve(GROWTH_BYTES_MIN);
        }
        debug_assert!(out.ends_with(&FLUSH_TAIL));
        out.truncate(out.len() - FLUSH_TAIL.len());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    #[test]
    fn offers() {
        let with_bits = format!("{PLAIN}; server_max_window_bits=15");
        let narrow = format!("{PLAIN}; server_max_window_bits=9");
        let table: &[(&[&str], Option<&str>)] = &[
            (&["permessage-deflate"], Some(PLAIN)),
            (&["Permessage-Deflate ; client_max_window_bits"], Some(PLAIN)),
            (&["permessage-deflate; client_max_window_bits=8"], Some(PLAIN)),
            (&["permessage-deflate; client_max_window_bits=\"10\""], Some(PLAIN)),
            (&["permessage-deflate; server_max_window_bits=15"], Some(&with_bits)),
            (&["permessage-deflate; server_max_window_bits = \"15\""], Some(&with_bits)),
            (
                &["permessage-deflate; server_no_context_takeover; client_no_context_takeover"],
                Some(PLAIN),
            ),
            (&["permessage-deflate; server_max_window_bits=9"], Some(&narrow)),
            // The next offer of the same or of another header gets its chance.
            (&["permessage-deflate; server_max_window_bits=7, permessage-deflate"], Some(PLAIN)),
            (&["x-webkit-deflate-frame", "permessage-deflate"], Some(PLAIN)),
            (&["foo; a=\"x, permessage-deflate\\\"\", permessage-deflate"], Some(PLAIN)),
            (&["foo; a=\"x, permessage-deflate\""], None),
            (&["permessage-deflate; server_max_window_bits=16"], None),
            (&["permessage-deflate; server_max_window_bits"], None),
            (&["permessage-deflate; client_max_window_bits=7"], None),
            (&["permessage-deflate; client_max_window_bits=16"], None),
            (&["permessage-deflate; client_max_window_bits=08"], None),
            (&["permessage-deflate; client_max_window_bits=+9"], None),
            (&["permessage-deflate; client_max_window_bits="], None),
            (&["permessage-deflate; server_no_context_takeover=1"], None),
            (&["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], None),
            (&["permessage-deflate; unknown"], None),
            (&["permessage-deflate;"], None),
            (&["permessage-deflate; client_max_window_bits=\"9"], None),
            (&["", ",", ";", "deflate"], None),
            (&[], None),
        ];
        for (headers, expected) in table {
            let answer = negotiate(headers.iter().copied()).map(|accepted| accepted.response);
            assert_eq!(answer.as_deref(), *expected, "{headers:?}");
        }
    }

    #[test]
    fn a_narrow_window_means_sending_uncompressed() {
        let compress = |offer: &str| negotiate([offer].into_iter()).unwrap().compress;
        assert!(compress("permessage-deflate"));
        assert!(compress("permessage-deflate; server_max_window_bits=15"));
        assert!(!compress("permessage-deflate; server_max_window_bits=8"));
    }

    fn inflate(compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, Disconnect> {
        let mut out = Vec::new();
        Inflater::new().inflate(compressed, &mut out, bytes_max).map(|()| out)
    }

    #[test]
    fn examples_of_the_rfc() {
        let hello = Ok(b"Hello".to_vec());
        let fixed = [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
        assert_eq!(inflate(&fixed, 5), hello);
        let stored = [0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00];
        assert_eq!(inflate(&stored, 5), hello);
        let with_final_block = [0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00];
        assert_eq!(inflate(&with_final_block, 5), hello);
        let two_blocks =
            [0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0];
        assert_eq!(inflate(&two_blocks, 5), hello);
        assert_eq!(inflate(&[0x00], 0), Ok(Vec::new()));
        assert_eq!(inflate(&fixed, 4), Err(Disconnect::MessageTooLarge));
    }

    #[test]
    fn empty_message_is_one_byte() {
        let mut out = Vec::new();
        Deflater::new(6).deflate(b"", &mut out);
        assert_eq!(out, [0]);
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(inflate(&[0xFF; 16], 1 << 20), Err(Disconnect::ProtocolError));
        // A match that reaches back before the start of the message: no window is carried over.
        let mut inflater = Inflater::new();
        let mut out = Vec::new();
        inflater.inflate(&[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00], &mut out, 100).unwrap();
        let reuse_of_window = [0xF2, 0x00, 0x11, 0x00, 0x00];
        let refused = inflater.inflate(&reuse_of_window, &mut out, 100);
        assert_eq!(refused, Err(Disconnect::ProtocolError));
    }

    #[test]
    fn flood_of_empty_streams_is_refused() {
        let flood = [0x03, 0x00].repeat(1_000);
        assert_eq!(inflate(&flood, 1 << 20), Err(Disconnect::ProtocolError));
        assert_eq!(inflate(&[0x03, 0x00], 1 << 20), Ok(Vec::new()));
    }

    #[test]
    fn bomb_is_bounded() {
        let mut bomb = Vec::new();
        Deflater::new(9).deflate(&vec![b'a'; 16 << 20], &mut bomb);
        assert!(bomb.len() < 32 << 10);
        let mut out = Vec::new();
        let result = Inflater::new().inflate(&bomb, &mut out, 64 << 10);
        assert_eq!(result, Err(Disconnect::MessageTooLarge));
        assert!(out.capacity() <= 256 << 10, "{}", out.capacity());
    }

    #[test]
    fn limit_is_exact() {
        for len in [511, 512, 513, 4_096, 100_000] {
            let payload: Vec<u8> = (0..len).map(|index: usize| (index / 7) as u8).collect();
            let mut compressed = Vec::new();
            Deflater::new(1).deflate(&payload, &mut compressed);
            assert_eq!(inflate(&compressed, len), Ok(payload), "{len}");
            assert_eq!(inflate(&compressed, len - 1), Err(Disconnect::MessageTooLarge), "{len}");
        }
    }

    proptest! {
        #[test]
        fn round_trip_through_shared_state(
            level in 0_u32..10,
            messages in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..2_000),
                    proptest::collection::vec(0_u8..3, 0..9_000),
                ],
                1..6,
            ),
        ) {
            let mut deflater = Deflater::new(level);
            let mut inflater = Inflater::new();
            for message in messages {
                let mut compressed = vec![1, 2, 3];
                deflater.deflate(&message, &mut compressed);
                prop_assert_eq!(&compressed[..3], &[1, 2, 3]);
                let inflated = inflater.inflate_in_place(&compressed[3..], message.len());
                prop_assert_eq!(inflated.unwrap(), message.as_slice());
            }
        }
    }
}
