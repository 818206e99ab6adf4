//! `large_data`: a payload too large for one message, published as checksummed chunks.
//!
//! The chunks are publications of type `large_data` in channel order: each waits for the position of the one before,
//! so that one caller never floods a mailbox and a failure names the chunk.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gateway_core::error::ErrorCode;
use gateway_core::large_data::Chunk;
use gateway_core::message::Publish;
use gateway_core::settings::{LargeDataLimits, Priority};
use rustls::crypto::aws_lc_rs;
use sha2::{Digest, Sha256};

use super::requests::LargeDataRequest;
use super::results::LargeDataResult;
use super::{ApiError, payload, publish};
use crate::plane::SharedPlane;

/// Splits, checksums and publishes a payload.
pub(super) async fn large_data(
    plane: &SharedPlane,
    request: LargeDataRequest,
) -> Result<LargeDataResult, ApiError> {
    let settings = plane.settings.load_full();
    let limits = &settings.limits.large_data;
    let whole = STANDARD
        .decode(&request.payload)
        .map_err(|_| ApiError::bad_request("`payload` is not base64"))?;
    let total_chunks = count_chunks(whole.len(), limits)?;
    let data_id = match request.data_id {
        Some(id) => {
            payload::check_text("data_id", &id, &settings.limits)?;
            id
        }
        None => random_id()?,
    };
    let checksum = hex(&Sha256::digest(&whole));
    let priority = request.priority.map(Priority::from);
    let mut last = None;
    for (index, bytes) in (1..=total_chunks).zip(whole.chunks(limits.chunk_bytes_max)) {
        let chunk = Chunk {
            data_id: &data_id,
            chunk_index: index,
            total_chunks,
            chunk_data: &STANDARD.encode(bytes),
            checksum: &checksum,
        };
        let message = Publish {
            kind: "large_data".into(),
            data: chunk.to_json().into(),
            priority,
            // Chunks must never supersede each other under `keep_latest`.
            key: Some(format!("{data_id}/{index}").into()),
            // Takes its place in the stream, but would push everything else out of the history.
            transient: true,
            accepted_at: plane.uptime(),
            ..Publish::default()
        };
        last = Some(
            publish::position(publish::send(plane, &settings, &request.channel, message)?).await?,
        );
    }
    let last = last.ok_or_else(|| ApiError::bad_request("`payload` is empty"))?;
    let total_size = whole.len();
    Ok(LargeDataResult {
        data_id,
        total_chunks,
        total_size,
        checksum,
        offset: last.offset,
        epoch: last.epoch,
    })
}

fn count_chunks(bytes: usize, limits: &LargeDataLimits) -> Result<u32, ApiError> {
    let chunks = bytes.div_ceil(limits.chunk_bytes_max);
    match u32::try_from(chunks) {
        Ok(0) => Err(ApiError::bad_request("`payload` is empty")),
        Ok(chunks) if chunks <= limits.chunks_max => Ok(chunks),
        _ => {
            let max = limits.chunk_bytes_max * limits.chunks_max as usize;
            Err(ApiError::new(
                ErrorCode::MessageTooLarge,
                format!("`payload` is larger than {max} bytes"),
            ))
        }
    }
}

fn random_id() -> Result<String, ApiError> {
    let mut bytes = [0; 16];
    let random = aws_lc_rs::default_provider().secure_random;
    random
        .fill(&mut bytes)
        .map_err(|_| ApiError::new(ErrorCode::SystemError, "no random numbers"))?;
    Ok(hex(&bytes))
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all writes");
        text
    })
}
