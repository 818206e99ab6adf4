//! The provided-buffer ring: memory that the kernel receives into, shared by all connections of a shard.
//!
//! Owns two anonymous mappings: the ring of entries and the buffers' memory. Each buffer belongs either to the kernel
//! or to exactly one [`Buffer`].

use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// A buffer that the kernel filled and that is ours until it is given back. Dropping it takes it out of use.
#[derive(Debug)]
pub(crate) struct Buffer {
    owner: RawFd,
    index: u16,
    length: u32,
    // Not `Send`: a ring and its buffers stay on one thread.
    _not_send: PhantomData<*const u8>,
}

impl Buffer {
    /// # Safety
    /// The kernel must have handed buffer `index` of the ring `owner` over, with `length` bytes, and no other
    /// `Buffer` may stand for it.
    pub(super) unsafe fn taken(owner: RawFd, index: u16, length: usize) -> Self {
        Self { owner, index, length: length as u32, _not_send: PhantomData }
    }

    /// Bytes received.
    pub(crate) fn len(&self) -> usize {
        self.length as usize
    }
}

/// An anonymous private mapping.
#[derive(Debug)]
struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping touches no existing memory.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct BufferRing {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    buffer_bytes: usize,
    owner: RawFd,
    tail: u16,
    /// Buffers from this index on were never offered, so their memory was never touched.
    offered: u16,
}

/// Buffers that are offered at first. The kernel goes round all that are offered, so few of them stay in the processor's
/// cache, and memory that no burst needs is never touched.
const OFFERED_AT_FIRST: u16 = 256;

impl BufferRing {
    /// `count` buffers (a power of two, at most 32,768) of `buffer_bytes`; the kernel gets the first of them.
    pub(super) fn new(count: u16, buffer_bytes: usize, owner: RawFd) -> io::Result<Self> {
        let valid = count.is_power_of_two() && count <= 32_768 && buffer_bytes > 0;
        if !valid || u32::try_from(buffer_bytes).is_err() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * buffer_bytes)?;
        let mut ring = Self { entries, memory, count, buffer_bytes, owner, tail: 0, offered: 0 };
        ring.offer_up_to(OFFERED_AT_FIRST);
        ring.publish();
        Ok(ring)
    }

    /// The kernel found no buffer: doubles those that are in use, as far as there are more.
    pub(super) fn offer_more(&mut self) {
        self.offer_up_to(self.offered.saturating_mul(2));
    }

    fn offer_up_to(&mut self, count: u16) {
        for index in self.offered..count.min(self.count) {
            self.offer(index);
            self.offered = index + 1;
        }
    }

    pub(super) fn entries_address(&self) -> u64 {
        self.entries.address.as_ptr() as u64
    }

    pub(super) fn bytes<'a>(&'a mut self, buffer: &'a mut Buffer) -> &'a mut [u8] {
        assert_eq!(buffer.owner, self.owner, "a buffer is used with the ring it came from");
        let start = self.start_of(buffer.index);
        let length = buffer.len().min(self.buffer_bytes);
        // SAFETY: `start..start + length` lies inside the mapping (`start_of` checks the index); the kernel does not
        // own the buffer while its only `Buffer` exists, and both borrows last as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "giving back ends the caller's right to the bytes"
    )]
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        assert_eq!(buffer.owner, self.owner, "a buffer is given back to the ring it came from");
        self.offer(buffer.index);
    }

    fn start_of(&self, index: u16) -> *mut u8 {
        assert!(index < self.count, "the kernel names buffers that exist");
        // SAFETY: the memory holds `count` buffers of `buffer_bytes`.
        unsafe { self.memory.address.as_ptr().add(usize::from(index) * self.buffer_bytes) }
    }

    fn offer(&mut self, index: u16) {
        let start = self.start_of(index) as u64;
        let slot = usize::from(self.tail & (self.count - 1));
        // SAFETY: `slot < count` entries are mapped, aligned to a page; the kernel reads an entry only after the
        // tail was published beyond it, and at most `count` buffers exist, so it has consumed this slot's last one.
        // The three setters leave the field alone in which the first entry holds the tail.
        unsafe {
            let entry = &mut *self.entries.address.cast::<BufRingEntry>().as_ptr().add(slot);
            entry.set_addr(start);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(index);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    pub(super) fn publish(&mut self) {
        // SAFETY: the address lies in the first mapped entry, is aligned for a u16, and this process only accesses it
        // here; the kernel reads it with acquire semantics.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.address.cast().as_ptr());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }
}
