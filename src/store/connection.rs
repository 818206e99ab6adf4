//! One connection with a transaction, of either database, behind one face.
//!
//! Statements are written once. Parameters are `$1`, `$2`..; whole lists go in as one JSON parameter (see
//! [`Dialect::rows`]), so that a batch of any size is one statement. All numbers are 64-bit integers.
//!
//! A transaction that was not ended (an error, a deadline, a dropped future) throws its connection away: the server rolls
//! back, and nothing of it can be found by the next user.

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Postgres, Row as _, Sqlite};

use super::StoreError;

/// Which SQL is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// SQLite.
    Sqlite,
}

impl Dialect {
    /// Name in health, metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Sqlite => "sqlite",
        }
    }

    /// A table made of the JSON array of objects in `parameter`, with these text and number columns (`name`, `is_text`),
    /// for a `FROM` clause.
    pub(crate) fn rows(self, parameter: &str, columns: &[(&str, bool)]) -> String {
        match self {
            Self::Postgres => {
                let columns: Vec<String> = columns
                    .iter()
                    .map(|(name, text)| format!("{name} {}", if *text { "TEXT" } else { "BIGINT" }))
                    .collect();
                format!("json_to_recordset({parameter}::json) AS r({})", columns.join(", "))
            }
            Self::Sqlite => {
                let columns: Vec<String> = columns
                    .iter()
                    .map(|(name, _)| format!("value ->> '$.{name}' AS {name}"))
                    .collect();
                format!("(SELECT {} FROM json_each({parameter})) AS r", columns.join(", "))
            }
        }
    }

    /// The elements of the JSON array of texts in `parameter`, for `IN`.
    pub(crate) fn texts(self, parameter: &str) -> String {
        match self {
            Self::Postgres => format!("(SELECT json_array_elements_text({parameter}::json))"),
            Self::Sqlite => format!("(SELECT value FROM json_each({parameter}))"),
        }
    }

    /// The elements of the JSON array of numbers in `parameter`, for `IN`.
    pub(crate) fn numbers(self, parameter: &str) -> String {
        match self {
            Self::Postgres => {
                format!("(SELECT json_array_elements_text({parameter}::json)::bigint)")
            }
            Self::Sqlite => self.texts(parameter),
        }
    }

    /// Leaves out rows that another transaction works on, and locks the others.
    pub(crate) fn skip_locked(self) -> &'static str {
        match self {
            Self::Postgres => "FOR UPDATE SKIP LOCKED",
            // There is one writer.
            Self::Sqlite => "",
        }
    }
}

/// A parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg<'a> {
    /// A number.
    Int(i64),
    /// A text.
    Text(&'a str),
}

impl From<i64> for Arg<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a String> for Arg<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(value)
    }
}

/// A row of an answer.
#[derive(Debug)]
pub(crate) enum Row {
    /// Of PostgreSQL.
    Postgres(PgRow),
    /// Of SQLite.
    Sqlite(SqliteRow),
}

macro_rules! getter {
    ($(#[doc = $doc:literal] $name:ident -> $type:ty;)+) => {
        impl Row {
            $(#[doc = $doc]
            pub(crate) fn $name(&self, column: usize) -> Result<$type, StoreError> {
                Ok(match self {
                    Self::Postgres(row) => row.try_get(column)?,
                    Self::Sqlite(row) => row.try_get(column)?,
                })
            })+
        }
    };
}

getter! {
    /// A number that is never NULL.
    int -> i64;
    /// A number.
    maybe_int -> Option<i64>;
    /// A text that is never NULL.
    text -> String;
    /// A text.
    maybe_text -> Option<String>;
}

#[derive(Debug)]
pub(super) enum Connection {
    Postgres(PoolConnection<Postgres>),
    Sqlite(PoolConnection<Sqlite>),
}

/// An open transaction.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// Taken when the transaction ends.
    connection: Option<Connection>,
}

