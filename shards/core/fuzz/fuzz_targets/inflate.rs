//! Decompression: no input may panic or outgrow its limit, a used inflater behaves like a fresh one, and whatever comes
//! out survives a round trip.

#![no_main]

use gateway_core::ws::deflate::{Deflater, Inflater, negotiate};
use libfuzzer_sys::fuzz_target;

const BYTES_MAX: usize = 16_384;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(accepted) = negotiate(text.split('\n'))
    {
        assert!(accepted.response.starts_with("permessage-deflate; "));
    }
    let mut used = Inflater::new();
    let first = used.inflate_in_place(bytes, BYTES_MAX).map(|message| message.to_vec());
    let again = used.inflate_in_place(bytes, BYTES_MAX).map(|message| message.to_vec());
    assert_eq!(first, again);
    let Ok(message) = first else { return };
    assert!(message.len() <= BYTES_MAX);
    let mut compressed = Vec::new();
    Deflater::new(6).deflate(&message, &mut compressed);
    let round_trip = used.inflate_in_place(&compressed, message.len()).expect("our own deflate");
    assert_eq!(*round_trip, *message);
});
