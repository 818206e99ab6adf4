//! tmp
#![allow(missing_docs)]
use crate::error::ClientError; use crate::settings::LargeDataLimits; use crate::proto::command::LargeDataChunk; use std::time::Duration; use bytes::Bytes;
#[derive(Debug)] pub struct Reassembly;
#[derive(Debug)] pub struct Expired { pub data_id: Box<str>, pub received_bytes: u64 }
#[derive(Debug)] pub enum Accepted { More, ChecksumMismatch{total_size:u64}, Complete{total_size:u64, chunks: Vec<Bytes>} }
impl Reassembly { pub fn new()->Self{Self} pub fn accept(&mut self,_n:Duration,_c:&LargeDataChunk,_l:&LargeDataLimits)->Result<Accepted,ClientError>{Ok(Accepted::More)} pub fn bytes(&self)->usize{0} pub fn next_deadline(&self)->Option<Duration>{None} pub fn is_empty(&self)->bool{true} pub fn expire(&mut self,_n:Duration)->Vec<Expired>{vec![]} }
