//! The shard's random stream: a cryptographic generator that is seeded from outside, so that a simulation replays.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::time::Duration;

use crate::message::Epoch;

/// Source of session ids, epochs and jitter.
#[derive(Debug)]
pub struct Random(ChaCha12Rng);

impl Random {
    /// A stream determined by `seed`; unpredictable when the seed is.
    pub fn new(seed: [u8; 32]) -> Self {
        Self(ChaCha12Rng::from_seed(seed))
    }

    /// A version 4 UUID in text form.
    pub fn uuid(&mut self) -> String {
        let mut bytes = [0u8; 16];
        self.0.fill_bytes(&mut bytes);
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let mut out = String::with_capacity(36);
        for (index, byte) in bytes.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                out.push('-');
            }
            for nibble in [byte >> 4, byte & 15] {
                out.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        out
    }

    /// A new epoch.
    pub fn epoch(&mut self) -> Epoch {
        const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        Epoch(std::array::from_fn(|_| ALPHABET[(self.0.next_u32() % 36) as usize]))
    }

    /// Evenly from `[from, to)`; `from` when the range is empty.
    pub fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let span = to.saturating_sub(from).as_nanos() as u64;
        if span == 0 {
            return from;
        }
        from + Duration::from_nanos(self.0.next_u64() % span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_shape_and_replay() {
        let (mut a, mut b) = (Random::new([7; 32]), Random::new([7; 32]));
        let uuid = a.uuid();
        assert_eq!(uuid, b.uuid());
        assert_eq!(uuid.len(), 36);
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert_eq!(Epoch::parse(a.epoch().as_str()), Some(b.epoch()));
        let pick = a.between(Duration::from_secs(1), Duration::from_secs(2));
        assert!((1..2).contains(&pick.as_secs()));
    }
}
