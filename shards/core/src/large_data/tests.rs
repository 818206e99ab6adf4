//! Transfers in any order, every refusal, and bounds for arbitrary input.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn limits() -> LargeDataLimits {
    LargeDataLimits {
        chunk_bytes_max: 8,
        chunks_max: 10,
        transfers_max: 2,
        connection_bytes_max: 10_000,
        shard_bytes_max: 20_000,
        expiry: Duration::from_secs(10),
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A transfer as its sender has it.
struct Sent {
    id: &'static str,
    checksum: String,
    chunks: Vec<(u32, u32, String)>,
}

impl Sent {
    fn new(id: &'static str, data: &[u8]) -> Self {
        Self { id, checksum: checksum_hex(data), chunks: split(data, 8).collect() }
    }

    fn chunk(&self, index: u32) -> Chunk<'_> {
        let (chunk_index, total_chunks, chunk_data) = &self.chunks[index as usize - 1];
        Chunk {
            data_id: self.id,
            chunk_index: *chunk_index,
            total_chunks: *total_chunks,
            chunk_data,
            checksum: &self.checksum,
        }
    }
}

fn accept(reassembly: &mut Reassembly, chunk: Chunk<'_>) -> Result<Progress, LargeDataError> {
    let held = reassembly.bytes();
    reassembly.accept(secs(0), &chunk, &limits(), held)
}

