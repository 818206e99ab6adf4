//! Which rows this node has claimed and not yet worked off.
//!
//! A [`Lease`] belongs to a job and ends with it, whatever becomes of the job, so no row is kept from other nodes by a node
//! that has nothing to do with it any more.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rows whose leases are to go on.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<BTreeSet<i64>>>);

/// One row, until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    row: i64,
    held: Leases,
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a row; `None` when a job of this node has it already.
    pub(super) fn take(&self, row: i64) -> Option<Lease> {
        self.lock().insert(row).then(|| Lease { row, held: self.clone() })
    }

    /// All rows that are held.
    pub(super) fn rows(&self) -> Vec<i64> {
        self.lock().iter().copied().collect()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.lock().remove(&self.row);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_held_once_and_as_long_as_its_lease() {
        let leases = Leases::default();
        let (one, other) = (leases.take(1).unwrap(), leases.take(2).unwrap());
        assert!(leases.take(1).is_none());
        assert_eq!(leases.rows(), [1, 2]);
        drop(one);
        assert_eq!(leases.rows(), [2]);
        let _again = leases.take(1).unwrap();
        drop(other);
        assert_eq!(leases.rows(), [1]);
    }
}
