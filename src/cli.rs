//! The command line: one subcommand per task, all reading the configuration in the same way.
//!
//! Exit codes: 0 done, 1 the command failed, 2 wrong usage, 75 the database was away for too long, 78 the configuration is
//! wrong.

mod backup;
mod database;
pub mod output;
pub mod token;
pub mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::bootstrap;
use crate::config::{Config, FlagValue, Format, Loaded, Sources, docs};

/// A wrong configuration (`EX_CONFIG` of sysexits): a supervisor need not try again.
pub(crate) const EXIT_CONFIG: u8 = 78;
/// The same command may succeed later (`EX_TEMPFAIL`).
pub(crate) const EXIT_TRY_AGAIN: u8 = 75;

/// Real-time WebSocket gateway.
#[derive(Debug, Parser)]
#[command(name = "archmesh", version = version::SHORT, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node.
    Serve(ConfigArgs),
    /// Bring the schema of the database up to date.
    Migrate(ConfigArgs),
    /// Write the store and the configuration into a new folder.
    Backup {
        /// The folder; it must not exist.
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        #[command(flatten)]
        args: ConfigArgs,
    },
    /// Fill an empty store from a backup.
    Restore {
        /// Folder of the backup.
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
        #[command(flatten)]
        args: ConfigArgs,
    },
    /// Print a new key pair for Web Push.
    Vapid,
    /// Print a signed token, for development and tests.
    Token(token::TokenArgs),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print version and features.
    Version,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every effective value and where it came from; secrets are redacted.
    Print {
        /// Form of the listing.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        #[command(flatten)]
        args: ConfigArgs,
    },
    /// Print every error of the configuration, or that there is none.
    Check(ConfigArgs),
    /// Print docs/configuration.md.
    Docs,
}

/// Where the configuration comes from.
#[derive(Args, Debug, Default)]
pub struct ConfigArgs {
    /// TOML file; may be given several times, later ones win. Added to those of `ARCHMESH_CONFIG`.
    #[arg(long = "config", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Value of any key, e.g. `limits.auth_timeout=5s`; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = parse_assignment)]
    set: Vec<(String, String)>,
    /// `node.environment`: development, staging or production.
    #[arg(long)]
    environment: Option<String>,
    /// `node.size`: small, medium, large or enterprise.
    #[arg(long)]
    size: Option<String>,
    /// `listen.public`: addresses, separated by commas.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// `engine.shards`: number of shards; 0 = one per usable core.
    #[arg(long, value_name = "N")]
    shards: Option<String>,
}

fn parse_assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err("expected section.key=value".to_owned()),
    }
}

impl ConfigArgs {
    /// Sources of this process with these flags on top. The direct flags win over `--set`.
    pub fn sources(&self) -> Sources {
        let mut flags: Vec<FlagValue> = self
            .set
            .iter()
            .map(|(key, text)| FlagValue {
                key: key.clone(),
                text: text.clone(),
                flag: "--set".to_owned(),
            })
            .collect();
        let direct = [
            ("node.environment", "--environment", &self.environment),
            ("node.size", "--size", &self.size),
            ("listen.public", "--listen", &self.listen),
            ("engine.shards", "--shards", &self.shards),
        ];
        flags.extend(direct.into_iter().filter_map(|(key, flag, text)| {
            Some(FlagValue { key: key.to_owned(), text: text.clone()?, flag: flag.to_owned() })
        }));
        Sources::of_process(self.files.clone(), flags)
    }

    /// Loads the configuration, or says what is wrong with it.
    fn load(&self) -> Result<Loaded, ExitCode> {
        Config::load(&self.sources()).map_err(|errors| {
            output::fail(&errors.to_string());
            ExitCode::from(EXIT_CONFIG)
        })
    }
}

/// Runs the command.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Serve(args) => args.load().map(|loaded| bootstrap::serve(&loaded)),
        Command::Migrate(args) => args.load().map(|loaded| database::migrate(&loaded.config)),
        Command::Backup { to, args } => args.load().map(|loaded| database::backup(&loaded, &to)),
        Command::Restore { from, args } => {
            args.load().map(|loaded| database::restore(&loaded.config, &from))
        }
        Command::Vapid => Ok(database::vapid()),
        Command::Token(args) => args.config.load().map(|loaded| token::run(&args, &loaded.config)),
        Command::Config(ConfigCommand::Print { format, args }) => {
            args.load().map(|loaded| output::print(&loaded.print(format)))
        }
        Command::Config(ConfigCommand::Check(args)) => {
            args.load().map(|_| output::print("the configuration is valid\n"))
        }
        Command::Config(ConfigCommand::Docs) => Ok(output::print(&docs::document())),
        Command::Version => Ok(output::print(&version::long())),
    };
    done.unwrap_or_else(|code| code)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn direct_flags_lie_above_set() {
        let args = [
            "archmesh",
            "serve",
            "--shards",
            "2",
            "--set",
            "engine.shards=3",
            "--listen",
            "[::1]:0",
        ];
        let Command::Serve(args) = Cli::try_parse_from(args).unwrap().command else {
            panic!("serve was parsed as another command");
        };
        let flags = args.sources().flags;
        let texts: Vec<_> =
            flags.iter().map(|flag| (flag.key.as_str(), flag.text.as_str())).collect();
        assert_eq!(
            texts,
            [("engine.shards", "3"), ("listen.public", "[::1]:0"), ("engine.shards", "2")]
        );
    }

    #[test]
    fn assignments() {
        assert_eq!(parse_assignment("a.b=c=d").unwrap(), ("a.b".to_owned(), "c=d".to_owned()));
        assert_eq!(parse_assignment("a.b=").unwrap(), ("a.b".to_owned(), String::new()));
        assert!(parse_assignment("a.b").is_err());
        assert!(parse_assignment("=c").is_err());
    }
}
