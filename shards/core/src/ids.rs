//! Identities of shards and connections.
//!
//! A [`ConnectionId`] names one connection of one shard for its whole life and is never mistaken for a later
//! connection that reuses the same slot, because the slot's generation is part of it.

use std::fmt;

/// Index of a shard in its node, `0..shards`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The index as used for slices.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Public identity of an authenticated session: a random UUID. Sixteen bytes in memory, text only where it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// Of a connection that is not authenticated.
    pub const NONE: Self = Self([0; 16]);

    /// A version 4 UUID out of random bytes.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// As between nodes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Rebuilds an id from [`Self::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Whether it is that of an authenticated session.
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }

    /// As on the wire.
    pub fn text(self) -> SessionIdText {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        if !self.is_some() {
            return SessionIdText { text: [0; 36], length: 0 };
        }
        let mut text = [b'-'; 36];
        let mut at = 0;
        for (index, byte) in self.0.into_iter().enumerate() {
            at += usize::from(matches!(index, 4 | 6 | 8 | 10));
            text[at] = DIGITS[usize::from(byte >> 4)];
            text[at + 1] = DIGITS[usize::from(byte & 15)];
            at += 2;
        }
        SessionIdText { text, length: 36 }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// Text of a [`SessionId`]: lower-case hexadecimal digits in five groups, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct SessionIdText {
    text: [u8; 36],
    length: usize,
}

impl std::ops::Deref for SessionIdText {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

/// One connection: owner shard (16 bits), generation of the slot (24 bits), slot in the shard's slab (24 bits).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// Slots and generations have this many bits each.
    pub const FIELD_BITS: u32 = 24;
    const FIELD_MASK: u64 = (1 << Self::FIELD_BITS) - 1;

    /// Packs the parts; `slot` and `generation` are cut to 24 bits.
    #[inline]
    pub fn new(shard: ShardId, slot: u32, generation: u32) -> Self {
        Self(
            (u64::from(shard.0) << 48)
                | ((u64::from(generation) & Self::FIELD_MASK) << 24)
                | (u64::from(slot) & Self::FIELD_MASK),
        )
    }

    /// The shard that owns the connection.
    #[inline]
    pub fn shard(self) -> ShardId {
        ShardId((self.0 >> 48) as u16)
    }

    /// Index into the owner shard's slab.
    #[inline]
    pub fn slot(self) -> u32 {
        (self.0 & Self::FIELD_MASK) as u32
    }

    /// How often the slot had been used before, modulo 2^24.
    #[inline]
    pub fn generation(self) -> u32 {
        ((self.0 >> 24) & Self::FIELD_MASK) as u32
    }

    /// The whole id as one number.
    #[inline]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Rebuilds an id from [`Self::to_bits`].
    #[inline]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Generation and slot in the low 48 bits: what fits beside an operation tag in `user_data`.
    #[inline]
    pub fn local_bits(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }

    /// Rebuilds an id from [`Self::local_bits`] on its owner shard.
    #[inline]
    pub fn from_local_bits(shard: ShardId, bits: u64) -> Self {
        Self((u64::from(shard.0) << 48) | (bits & ((1 << 48) - 1)))
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.shard(), self.slot(), self.generation())
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_id_keeps_its_parts() {
        let id = ConnectionId::new(ShardId(513), 0x00ab_cdef, 0x0012_3456);
        assert_eq!(id.shard(), ShardId(513));
        assert_eq!(id.slot(), 0x00ab_cdef);
        assert_eq!(id.generation(), 0x0012_3456);
        assert_eq!(ConnectionId::from_local_bits(ShardId(513), id.local_bits()), id);
    }
}
