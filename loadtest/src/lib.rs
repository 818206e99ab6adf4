//! What other tools of this repository use of the load generator: charts as SVG, for reports that need no network.

#![forbid(unsafe_code)]

pub mod chart;
