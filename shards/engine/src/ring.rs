//! The `io_uring` of one shard, and the few system calls without a safe wrapper, wrapped so that the rest of the
//! crate needs no unsafe code.
//!
//! Owns the ring and the provided-buffer ring. Invariants: no submitted operation points into memory that the caller
//! owns (receives go into the ring's own buffers, the timeout's value lives in the ring); a [`Buffer`] exists only
//! while the kernel does not own that buffer; an accepted descriptor is wrapped before anyone sees it. It does not
//! know what an operation is for: that is in `user_data`, a tag in the top 8 bits and 48 bits of the caller's.

mod buffers;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests;

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, TimeoutFlags, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

pub(crate) use buffers::Buffer;
use buffers::BufferRing;

/// `IORING_ENTER_GETEVENTS`.
const ENTER_GETEVENTS: u32 = 1;
/// Entries of the submission queue: it is emptied whenever it is full, so this bounds one system call, not the work.
const SUBMISSION_ENTRIES: u32 = 1024;
const BUFFER_GROUP: u16 = 0;
const TAG_SHIFT: u32 = 56;
const KEY_MASK: u64 = (1 << 48) - 1;

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    Accept = 1,
    Receive = 2,
    PollOut = 3,
    PollIn = 4,
    Cancel = 5,
    Timeout = 6,
    TimeoutUpdate = 7,
    /// End of a cancel of an accept or a poll for input.
    CancelOther = 8,
    /// Another thread has written the eventfd.
    Wake = 9,
}

impl Op {
    fn of(user_data: u64) -> Option<Self> {
        Some(match user_data >> TAG_SHIFT {
            1 => Self::Accept,
            2 => Self::Receive,
            3 => Self::PollOut,
            4 => Self::PollIn,
            5 => Self::Cancel,
            6 => Self::Timeout,
            7 => Self::TimeoutUpdate,
            8 => Self::CancelOther,
            9 => Self::Wake,
            _ => return None,
        })
    }

    fn user_data(self, key: u64) -> u64 {
        ((self as u64) << TAG_SHIFT) | (key & KEY_MASK)
    }
}

/// What became of an operation.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) op: Op,
    /// The caller's 48 bits.
    pub(crate) key: u64,
    /// Not negative: what the operation gives. Negative: `-errno`.
    pub(crate) result: i32,
    /// Whether the operation goes on and more completions follow.
    pub(crate) more: bool,
    /// Bytes of a receive.
    pub(crate) buffer: Option<Buffer>,
    /// Socket of an accept.
    pub(crate) accepted: Option<OwnedFd>,
}

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingSizes {
    pub(crate) completion_entries: u32,
    /// A power of two.
    pub(crate) buffers: u16,
    pub(crate) buffer_bytes: usize,
}

/// See the module's documentation.
pub(crate) struct Ring {
    // Declared before the memory the kernel writes to, so that it is closed first.
    uring: IoUring,
    buffers: BufferRing,
    /// The kernel reads it while the entry that points to it is submitted; boxed so that moving the ring is harmless.
    timespec: Box<Timespec>,
    reaped: Vec<Completion>,
    overflows: u64,
    failure: Option<io::Error>,
}

