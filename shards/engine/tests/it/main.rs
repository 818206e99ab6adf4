//! The engine with the real core and real loopback sockets. One file per hazard.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod accepting;
mod closing;
mod flow;
mod hand_over;
mod messages;
mod node;
mod placement;
mod tls;
