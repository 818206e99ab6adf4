//! Chunked transfers of one connection: bounded reassembly, and splitting for the other direction.
//!
//! Owns the chunks of unfinished transfers. Chunks come in any order; a repeated one is ignored when it is identical.
//! Each is checked and decoded when it comes, and hashed as soon as everything before it is there, so that the last
//! chunk of an orderly transfer costs no more than any other.
//!
//! Invariants: [`Reassembly::bytes`] is never above the connection's limit and counts decoded data and the tables
//! that hold it; a refused chunk changes nothing; nothing is kept of a transfer that is complete, damaged or expired.
//! An idle connection holds no heap.
//!
//! It does not know envelopes, and what becomes of received data is for the caller to say.

use std::mem;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::error::ErrorCode;
use crate::proto::json::Object;
use crate::settings::LargeDataLimits;

/// Longest name of a transfer, in bytes.
pub const DATA_ID_BYTES_MAX: usize = 128;

/// One chunk as it is on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The client's name of the transfer.
    pub data_id: &'a str,
    /// From 1.
    pub chunk_index: u32,
    /// Chunks of the whole transfer.
    pub total_chunks: u32,
    /// Base64 with padding.
    pub chunk_data: &'a str,
    /// SHA-256 of the whole data in hexadecimal.
    pub checksum: &'a str,
}

impl Chunk<'_> {
    /// The chunk as the `data` of a publication.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.chunk_data.len() + 256);
        let mut object = Object::begin(&mut out);
        object
            .str("data_id", self.data_id)
            .u64("chunk_index", u64::from(self.chunk_index))
            .u64("total_chunks", u64::from(self.total_chunks))
            .str("chunk_data", self.chunk_data)
            .str("checksum", self.checksum);
        object.end();
        out
    }
}

/// What came of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More chunks are missing.
    Incomplete {
        /// Chunks that are here.
        received: u32,
    },
    /// The transfer is complete and its checksum holds.
    Received {
        /// The client's name of the transfer.
        data_id: Box<str>,
        /// Bytes of the whole data.
        total_size: usize,
        /// Decoded chunks in order.
        chunks: Vec<Bytes>,
    },
    /// The transfer is complete, but it is not what the checksum says; it is forgotten.
    ChecksumMismatch {
        /// The client's name of the transfer.
        data_id: Box<str>,
        /// Bytes of the whole data.
        total_size: usize,
    },
}

/// Why a chunk was refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LargeDataError {
    /// `data_id` is empty or too long.
    #[error("data_id must have 1 to {DATA_ID_BYTES_MAX} bytes")]
    DataId,
    /// `total_chunks` is zero.
    #[error("total_chunks must be at least 1")]
    NoChunks,
    /// `total_chunks` is above its limit.
    #[error("total_chunks must be at most {max}; send larger chunks or less data")]
    TooManyChunks {
        /// Chunks of one transfer.
        max: u32,
    },
    /// `chunk_index` is not in `1..=total_chunks`.
    #[error("chunk_index must be between 1 and total_chunks ({total})")]
    Index {
        /// The transfer's `total_chunks`.
        total: u32,
    },
    /// `checksum` is no SHA-256.
    #[error("checksum must be the SHA-256 of the whole data in 64 hexadecimal digits")]
    Checksum,
    /// `chunk_data` is no base64.
    #[error("chunk_data must be standard base64 with padding")]
    Base64,
    /// `chunk_data` decodes to too much.
    #[error("a chunk must hold at most {max} bytes before base64; send smaller chunks")]
    ChunkTooLarge {
        /// Decoded bytes of one chunk.
        max: usize,
    },
    /// `total_chunks` or `checksum` is not that of the transfer's first chunk.
    #[error(
        "total_chunks and checksum must be the same in all chunks of a transfer; use another data_id"
    )]
    Inconsistent,
    /// A chunk with this index and other data came before.
    #[error("chunk {index} came before with other data; start again with another data_id")]
    Conflict {
        /// The chunk's index.
        index: u32,
    },
    /// Too many transfers under way.
    #[error("at most {max} transfers may be under way; finish one first")]
    TooManyTransfers {
        /// Transfers of one connection.
        max: u32,
    },
    /// The connection holds too much.
    #[error("unfinished transfers of a connection may hold at most {max} bytes; finish one first")]
    ConnectionBytes {
        /// Bytes under reassembly of one connection.
        max: usize,
    },
    /// All connections of the shard together hold too much.
    #[error("too much data is under way on this node; try again later")]
    ShardBytes,
}

