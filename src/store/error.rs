//! Why the store did not do what it was asked.

use std::sync::Arc;

use crate::cache::LoadError;

/// A request to the store failed. Nothing of it was done, but after [`Self::Timeout`], when it is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The breaker is open: nothing was sent.
    #[error("the database is left alone after failures; it is tried again soon")]
    Open,
    /// No answer within `database.query_timeout`.
    #[error("the database did not answer in time (database.query_timeout)")]
    Timeout,
    /// More wait than `database.writes_waiting_max`.
    #[error("too many writes wait for the database (database.writes_waiting_max); try again")]
    Full,
    /// The database or the connection says no.
    #[error("database: {0}")]
    Failed(#[from] sqlx::Error),
    /// The schema cannot be brought up to date.
    #[error("database.migrate: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The schema is not that of this release.
    #[error(
        "the database has {found} of {wanted} migrations; run `archmesh migrate`, or set database.migrate"
    )]
    Outdated {
        /// Applied.
        found: i64,
        /// Known to this release.
        wanted: i64,
    },
    /// What somebody else has asked for has failed, and they waited together.
    #[error("{0}")]
    Shared(Arc<Self>),
    /// A stored value cannot be read.
    #[error("the database holds something unexpected: {0}")]
    Unexpected(&'static str),
}

impl From<LoadError<Self>> for StoreError {
    fn from(error: LoadError<Self>) -> Self {
        match error {
            LoadError::Failed(error) => Self::Shared(error),
            LoadError::TimedOut => Self::Timeout,
            LoadError::Busy => Self::Full,
            LoadError::Panicked | LoadError::WrongCount { .. } | LoadError::Key(_) => {
                Self::Unexpected("a cached value")
            }
        }
    }
}

impl StoreError {
    /// The error that others share, or this one.
    pub(crate) fn root(&self) -> &Self {
        match self {
            Self::Shared(error) => error.root(),
            own => own,
        }
    }

    /// Whether the database is the cause rather than what was asked, so that the breaker counts it.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Shared(error) => error.is_outage(),
            Self::Failed(error) => match error {
                sqlx::Error::Database(error) => is_outage_code(error.code().as_deref()),
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the same may be tried again at once: another transaction was in the way.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Failed(sqlx::Error::Database(error))
            if matches!(error.code().as_deref(), Some("40001" | "40P01")))
    }

    /// Whether the role lacks a right.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Failed(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501"))
    }

    /// Whether a table is not there. SQLite has one code for all that is wrong with a statement.
    pub(crate) fn is_missing_table(&self) -> bool {
        matches!(self, Self::Failed(sqlx::Error::Database(error))
            if matches!(error.code().as_deref(), Some("42P01" | "1")))
    }
}

/// SQLSTATE classes of PostgreSQL: connection, resources (disk, memory, connections), operator's intervention, system,
/// and cannot-write-now; of SQLite its primary codes for busy, I/O, full, cannot open.
fn is_outage_code(code: Option<&str>) -> bool {
    let Some(code) = code else { return true };
    let class = ["08", "53", "57", "58", "XX"];
    (code.len() == 5 && (class.contains(&&code[..2]) || code == "25006"))
        || code
            .parse::<u32>()
            .is_ok_and(|code| code < 10_000 && matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_outages() {
        for code in ["08006", "53100", "57P01", "58030", "25006", "5", "13", "778"] {
            assert!(is_outage_code(Some(code)), "{code}");
        }
        for code in ["23505", "42P01", "40001", "22021", "1", "19", "1555"] {
            assert!(!is_outage_code(Some(code)), "{code}");
        }
    }
}
