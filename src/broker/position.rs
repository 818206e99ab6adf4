//! Positions as the scripts write them: eight characters of the epoch, then the offset.

use gateway_core::message::{Epoch, StreamPosition};

const EPOCH_BYTES: usize = 8;

/// `None` when it is none.
pub(super) fn read(text: &str) -> Option<StreamPosition> {
    let (epoch, offset) = text.split_at_checked(EPOCH_BYTES)?;
    Some(StreamPosition { epoch: Epoch::parse(epoch)?, offset: offset.parse().ok()? })
}

/// Writes what [`read`] reads.
pub(super) fn text(position: StreamPosition) -> String {
    format!("{}{}", position.epoch.as_str(), position.offset)
}

/// Reads a position that ends with a colon at the front of `text`, and says where the rest begins.
pub(super) fn read_front(text: &[u8]) -> Option<(StreamPosition, usize)> {
    let colon = text.iter().position(|&byte| byte == b':')?;
    Some((read(std::str::from_utf8(&text[..colon]).ok()?)?, colon + 1))
}

/// Whether `seen` lacks something of a stream that stands at `top`.
pub(crate) fn is_behind(seen: StreamPosition, top: StreamPosition) -> bool {
    seen.epoch != top.epoch || seen.offset < top.offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_strictly() {
        let epoch = Epoch(*b"abcd0123");
        assert_eq!(read("abcd012342"), Some(StreamPosition { offset: 42, epoch }));
        assert_eq!(read_front(b"abcd01237:rest:"), Some((StreamPosition { offset: 7, epoch }, 10)));
        for bad in ["", "abcd0123", "abcd012x", "abcd0123-1", "abcd_1231", "äbcd0123 1"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(read_front(b"abcd01237"), None);
        assert_eq!(read_front(b"\xff:"), None);
    }
}
