//! RFC 6455 frames as far as a benchmark needs them: written whole, counted when read. Masks of the client are fixed, so
//! that a message can be encoded once and sent many times; a server unmasks it all the same.

/// Text message in one frame.
pub const TEXT: u8 = 1;
/// Binary message in one frame.
pub const BINARY: u8 = 2;
/// Close frame.
pub const CLOSE: u8 = 8;
/// Ping frame.
pub const PING: u8 = 9;
/// Pong frame.
pub const PONG: u8 = 10;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
/// Longest head of a frame: two bytes, a 64-bit length, a mask.
const HEAD_MAX: usize = 14;

/// A message as a client sends it: one frame, masked.
pub fn from_client(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(opcode, payload.len(), MASKED);
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ MASK[at % 4]));
    frame
}

/// A message as a server sends it: one frame, not masked.
pub fn from_server(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(opcode, payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

fn head(opcode: u8, payload_bytes: usize, masked: u8) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_MAX + payload_bytes);
    head.push(FIN | opcode);
    match payload_bytes {
        0..126 => head.push(masked | payload_bytes as u8),
        126..65_536 => {
            head.push(masked | 0x7e);
            head.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            head.push(masked | 0x7f);
            head.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
    head
}

/// What a [`Scanner`] saw in one piece of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Data messages that ended.
    pub messages: u32,
    /// Of those, compressed ones.
    pub compressed: u32,
    /// Pings that ended.
    pub pings: u32,
    /// Close frames that ended.
    pub closes: u32,
}

/// Finds the ends of frames in a stream that comes in pieces. Holds no payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanner {
    head: [u8; HEAD_MAX],
    head_bytes: u8,
    opcode: u8,
    fin: bool,
    compressed: bool,
    inside: bool,
    left: u64,
}

impl Scanner {
    /// Takes the next piece.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        loop {
            if !self.inside {
                let Some(used) = self.take_head(bytes) else { return seen };
                bytes = &bytes[used..];
            }
            let now = self.left.min(bytes.len() as u64);
            self.left -= now;
            bytes = &bytes[now as usize..];
            if self.left > 0 {
                return seen;
            }
            self.inside = false;
            self.count(&mut seen);
        }
    }

    fn count(&self, seen: &mut Seen) {
        match self.opcode {
            PING => seen.pings += 1,
            CLOSE => seen.closes += 1,
            PONG => {}
            _ if self.fin => {
                seen.messages += 1;
                seen.compressed += u32::from(self.compressed);
            }
            _ => {}
        }
    }

    /// Reads the head of the next frame and says how many of `bytes` it took; `None` when more are needed, and all were
    /// taken.
    fn take_head(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut used = 0;
        loop {
            let have = usize::from(self.head_bytes);
            if let Some(length) = payload_length(&self.head[..have]) {
                let first = self.head[0];
                self.fin = first & FIN != 0;
                // A continuation carries no RSV1; the message keeps the flag of its first frame.
                if first & 0x0f != 0 {
                    self.compressed = first & 0x40 != 0;
                }
                self.opcode = first & 0x0f;
                self.left = length;
                self.inside = true;
                self.head_bytes = 0;
                return Some(used);
            }
            self.head[have] = *bytes.get(used)?;
            self.head_bytes += 1;
            used += 1;
        }
    }
}

/// Length of the payload, when `head` is complete. Frames of a server have no mask; the mask of a client counts as
/// payload, which keeps the ends of frames right.
fn payload_length(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let mask_bytes = if second & MASKED == 0 { 0 } else { 4 };
    let length = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(head.get(2..4)?.try_into().expect("two bytes"))),
        127 => u64::from_be_bytes(head.get(2..10)?.try_into().expect("eight bytes")),
        short => u64::from(short),
    };
    Some(length + mask_bytes)
}

/// Payloads of the complete frames at the start of `bytes`, unmasked, with their opcodes, and the bytes they took.
pub fn split(bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, usize) {
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some(length) = payload_length(&bytes[at..]) {
        let rest = &bytes[at..];
        let head = match rest[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let end = head + length as usize;
        if rest.len() < end {
            break;
        }
        let mut payload = rest[head..end].to_vec();
        if rest[1] & MASKED != 0 {
            let mask = [payload[0], payload[1], payload[2], payload[3]];
            payload.drain(..4);
            payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 4]);
        }
        frames.push((rest[0] & 0x0f, payload));
        at += end;
    }
    (frames, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_wherever_the_stream_is_cut() {
        let mut stream = Vec::new();
        for bytes in [0, 5, 125, 126, 300, 70_000] {
            stream.extend(from_server(TEXT, &vec![b'x'; bytes]));
        }
        stream.extend(from_server(PING, b"p"));
        stream.extend(from_server(CLOSE, b""));
        let wanted = Seen { messages: 6, compressed: 0, pings: 1, closes: 1 };
        for step in [1, 2, 3, 7, 100, 1_000, stream.len()] {
            let mut scanner = Scanner::default();
            let mut sum = Seen::default();
            for piece in stream.chunks(step) {
                let seen = scanner.feed(piece);
                sum.messages += seen.messages;
                sum.pings += seen.pings;
                sum.closes += seen.closes;
            }
            assert_eq!(sum, wanted, "in pieces of {step}");
        }
    }

    #[test]
    fn a_fragmented_message_is_one_and_keeps_its_flag() {
        let mut scanner = Scanner::default();
        let stream = [0x41, 1, b'a', 0x00, 1, b'b', 0x80, 1, b'c'];
        let seen = scanner.feed(&stream);
        assert_eq!((seen.messages, seen.compressed), (1, 1));
    }

    #[test]
    fn what_a_client_writes_a_server_can_split() {
        let mut stream = from_client(TEXT, b"hello");
        stream.extend(from_client(BINARY, &[7; 200]));
        let whole = stream.len();
        stream.extend_from_slice(&[0x81, 0x85]);
        let (frames, used) = split(&stream);
        assert_eq!(used, whole);
        assert_eq!(frames, vec![(TEXT, b"hello".to_vec()), (BINARY, vec![7; 200])]);
    }
}
