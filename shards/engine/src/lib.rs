//! One pinned glommio executor per core that drives [`gateway_core::Shard`] over a shard-owned `io_uring`.
//!
//! The engine moves bytes, messages and time in and out of the core and decides nothing about the protocol. A shard
//! thread never waits for another thread: what does not fit into a queue is counted and given back.
//!
//! | module | owns |
//! |---|---|
//! | `config`, `error`, `probe` | what the engine is started with, why it cannot start |
//! | `ring` | the `io_uring` of a shard and every line of unsafe code |
//! | `pump` | the turn loop: one task per shard |
//! | `connection`, `tls` | the engine's side of one connection |
//! | `listener`, `placement` | accepting and choosing the shard that serves |
//! | `mailbox`, `mesh`, `bridge` | bounded queues between threads, with one wake-up each |
//! | `metrics`, `log` | what is counted, what is written |

#![deny(unsafe_code)]

mod bridge;
mod config;
mod connection;
mod engine;
mod error;
mod listener;
mod log;
mod mailbox;
mod mesh;
mod metrics;
mod placement;
mod probe;
mod pump;
#[allow(unsafe_code, reason = "the one place that talks to the kernel without a safe wrapper")]
mod ring;
mod tls;

pub use bridge::{ControlEvent, ControlReceiver, Drain, HttpConnection};
pub use config::{Balance, EngineConfig, ListenerConfig, ShardPlacement};
pub use engine::{Engine, EngineHandle};
pub use error::{EngineError, ProbeError};
pub use metrics::{EngineMetrics, ShardSnapshot};
pub use probe::probe;
