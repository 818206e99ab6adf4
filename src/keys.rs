//! Where the keys for tokens come from, and how they stay fresh.
//!
//! [`KeyStore`] reads every configured [`KeySource`] once and then keeps the ones behind a URL up to date. It gives
//! out whole [`gateway_core::auth::KeySet`]s; checking tokens with them is the core's work. A key that was good
//! stays in force until a newer document replaces it: a key server that is down or talks nonsense changes nothing.
//! Nodes may share what they fetch, through [`SharedKeySets`].

mod remote;
mod schedule;
mod shared;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod watched;

pub(crate) use shared::SharedKeySets;
pub(crate) use source::{KeyLoadError, KeySource};
pub(crate) use store::{JwksSettings, KeyStore};
pub(crate) use watched::WatchedFiles;