fn postgres<'q>(sql: String, args: &[Arg<'q>]) -> Query<'q, Postgres, PgArguments> {
    args.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, arg| match *arg {
        Arg::Int(value) => query.bind(value),
        Arg::Text(value) => query.bind(value),
    })
}

fn sqlite<'q>(sql: String, args: &[Arg<'q>]) -> Query<'q, Sqlite, SqliteArguments> {
    args.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, arg| match *arg {
        Arg::Int(value) => query.bind(value),
        Arg::Text(value) => query.bind(value),
    })
}

impl Transaction {
    /// For one statement, which is a transaction by itself; [`Self::end`] ends it.
    pub(super) fn of_one_statement(connection: Connection) -> Self {
        Self { connection: Some(connection) }
    }

    /// Begins one that may write.
    pub(super) async fn begin(connection: Connection) -> Result<Self, StoreError> {
        let mut transaction = Self { connection: Some(connection) };
        let begin = match transaction.dialect() {
            Dialect::Postgres => "BEGIN",
            // Takes the one writer's place now, instead of failing half-way.
            Dialect::Sqlite => "BEGIN IMMEDIATE",
        };
        transaction.run(begin).await?;
        Ok(transaction)
    }

    /// Begins one that only reads.
    pub(super) async fn begin_read(connection: Connection) -> Result<Self, StoreError> {
        let mut transaction = Self { connection: Some(connection) };
        transaction.run("BEGIN").await?;
        Ok(transaction)
    }

    /// Which SQL it speaks.
    pub(crate) fn dialect(&self) -> Dialect {
        match self.connection {
            Some(Connection::Postgres(_)) => Dialect::Postgres,
            Some(Connection::Sqlite(_)) | None => Dialect::Sqlite,
        }
    }

    /// Runs a statement and tells how many rows it changed.
    pub(crate) async fn execute(
        &mut self,
        sql: impl Into<String>,
        args: &[Arg<'_>],
    ) -> Result<u64, StoreError> {
        let sql = sql.into();
        Ok(match self.open()? {
            Connection::Postgres(connection) => {
                postgres(sql, args).execute(&mut **connection).await?.rows_affected()
            }
            Connection::Sqlite(connection) => {
                sqlite(sql, args).execute(&mut **connection).await?.rows_affected()
            }
        })
    }

    /// Runs a statement and gives its rows.
    pub(crate) async fn fetch(
        &mut self,
        sql: impl Into<String>,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let sql = sql.into();
        Ok(match self.open()? {
            Connection::Postgres(connection) => {
                let rows = postgres(sql, args).fetch_all(&mut **connection).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
            Connection::Sqlite(connection) => {
                let rows = sqlite(sql, args).fetch_all(&mut **connection).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
        })
    }

    /// Makes everything last. When this fails it is not known whether it did.
    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        self.run("COMMIT").await?;
        drop(self.connection.take());
        Ok(())
    }

    /// Ends one of one statement.
    pub(super) fn end(mut self) {
        drop(self.connection.take());
    }

    /// Undoes everything and keeps the connection.
    pub(crate) async fn roll_back(mut self) -> Result<(), StoreError> {
        self.run("ROLLBACK").await?;
        drop(self.connection.take());
        Ok(())
    }

    async fn run(&mut self, sql: &'static str) -> Result<(), StoreError> {
        match self.open()? {
            Connection::Postgres(connection) => {
                sqlx::raw_sql(sql).execute(&mut **connection).await?;
            }
            Connection::Sqlite(connection) => {
                sqlx::raw_sql(sql).execute(&mut **connection).await?;
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<&mut Connection, StoreError> {
        self.connection.as_mut().ok_or(StoreError::Unexpected("a transaction that has ended"))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        match self.connection.take() {
            Some(Connection::Postgres(connection)) => drop(connection.detach()),
            Some(Connection::Sqlite(connection)) => drop(connection.detach()),
            None => {}
        }
    }
}
