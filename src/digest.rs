//! Short names for long texts, the same on every node and in every version.

use sha2::{Digest, Sha256};

/// The first eight bytes of the SHA-256 of `text`, as a number.
pub(crate) fn number(text: &str) -> u64 {
    u64::from_be_bytes(Sha256::digest(text).first_chunk().copied().unwrap_or_default())
}
