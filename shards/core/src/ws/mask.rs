//! Masking of client frames (RFC 6455 section 5.3). Masking and unmasking are the same operation.

/// XORs `data` with the mask, where `data[0]` is byte `offset` of the frame's payload (only its lowest two bits
/// matter). Works on 32 bytes at a time in a form that the compiler turns into vector instructions.
pub fn apply(mask: [u8; 4], offset: usize, data: &mut [u8]) {
    let mut key = [0_u8; 8];
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = mask[(offset + index) & 3];
    }
    let word = u64::from_ne_bytes(key);
    let mut blocks = data.chunks_exact_mut(32);
    for block in &mut blocks {
        let (words, _) = block.as_chunks_mut::<8>();
        for bytes in words {
            *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
        }
    }
    // A block is a multiple of the key's length, so the key is in phase again for the rest.
    for (byte, key) in blocks.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply_naive(mask: [u8; 4], offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte ^= mask[(offset + index) % 4];
        }
    }

    proptest! {
        #[test]
        fn same_as_the_naive_loop(
            mask: [u8; 4],
            offset in 0_usize..9,
            skip in 0_usize..9,
            data in proptest::collection::vec(any::<u8>(), 9..300),
        ) {
            let mut fast = data.clone();
            let mut naive = data;
            apply(mask, offset, &mut fast[skip..]);
            apply_naive(mask, offset, &mut naive[skip..]);
            prop_assert_eq!(fast, naive);
        }

        #[test]
        fn pieces_are_as_good_as_the_whole(
            mask: [u8; 4],
            data in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0_usize..200,
        ) {
            let cut = cut.min(data.len());
            let mut whole = data.clone();
            apply(mask, 0, &mut whole);
            let mut pieces = data;
            apply(mask, 0, &mut pieces[..cut]);
            apply(mask, cut, &mut pieces[cut..]);
            prop_assert_eq!(whole, pieces);
        }
    }
}
