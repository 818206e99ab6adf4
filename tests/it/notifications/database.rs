//! The database of a test, of either kind, and what the rows say.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::chaos::hold;
use crate::gateway::Setup;
use crate::postgres::{Postgres, PostgresDatabase};
use crate::support::{WAIT, eventually, root};

/// Inboxes whose counters are not what the rows say, of which there must be none.
const DRIFTED: &str = "SELECT b.user_id, b.last_seq, b.unread, b.unseen, b.unacked FROM archmesh_inboxes b WHERE \
    b.unread <> (SELECT count(*) FROM archmesh_inbox i \
        WHERE i.user_id = b.user_id AND i.read_at IS NULL AND i.archived_at IS NULL) \
    OR b.unseen <> (SELECT count(*) FROM archmesh_inbox i \
        WHERE i.user_id = b.user_id AND i.seen_at IS NULL AND i.archived_at IS NULL) \
    OR b.unacked <> (SELECT count(*) FROM archmesh_inbox i \
        WHERE i.user_id = b.user_id AND i.acked_at IS NULL AND i.archived_at IS NULL) \
    OR b.last_seq < (SELECT coalesce(max(i.seq), 0) FROM archmesh_inbox i WHERE i.user_id = b.user_id)";

/// Runs each test on a database of either kind.
macro_rules! on_both_databases {
    ($($module:ident::$name:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[test]
                fn $name() {
                    super::$module::$name(&crate::notifications::database::Database::sqlite());
                }
            )+
        }

        mod postgresql {
            $(
                #[test]
                fn $name() {
                    super::$module::$name(&crate::notifications::database::Database::postgres());
                }
            )+
        }
    };
}
pub(crate) use on_both_databases;

/// A role of PostgreSQL with the rights that docs/database.md names and no others; gone with the value.
#[derive(Debug)]
pub struct DocumentedRole<'a> {
    database: &'a Database,
    name: String,
    url: String,
}

impl DocumentedRole<'_> {
    /// URL for a gateway that has this role.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for DocumentedRole<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.database.query(&format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name));
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub enum Database {
    Postgres(PostgresDatabase),
    /// A file in this folder.
    Sqlite(TempDir),
}

impl Database {
    /// An empty database of the server that the tests share.
    pub fn postgres() -> Self {
        Self::Postgres(Postgres::shared().database())
    }

    /// An empty file.
    pub fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// Makes a role for gateways, with the rights that are documented; the tables exist. PostgreSQL only.
    pub fn documented_role(&self) -> DocumentedRole<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Self::Postgres(postgres) = self else { panic!("SQLite has no roles") };
        let name =
            format!("gateway_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let page = std::fs::read_to_string(root().join("docs/database.md")).unwrap();
        let grants: Vec<String> = page
            .lines()
            .filter(|line| line.starts_with("GRANT") && line.ends_with("TO archmesh;"))
            .filter(|line| !line.contains("CONNECT"))
            .map(|line| line.replace("TO archmesh;", &format!("TO {name};")))
            .collect();
        assert!(grants.len() > 5, "{grants:?}");
        self.query(&format!("CREATE ROLE {name} LOGIN; {}", grants.join(" ")));
        let url = postgres.url();
        let (_, place) = url.split_once('@').unwrap();
        let url = format!("postgres://{name}@{place}");
        DocumentedRole { database: self, name, url }
    }

    /// An empty one of the same kind.
    pub fn another(&self) -> Self {
        match self {
            Self::Postgres(_) => Self::postgres(),
            Self::Sqlite(_) => Self::sqlite(),
        }
    }

    /// The same as options of the command line.
    pub fn options(&self) -> [String; 2] {
        let option = match self {
            Self::Postgres(database) => format!("database.url={}", database.url()),
            Self::Sqlite(folder) => {
                format!("database.sqlite_path={}", folder.path().join("test.db").display())
            }
        };
        ["--set".to_owned(), option]
    }

    /// A gateway that uses it.
    pub fn setup(&self) -> Setup {
        match self {
            Self::Postgres(database) => Setup::new().set("database.url", database.url()),
            Self::Sqlite(folder) => {
                Setup::new().set("database.sqlite_path", folder.path().join("test.db").display())
            }
        }
    }

    /// Runs statements in one transaction and answers the rows as text; NULL is empty.
    pub fn query(&self, sql: &str) -> Vec<Vec<String>> {
        match self {
            Self::Postgres(database) => database.query(sql),
            Self::Sqlite(folder) => query_file(folder, sql),
        }
    }

    /// Keeps everybody else from writing for so long; SQLite only.
    pub fn keep_file(&self, duration: Duration) {
        let Self::Sqlite(folder) = self else { panic!("PostgreSQL has no file to keep") };
        let kept = runtime().block_on(async {
            let mut connection = file(folder).connect().await?;
            sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await?;
            hold(duration);
            sqlx::raw_sql("COMMIT").execute(&mut connection).await
        });
        kept.expect("the file is kept and given back");
    }

    /// The only field of the only row, as a number.
    pub fn number(&self, sql: &str) -> i64 {
        let rows = self.query(sql);
        let [row] = &rows[..] else { panic!("{sql}: {rows:?}") };
        row[0].parse().unwrap_or_else(|error| panic!("{sql}: {rows:?}: {error}"))
    }

    /// The numbers of all inboxes are those of their rows.
    pub fn check_counters(&self) {
        let drifted = self.query(DRIFTED);
        assert!(drifted.is_empty(), "user, newest, unread, unseen, unconfirmed: {drifted:?}");
        let without = "SELECT user_id FROM archmesh_inbox WHERE user_id NOT IN (SELECT user_id FROM archmesh_inboxes)";
        assert!(self.query(without).is_empty(), "items without an inbox");
    }

    /// Waits until everything that was written has been published.
    pub fn await_published(&self) {
        let waiting = "SELECT count(*) FROM archmesh_outbox WHERE failed_at IS NULL";
        eventually("the outbox is empty", || (self.number(waiting) == 0).then_some(()));
    }
}

fn file(folder: &TempDir) -> SqliteConnectOptions {
    let path = folder.path().join("test.db");
    SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(WAIT)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn query_file(folder: &TempDir, sql: &str) -> Vec<Vec<String>> {
    // Only a read may be a statement without a transaction.
    let is_read = sql.starts_with("SELECT");
    let all = if is_read { sql.to_owned() } else { format!("BEGIN IMMEDIATE; {sql}; COMMIT") };
    let rows = runtime().block_on(async {
        let mut connection = file(folder).connect().await?;
        sqlx::raw_sql(AssertSqlSafe(all)).fetch_all(&mut connection).await
    });
    let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let text = |row: &SqliteRow, column| {
        row.try_get_unchecked::<Option<String>, usize>(column).unwrap().unwrap_or_default()
    };
    rows.iter().map(|row| (0..row.len()).map(|column| text(row, column)).collect()).collect()
}
