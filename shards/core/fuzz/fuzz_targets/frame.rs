//! The message decoder: no input may panic, and how the bytes are cut into inputs must not change what comes out.
//!
//! Input: one byte of flags, one byte that is the length of the pieces, then the client's bytes.

#![no_main]

use gateway_core::error::Disconnect;
use gateway_core::ws::deflate::Inflater;
use gateway_core::ws::message::{Decoder, DecoderLimits, Item};
use libfuzzer_sys::fuzz_target;

const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 4_096, fragments_max: 8 };

fuzz_target!(|bytes: &[u8]| {
    let [flags, piece_len, bytes @ ..] = bytes else { return };
    let deflate = flags & 1 != 0;
    let whole = read(deflate, bytes, bytes.len().max(1));
    let pieces = read(deflate, bytes, usize::from(*piece_len).max(1));
    assert_eq!(whole, pieces);
});

/// Every item as text, up to a close or an error.
fn read(deflate: bool, bytes: &[u8], piece_len: usize) -> (Vec<String>, Option<Disconnect>) {
    let (mut decoder, mut inflater) = (Decoder::new(deflate), Inflater::new());
    let mut items = Vec::new();
    for piece in bytes.chunks(piece_len) {
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        loop {
            let item = match decoder.next(&mut input, &LIMITS, &mut inflater) {
                Ok(Some(item)) => item,
                Ok(None) => break,
                Err(disconnect) => return (items, Some(disconnect)),
            };
            match &item {
                Item::Text(payload) => {
                    assert!(payload.len() <= LIMITS.message_bytes_max);
                    assert!(std::str::from_utf8(payload).is_ok());
                }
                Item::Binary(payload) => assert!(payload.len() <= LIMITS.message_bytes_max),
                Item::Ping(payload) | Item::Pong(payload) => assert!(payload.len() <= 125),
                Item::Close { .. } => {}
            }
            items.push(format!("{item:?}"));
            if matches!(item, Item::Close { .. }) {
                return (items, None);
            }
        }
        assert!(input.is_empty());
    }
    (items, None)
}
