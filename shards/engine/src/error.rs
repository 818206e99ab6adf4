//! Why the engine, or the machine, refuses to start. Every text names the mend.

use std::io;
use std::net::SocketAddr;

/// The engine cannot start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A value of the configuration is out of bounds.
    #[error("engine configuration: {0}")]
    Config(&'static str),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}; {}", bind_mend(.source))]
    Bind {
        /// The address as configured.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A system call that start-up needs failed.
    #[error("shard {shard}: cannot set up {what}: {source}")]
    Setup {
        /// Which shard.
        shard: u16,
        /// What was set up.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The executor of a shard could not be made.
    #[error(
        "shard {shard}: cannot start the executor: {reason}; check the CPU list and the memlock limit"
    )]
    Executor {
        /// Which shard.
        shard: u16,
        /// What the executor said.
        reason: String,
    },
    /// A shard's thread ended without saying why.
    #[error("shard {shard}: the thread ended unexpectedly")]
    Died {
        /// Which shard.
        shard: u16,
    },
}

fn bind_mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the process that holds the port, or configure another",
        io::ErrorKind::AddrNotAvailable => "use an address of this host, or 0.0.0.0",
        io::ErrorKind::PermissionDenied => {
            "use a port of 1024 or above, or grant CAP_NET_BIND_SERVICE"
        }
        _ => "check the address",
    }
}

/// The machine does not offer what the engine needs.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel is too old.
    #[error("kernel {found} is too old: the gateway needs Linux 6.1 or newer")]
    Kernel {
        /// Release as the kernel tells it.
        found: String,
    },
    /// `io_uring` is forbidden.
    #[error(
        "io_uring is forbidden here: allow it in the container's seccomp profile (Docker's default forbids it; use \
         --security-opt seccomp=<profile with io_uring>) and set the sysctl kernel.io_uring_disabled to 0"
    )]
    Forbidden,
    /// `io_uring` does not work for another reason.
    #[error(
        "io_uring does not work: {0}; the gateway needs a Linux 6.1 kernel with CONFIG_IO_URING"
    )]
    Ring(io::Error),
    /// The memlock limit is too small.
    #[error(
        "the memlock limit is {found} bytes and {needed} are needed: raise it (LimitMEMLOCK= in the unit, --ulimit \
         memlock= in Docker)"
    )]
    Memlock {
        /// Soft limit after raising it.
        found: u64,
        /// What the shards need.
        needed: u64,
    },
    /// Too few file descriptors.
    #[error(
        "the limit of open files is {found} and {needed} are needed for the configured connections: raise it \
         (LimitNOFILE= in the unit, --ulimit nofile= in Docker) or lower connections_max"
    )]
    OpenFiles {
        /// Hard limit.
        found: u64,
        /// What is needed.
        needed: u64,
    },
    /// A limit or the kernel's release could not be read.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What was read.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