impl Ring {
    /// Sets a ring up that only the calling thread may use, and hands buffers to the kernel.
    pub(crate) fn new(sizes: RingSizes) -> io::Result<Self> {
        let completions = sizes.completion_entries.next_power_of_two();
        let uring: IoUring = IoUring::builder()
            .setup_cqsize(completions)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            // Without the flag, work that one `enter` leaves over would be seen by nobody.
            .setup_taskrun_flag()
            .build(SUBMISSION_ENTRIES.min(completions))?;
        let buffers = BufferRing::new(sizes.buffers, sizes.buffer_bytes, uring.as_raw_fd())?;
        // SAFETY: the mapping holds `sizes.buffers` entries and lives until `buffers` is dropped, which is after the
        // group is unregistered (`Drop`) and after the ring is closed (order of the fields).
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                buffers.entries_address(),
                sizes.buffers,
                BUFFER_GROUP,
                0,
            )?;
        }
        Ok(Self {
            uring,
            buffers,
            timespec: Box::new(Timespec::new()),
            reaped: Vec::new(),
            overflows: 0,
            failure: None,
        })
    }

    /// One completion for every time that `eventfd` is written, until one says that no more follow.
    pub(crate) fn watch(&mut self, eventfd: BorrowedFd<'_>) {
        let events = u32::from(libc::POLLIN.cast_unsigned());
        let entry = opcode::PollAdd::new(Fd(eventfd.as_raw_fd()), events).multi(true).build();
        self.push(&entry.user_data(Op::Wake.user_data(0)));
    }

    /// Accepts until cancelled; each socket is non-blocking and close-on-exec.
    pub(crate) fn accept(&mut self, listener: BorrowedFd<'_>, key: u64) {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
            .flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
            .build();
        self.push(&entry.user_data(Op::Accept.user_data(key)));
    }

    /// Receives into the ring's buffers until cancelled, the end of the stream, or no buffer is left.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, key: u64) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), BUFFER_GROUP).build();
        self.push(&entry.user_data(Op::Receive.user_data(key)));
    }

    /// One completion when the socket can take bytes again (or is broken).
    pub(crate) fn poll_out(&mut self, socket: BorrowedFd<'_>, key: u64) {
        self.poll(socket, libc::POLLOUT, Op::PollOut.user_data(key));
    }

    /// One completion when the socket has bytes (or is at its end).
    pub(crate) fn poll_in(&mut self, socket: BorrowedFd<'_>, key: u64) {
        self.poll(socket, libc::POLLIN, Op::PollIn.user_data(key));
    }

    fn poll(&mut self, socket: BorrowedFd<'_>, events: i16, user_data: u64) {
        let events = u32::from(events.cast_unsigned());
        let entry = opcode::PollAdd::new(Fd(socket.as_raw_fd()), events).build();
        self.push(&entry.user_data(user_data));
    }

    /// Cancels the operation `op` of `key`. Both complete: the cancelled one, and this one under `Op::Cancel`, or
    /// `Op::CancelOther` when `key` is not a connection's.
    pub(crate) fn cancel(&mut self, op: Op, key: u64) {
        let entry = opcode::AsyncCancel::new(op.user_data(key)).build();
        let own = match op {
            Op::Accept | Op::PollIn => Op::CancelOther,
            _ => Op::Cancel,
        };
        self.push(&entry.user_data(own.user_data(key)));
    }

    /// One completion after `after`. There is one timeout: arm it only when none is armed.
    pub(crate) fn arm_timeout(&mut self, after: Duration) {
        *self.timespec = Timespec::from(after);
        let entry = opcode::Timeout::new(&raw const *self.timespec).build();
        self.push(&entry.user_data(Op::Timeout.user_data(0)));
    }

    /// Makes the armed timeout complete after `after` instead.
    pub(crate) fn update_timeout(&mut self, after: Duration) {
        *self.timespec = Timespec::from(after);
        let entry = opcode::TimeoutUpdate::new(Op::Timeout.user_data(0), &raw const *self.timespec)
            .flags(TimeoutFlags::empty())
            .build();
        self.push(&entry.user_data(Op::TimeoutUpdate.user_data(0)));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the constructors above only use descriptors, the buffer group and the boxed timespec, all of
            // which outlive the entry; the kernel copies the entry and the timespec while it is submitted.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
            let mut submitted = self.submit(0);
            if submitted.is_ok() && self.uring.submission().is_full() {
                // The kernel takes nothing while completions wait: make room for them.
                submitted = self.submit(ENTER_GETEVENTS);
                self.reap();
            }
            if let Err(error) = submitted {
                self.failure.get_or_insert(error);
                return;
            }
        }
    }

    /// Submits what was asked for and fetches completions without waiting; goes on until `completions_max` are there
    /// or nothing more is ready. Without anything to submit or to fetch it makes no system call: the kernel says in
    /// shared memory when it has work for this thread.
    ///
    /// # Errors
    /// The ring is of no use any more; also when that was found out by an operation since the last turn.
    pub(crate) fn turn(&mut self, completions_max: usize) -> io::Result<()> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        self.reap();
        while self.reaped.len() < completions_max && self.has_pending() {
            self.submit(ENTER_GETEVENTS)?;
            let before = self.reaped.len();
            self.reap();
            if self.reaped.len() == before {
                break;
            }
        }
        Ok(())
    }

    /// Submits what was asked for and blocks the thread until at least one completion is there.
    ///
    /// # Errors
    /// As for [`Self::turn`].
    pub(crate) fn sleep(&mut self) -> io::Result<()> {
        self.enter(1, ENTER_GETEVENTS)?;
        self.reap();
        Ok(())
    }

    /// Whether the kernel has work that the next `turn` will see without waiting.
    pub(crate) fn has_pending(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow() || !queue.is_empty()
    }

    /// How often completions did not fit into the queue and were kept by the kernel instead.
    pub(crate) fn overflows(&self) -> u64 {
        self.overflows
    }

    fn submit(&mut self, flags: u32) -> io::Result<()> {
        self.enter(0, flags)
    }

    fn enter(&mut self, completions_min: u32, flags: u32) -> io::Result<()> {
        let (entries, overflowed) = {
            let queue = self.uring.submission();
            (queue.len() as u32, queue.cq_overflow())
        };
        if overflowed {
            self.overflows += 1;
            // The kernel flushes its own list into the queue as far as there is room.
            self.reap();
        }
        // SAFETY: no argument is passed, and `entries` is what the submission queue holds.
        let entered = unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(entries, completions_min, flags, None)
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // A signal, or completions first: the next turn goes on.
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => {
                    self.reap();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    fn reap(&mut self) {
        let owner = self.uring.as_raw_fd();
        for entry in self.uring.completion() {
            let Some(op) = Op::of(entry.user_data()) else { continue };
            let result = entry.result();
            let buffer = cqueue::buffer_select(entry.flags()).map(|index| {
                let length = usize::try_from(result).unwrap_or(0);
                // SAFETY: the kernel gave this buffer of the only group to us with this completion.
                unsafe { Buffer::taken(owner, index, length) }
            });
            let accepted = (op == Op::Accept && result >= 0).then(|| {
                // SAFETY: the completion of an accept without a fixed file hands a fresh descriptor over, once.
                unsafe { OwnedFd::from_raw_fd(result) }
            });
            self.reaped.push(Completion {
                op,
                key: entry.user_data() & KEY_MASK,
                result,
                more: cqueue::more(entry.flags()),
                buffer,
                accepted,
            });
        }
    }

    /// Takes the completions fetched so far, in order. `into` is emptied first and its memory is used again.
    pub(crate) fn take_completions(&mut self, into: &mut Vec<Completion>) {
        into.clear();
        mem::swap(&mut self.reaped, into);
    }

    /// The bytes that were received.
    pub(crate) fn bytes<'a>(&'a mut self, buffer: &'a mut Buffer) -> &'a mut [u8] {
        self.buffers.bytes(buffer)
    }

    /// Gives a buffer back; the kernel may use it after the next [`Self::publish_buffers`].
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        self.buffers.give_back(buffer);
    }

    /// A receive found no buffer: puts more of them into use, as far as there are more.
    pub(crate) fn offer_more_buffers(&mut self) {
        self.buffers.offer_more();
    }

    /// Lets the kernel see every buffer given back.
    pub(crate) fn publish_buffers(&mut self) {
        self.buffers.publish();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Nothing may write into the buffers any more when their memory goes. Both calls can only fail when there is
        // nothing to cancel or to unregister.
        let timeout = Timespec::from(Duration::from_secs(1));
        let _ = self.uring.submitter().register_sync_cancel(Some(timeout), CancelBuilder::any());
        let _ = self.uring.submitter().unregister_buf_ring(BUFFER_GROUP);
        self.reap();
    }
}

