//! What a value takes on the heap, as the allocator counts it.
//!
//! Every allocation is rounded up to what glibc's malloc takes for it, since small strings cost a multiple of their
//! length. A test with a counting allocator compares the sums with the real growth.

use std::collections::{BTreeMap, HashMap};
use std::mem::size_of;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes that malloc keeps in front of every allocation.
const HEADER: usize = 8;
/// Allocations are multiples of it.
const ALIGNMENT: usize = 16;
/// No allocation is smaller.
const SMALLEST: usize = 32;
/// Both counters of an `Arc`.
const ARC_COUNTERS: usize = 16;

/// What an allocation of so many bytes takes; nothing for none.
pub(crate) const fn allocated(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let rounded = (bytes + HEADER).next_multiple_of(ALIGNMENT);
    if rounded < SMALLEST { SMALLEST } else { rounded }
}

/// What an `Arc` of a `T` takes without what the `T` owns.
pub(super) const fn allocated_arc<T>() -> usize {
    allocated(ARC_COUNTERS + size_of::<T>())
}

/// A value that knows what it owns on the heap.
pub(crate) trait HeapBytes {
    /// Bytes of all allocations it owns, each through [`allocated`]; without the value itself.
    fn heap_bytes(&self) -> usize;
}

macro_rules! own_nothing {
    ($($kind:ty),*) => {
        $(impl HeapBytes for $kind {
            fn heap_bytes(&self) -> usize {
                0
            }
        })*
    };
}

own_nothing!((), bool, u8, u16, u32, u64, usize, i8, i16, i32, i64, f32, f64, &'static str);

impl HeapBytes for String {
    fn heap_bytes(&self) -> usize {
        allocated(self.capacity())
    }
}

impl HeapBytes for Box<str> {
    fn heap_bytes(&self) -> usize {
        allocated(self.len())
    }
}

impl HeapBytes for Arc<str> {
    fn heap_bytes(&self) -> usize {
        allocated(ARC_COUNTERS + self.len())
    }
}

/// A slice of a longer buffer keeps all of it alive: copy it before it is cached.
impl HeapBytes for Bytes {
    fn heap_bytes(&self) -> usize {
        allocated(self.len()) + SMALLEST
    }
}

impl<T: HeapBytes> HeapBytes for Vec<T> {
    fn heap_bytes(&self) -> usize {
        allocated(self.capacity() * size_of::<T>())
            + self.iter().map(HeapBytes::heap_bytes).sum::<usize>()
    }
}

impl<T: HeapBytes> HeapBytes for Box<[T]> {
    fn heap_bytes(&self) -> usize {
        allocated(size_of_val::<[T]>(self)) + self.iter().map(HeapBytes::heap_bytes).sum::<usize>()
    }
}

impl<T: HeapBytes> HeapBytes for Option<T> {
    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, HeapBytes::heap_bytes)
    }
}

impl<A: HeapBytes, B: HeapBytes> HeapBytes for (A, B) {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes() + self.1.heap_bytes()
    }
}

impl<K: HeapBytes, V: HeapBytes, S> HeapBytes for HashMap<K, V, S> {
    fn heap_bytes(&self) -> usize {
        // One control byte for each bucket; an eighth of the buckets stays empty.
        let buckets = (self.capacity() * 8).div_ceil(7).next_power_of_two();
        let table = if self.capacity() == 0 { 0 } else { buckets * (size_of::<(K, V)>() + 1) + 16 };
        let owned = self.iter().map(|(key, value)| key.heap_bytes() + value.heap_bytes());
        allocated(table) + owned.sum::<usize>()
    }
}

impl<K: HeapBytes, V: HeapBytes> HeapBytes for BTreeMap<K, V> {
    fn heap_bytes(&self) -> usize {
        // A node has room for 11 entries and 12 children, and is at least half full but for the root.
        let node = allocated(11 * size_of::<(K, V)>() + 13 * size_of::<usize>());
        let owned = self.iter().map(|(key, value)| key.heap_bytes() + value.heap_bytes());
        self.len().div_ceil(5) * node + owned.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_rounded_as_malloc_does() {
        assert_eq!(allocated(0), 0);
        assert_eq!(allocated(1), 32);
        assert_eq!(allocated(24), 32);
        assert_eq!(allocated(25), 48);
        assert_eq!(allocated(100), 112);
        assert_eq!(allocated(2_048), 2_064);
    }

    #[test]
    fn parts_are_added_up() {
        assert_eq!(String::new().heap_bytes(), 0);
        assert_eq!("twelve bytes".to_owned().heap_bytes(), 32);
        let words = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(words.heap_bytes(), allocated(48) + 2 * 32);
        assert_eq!(Some(words).heap_bytes(), allocated(48) + 2 * 32);
        assert_eq!(HashMap::<String, u64>::new().heap_bytes(), 0);
        let counts = HashMap::from([("a".to_owned(), 1_u64)]);
        assert_eq!(counts.heap_bytes(), allocated(4 * 33 + 16) + 32);
    }
}
