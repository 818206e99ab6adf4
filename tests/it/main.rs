//! End-to-end tests of the built binary: a real process, real sockets, and clients that nobody here wrote.
//!
//! `gateway`, `http`, `socket` and `support` are the harness; every other file is one hazard, and its header says the
//! setup and what must hold. Nothing here sleeps: a test waits for what it can observe, with a deadline. The foreign
//! clients and tools are installed by `make test`; without them the tests that need them fail and say so.

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unreachable_pub)]

mod gateway;
mod http;
mod program;
mod raw;
mod socket;
mod support;

mod abuse;
mod auth;
mod capacity;
mod churn;
mod clients;
mod drain;
mod http_api;
mod http_server;
mod limits;
mod metrics;
mod panic;
mod placement;
mod pubsub;
mod recovery;
mod slow;
mod startup;
mod tls;
