//! The `archmesh` binary: parses the command line and runs one command.

#![forbid(unsafe_code)]
// Optimized builds compute the layout of futures inside of futures; calls of the server API are nested deeply.
#![recursion_limit = "256"]

mod agent;
mod api;
pub mod bootstrap;
mod breaker;
mod bridge;
mod broker;
mod cache;
pub mod cli;
mod cluster;
pub mod config;
mod digest;
mod drain;
mod durable;
mod events;
mod health;
mod hooks;
mod http;
mod keys;
mod load;
mod logging;
mod metrics;
mod notify;
mod plane;
mod processor;
mod redis;
mod reload;
mod routes;
mod sampler;
mod schema;
mod signals;
mod store;
mod supervise;
mod tls;
mod web_client;
mod welcome_page;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
