//! The durable store: PostgreSQL, or SQLite in a file as the embedded default.
//!
//! It owns the connections, the schema, the deadline of every request and the breaker in front of the database. What is
//! stored, and what the rows mean, is known to `notify`. Nothing here is reached from a shard: the way leads through the
//! control plane's queue.
//!
//! A request is [`Store::read`] or [`Store::write`] with one statement, or [`Store::run`] around a future that begins a
//! [`Transaction`], uses it and commits. One that takes longer than
//! `database.query_timeout` is given up with its connection, so a hung database costs its callers this long and no more.

mod batch;
mod connection;
mod error;
mod maintenance;
mod migrations;

use std::future::Future;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, PgPool, SqlitePool};

use crate::breaker::{Breaker, BreakerLimits, BreakerState, Change};
use crate::config::sections::DatabaseSection;
pub(crate) use batch::{Apply, BatchStats, Streak, commit_batch};
use connection::Connection;
pub(crate) use connection::{Arg, Dialect, Row, Transaction};
pub(crate) use error::StoreError;

/// Notification channel on which PostgreSQL wakes relays.
const OUTBOX_EVENT: &str = "archmesh_outbox";
/// Idle connections are closed after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A file is read no faster by more of them.
const SQLITE_READERS_MAX: u32 = 4;

/// Outcomes of requests, in order of the counters.
pub(crate) const OUTCOMES: [&str; 4] = ["ok", "error", "timeout", "refused"];

#[derive(Debug)]
enum Pools {
    Postgres(PgPool),
    /// SQLite has one writer at a time; readers do not wait for it.
    Sqlite {
        write: SqlitePool,
        read: SqlitePool,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Store {
    pools: Pools,
    name: String,
    query_timeout: Duration,
    breaker: Breaker,
    outcomes: [AtomicU64; OUTCOMES.len()],
    busy_us: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// An address of a database that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreStartError {
    /// The URL.
    #[error("database.url cannot be used: {0}; see docs/database.md for its form")]
    Url(sqlx::Error),
    /// The folder of the file.
    #[error("the folder of database.sqlite_path, {path}, cannot be made: {source}")]
    Folder {
        /// Which one.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It does not answer.
    #[error(
        "the database {name} has not answered within database.start_timeout ({}): {source}; start it, or look at address, \
         network and certificate",
        format_args!("{waited:?}")
    )]
    Away {
        /// Where it is.
        name: String,
        /// How long it was waited for.
        waited: Duration,
        /// Why not.
        source: StoreError,
    },
    /// The schema or the first connection.
    #[error("the database {name} cannot be used: {source}")]
    Unusable {
        /// Where it is.
        name: String,
        /// Why not.
        source: StoreError,
    },
}

impl Store {
    /// Opens the configured database without connecting yet.
    pub(crate) fn open(section: &DatabaseSection) -> Result<Self, StoreStartError> {
        let (pools, name) = match &section.url {
            Some(url) => postgres(section, url.expose())?,
            None => sqlite(section)?,
        };
        Ok(Self {
            pools,
            name,
            query_timeout: section.query_timeout,
            breaker: Breaker::new(BreakerLimits {
                failures: section.breaker_failures,
                open: section.breaker_open,
            }),
            outcomes: std::array::from_fn(|_| AtomicU64::new(0)),
            busy_us: AtomicU64::new(0),
            last_error: Mutex::new(None),
        })
    }

    /// Brings the schema up to date; several nodes may do it at once. Tells how many migrations there are.
    pub(crate) async fn migrate(&self) -> Result<usize, StoreStartError> {
        let migrator = migrations::migrator(self.dialect());
        let done = match &self.pools {
            Pools::Postgres(pool) => migrate_patiently(&migrator, pool).await,
            Pools::Sqlite { write, .. } => migrator.run(write).await.map_err(StoreError::from),
        };
        done.map_err(|error| self.unusable(error))?;
        Ok(migrator.iter().count())
    }

    /// Opens the connections to a file now, so that the descriptors of the process do not grow with its first clients.
    pub(crate) async fn open_file(&self) -> Result<(), StoreError> {
        let Pools::Sqlite { read, .. } = &self.pools else { return Ok(()) };
        let mut open = Vec::new();
        for _ in 0..read.options().get_max_connections() {
            open.push(read.acquire().await?);
        }
        Ok(())
    }

