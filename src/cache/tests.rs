//! The cache as its users see it.
#![allow(clippy::unwrap_used)]

mod batches;
mod budget;
mod expiry;
mod flights;
mod model;
mod races;
mod replaced;
mod second_level;
mod support;