impl LargeDataError {
    /// Code of the error reply.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::DataId
            | Self::NoChunks
            | Self::Index { .. }
            | Self::Checksum
            | Self::Base64
            | Self::Inconsistent
            | Self::Conflict { .. } => ErrorCode::InvalidMessageFormat,
            Self::ChunkTooLarge { .. } => ErrorCode::MessageTooLarge,
            Self::TooManyChunks { .. }
            | Self::TooManyTransfers { .. }
            | Self::ConnectionBytes { .. } => ErrorCode::LimitExceeded,
            Self::ShardBytes => ErrorCode::Unavailable,
        }
    }
}

/// Unfinished transfers of one connection.
#[derive(Debug, Default)]
pub struct Reassembly {
    /// Few, so they are searched one by one.
    transfers: Vec<Transfer>,
    bytes: usize,
}

#[derive(Debug)]
struct Transfer {
    data_id: Box<str>,
    checksum: [u8; 32],
    /// Decoded data by index - 1.
    chunks: Box<[Option<Box<[u8]>>]>,
    received: u32,
    /// Decoded bytes here.
    size: usize,
    /// State of the hash after the first `hashed` chunks.
    hash: Sha256,
    hashed: usize,
    /// Monotonic.
    deadline: Duration,
}

impl Reassembly {
    /// No transfer.
    pub const fn new() -> Self {
        Self { transfers: Vec::new(), bytes: 0 }
    }

    /// Bytes held: decoded data and the tables for it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no transfer is under way.
    pub fn is_empty(&self) -> bool {
        self.transfers.is_empty()
    }

    /// Takes a chunk. `shard_bytes` is the sum of [`Self::bytes`] over the connections of the shard, this one
    /// included; it is compared with `shard_bytes_max`.
    ///
    /// # Errors
    /// What is wrong with the chunk, or which limit it would pass. Nothing changes then.
    pub fn accept(
        &mut self,
        now: Duration,
        chunk: &Chunk<'_>,
        limits: &LargeDataLimits,
        shard_bytes: usize,
    ) -> Result<Progress, LargeDataError> {
        let checksum = validate(chunk, limits)?;
        let known = self.transfers.iter().position(|transfer| *transfer.data_id == *chunk.data_id);
        match known.map(|at| &self.transfers[at]) {
            Some(transfer) if !transfer.matches(chunk, &checksum) => {
                return Err(LargeDataError::Inconsistent);
            }
            None if self.transfers.len() >= limits.transfers_max as usize => {
                return Err(LargeDataError::TooManyTransfers { max: limits.transfers_max });
            }
            _ => {}
        }
        let data = decode(chunk.chunk_data, limits.chunk_bytes_max)?;
        let index = chunk.chunk_index as usize - 1;
        let earlier = known.and_then(|at| Some((at, self.transfers[at].chunks[index].as_ref()?)));
        if let Some((at, earlier)) = earlier {
            if **earlier != *data {
                return Err(LargeDataError::Conflict { index: chunk.chunk_index });
            }
            self.transfers[at].deadline = now + limits.expiry;
            return Ok(Progress::Incomplete { received: self.transfers[at].received });
        }
        let table = if known.is_none() { table_bytes(chunk.total_chunks as usize) } else { 0 };
        self.reserve(data.len() + table, limits, shard_bytes)?;
        let at = known.unwrap_or_else(|| {
            self.transfers.push(Transfer::new(chunk, checksum));
            self.transfers.len() - 1
        });
        let transfer = &mut self.transfers[at];
        transfer.deadline = now + limits.expiry;
        transfer.insert(index, data);
        if (transfer.received as usize) < transfer.chunks.len() {
            return Ok(Progress::Incomplete { received: transfer.received });
        }
        Ok(self.remove(at).finish())
    }

    /// When the first transfer is to be given up (monotonic).
    pub fn next_deadline(&self) -> Option<Duration> {
        self.transfers.iter().map(|transfer| transfer.deadline).min()
    }

    /// Gives up one transfer whose time is over and answers its name; call it until it answers `None`.
    pub fn poll_expired(&mut self, now: Duration) -> Option<Box<str>> {
        let at = self.transfers.iter().position(|transfer| transfer.deadline <= now)?;
        Some(self.remove(at).data_id)
    }

    /// Forgets everything; answers how many bytes that were.
    pub fn clear(&mut self) -> usize {
        mem::take(self).bytes
    }

