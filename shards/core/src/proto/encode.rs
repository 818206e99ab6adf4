//! Writes envelopes as WebSocket text frames.
//!
//! The JSON text is written behind room for the longest frame header; the header is then put right in front of it, so
//! that a frame is built once, without a copy.

use std::time::Duration;

use bytes::Bytes;

use super::json::{self, Object};
use crate::message::StreamPosition;
use crate::time::rfc3339;
use crate::ws::deflate::Deflater;
use crate::ws::frame::{self, Opcode};

const HEADER_ROOM: usize = 10;
const FIN_TEXT: u8 = 0x81;

/// One envelope under construction: `type`, `id` and `timestamp` first, then optional fields, then `data`.
#[derive(Debug)]
pub struct EnvelopeWriter {
    out: Vec<u8>,
}

/// A finished envelope.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The JSON text, a view into `frame`.
    pub json: Bytes,
    /// One unmasked text frame.
    pub frame: Bytes,
    /// Bytes that both take on the heap.
    pub heap_bytes: usize,
}

/// What bytes that are shared take beside themselves: a vector's three words, or less, and their number of owners.
const SHARED_BYTES: usize = 4 * size_of::<usize>();

impl EnvelopeWriter {
    /// Begins an envelope; `capacity` is a guess of its size.
    pub fn new(kind: &str, id: &str, unix: Duration, capacity: usize) -> Self {
        let mut out = Vec::with_capacity(HEADER_ROOM + 96 + capacity);
        out.extend_from_slice(&[0; HEADER_ROOM]);
        out.extend_from_slice(b"{\"type\":");
        json::push_str(&mut out, kind);
        out.extend_from_slice(b",\"id\":");
        json::push_str(&mut out, id);
        out.extend_from_slice(b",\"timestamp\":\"");
        out.extend_from_slice(&rfc3339(unix));
        out.push(b'"');
        Self { out }
    }

    /// Adds a string member to the envelope.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        json::push_str(&mut self.out, value);
        self
    }

    /// Adds `reply_to`, unless the command had no id.
    #[must_use]
    pub fn reply_to(self, id: &str) -> Self {
        if id.is_empty() { self } else { self.field("reply_to", id) }
    }

    /// Adds `offset` and `epoch`.
    #[must_use]
    pub fn position(mut self, position: StreamPosition) -> Self {
        self.out.extend_from_slice(b",\"offset\":");
        json::push_u64(&mut self.out, position.offset);
        self.field("epoch", position.epoch.as_str())
    }

    /// Adds members that are JSON text already, without braces.
    #[must_use]
    pub fn members(mut self, members: &[u8]) -> Self {
        if !members.is_empty() {
            self.out.push(b',');
            self.out.extend_from_slice(members);
        }
        self
    }

    /// Adds a member whose value is JSON text already.
    #[must_use]
    pub fn raw(mut self, name: &str, value: &[u8]) -> Self {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out.extend_from_slice(value);
        self
    }

    /// Adds `data` as an object and finishes.
    pub fn data(mut self, fill: impl FnOnce(&mut Object<'_>)) -> Encoded {
        self.out.extend_from_slice(b",\"data\":");
        let mut object = Object::begin(&mut self.out);
        fill(&mut object);
        object.end();
        self.finish()
    }

    /// Adds `data` as JSON text and finishes.
    pub fn raw_data(mut self, data: &[u8]) -> Encoded {
        self.out.extend_from_slice(b",\"data\":");
        self.out.extend_from_slice(if data.is_empty() { b"{}" } else { data });
        self.finish()
    }

    fn finish(mut self) -> Encoded {
        self.out.push(b'}');
        let length = self.out.len() - HEADER_ROOM;
        let start = if length < 126 {
            self.out[8] = FIN_TEXT;
            self.out[9] = length as u8;
            8
        } else if let Ok(short) = u16::try_from(length) {
            self.out[6] = FIN_TEXT;
            self.out[7] = 126;
            self.out[8..10].copy_from_slice(&short.to_be_bytes());
            6
        } else {
            self.out[0] = FIN_TEXT;
            self.out[1] = 127;
            self.out[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            0
        };
        let heap_bytes = self.out.capacity() + SHARED_BYTES;
        let all = Bytes::from(self.out);
        Encoded { json: all.slice(HEADER_ROOM..), frame: all.slice(start..), heap_bytes }
    }
}

/// Length of the header of a frame of ours.
pub fn header_bytes(frame: &[u8]) -> usize {
    match frame.get(1) {
        Some(126) => 4,
        Some(127) => HEADER_ROOM,
        _ => 2,
    }
}

/// Bytes that a frame of [`deflated_text_frame`] takes on the heap.
pub fn deflated_heap_bytes(frame: &[u8]) -> usize {
    frame.len() + HEADER_ROOM + SHARED_BYTES
}

/// One compressed text frame for `json`; `None` when that would be no smaller.
pub fn deflated_text_frame(deflater: &mut Deflater, json: &[u8]) -> Option<Bytes> {
    let mut compressed = Vec::with_capacity(json.len() / 2 + 16);
    deflater.deflate(json, &mut compressed);
    if compressed.len() >= json.len() {
        return None;
    }
    let mut out = Vec::with_capacity(compressed.len() + HEADER_ROOM);
    frame::encode(&mut out, Opcode::Text, true, &compressed);
    Some(out.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::message::Epoch;

    #[test]
    fn frames_carry_the_json_with_the_right_header() {
        for payload in [0usize, 10, 100, 200, 70_000] {
            let text = format!("\"{}\"", "x".repeat(payload));
            let position = StreamPosition { offset: 7, epoch: Epoch(*b"abcdefgh") };
            let encoded = EnvelopeWriter::new("message", "1", Duration::ZERO, payload)
                .reply_to("")
                .field("channel", "a:\"b")
                .position(position)
                .raw_data(text.as_bytes());
            let header = encoded.frame.len() - encoded.json.len();
            let length = encoded.json.len();
            let expected = if length < 126 {
                2
            } else if length < 65_536 {
                4
            } else {
                10
            };
            assert_eq!(header, expected);
            assert_eq!(encoded.frame[0], 0x81);
            let value: serde_json::Value = serde_json::from_slice(&encoded.json).unwrap();
            assert_eq!(value["channel"], "a:\"b");
            assert_eq!(value["offset"], 7);
            assert_eq!(value["epoch"], "abcdefgh");
            assert!(value.get("reply_to").is_none());
        }
    }
}
