//! The shard's random stream: a cryptographic generator that is seeded from outside, so that a simulation replays.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::time::Duration;

use crate::ids::SessionId;
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
    pub fn session_id(&mut self) -> SessionId {
        let mut bytes = [0u8; 16];
        self.0.fill_bytes(&mut bytes);
        SessionId::from_random(bytes)
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
        let session = a.session_id();
        assert_eq!(session, b.session_id());
        let text = session.to_string();
        assert_eq!(text.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(text.as_bytes()[14], b'4');
        assert_eq!(*SessionId::NONE.text(), *"");
        assert_eq!(Epoch::parse(a.epoch().as_str()), Some(b.epoch()));
        let pick = a.between(Duration::from_secs(1), Duration::from_secs(2));
        assert!((1..2).contains(&pick.as_secs()));
    }
}
