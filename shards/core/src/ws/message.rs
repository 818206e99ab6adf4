//! From the bytes a client sent to whole messages, with every check RFC 6455 asks of a server.
//!
//! A frame that lies in the input as a whole and is the whole message is unmasked where it lies and lent out; bytes
//! are copied only when a frame spans inputs or a message has several fragments. A decoder that holds no part of a
//! message owns no memory beside itself. Memory follows what has arrived, never an announced length.

#![allow(clippy::mut_mut, reason = "the input is a cursor: a slice that the decoder advances")]

use crate::error::Disconnect;
use crate::ws::deflate::Inflater;
use crate::ws::frame::{HEADER_BYTES_MAX, Header, Opcode};
use crate::ws::{close, mask};

/// Bounds of a message.
#[derive(Clone, Copy, Debug)]
pub struct DecoderLimits {
    /// Bytes of a whole message, after inflating.
    pub message_bytes_max: usize,
    /// Data frames of one message.
    pub fragments_max: u32,
}

/// Something complete that the client sent. Lent until the next call of the decoder.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A text message: valid UTF-8, mutable because JSON parsers work in place.
    Text(&'a mut [u8]),
    /// A binary message.
    Binary(&'a mut [u8]),
    /// Wants a pong with this payload.
    Ping(&'a [u8]),
    /// Answer to a ping.
    Pong(&'a [u8]),
    /// The client closes; whatever it sends after this does not matter any more.
    Close {
        /// Absent when the client gave none.
        code: Option<u16>,
        /// May be empty.
        reason: &'a str,
    },
}

/// The frame whose payload is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// None: a header comes next.
    Between,
    /// Part of a message.
    Data { fin: bool },
    /// Close, ping or pong.
    Control(Opcode),
}

/// The message whose fragments are being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    None,
    Text,
    Binary,
    /// Compressed; the flag tells text.
    Deflated {
        text: bool,
    },
}

/// What was lent out by the last call and can be forgotten by the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    Nothing,
    Message,
    Control,
}

