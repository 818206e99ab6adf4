//! Sans-IO data plane of the gateway.
//!
//! Everything here is plain computation on values that the caller passes in: no socket, clock, thread, lock, executor
//! or random source. [`Shard`] is the whole of one shard; the engine moves bytes, messages and time in and out of it.

#![forbid(unsafe_code)]

pub mod admission;
pub mod auth;
pub mod broker;
pub mod call;
pub mod error;
pub mod event;
pub mod history;
pub mod home;
pub mod hook;
mod hub;
pub mod ids;
pub mod large_data;
pub mod message;
pub mod metrics;
mod name_index;
pub mod occurrence;
pub mod outbox;
pub mod output;
pub mod presence;
pub mod proto;
pub mod proxies;
pub mod random;
pub mod rate;
pub mod route;
mod session;
pub mod settings;
mod shard;
pub mod time;
pub mod timer;
pub mod ws;

pub use output::{Fault, Output};
pub use shard::{Shard, ShardInit};