    /// Checks that the schema is the one that this release needs, or a newer one.
    pub(crate) async fn check_schema(&self) -> Result<(), StoreStartError> {
        let wanted =
            i64::try_from(migrations::migrator(self.dialect()).iter().count()).unwrap_or(i64::MAX);
        let sql = format!("SELECT count(*) FROM {}", migrations::TABLE);
        let found = match self.read(sql, &[]).await {
            Ok(rows) => rows
                .first()
                .map_or(Ok(0), |row| row.int(0))
                .map_err(|error| self.unusable(error))?,
            // The table itself is missing.
            Err(error) if error.is_missing_table() => 0,
            Err(error) => return Err(self.unusable(error)),
        };
        if found < wanted {
            return Err(self.unusable(StoreError::Outdated { found, wanted }));
        }
        Ok(())
    }

    /// Names the database that cannot be used.
    pub(crate) fn unusable(&self, source: StoreError) -> StoreStartError {
        StoreStartError::Unusable { name: self.name.clone(), source }
    }

    /// Which SQL it speaks.
    pub(crate) fn dialect(&self) -> Dialect {
        match self.pools {
            Pools::Postgres(_) => Dialect::Postgres,
            Pools::Sqlite { .. } => Dialect::Sqlite,
        }
    }

    /// What a request may take.
    pub(crate) fn query_timeout(&self) -> Duration {
        self.query_timeout
    }

    /// Where it is, without a password.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a request within its deadline, unless the breaker is open.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up; a commit that was under way may still be carried out.
    pub(crate) async fn run<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if !self.breaker.try_enter(Instant::now()) {
            self.count("refused");
            return Err(StoreError::Open);
        }
        let started = Instant::now();
        let result = tokio::time::timeout(self.query_timeout, work).await;
        let result = result.unwrap_or(Err(StoreError::Timeout));
        let took = started.elapsed().as_micros() as u64;
        self.busy_us.fetch_add(took, Ordering::Relaxed);
        self.report(&result);
        result
    }

    fn report<T>(&self, result: &Result<T, StoreError>) {
        let outage = result.as_ref().err().filter(|error| error.is_outage());
        self.count(match result {
            Ok(_) => "ok",
            Err(StoreError::Timeout) => "timeout",
            Err(_) => "error",
        });
        if let Err(error) = result {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(error.to_string());
        }
        match self.breaker.report(Instant::now(), outage.is_none()) {
            Some(Change::Opened) => {
                let error = outage.map(ToString::to_string).unwrap_or_default();
                tracing::warn!(
                    category = "database",
                    event = "database_lost",
                    database = self.name,
                    error
                );
            }
            Some(Change::Closed) => {
                tracing::info!(
                    category = "database",
                    event = "database_back",
                    database = self.name
                );
            }
            None => {}
        }
    }

    /// A request of one statement that only reads: its rows.
    pub(crate) async fn read(
        &self,
        sql: impl Into<String>,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let request = async {
            let mut statement = Transaction::of_one_statement(self.reader().await?);
            let rows = statement.fetch(sql, args).await?;
            statement.end();
            Ok(rows)
        };
        self.run(request).await
    }