/// A counter whose changes a thread can wait for.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// Counter 0.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Adds one. The only failure, a counter at its maximum, means that the sleeper is being woken already.
    pub(crate) fn add_one(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the pointer and length are those of a local array.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes the counter and sets it to 0; fails when it is 0.
    pub(crate) fn take(&self) -> io::Result<u64> {
        let mut counter = [0; 8];
        // SAFETY: the pointer and length are those of a local array.
        let read =
            unsafe { libc::read(self.fd.as_raw_fd(), counter.as_mut_ptr().cast(), counter.len()) };
        if read < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from_ne_bytes(counter)) }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A limit of the process that start-up looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    OpenFiles,
    /// In bytes.
    LockedMemory,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::OpenFiles => libc::RLIMIT_NOFILE,
            Self::LockedMemory => libc::RLIMIT_MEMLOCK,
        }
    }

    /// Soft and hard limit.
    pub(crate) fn limits(self) -> io::Result<(u64, u64)> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a local value of the right type.
        if unsafe { libc::getrlimit(self.number(), &raw mut limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((limit.rlim_cur, limit.rlim_max))
    }

    /// Sets the soft limit.
    pub(crate) fn set_soft_limit(self, soft: u64) -> io::Result<()> {
        let (_, hard) = self.limits()?;
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the pointer is to a local value of the right type.
        if unsafe { libc::setrlimit(self.number(), &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
