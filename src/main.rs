//! gw
#![allow(dead_code, unused_imports)]
mod keys;
fn main() {}
