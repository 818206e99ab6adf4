//! Payload of close frames (RFC 6455 sections 5.5.1 and 7.4).

use crate::error::Disconnect;

/// Longest reason that fits into a close frame: 125 bytes of payload less the code.
pub const REASON_BYTES_MAX: usize = 123;

/// Reads the payload of a close frame: nothing, or a code that may appear on the wire and a UTF-8 reason.
pub fn parse(payload: &[u8]) -> Result<(Option<u16>, &str), Disconnect> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok((None, "")) } else { Err(Disconnect::ProtocolError) };
    };
    let code = u16::from_be_bytes(*code);
    if !may_be_sent(code) {
        return Err(Disconnect::ProtocolError);
    }
    let reason = simdutf8::basic::from_utf8(reason).map_err(|_| Disconnect::InvalidUtf8)?;
    Ok((Some(code), reason))
}

/// Whether an endpoint may put `code` into a close frame: a code registered for that purpose, or one from the
/// ranges for libraries (3000-3999) and applications (4000-4999).
pub fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// `reason` cut to what fits into a close frame, at a character boundary.
pub fn cut_reason(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        let allowed = [1000, 1001, 1002, 1003, 1007, 1008, 1011, 1014, 3000, 3999, 4000, 4999];
        for code in allowed {
            assert_eq!(parse(&u16::to_be_bytes(code)), Ok((Some(code), "")), "{code}");
        }
        let refused = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, u16::MAX];
        for code in refused {
            let payload = u16::to_be_bytes(code);
            assert_eq!(parse(&payload), Err(Disconnect::ProtocolError), "{code}");
        }
    }

    #[test]
    fn payloads() {
        assert_eq!(parse(b""), Ok((None, "")));
        assert_eq!(parse(b"\x03"), Err(Disconnect::ProtocolError));
        assert_eq!(parse(b"\x03\xe8bye"), Ok((Some(1000), "bye")));
        assert_eq!(parse(b"\x03\xe8\xff"), Err(Disconnect::InvalidUtf8));
        assert_eq!(parse(b"\x03\xe8\xe2\x82"), Err(Disconnect::InvalidUtf8));
    }

    #[test]
    fn reason_is_cut_between_characters() {
        assert_eq!(cut_reason("short"), "short");
        assert_eq!(cut_reason(&"a".repeat(200)).len(), 123);
        // 122 is the last boundary of two-byte characters below the limit.
        assert_eq!(cut_reason(&"\u{e9}".repeat(100)).len(), 122);
    }
}
