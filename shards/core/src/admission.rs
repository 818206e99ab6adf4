//! Counters that all shards of a node share: connections and rates by node, user and address.
//!
//! Only atomics, bounded memory, no lock. Placeholder: the real one has the same constructor.

/// Shared counters of a node.
#[derive(Debug, Default)]
pub struct Admission;
