//! The client's side of WebSocket framing: server frames in, masked frames out.
//!
//! A binary or masked frame is a fault of the server, and so is a compressed one when permessage-deflate was not
//! negotiated. Messages stay compressed here.

use std::ops::Range;

use gateway_core::ws::frame::{self, Header, Opcode};

/// Bytes of a message that the server may send; what claims to be longer is a fault.
pub(crate) const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// Something complete in the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A text message that lies in the input.
    Text(Range<usize>),
    /// A compressed text message that lies in the input.
    Deflated(Range<usize>),
    /// A text message put together from fragments, and whether it is compressed.
    Assembled(Vec<u8>, bool),
    /// A fragment; its message goes on.
    Fragment,
    /// Wants a pong with the payload at this place.
    Ping(Range<usize>),
    /// Nobody asked for it.
    Pong,
    /// The server closes; 1005 when it gave no code.
    Close(u16),
}

/// Puts frames together to messages.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    deflate: bool,
    /// What has come of a fragmented message, and whether it is compressed.
    fragments: Option<(Vec<u8>, bool)>,
}

impl Decoder {
    /// A decoder for a connection with or without permessage-deflate.
    pub(crate) fn new(deflate: bool) -> Self {
        Self { deflate, fragments: None }
    }

    /// Whether compressed messages may be exchanged.
    pub(crate) fn deflates(&self) -> bool {
        self.deflate
    }

    /// Takes one frame from the front of `input`; answers it with the bytes it took, or `None` when it is not all there.
    pub(crate) fn next(&mut self, input: &[u8]) -> Result<Option<(Item, usize)>, &'static str> {
        let parsed = Header::parse(input).map_err(|_| "malformed frame header")?;
        let Some((header, start)) = parsed else { return Ok(None) };
        if header.mask.is_some() {
            return Err("masked frame from the server");
        }
        if header.rsv1 && !(self.deflate && header.opcode == Opcode::Text) {
            return Err("compressed frame though nothing was negotiated");
        }
        if header.payload_len > MESSAGE_BYTES_MAX {
            return Err("frame longer than 64 MiB");
        }
        let end = start + header.payload_len as usize;
        let Some(payload) = input.get(start..end) else { return Ok(None) };
        Ok(Some((self.item(&header, start..end, payload)?, end)))
    }

    fn item(
        &mut self,
        header: &Header,
        place: Range<usize>,
        payload: &[u8],
    ) -> Result<Item, &'static str> {
        match (header.opcode, &mut self.fragments) {
            (Opcode::Text, None) if header.fin && header.rsv1 => Ok(Item::Deflated(place)),
            (Opcode::Text, None) if header.fin => Ok(Item::Text(place)),
            (Opcode::Text, None) => {
                self.fragments = Some((payload.to_vec(), header.rsv1));
                Ok(Item::Fragment)
            }
            (Opcode::Continuation, Some((fragments, _))) => {
                fragments.extend_from_slice(payload);
                if !header.fin {
                    return Ok(Item::Fragment);
                }
                let (message, deflated) = self.fragments.take().unwrap_or_default();
                Ok(Item::Assembled(message, deflated))
            }
            (Opcode::Ping, _) => Ok(Item::Ping(place)),
            (Opcode::Pong, _) => Ok(Item::Pong),
            (Opcode::Close, _) => Ok(Item::Close(
                payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code)),
            )),
            (Opcode::Binary, _) => Err("binary frame on a text protocol"),
            (Opcode::Continuation, None) => Err("continuation of no message"),
            (Opcode::Text, Some(_)) => Err("new message inside a fragmented one"),
        }
    }
}

/// Appends a masked text frame.
pub(crate) fn push_text(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    frame::encode_masked(out, Opcode::Text, payload, mask);
}

/// Appends a masked text frame with a compressed payload.
pub(crate) fn push_deflated(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    let (opcode, payload_len) = (Opcode::Text, payload.len() as u64);
    let header = Header { fin: true, rsv1: true, opcode, mask: Some(mask), payload_len };
    frame::encode_with(out, &header, payload);
}

/// Appends a masked pong.
pub(crate) fn push_pong(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    frame::encode_masked(out, Opcode::Pong, payload, mask);
}

