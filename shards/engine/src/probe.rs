//! Looks, before anything is started, whether the machine offers what the engine needs.

use std::fs;
use std::io;

use crate::error::ProbeError;
use crate::ring::{Resource, Ring, RingSizes};

/// Oldest kernel with everything the ring uses.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Locked memory that each shard's executor asks for.
const MEMLOCK_PER_PROCESS: u64 = 512 * 1024;
/// Descriptors of a shard besides its sockets: executor, ring, eventfd, listeners.
const FILES_PER_SHARD: u64 = 32;
/// Descriptors of the rest of the process: log files, runtime, standard streams.
const FILES_OF_PROCESS: u64 = 256;

/// Checks kernel, `io_uring`, memlock and open files; raises soft limits to the hard ones where that helps.
/// `sockets_max` is how many sockets the whole process may have open at one time.
///
/// # Errors
/// The first thing that is missing, with the mend.
pub fn probe(sockets_max: u64, shards: usize) -> Result<(), ProbeError> {
    #[expect(clippy::disallowed_methods, reason = "no shard runs yet, and the file is in memory")]
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|source| ProbeError::Read { what: "the kernel's release", source })?;
    check_kernel(release.trim())?;
    probe_memlock()?;
    probe_ring()?;
    probe_open_files(sockets_max, shards as u64)
}

fn check_kernel(release: &str) -> Result<(), ProbeError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    // A release that does not tell its number is left to the ring's own probe.
    if let (Some(Ok(major)), Some(Ok(minor))) = version
        && (major, minor) < KERNEL_MIN
    {
        return Err(ProbeError::Kernel { found: release.to_owned() });
    }
    Ok(())
}

fn probe_ring() -> Result<(), ProbeError> {
    match Ring::new(RingSizes { completion_entries: 64, buffers: 2, buffer_bytes: 64 }) {
        Ok(_) => Ok(()),
        Err(error) => Err(ring_error(error)),
    }
}

fn ring_error(error: io::Error) -> ProbeError {
    match error.raw_os_error() {
        // Docker's profile may also answer as if the call did not exist.
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => ProbeError::Forbidden,
        _ => ProbeError::Ring(error),
    }
}

fn probe_memlock() -> Result<(), ProbeError> {
    let read = |source| ProbeError::Read { what: "the memlock limit", source };
    let (soft, hard) = Resource::LockedMemory.limits().map_err(read)?;
    if soft < hard {
        Resource::LockedMemory.set_soft_limit(hard).map_err(read)?;
    }
    let found = soft.max(hard);
    if found < MEMLOCK_PER_PROCESS {
        return Err(ProbeError::Memlock { found, needed: MEMLOCK_PER_PROCESS });
    }
    Ok(())
}

fn probe_open_files(sockets_max: u64, shards: u64) -> Result<(), ProbeError> {
    let read = |source| ProbeError::Read { what: "the limit of open files", source };
    let needed = sockets_max
        .saturating_add(shards.saturating_mul(FILES_PER_SHARD))
        .saturating_add(FILES_OF_PROCESS);
    let (soft, hard) = Resource::OpenFiles.limits().map_err(read)?;
    if soft < hard {
        Resource::OpenFiles.set_soft_limit(hard).map_err(read)?;
    }
    if hard < needed {
        return Err(ProbeError::OpenFiles { found: hard, needed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_number() {
        assert!(check_kernel("6.1.0-18-amd64").is_ok());
        assert!(check_kernel("7.0").is_ok());
        assert!(check_kernel("6.18.44-custom").is_ok());
        assert!(check_kernel("unknown").is_ok());
        let error = check_kernel("5.15.0-92-generic").expect_err("too old").to_string();
        assert!(error.contains("5.15.0-92-generic") && error.contains("6.1"), "{error}");
    }

    #[test]
    fn forbidden_ring_names_seccomp_and_the_sysctl() {
        let text = ring_error(io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(text.contains("seccomp") && text.contains("kernel.io_uring_disabled"), "{text}");
    }

    #[test]
    fn too_few_files_are_told_with_both_numbers() {
        let error = probe_open_files(u64::MAX / 2, 1).expect_err("more than any limit");
        assert!(error.to_string().contains("LimitNOFILE"), "{error}");
    }
}