fn check_refused(change: impl FnOnce(&mut Chunk<'_>), expected: LargeDataError) {
    let sent = Sent::new("a", b"0123456789abcdef-");
    let mut reassembly = Reassembly::new();
    accept(&mut reassembly, sent.chunk(1)).unwrap();
    let bytes = reassembly.bytes();
    let mut chunk = sent.chunk(2);
    change(&mut chunk);
    assert_eq!(accept(&mut reassembly, chunk), Err(expected));
    assert_eq!(reassembly.bytes(), bytes);
    assert_eq!(accept(&mut reassembly, sent.chunk(2)), Ok(Progress::Incomplete { received: 2 }));
}

#[test]
fn completes_in_any_order() {
    let sent = Sent::new("a", b"0123456789abcdef-");
    let mut reassembly = Reassembly::new();
    assert_eq!(accept(&mut reassembly, sent.chunk(3)), Ok(Progress::Incomplete { received: 1 }));
    assert_eq!(accept(&mut reassembly, sent.chunk(1)), Ok(Progress::Incomplete { received: 2 }));
    assert_eq!(accept(&mut reassembly, sent.chunk(1)), Ok(Progress::Incomplete { received: 2 }));
    let received = Progress::Received {
        data_id: "a".into(),
        total_size: 17,
        chunks: vec!["01234567".into(), "89abcdef".into(), "-".into()],
    };
    assert_eq!(accept(&mut reassembly, sent.chunk(2)), Ok(received));
    assert_eq!((reassembly.bytes(), reassembly.transfers.capacity()), (0, 0));
}

#[test]
fn a_known_checksum() {
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(checksum_hex(b"abc"), abc);
    let upper = abc.to_uppercase();
    let chunk = Chunk {
        data_id: "a",
        chunk_index: 1,
        total_chunks: 1,
        chunk_data: "YWJj",
        checksum: &upper,
    };
    let progress = accept(&mut Reassembly::new(), chunk);
    assert!(matches!(progress, Ok(Progress::Received { total_size: 3, .. })), "{progress:?}");
}

#[test]
fn a_wrong_checksum_ends_the_transfer() {
    let mut sent = Sent::new("a", b"0123456789");
    sent.checksum = checksum_hex(b"something else");
    let mut reassembly = Reassembly::new();
    accept(&mut reassembly, sent.chunk(1)).unwrap();
    let mismatch = Progress::ChecksumMismatch { data_id: "a".into(), total_size: 10 };
    assert_eq!(accept(&mut reassembly, sent.chunk(2)), Ok(mismatch));
    assert!(reassembly.is_empty());
    assert_eq!(reassembly.bytes(), 0);
}

#[test]
fn empty_data_is_one_empty_chunk() {
    let sent = Sent::new("a", b"");
    assert_eq!(sent.chunks, [(1, 1, String::new())]);
    let progress = accept(&mut Reassembly::new(), sent.chunk(1));
    assert!(matches!(progress, Ok(Progress::Received { total_size: 0, .. })), "{progress:?}");
}

#[test]
fn what_is_malformed_is_refused_and_changes_nothing() {
    let long = "x".repeat(129);
    check_refused(|chunk| chunk.data_id = "", LargeDataError::DataId);
    check_refused(|chunk| chunk.data_id = Box::leak(long.into_boxed_str()), LargeDataError::DataId);
    check_refused(|chunk| chunk.total_chunks = 0, LargeDataError::NoChunks);
    check_refused(|chunk| chunk.total_chunks = 11, LargeDataError::TooManyChunks { max: 10 });
    check_refused(|chunk| chunk.chunk_index = 0, LargeDataError::Index { total: 3 });
    check_refused(|chunk| chunk.chunk_index = 4, LargeDataError::Index { total: 3 });
    check_refused(|chunk| chunk.total_chunks = 4, LargeDataError::Inconsistent);
    check_refused(|chunk| chunk.checksum = "abc", LargeDataError::Checksum);
    check_refused(|chunk| chunk.checksum = "g".repeat(64).leak(), LargeDataError::Checksum);
    check_refused(|chunk| chunk.checksum = "é".repeat(32).leak(), LargeDataError::Checksum);
    check_refused(|chunk| chunk.checksum = "a".repeat(64).leak(), LargeDataError::Inconsistent);
    check_refused(|chunk| chunk.chunk_data = "YWJ", LargeDataError::Base64);
    check_refused(|chunk| chunk.chunk_data = "YW J", LargeDataError::Base64);
    let nine = "YWFhYWFhYWFh";
    check_refused(|chunk| chunk.chunk_data = nine, LargeDataError::ChunkTooLarge { max: 8 });
    check_refused(
        |chunk| chunk.chunk_data = "YWFhYWFhYWFhYWFh",
        LargeDataError::ChunkTooLarge { max: 8 },
    );
}

#[test]
fn a_repeated_chunk_must_be_identical() {
    let sent = Sent::new("a", b"0123456789");
    let mut reassembly = Reassembly::new();
    accept(&mut reassembly, sent.chunk(1)).unwrap();
    let other = Chunk { chunk_data: "YWJj", ..sent.chunk(1) };
    assert_eq!(accept(&mut reassembly, other), Err(LargeDataError::Conflict { index: 1 }));
    let last = accept(&mut reassembly, sent.chunk(2));
    assert!(matches!(last, Ok(Progress::Received { .. })), "{last:?}");
}

#[test]
fn transfers_are_limited_by_number_and_bytes() {
    let [a, b, c] = ["a", "b", "c"].map(|id| Sent::new(id, b"0123456789"));
    let mut reassembly = Reassembly::new();
    accept(&mut reassembly, a.chunk(1)).unwrap();
    accept(&mut reassembly, b.chunk(1)).unwrap();
    let too_many = LargeDataError::TooManyTransfers { max: 2 };
    assert_eq!(accept(&mut reassembly, c.chunk(1)), Err(too_many));

    let held = reassembly.bytes();
    let tight = LargeDataLimits { connection_bytes_max: held + 1, ..limits() };
    let last = a.chunk(2);
    let refused = reassembly.accept(secs(0), &last, &tight, held);
    assert_eq!(refused, Err(LargeDataError::ConnectionBytes { max: held + 1 }));
    let refused = reassembly.accept(secs(0), &last, &limits(), 19_999);
    assert_eq!(refused, Err(LargeDataError::ShardBytes));
    assert_eq!(reassembly.bytes(), held);
    let fits = LargeDataLimits { connection_bytes_max: held + 2, ..limits() };
    let last = reassembly.accept(secs(0), &last, &fits, 19_998);
    assert!(matches!(last, Ok(Progress::Received { .. })), "{last:?}");
    assert_eq!(reassembly.clear(), held / 2);
    assert_eq!(reassembly.bytes(), 0);
}

#[test]
fn a_transfer_expires_after_its_last_chunk() {
    let (a, b) = (Sent::new("a", b"0123456789abcdef-"), Sent::new("b", b"0123456789"));
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.next_deadline(), None);
    reassembly.accept(secs(0), &a.chunk(1), &limits(), 0).unwrap();
    reassembly.accept(secs(5), &b.chunk(1), &limits(), 0).unwrap();
    assert_eq!(reassembly.next_deadline(), Some(secs(10)));
    reassembly.accept(secs(9), &a.chunk(3), &limits(), 0).unwrap();
    assert_eq!(reassembly.next_deadline(), Some(secs(15)));
    assert_eq!(reassembly.poll_expired(secs(14)), None);
    assert_eq!(reassembly.poll_expired(secs(15)).as_deref(), Some("b"));
    assert_eq!(reassembly.poll_expired(secs(18)), None);
    assert_eq!(reassembly.poll_expired(secs(19)).as_deref(), Some("a"));
    assert_eq!(reassembly.poll_expired(secs(19)), None);
    assert_eq!(reassembly.bytes(), 0);
}