/// Appends a masked close frame with a code.
pub(crate) fn push_close(out: &mut Vec<u8>, code: u16, mask: [u8; 4]) {
    frame::encode_masked(out, Opcode::Close, &code.to_be_bytes(), mask);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn server(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        let header =
            Header { fin, rsv1: false, opcode, mask: None, payload_len: payload.len() as u64 };
        let mut out = Vec::new();
        frame::encode_with(&mut out, &header, payload);
        out
    }

    /// Feeds `input` one byte more at a time, as the worst network would.
    fn drip(input: &[u8]) -> Vec<Item> {
        let (mut decoder, mut items, mut from) = (Decoder::default(), Vec::new(), 0);
        for end in 0..=input.len() {
            while let Some((item, used)) = decoder.next(&input[from..end]).unwrap() {
                items.push(item);
                from += used;
            }
        }
        assert_eq!(from, input.len(), "nothing is left over");
        items
    }

    #[test]
    fn frames_are_found_whatever_the_pieces() {
        let mut input = server(Opcode::Text, true, b"hello");
        input.extend(server(Opcode::Text, true, &vec![b'x'; 70_000]));
        input.extend(server(Opcode::Ping, true, b"now"));
        input.extend(server(Opcode::Close, true, &4001_u16.to_be_bytes()));
        assert_eq!(
            drip(&input),
            [Item::Text(2..7), Item::Text(10..70_010), Item::Ping(2..5), Item::Close(4001)]
        );
    }

    #[test]
    fn fragments_become_one_message_around_control_frames() {
        let mut input = server(Opcode::Text, false, b"he");
        input.extend(server(Opcode::Ping, true, b""));
        input.extend(server(Opcode::Continuation, false, b"ll"));
        input.extend(server(Opcode::Continuation, true, b"o"));
        assert_eq!(
            drip(&input),
            [
                Item::Fragment,
                Item::Ping(2..2),
                Item::Fragment,
                Item::Assembled(b"hello".to_vec(), false)
            ]
        );
    }

    #[test]
    fn compressed_messages_are_known_by_their_first_frame() {
        let mut input = server(Opcode::Text, true, b"abc");
        input[0] |= 0x40;
        let mut first = server(Opcode::Text, false, b"a");
        first[0] |= 0x40;
        input.extend(first);
        input.extend(server(Opcode::Continuation, true, b"b"));
        let (mut decoder, mut items, mut from) = (Decoder::new(true), Vec::new(), 0);
        while let Some((item, used)) = decoder.next(&input[from..]).unwrap() {
            items.push(item);
            from += used;
        }
        let whole = Item::Assembled(b"ab".to_vec(), true);
        assert_eq!(items, [Item::Deflated(2..5), Item::Fragment, whole]);
        let mut out = Vec::new();
        push_deflated(&mut out, b"xyz", [1, 2, 3, 4]);
        let (header, _) = Header::parse(&out).unwrap().unwrap();
        assert!(header.rsv1 && header.fin && header.mask.is_some());
    }

    #[test]
    fn faults_of_the_server_are_named() {
        let mut masked = Vec::new();
        push_text(&mut masked, b"x", [1, 2, 3, 4]);
        let mut compressed = server(Opcode::Text, true, b"x");
        compressed[0] |= 0x40;
        for (input, what) in [
            (masked, "masked"),
            (compressed, "compressed"),
            (server(Opcode::Binary, true, b"x"), "binary"),
            (server(Opcode::Continuation, true, b"x"), "continuation"),
            (vec![0x83, 0], "malformed"),
            (vec![0x81, 127, 0, 0, 0, 255, 0, 0, 0, 0], "longer"),
        ] {
            let error = Decoder::default().next(&input).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn what_the_client_sends_is_masked_and_readable() {
        let mut out = Vec::new();
        push_text(&mut out, b"payload", [9, 8, 7, 6]);
        let (header, start) = Header::parse(&out).unwrap().unwrap();
        assert_eq!(header.mask, Some([9, 8, 7, 6]));
        let mut payload = out[start..].to_vec();
        gateway_core::ws::mask::apply([9, 8, 7, 6], 0, &mut payload);
        assert_eq!(payload, b"payload");
    }
}
