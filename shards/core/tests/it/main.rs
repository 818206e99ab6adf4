//! Tests of the core in virtual time: N sessions on M shards, no socket and no sleep.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod auth;
mod connect;
mod node;
mod presence;
mod pubsub;
mod recovery;
mod simulation;
mod slow;
