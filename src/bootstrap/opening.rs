//! Waits for a database that comes later than the node, as at the boot of a host.
//!
//! Only an outage is waited for: a wrong password or schema does not mend itself. systemd is told what is waited for, and
//! that its own limit for a start does not count meanwhile.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

use crate::config::sections::DatabaseSection;
use crate::store::{Store, StoreError, StoreStartError};
use crate::supervise;

/// Between two tries.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between two lines of the log.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// What systemd grants beyond the longest wait.
const SYSTEMD_SLACK: Duration = Duration::from_secs(30);

/// Brings the schema up to date, or checks it, as soon as the database answers.
///
/// # Errors
/// [`StoreStartError::Away`] when it has not answered within `database.start_timeout`.
pub(super) async fn await_schema(
    store: &Store,
    section: &DatabaseSection,
) -> Result<(), StoreStartError> {
    let deadline = Instant::now() + section.start_timeout;
    let mut logged: Option<Instant> = None;
    loop {
        let tried = if section.migrate {
            store.migrate().await.map(|_| ())
        } else {
            store.check_schema().await
        };
        let source = match tried {
            Err(StoreStartError::Unusable { source, .. })
                if source.is_outage() || matches!(source, StoreError::Open) =>
            {
                source
            }
            done => {
                if logged.is_some() {
                    supervise::notify(NotifyState::Status(""));
                }
                return done;
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (name, waited) = (store.name().to_owned(), section.start_timeout);
            return Err(StoreStartError::Away { name, waited, source });
        }
        if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            if logged.is_none() {
                tell_systemd(left);
            }
            logged = Some(Instant::now());
            tracing::warn!(
                category = "database",
                event = "database_awaited",
                database = store.name(),
                error = %source,
                seconds_left = left.as_secs(),
            );
        }
        tokio::time::sleep(INTERVAL.min(left)).await;
    }
}

fn tell_systemd(left: Duration) {
    supervise::notify(NotifyState::Status("waiting for the database"));
    let longest = (left + SYSTEMD_SLACK).as_micros();
    supervise::notify(NotifyState::ExtendTimeoutUsec(u32::try_from(longest).unwrap_or(u32::MAX)));
}
