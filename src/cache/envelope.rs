//! Form of a value in the second level.
//!
//! ```text
//! byte 0       version in the upper half, kind in the lower
//! bytes 1-4    CRC-32 of all else, little-endian
//! bytes 5-12   Unix milliseconds at which it expires, little-endian
//! then         plain JSON; or its length in 4 bytes and an LZ4 block; or nothing
//! ```
//!
//! JSON, since it says so when a value is not of the type that is expected; formats without field names may read
//! another one out of it. The time stands inside because the second level's own does not come with an answer.

use std::borrow::Cow;

use bytes::Bytes;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 13;
const LENGTH_BYTES: usize = 4;

const PLAIN: u8 = 0;
const LZ4: u8 = 1;
const NOTHING: u8 = 2;
const HOLD: u8 = 3;

/// What stands in the second level is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

/// What an envelope says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// JSON of the value.
    Value(Cow<'a, [u8]>),
    /// There is no such thing.
    Nothing,
    /// It was invalidated a moment ago.
    Hold,
}

/// A value. Longer ones than `compress_above` are compressed when that makes them shorter.
pub(super) fn seal_value(json: &[u8], expires: u64, compress_above: usize) -> Bytes {
    if json.len() > compress_above {
        let block = lz4_flex::block::compress(json);
        if block.len() + LENGTH_BYTES < json.len() {
            let length = (json.len() as u32).to_le_bytes();
            return seal(LZ4, expires, &[&length, &block]);
        }
    }
    seal(PLAIN, expires, &[json])
}

/// The word that there is no such thing.
pub(super) fn seal_nothing(expires: u64) -> Bytes {
    seal(NOTHING, expires, &[])
}

/// What takes the place of an invalidated value for a while.
pub(super) fn seal_hold(expires: u64) -> Bytes {
    seal(HOLD, expires, &[])
}

fn seal(kind: u8, expires: u64, parts: &[&[u8]]) -> Bytes {
    let length = HEAD_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut sealed = Vec::with_capacity(length);
    sealed.push(VERSION << 4 | kind);
    sealed.extend_from_slice(&[0; 4]);
    sealed.extend_from_slice(&expires.to_le_bytes());
    for part in parts {
        sealed.extend_from_slice(part);
    }
    let sum = checksum(&sealed);
    sealed[1..5].copy_from_slice(&sum.to_le_bytes());
    sealed.into()
}

fn checksum(sealed: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&sealed[..1]);
    sum.update(&sealed[5..]);
    sum.finalize()
}

/// When it expires, and what it says. No value longer than `value_max` is unpacked.
pub(super) fn open(sealed: &[u8], value_max: usize) -> Result<(u64, Body<'_>), Corrupt> {
    let (head, rest) = sealed.split_at_checked(HEAD_BYTES).ok_or(Corrupt)?;
    let sum = u32::from_le_bytes(head[1..5].try_into().map_err(|_| Corrupt)?);
    if head[0] >> 4 != VERSION || sum != checksum(sealed) {
        return Err(Corrupt);
    }
    let expires = u64::from_le_bytes(head[5..].try_into().map_err(|_| Corrupt)?);
    let body = match head[0] & 0x0f {
        PLAIN if rest.len() <= value_max => Body::Value(Cow::Borrowed(rest)),
        LZ4 => Body::Value(Cow::Owned(unpack(rest, value_max)?)),
        NOTHING if rest.is_empty() => Body::Nothing,
        HOLD if rest.is_empty() => Body::Hold,
        _ => return Err(Corrupt),
    };
    Ok((expires, body))
}

fn unpack(rest: &[u8], value_max: usize) -> Result<Vec<u8>, Corrupt> {
    let (length, block) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or(Corrupt)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > value_max {
        return Err(Corrupt);
    }
    let value = lz4_flex::block::decompress(block, length).map_err(|_| Corrupt)?;
    if value.len() == length { Ok(value) } else { Err(Corrupt) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 16;

    fn value(json: &[u8]) -> Body<'static> {
        Body::Value(Cow::Owned(json.to_vec()))
    }

    #[test]
    fn long_values_are_compressed_when_it_helps() {
        let text = "\"again and again\"".repeat(100);
        let sealed = seal_value(text.as_bytes(), 5, 1_000);
        assert_eq!(sealed[0], VERSION << 4 | LZ4);
        assert!(sealed.len() < text.len() / 4, "{} bytes", sealed.len());
        assert_eq!(open(&sealed, MAX), Ok((5, value(text.as_bytes()))));
        assert_eq!(seal_value(text.as_bytes(), 5, text.len())[0], VERSION << 4 | PLAIN);
        let mut random = fastrand::Rng::with_seed(1);
        let noise: Vec<u8> = (0..2_000).map(|_| random.u8(..)).collect();
        assert_eq!(seal_value(&noise, 5, 1_000)[0], VERSION << 4 | PLAIN, "it would be longer");
    }

    #[test]
    fn nothing_and_hold_are_told_apart() {
        assert_eq!(open(&seal_nothing(7), MAX), Ok((7, Body::Nothing)));
        assert_eq!(open(&seal_hold(8), MAX), Ok((8, Body::Hold)));
    }

    #[test]
    fn what_is_too_long_is_not_unpacked() {
        let text = vec![b'a'; 5_000];
        for compress_above in [0, 10_000] {
            let sealed = seal_value(&text, 0, compress_above);
            assert_eq!(open(&sealed, 4_999), Err(Corrupt));
            assert_eq!(open(&sealed, 5_000), Ok((0, value(&text))));
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(json in prop::collection::vec(any::<u8>(), 0..3_000), expires: u64) {
            let sealed = seal_value(&json, expires, 500);
            prop_assert_eq!(open(&sealed, MAX), Ok((expires, value(&json))));
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0_usize..200, flip in 1_u8.., cut in 0_usize..200) {
            let text = "{\"name\":\"value\"}".repeat(20);
            for compress_above in [0, MAX] {
                let sealed = seal_value(text.as_bytes(), 77, compress_above);
                let mut changed = sealed.to_vec();
                let at = at % changed.len();
                changed[at] ^= flip;
                prop_assert_eq!(open(&changed, MAX), Err(Corrupt));
                prop_assert_eq!(open(&sealed[..cut % sealed.len()], MAX), Err(Corrupt));
            }
        }

        #[test]
        fn anything_can_be_opened(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // With a sum that fits, so that what comes behind it is reached.
            let mut bytes = bytes;
            if bytes.len() >= HEAD_BYTES {
                bytes[0] = VERSION << 4 | bytes[0] & 3;
                let sum = checksum(&bytes).to_le_bytes();
                bytes[1..5].copy_from_slice(&sum);
            }
            if let Ok((_, Body::Value(value))) = open(&bytes, 1_000) {
                prop_assert!(value.len() <= 1_000);
            }
        }
    }
}
