//! `archmesh migrate`, `archmesh backup`, `archmesh restore` and `archmesh vapid`.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use rustls::crypto::aws_lc_rs;

use super::{backup, output};
use crate::config::{Config, Loaded};
use crate::notify;
use crate::store::{Store, StoreStartError};

/// Brings the schema of the configured database up to date.
pub(super) fn migrate(config: &Config) -> ExitCode {
    finish(async {
        let store = Store::open(&config.database)?;
        let migrations = store.migrate().await?;
        let name = store.name().to_owned();
        store.close().await;
        Ok::<_, StoreStartError>(format!("{name} is up to date: {migrations} migrations\n"))
    })
}

/// Writes a backup of the store and the configuration.
pub(super) fn backup(loaded: &Loaded, folder: &Path) -> ExitCode {
    finish(backup::backup(loaded, folder))
}

/// Fills an empty store from a backup.
pub(super) fn restore(config: &Config, folder: &Path) -> ExitCode {
    finish(backup::restore(config, folder))
}

/// Does the work on this thread, and says what came of it.
fn finish<E: Display>(work: impl Future<Output = Result<String, E>>) -> ExitCode {
    // TLS to the database needs a provider; another part of the process may have installed the same one.
    let _already_installed = aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::fail(&format!("no thread can be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work) {
        Ok(done) => {
            output::print(&done);
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::fail(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Prints a new key pair for Web Push.
pub(super) fn vapid() -> ExitCode {
    let Some((public, private)) = notify::generate_vapid_keys() else {
        output::fail("the system gives no random numbers");
        return ExitCode::FAILURE;
    };
    output::print(&format!(
        "[web_push]\npublic_key = \"{public}\"\nprivate_key = \"{}\"\n",
        private.expose()
    ));
    ExitCode::SUCCESS
}