    /// Counts `length` more bytes if they are allowed.
    fn reserve(
        &mut self,
        length: usize,
        limits: &LargeDataLimits,
        shard_bytes: usize,
    ) -> Result<(), LargeDataError> {
        let max = limits.connection_bytes_max;
        if self.bytes.saturating_add(length) > max {
            return Err(LargeDataError::ConnectionBytes { max });
        }
        if shard_bytes.saturating_add(length) > limits.shard_bytes_max {
            return Err(LargeDataError::ShardBytes);
        }
        self.bytes += length;
        Ok(())
    }

    fn remove(&mut self, at: usize) -> Transfer {
        let transfer = self.transfers.swap_remove(at);
        self.bytes -= transfer.size + table_bytes(transfer.chunks.len());
        if self.transfers.is_empty() {
            self.transfers = Vec::new();
        }
        transfer
    }
}

impl Transfer {
    fn new(chunk: &Chunk<'_>, checksum: [u8; 32]) -> Self {
        Self {
            data_id: chunk.data_id.into(),
            checksum,
            chunks: vec![None; chunk.total_chunks as usize].into_boxed_slice(),
            received: 0,
            size: 0,
            hash: Sha256::new(),
            hashed: 0,
            deadline: Duration::ZERO,
        }
    }

    fn matches(&self, chunk: &Chunk<'_>, checksum: &[u8; 32]) -> bool {
        self.chunks.len() == chunk.total_chunks as usize && self.checksum == *checksum
    }

    fn insert(&mut self, index: usize, data: Box<[u8]>) {
        self.size += data.len();
        self.received += 1;
        self.chunks[index] = Some(data);
        while let Some(Some(next)) = self.chunks.get(self.hashed) {
            self.hash.update(next);
            self.hashed += 1;
        }
    }

    /// All chunks are here, so all are hashed.
    fn finish(self) -> Progress {
        let Self { data_id, size: total_size, .. } = self;
        if *self.hash.finalize() != self.checksum {
            return Progress::ChecksumMismatch { data_id, total_size };
        }
        let chunks = self.chunks.into_iter().flatten().map(Bytes::from).collect();
        Progress::Received { data_id, total_size, chunks }
    }
}

/// Splits `data` into chunks of `chunk_bytes`: index from 1, total, base64. Empty data is one empty chunk.
///
/// # Panics
/// When `chunk_bytes` is zero.
pub fn split(data: &[u8], chunk_bytes: usize) -> impl Iterator<Item = (u32, u32, String)> {
    let total = data.len().div_ceil(chunk_bytes).max(1);
    (0..total).map(move |index| {
        let start = index * chunk_bytes;
        let chunk = &data[start..data.len().min(start + chunk_bytes)];
        (index as u32 + 1, total as u32, STANDARD.encode(chunk))
    })
}

/// The checksum of `data` as in [`Chunk::checksum`].
pub fn checksum_hex(data: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    Sha256::digest(data).iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Checks everything that can be seen without decoding; answers the checksum's bytes.
fn validate(chunk: &Chunk<'_>, limits: &LargeDataLimits) -> Result<[u8; 32], LargeDataError> {
    if chunk.data_id.is_empty() || chunk.data_id.len() > DATA_ID_BYTES_MAX {
        return Err(LargeDataError::DataId);
    }
    if chunk.total_chunks == 0 {
        return Err(LargeDataError::NoChunks);
    }
    if chunk.total_chunks > limits.chunks_max {
        return Err(LargeDataError::TooManyChunks { max: limits.chunks_max });
    }
    if !(1..=chunk.total_chunks).contains(&chunk.chunk_index) {
        return Err(LargeDataError::Index { total: chunk.total_chunks });
    }
    parse_sha256(chunk.checksum).ok_or(LargeDataError::Checksum)
}

fn decode(text: &str, max: usize) -> Result<Box<[u8]>, LargeDataError> {
    // Refused before it is decoded: four digits of base64 stand for at most three bytes.
    if text.len() > max.div_ceil(3).saturating_mul(4) {
        return Err(LargeDataError::ChunkTooLarge { max });
    }
    let data = STANDARD.decode(text).map_err(|_| LargeDataError::Base64)?;
    if data.len() > max {
        return Err(LargeDataError::ChunkTooLarge { max });
    }
    Ok(data.into_boxed_slice())
}

fn parse_sha256(hex: &str) -> Option<[u8; 32]> {
    let hex: &[u8; 64] = hex.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(bytes)
}

/// Memory of a transfer that holds nothing yet.
fn table_bytes(chunks: usize) -> usize {
    size_of::<Transfer>() + DATA_ID_BYTES_MAX + chunks * size_of::<Option<Box<[u8]>>>()
}

#[cfg(test)]
mod tests;
