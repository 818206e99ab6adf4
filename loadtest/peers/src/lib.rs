//! Measures the gateway beside the servers that users would pick instead.
//!
//! | module | owns |
//! |---|---|
//! | `subject` | the servers: how each is started and how its clients talk |
//! | `process` | a running server, its CPU time and memory |
//! | `swarm`, `frame` | the load: thousands of clients on one thread |
//! | `measure` | what is measured, and how |
//! | `sample` | results, medians, the file of a run |
//! | `goals`, `report`, `machine` | what is wanted of the gateway; tables and chart; what they were made on |
//! | `tls`, `limits` | certificate of the harness, limits of the process |
//!
//! `peer-raw` and `peer-tungstenite` are servers of this crate.

#![forbid(unsafe_code)]

pub mod frame;
pub mod goals;
pub mod limits;
pub mod machine;
pub mod measure;
pub mod process;
pub mod report;
pub mod sample;
pub mod subject;
pub mod swarm;
pub mod tls;