    /// A request of one statement that writes: how many rows it changed.
    pub(crate) async fn write(
        &self,
        sql: impl Into<String>,
        args: &[Arg<'_>],
    ) -> Result<u64, StoreError> {
        let request = async {
            let mut statement = Transaction::of_one_statement(self.writer().await?);
            let changed = statement.execute(sql, args).await?;
            statement.end();
            Ok(changed)
        };
        self.run(request).await
    }

    /// A transaction that may write.
    pub(crate) async fn begin(&self) -> Result<Transaction, StoreError> {
        Transaction::begin(self.writer().await?).await
    }

    /// A transaction that only reads, and does not wait for writers.
    pub(crate) async fn begin_read(&self) -> Result<Transaction, StoreError> {
        Transaction::begin_read(self.reader().await?).await
    }

    async fn writer(&self) -> Result<Connection, StoreError> {
        Ok(match &self.pools {
            Pools::Postgres(pool) => Connection::Postgres(pool.acquire().await?),
            Pools::Sqlite { write, .. } => Connection::Sqlite(write.acquire().await?),
        })
    }

    async fn reader(&self) -> Result<Connection, StoreError> {
        Ok(match &self.pools {
            Pools::Postgres(pool) => Connection::Postgres(pool.acquire().await?),
            Pools::Sqlite { read, .. } => Connection::Sqlite(read.acquire().await?),
        })
    }

    /// Listens for rows that applications have put into the outbox; `None` where nobody tells.
    pub(crate) async fn listen(&self) -> Result<Option<PgListener>, StoreError> {
        let Pools::Postgres(pool) = &self.pools else { return Ok(None) };
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(OUTBOX_EVENT).await?;
        Ok(Some(listener))
    }

    /// Whether requests are let through without doubt.
    pub(crate) fn is_up(&self) -> bool {
        self.breaker.state() == BreakerState::Closed
    }

    /// State of the breaker.
    pub(crate) fn breaker_state(&self) -> BreakerState {
        self.breaker.state()
    }

    /// The newest error, when there was one.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests by [`OUTCOMES`].
    pub(crate) fn outcomes(&self) -> [u64; OUTCOMES.len()] {
        std::array::from_fn(|index| self.outcomes[index].load(Ordering::Relaxed))
    }

    /// Time that all requests took together.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_micros(self.busy_us.load(Ordering::Relaxed))
    }

    /// Connections that are open, and those of them that nobody uses.
    pub(crate) fn connections(&self) -> (u32, usize) {
        match &self.pools {
            Pools::Postgres(pool) => (pool.size(), pool.num_idle()),
            Pools::Sqlite { write, read } => {
                (write.size() + read.size(), write.num_idle() + read.num_idle())
            }
        }
    }

    /// Most connections it may open.
    pub(crate) fn connections_max(&self) -> u32 {
        match &self.pools {
            Pools::Postgres(pool) => pool.options().get_max_connections(),
            Pools::Sqlite { write, read } => {
                write.options().get_max_connections() + read.options().get_max_connections()
            }
        }
    }

    /// Ends all connections, after what is under way.
    pub(crate) async fn close(&self) {
        match &self.pools {
            Pools::Postgres(pool) => pool.close().await,
            Pools::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
        }
    }

    fn count(&self, outcome: &str) {
        let index = OUTCOMES.iter().position(|known| *known == outcome);
        self.outcomes[index.unwrap_or_default()].fetch_add(1, Ordering::Relaxed);
    }
}

/// Wall clock in Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    unix.as_millis() as i64
}

/// Migrates on a connection of its own: large tables, and another node that is at it, take longer than a request may.
async fn migrate_patiently(migrator: &Migrator, pool: &PgPool) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await?.detach();
    let unlimited = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0";
    sqlx::raw_sql(unlimited).execute(&mut connection).await?;
    migrator.run(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

fn postgres(section: &DatabaseSection, url: &str) -> Result<(Pools, String), StoreStartError> {
    let options = PgConnectOptions::from_str(url).map_err(StoreStartError::Url)?;
    let timeout = section.query_timeout.as_millis().to_string();
    let options = options.application_name("archmesh-gateway").options([
        ("statement_timeout", timeout.as_str()),
        ("idle_in_transaction_session_timeout", timeout.as_str()),
        // The trigger of the outbox looks at it.
        ("archmesh.writer", "gateway"),
    ]);
    let name = format!(
        "postgres://{}:{}/{}",
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or_default()
    );
    let pool = PgPoolOptions::new()
        .max_connections(section.connections_max)
        .acquire_timeout(section.connect_timeout)
        .idle_timeout(IDLE_TIMEOUT)
        .connect_lazy_with(options);
    Ok((Pools::Postgres(pool), name))
}

fn sqlite(section: &DatabaseSection) -> Result<(Pools, String), StoreStartError> {
    let path = section.sqlite_path.as_path();
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
        // What is in it is personal.
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder).map_err(|source| {
            StoreStartError::Folder { path: folder.display().to_string(), source }
        })?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A commit that was answered is on the disk.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(section.query_timeout);
    let pool = |connections| {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(section.connect_timeout.max(section.query_timeout))
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone())
    };
    let pools = Pools::Sqlite {
        write: pool(1),
        read: pool(section.connections_max.min(SQLITE_READERS_MAX)),
    };
    Ok((pools, format!("sqlite:{}", path.display())))
}
