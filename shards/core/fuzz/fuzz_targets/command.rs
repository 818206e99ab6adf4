//! Any text as a client message: reading it must neither panic nor hang.

#![no_main]

use gateway_core::proto::{Envelope, json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = json::depth(data);
    if let Ok(envelope) = Envelope::read(text, 32) {
        let _ = envelope.message_kind();
        let _ = envelope.command();
    }
});
