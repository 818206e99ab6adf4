//! `archmesh backup` and `archmesh restore`: the store and the configuration, in a folder of its own.
//!
//! PostgreSQL is dumped by `pg_dump` and filled by `pg_restore`, data only: the schema comes from the migrations of the release
//! that restores. SQLite makes a copy of itself while the gateway runs. A manifest says what is there, with checksums; a restore
//! goes only into a store that has no notifications yet, and only from a release that is not newer.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::{Config, Format, Loaded};
use crate::store::{Dialect, Store, StoreError, StoreStartError};

/// What is in a backup.
const MANIFEST: &str = "manifest.json";
/// The configuration as it was in force, without secrets.
const CONFIGURATION: &str = "configuration.toml";

/// Describes a backup.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// Release that made it.
    version: String,
    /// Unix seconds.
    created_at: u64,
    /// `postgresql` or `sqlite`.
    database: String,
    /// Migrations that the schema had.
    migrations: i64,
    /// Files beside the manifest, with their SHA-256.
    files: Vec<(String, String)>,
}

/// A backup or a restore did not come about. The text says the mend.
#[derive(Debug, thiserror::Error)]
pub(super) enum BackupError {
    #[error("{what} {path}: {source}")]
    File { what: &'static str, path: String, source: io::Error },
    #[error(transparent)]
    Start(#[from] StoreStartError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{program} cannot be run: {source}; install the PostgreSQL client (Debian: postgresql-client)"
    )]
    Program { program: &'static str, source: io::Error },
    #[error("{program} failed: {said}")]
    Failed { program: &'static str, said: String },
    #[error("{0} is no backup, or is damaged: its manifest cannot be read")]
    Manifest(String),
    #[error("{0} is damaged: its checksum is not that of the manifest; take another backup")]
    Checksum(String),
    #[error(
        "the backup is of {found}, the configured database is {wanted}; both have to be of one kind"
    )]
    Kind { found: String, wanted: &'static str },
    #[error("the backup is of a newer release ({0}); restore it with that one")]
    Newer(String),
    #[error("the store {0} has notifications already; restore into an empty one")]
    NotEmpty(String),
    #[error("database.url is no URL")]
    Url,
}

fn file_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> BackupError + 'a {
    move |source| BackupError::File { what, path: path.display().to_string(), source }
}

/// Writes a backup into `folder`, which must not exist; tells what was written.
pub(super) async fn backup(loaded: &Loaded, folder: &Path) -> Result<String, BackupError> {
    let config = &loaded.config;
    let store = Store::open(&config.database)?;
    store.check_schema().await?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .map_err(file_error("the folder must be a new one:", folder))?;
    let data = folder.join(data_name(store.dialect()));
    match store.dialect() {
        Dialect::Sqlite => store.copy_sqlite(&data).await?,
        Dialect::Postgres => {
            let file = format!("--file={}", data.display());
            let tables = [
                "--table=archmesh_*",
                "--exclude-table=archmesh_migrations",
                "--exclude-table=archmesh_outbox_lanes",
                // Partitions are made anew, by the gateway.
                "--load-via-partition-root",
                "--exclude-table=archmesh_publication_partitions",
            ];
            let arguments = ["--format=custom", "--data-only", "--no-owner", &file];
            run(config, "pg_dump", &[&arguments[..], &tables[..]].concat())?;
        }
    }
    let migrations = store.migrations_applied().await?;
    let mut files = vec![data];
    files.push(write(folder, CONFIGURATION, loaded.print(Format::Toml).as_bytes())?);
    for (index, path) in loaded.sources.files.iter().enumerate() {
        let text = fs::read(path).map_err(file_error("cannot be read:", path))?;
        files.push(write(folder, &format!("config-{index}.toml"), &text)?);
    }
    let manifest = Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        created_at: (crate::notify::now_ms() / 1000) as u64,
        database: store.dialect().as_str().to_owned(),
        migrations,
        files: files
            .iter()
            .map(|path| Ok((name_of(path), checksum(path)?)))
            .collect::<Result<_, BackupError>>()?,
    };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|_| BackupError::Manifest(MANIFEST.to_owned()))?;
    write(folder, MANIFEST, &text)?;
    store.close().await;
    Ok(format!("{} was backed up into {}\n", store.name(), folder.display()))
}

/// Fills the configured store, which must be empty, from a backup.
pub(super) async fn restore(config: &Config, folder: &Path) -> Result<String, BackupError> {
    let manifest = read_manifest(folder)?;
    let store = Store::open(&config.database)?;
    if manifest.database != store.dialect().as_str() {
        let wanted = store.dialect().as_str();
        return Err(BackupError::Kind { found: manifest.database, wanted });
    }
    let data = folder.join(data_name(store.dialect()));
    if store.dialect() == Dialect::Sqlite {
        let target = &config.database.sqlite_path;
        if target.exists() {
            return Err(BackupError::NotEmpty(target.display().to_string()));
        }
        fs::copy(&data, target).map_err(file_error("cannot be written:", target))?;
    }
    let known = i64::try_from(store.migrate().await?).unwrap_or(i64::MAX);
    if manifest.migrations > known {
        return Err(BackupError::Newer(manifest.version));
    }
    if store.dialect() == Dialect::Postgres {
        if store.has_notifications().await? {
            return Err(BackupError::NotEmpty(store.name().to_owned()));
        }
        let database = format!("--dbname={}", environment(config)?.database);
        let data = data.display().to_string();
        let arguments = [
            "--data-only",
            "--no-owner",
            "--exit-on-error",
            "--single-transaction",
            &database,
            &data,
        ];
        run(config, "pg_restore", &arguments)?;
    }
    store.advance_revisions().await?;
    store.begin_streams_anew().await?;
    store.close().await;
    Ok(format!("{} was restored from {}\n", store.name(), folder.display()))
}

