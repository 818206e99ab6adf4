//! The `archmesh` binary: parses the command line and runs one command.

#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod cli;
pub mod config;
mod keys;
pub mod schema;
pub mod welcome_page;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
