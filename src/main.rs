//! The `archmesh` binary: parses the command line and runs one command.

#![forbid(unsafe_code)]

pub mod config;

fn main() {}
