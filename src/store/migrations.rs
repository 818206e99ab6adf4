//! The schema, built into the binary: `migrations/<database>/`, forward only.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::Dialect;

/// Keeps apart from the table of the same library in an application's database.
pub(super) const TABLE: &str = "archmesh_migrations";

macro_rules! migrations {
    ($folder:literal: $($version:literal $name:literal),+) => {
        vec![$(($version, $name, include_str!(concat!("../../migrations/", $folder, "/", $name, ".sql")))),+]
    };
}

/// All migrations for a database.
pub(super) fn migrator(dialect: Dialect) -> Migrator {
    let files = match dialect {
        Dialect::Postgres => {
            migrations!(
                "postgres":
                1 "0001_create_inbox",
                2 "0002_create_streams",
                3 "0003_create_events",
                4 "0004_index_deliveries_by_channel"
            )
        }
        Dialect::Sqlite => migrations!(
            "sqlite":
            1 "0001_create_inbox",
            2 "0002_create_streams",
                3 "0003_create_events",
            4 "0004_index_deliveries_by_channel"
        ),
    };
    let migrations = files.into_iter().map(|(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name(TABLE);
    // A newer release may have run on the database already: it keeps what this one needs.
    migrator.set_ignore_missing(true);
    migrator
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_run() {
        for (dialect, folder) in [(Dialect::Postgres, "postgres"), (Dialect::Sqlite, "sqlite")] {
            let path = format!("{}/migrations/{folder}", env!("CARGO_MANIFEST_DIR"));
            let mut files: Vec<String> = std::fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            let migrator = migrator(dialect);
            let known: Vec<String> =
                migrator.iter().map(|migration| format!("{}.sql", migration.description)).collect();
            assert_eq!(files, known);
            let numbers: Vec<String> =
                migrator.iter().map(|migration| format!("{:04}", migration.version)).collect();
            assert!(known.iter().zip(&numbers).all(|(name, number)| name.starts_with(number)));
        }
    }
}
