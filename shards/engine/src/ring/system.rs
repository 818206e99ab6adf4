//! The few system calls without a safe wrapper in the standard library: eventfd, resource limits.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use glommio::io::BufferedFile;

/// A new eventfd with counter 0, close-on-exec.
pub(crate) fn eventfd(nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = libc::EFD_CLOEXEC | if nonblocking { libc::EFD_NONBLOCK } else { 0 };
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::eventfd(0, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The executor's view of an eventfd; must be called on an executor's thread.
pub(crate) fn wake_file(eventfd: OwnedFd) -> BufferedFile {
    // SAFETY: the descriptor is owned and handed over.
    unsafe { BufferedFile::from_raw_fd(eventfd.into_raw_fd()) }
}

/// Soft and hard limit of open files.
pub(crate) fn open_files_limits() -> io::Result<(u64, u64)> {
    limits(libc::RLIMIT_NOFILE)
}

/// Sets the soft limit of open files.
pub(crate) fn set_open_files_limit(soft: u64, hard: u64) -> io::Result<()> {
    set_limits(libc::RLIMIT_NOFILE, soft, hard)
}

/// Soft and hard limit of locked memory, in bytes.
pub(crate) fn memlock_limits() -> io::Result<(u64, u64)> {
    limits(libc::RLIMIT_MEMLOCK)
}

/// Sets the soft limit of locked memory.
pub(crate) fn set_memlock_limit(soft: u64, hard: u64) -> io::Result<()> {
    set_limits(libc::RLIMIT_MEMLOCK, soft, hard)
}

fn limits(resource: libc::__rlimit_resource_t) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local value of the right type.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((limit.rlim_cur, limit.rlim_max))
}

fn set_limits(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the pointer is to a local value of the right type.
    if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