fn data_name(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => "database.dump",
        Dialect::Sqlite => "database.sqlite",
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Readable by its owner alone: it holds personal data, and perhaps secrets.
fn write(folder: &Path, name: &str, content: &[u8]) -> Result<PathBuf, BackupError> {
    let path = folder.join(name);
    let mut options = fs::OpenOptions::new();
    let written = options.write(true).create_new(true).mode(0o600).open(&path);
    let written = written.and_then(|mut file| {
        io::Write::write_all(&mut file, content)?;
        file.sync_all()
    });
    written.map_err(file_error("cannot be written:", &path))?;
    Ok(path)
}

fn checksum(path: &Path) -> Result<String, BackupError> {
    let mut file = fs::File::open(path).map_err(file_error("cannot be read:", path))?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(file_error("cannot be read:", path))?;
    Ok(hash.finalize().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

fn read_manifest(folder: &Path) -> Result<Manifest, BackupError> {
    let unreadable = || BackupError::Manifest(folder.display().to_string());
    let text = fs::read(folder.join(MANIFEST)).map_err(|_| unreadable())?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|_| unreadable())?;
    for (name, expected) in &manifest.files {
        // Names in a manifest that somebody has changed must not lead out of the folder.
        if name.contains('/') || checksum(&folder.join(name))? != *expected {
            return Err(BackupError::Checksum(name.clone()));
        }
    }
    Ok(manifest)
}

/// How the programs of PostgreSQL find the database: by variables, so that no password is in a list of processes.
struct PostgresEnvironment {
    database: String,
    variables: Vec<(&'static str, String)>,
}

fn environment(config: &Config) -> Result<PostgresEnvironment, BackupError> {
    let text = config.database.url.as_ref().ok_or(BackupError::Url)?;
    let url = url::Url::parse(text.expose()).map_err(|_| BackupError::Url)?;
    let decoded =
        |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let database = decoded(url.path().trim_start_matches('/'));
    let mut variables = vec![("PGDATABASE", database.clone())];
    if let Some(host) = url.host_str() {
        variables.push(("PGHOST", host.trim_matches(['[', ']']).to_owned()));
    }
    if let Some(port) = url.port() {
        variables.push(("PGPORT", port.to_string()));
    }
    if !url.username().is_empty() {
        variables.push(("PGUSER", decoded(url.username())));
    }
    if let Some(password) = url.password() {
        variables.push(("PGPASSWORD", decoded(password)));
    }
    for (name, value) in url.query_pairs() {
        let variable = match &*name {
            "sslmode" | "ssl-mode" => "PGSSLMODE",
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => "PGSSLROOTCERT",
            "sslcert" | "ssl-cert" => "PGSSLCERT",
            "sslkey" | "ssl-key" => "PGSSLKEY",
            "host" => "PGHOST",
            _ => continue,
        };
        variables.push((variable, value.into_owned()));
    }
    Ok(PostgresEnvironment { database, variables })
}

fn run(config: &Config, program: &'static str, arguments: &[&str]) -> Result<(), BackupError> {
    let environment = environment(config)?;
    let output = Command::new(program)
        .args(arguments)
        .envs(environment.variables)
        .output()
        .map_err(|source| BackupError::Program { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(BackupError::Failed { program, said })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn the_programs_of_postgresql_get_the_parts_of_the_url() {
        let url = "postgres://u%2F:p%40@[::1]:7/n%20m?sslmode=verify-full&sslrootcert=/ca.pem&application_name=x";
        let variables = vec![("DB_URL".to_owned(), url.to_owned())];
        let config = Config::load(&Sources { variables, ..Sources::default() }).unwrap().config;
        let found = environment(&config).unwrap();
        assert_eq!(found.database, "n m");
        let expected = [
            ("PGDATABASE", "n m"),
            ("PGHOST", "::1"),
            ("PGPORT", "7"),
            ("PGUSER", "u/"),
            ("PGPASSWORD", "p@"),
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", "/ca.pem"),
        ];
        assert_eq!(found.variables, expected.map(|(name, value)| (name, value.to_owned())));
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "a", b"one").unwrap();
        let files = vec![("a".to_owned(), checksum(&path).unwrap())];
        let manifest = Manifest {
            version: "1".to_owned(),
            created_at: 1,
            database: "sqlite".to_owned(),
            migrations: 1,
            files,
        };
        write(folder.path(), MANIFEST, &serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert!(read_manifest(folder.path()).is_ok());
        fs::write(&path, "two").unwrap();
        assert!(matches!(read_manifest(folder.path()), Err(BackupError::Checksum(_))));
        assert!(matches!(read_manifest(Path::new("/nowhere")), Err(BackupError::Manifest(_))));
    }
}