#[test]
fn every_error_has_a_code_and_a_mend() {
    assert_eq!(LargeDataError::Base64.code(), ErrorCode::InvalidMessageFormat);
    assert_eq!(LargeDataError::ChunkTooLarge { max: 1 }.code(), ErrorCode::MessageTooLarge);
    assert_eq!(LargeDataError::TooManyTransfers { max: 1 }.code(), ErrorCode::LimitExceeded);
    assert!(LargeDataError::ShardBytes.code().is_temporary());
    let text = LargeDataError::ChunkTooLarge { max: 65_536 }.to_string();
    assert_eq!(text, "a chunk must hold at most 65536 bytes before base64; send smaller chunks");
}

proptest! {
    #[test]
    fn whatever_the_order_the_data_comes_out(
        data in prop::collection::vec(any::<u8>(), 0..80),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let sent = Sent::new("a", &data);
        let total = sent.chunks.len() as u32;
        let wanted = order.iter().map(|index| index.index(sent.chunks.len()) as u32 + 1);
        let mut reassembly = Reassembly::new();
        let mut seen = std::collections::BTreeSet::new();
        for index in wanted.chain(1..=total) {
            seen.insert(index);
            match accept(&mut reassembly, sent.chunk(index)).unwrap() {
                Progress::Incomplete { received } => {
                    prop_assert_eq!(received as usize, seen.len());
                    prop_assert!(received < total);
                }
                Progress::Received { total_size, chunks, .. } => {
                    prop_assert_eq!(seen.len() as u32, total);
                    prop_assert_eq!(total_size, data.len());
                    prop_assert_eq!(chunks.concat(), data);
                    prop_assert_eq!(reassembly.bytes(), 0);
                    return Ok(());
                }
                Progress::ChecksumMismatch { .. } => prop_assert!(false, "checksum"),
            }
        }
        prop_assert!(false, "never complete");
    }

    #[test]
    fn bounded_for_any_input(
        chunks in prop::collection::vec((0u8..4, 0u32..12, 0u32..12, "[A-Za-z0-9+/=]{0,12}", 0u8..3), 0..60),
        max in 0usize..3_000,
    ) {
        let limits = LargeDataLimits { connection_bytes_max: max, transfers_max: 3, ..limits() };
        let mut reassembly = Reassembly::new();
        for (id, chunk_index, total_chunks, chunk_data, checksum) in chunks {
            let chunk = Chunk {
                data_id: &id.to_string(),
                chunk_index,
                total_chunks,
                chunk_data: &chunk_data,
                checksum: &checksum.to_string().repeat(64),
            };
            let held = reassembly.bytes();
            let result = reassembly.accept(secs(0), &chunk, &limits, held);
            if result.is_err() {
                prop_assert_eq!(reassembly.bytes(), held);
            }
            let sum: usize =
                reassembly.transfers.iter().map(|t| t.size + table_bytes(t.chunks.len())).sum();
            prop_assert_eq!(reassembly.bytes(), sum);
            prop_assert!(sum <= max && reassembly.transfers.len() <= 3);
        }
    }
}
