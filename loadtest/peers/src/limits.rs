//! Limits of the process.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Takes the soft limit of open descriptors up to the hard one. Where that is refused, opening connections says so.
pub fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