/// Where a complete item lies.
enum Complete<'i> {
    /// A whole message in the input.
    MessageInput(Message, &'i mut [u8]),
    /// A message in `buffer`.
    MessageBuffer(Message),
    /// A control frame in the input.
    ControlInput(Opcode, &'i [u8]),
    /// A control frame in `control`.
    ControlBuffer(Opcode),
}

/// Decodes what one client sends. After an error the connection is over and the decoder of no use.
#[derive(Debug)]
pub struct Decoder {
    /// Fragments (and the part of a frame) received so far, unmasked; compressed when the message is.
    buffer: Vec<u8>,
    /// Part of a control frame, which may come between two fragments.
    control: Vec<u8>,
    /// Payload bytes of the frame that have not come yet.
    remaining: u64,
    /// So many bytes at the front of `buffer` are known to be UTF-8.
    valid: usize,
    /// Data frames of the message so far.
    fragments: u32,
    mask: [u8; 4],
    /// Part of a header.
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    /// Place in the mask of the next payload byte.
    mask_offset: u8,
    frame: Frame,
    message: Message,
    lent: Lent,
    /// Whether permessage-deflate was negotiated.
    deflate: bool,
}

impl Decoder {
    /// A decoder at the start of a connection; `deflate` tells whether compressed messages are allowed.
    pub fn new(deflate: bool) -> Self {
        Self {
            buffer: Vec::new(),
            control: Vec::new(),
            remaining: 0,
            valid: 0,
            fragments: 0,
            mask: [0; 4],
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            mask_offset: 0,
            frame: Frame::Between,
            message: Message::None,
            lent: Lent::Nothing,
            deflate,
        }
    }

    /// Whether nothing has come in part, so that a new decoder would do as well.
    pub fn is_between_messages(&self) -> bool {
        self.frame == Frame::Between
            && self.message == Message::None
            && self.header_len == 0
            && self.lent == Lent::Nothing
    }

    /// Bytes of memory held for messages that are not complete.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.capacity() + self.control.capacity()
    }

    /// Takes bytes from the front of `input` until an item is complete, and lends that item; `Ok(None)` when the
    /// input is used up. Call it until then: it is also what releases the memory of the last item.
    ///
    /// # Errors
    /// `ProtocolError`, `InvalidUtf8` or `MessageTooLarge`, as soon as the bytes received so far tell.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i mut [u8],
        limits: &DecoderLimits,
        inflater: &'a mut Inflater,
    ) -> Result<Option<Item<'a>>, Disconnect> {
        self.release();
        let Some(complete) = self.advance(input, limits)? else { return Ok(None) };
        match complete {
            Complete::ControlInput(opcode, payload) => control_item(opcode, payload),
            Complete::ControlBuffer(opcode) => {
                self.lent = Lent::Control;
                control_item(opcode, &self.control)
            }
            Complete::MessageInput(kind, payload) => {
                message_item(kind, payload, false, limits, inflater)
            }
            Complete::MessageBuffer(kind) => {
                self.lent = Lent::Message;
                let valid = self.valid == self.buffer.len();
                if kind == Message::Text && !valid {
                    return Err(Disconnect::InvalidUtf8);
                }
                message_item(kind, &mut self.buffer, true, limits, inflater)
            }
        }
        .map(Some)
    }

    /// Forgets what the last call lent.
    fn release(&mut self) {
        match std::mem::replace(&mut self.lent, Lent::Nothing) {
            Lent::Nothing => {}
            Lent::Message => {
                self.buffer = Vec::new();
                self.valid = 0;
            }
            Lent::Control => self.control = Vec::new(),
        }
    }

    /// Reads headers and payloads until something is complete.
    fn advance<'i>(
        &mut self,
        input: &mut &'i mut [u8],
        limits: &DecoderLimits,
    ) -> Result<Option<Complete<'i>>, Disconnect> {
        while !input.is_empty() {
            if self.frame == Frame::Between {
                let Some(header) = self.read_header(input)? else { return Ok(None) };
                self.begin(&header, limits)?;
            }
            let len = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(input.len());
            let payload = take_front(input, len);
            mask::apply(self.mask, usize::from(self.mask_offset), payload);
            self.mask_offset = ((usize::from(self.mask_offset) + len) & 3) as u8;
            self.remaining -= len as u64;
            let complete = match self.frame {
                Frame::Control(opcode) => self.control_payload(opcode, payload),
                Frame::Data { fin } => self.data_payload(fin, payload)?,
                Frame::Between => None,
            };
            if complete.is_some() {
                return Ok(complete);
            }
        }
        Ok(None)
    }

    /// Takes a header from the front of the input, and keeps what there is of it when it is not complete.
    fn read_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, Disconnect> {
        if self.header_len == 0
            && let Some((header, len)) = Header::parse(input)?
        {
            take_front(input, len);
            return Ok(Some(header));
        }
        while !input.is_empty() {
            self.header[usize::from(self.header_len)] = take_front(input, 1)[0];
            self.header_len += 1;
            if let Some((header, _)) = Header::parse(&self.header[..self.header_len.into()])? {
                self.header_len = 0;
                return Ok(Some(header));
            }
            // A missing mask shows in the second byte.
            if self.header_len == 2 && self.header[1] & 0x80 == 0 {
                return Err(Disconnect::ProtocolError);
            }
        }
        Ok(None)
    }

    /// Checks a header in its place and prepares for its payload.
    fn begin(&mut self, header: &Header, limits: &DecoderLimits) -> Result<(), Disconnect> {
        self.mask = header.mask.ok_or(Disconnect::ProtocolError)?;
        self.mask_offset = 0;
        self.remaining = header.payload_len;
        if header.opcode.is_control() {
            self.frame = Frame::Control(header.opcode);
            return Ok(());
        }
        self.begin_data(header)?;
        if self.fragments >= limits.fragments_max {
            return Err(Disconnect::MessageTooLarge);
        }
        self.fragments += 1;
        let bytes_max = match self.message {
            Message::Deflated { .. } => deflated_bytes_max(limits.message_bytes_max),
            _ => limits.message_bytes_max,
        };
        let bytes_left = bytes_max.saturating_sub(self.buffer.len());
        if header.payload_len > bytes_left as u64 {
            return Err(Disconnect::MessageTooLarge);
        }
        self.frame = Frame::Data { fin: header.fin };
        Ok(())
    }

    /// Starts a message or finds the one that is continued.
    fn begin_data(&mut self, header: &Header) -> Result<(), Disconnect> {
        let continues = header.opcode == Opcode::Continuation;
        if continues == (self.message == Message::None)
            || (header.rsv1 && (continues || !self.deflate))
        {
            return Err(Disconnect::ProtocolError);
        }
        if continues {
            return Ok(());
        }
        let text = header.opcode == Opcode::Text;
        self.fragments = 0;
        self.message = match (header.rsv1, text) {
            (true, text) => Message::Deflated { text },
            (false, true) => Message::Text,
            (false, false) => Message::Binary,
        };
        Ok(())
    }

    /// Payload of a control frame arrived.
    fn control_payload<'i>(
        &mut self,
        opcode: Opcode,
        payload: &'i mut [u8],
    ) -> Option<Complete<'i>> {
        let done = self.remaining == 0;
        if done {
            self.frame = Frame::Between;
            if self.control.is_empty() {
                return Some(Complete::ControlInput(opcode, payload));
            }
        }
        self.control.extend_from_slice(payload);
        done.then_some(Complete::ControlBuffer(opcode))
    }

    /// Payload of a data frame arrived.
    fn data_payload<'i>(
        &mut self,
        fin: bool,
        payload: &'i mut [u8],
    ) -> Result<Option<Complete<'i>>, Disconnect> {
        let frame_done = self.remaining == 0;
        let done = frame_done && fin;
        let kind = self.message;
        if frame_done {
            self.frame = Frame::Between;
        }
        if done {
            self.message = Message::None;
            if self.buffer.is_empty() {
                return Ok(Some(Complete::MessageInput(kind, payload)));
            }
        }
        self.buffer.extend_from_slice(payload);
        if kind == Message::Text {
            self.validate()?;
        }
        Ok(done.then_some(Complete::MessageBuffer(kind)))
    }

    /// Validates what was added to the buffer. A character whose end has not come yet is fine so far.
    fn validate(&mut self) -> Result<(), Disconnect> {
        match simdutf8::compat::from_utf8(&self.buffer[self.valid..]) {
            Ok(_) => self.valid = self.buffer.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Disconnect::InvalidUtf8),
        }
        Ok(())
    }
}

