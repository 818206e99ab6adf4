//! Tests of the core in virtual time: N sessions on M shards, no socket and no sleep.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]
// `json!` values are built for one call, and names are searched until one has the wanted home.
#![allow(clippy::needless_pass_by_value, clippy::maybe_infinite_iter)]

mod adversity;
mod auth;
mod balancer;
mod broker;
mod calls;
mod compression;
mod connect;
mod durable;
mod hooks;
mod large_data;
mod limits;
mod node;
mod occurrences;
mod outbox;
mod presence;
mod pubsub;
mod recovery;
mod refusals;
mod schema;
mod simulation;
mod slow;