/// Compressed size that a message of the greatest size may have: incompressible data grows a little.
fn deflated_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max.saturating_add(message_bytes_max / 512).saturating_add(64)
}

/// Splits `len` bytes off the front of `input`.
fn take_front<'i>(input: &mut &'i mut [u8], len: usize) -> &'i mut [u8] {
    let (front, rest) = std::mem::take(input).split_at_mut(len);
    *input = rest;
    front
}

/// Item of a complete control frame.
fn control_item(opcode: Opcode, payload: &[u8]) -> Result<Item<'_>, Disconnect> {
    match opcode {
        Opcode::Ping => Ok(Item::Ping(payload)),
        Opcode::Pong => Ok(Item::Pong(payload)),
        _ => close::parse(payload).map(|(code, reason)| Item::Close { code, reason }),
    }
}

/// Item of a complete message; `validated` tells that plain text was checked already.
fn message_item<'a>(
    kind: Message,
    payload: &'a mut [u8],
    validated: bool,
    limits: &DecoderLimits,
    inflater: &'a mut Inflater,
) -> Result<Item<'a>, Disconnect> {
    let (text, check, payload) = match kind {
        Message::Deflated { text } => {
            (text, text, inflater.inflate_in_place(payload, limits.message_bytes_max)?)
        }
        Message::Text => (true, !validated, payload),
        Message::Binary | Message::None => (false, false, payload),
    };
    if check && simdutf8::basic::from_utf8(payload).is_err() {
        return Err(Disconnect::InvalidUtf8);
    }
    Ok(if text { Item::Text(payload) } else { Item::Binary(payload) })
}
