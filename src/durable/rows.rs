//! Publications and positions as columns.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gateway_core::broker::{MemberId, Placed};
use gateway_core::message::{Epoch, Publish, StreamPosition};
use serde::Serialize;
use serde_json::json;

use crate::broker::record;
use crate::store::{Row, StoreError};

/// Columns of a publication, and which of them are text.
pub(super) const COLUMNS: [(&str, bool); 11] = [
    ("channel", true),
    ("seq", false),
    ("expires_at", false),
    ("created_at", false),
    ("priority", false),
    ("type", true),
    ("data", true),
    ("key", true),
    ("sender", true),
    ("extra", true),
    ("origin", true),
];

/// [`COLUMNS`] of `p`, for a `SELECT`.
pub(super) fn columns_of_p() -> String {
    COLUMNS.map(|(name, _)| format!("p.{name}")).join(", ")
}

/// Channel and publication of a row of [`columns_of_p`]; `is_own` says whether a node is this one, and the clock of the
/// shards is at `now`.
pub(super) fn placed(
    row: &Row,
    epoch: Epoch,
    (is_own, now): (impl Fn(u64) -> bool, Duration),
) -> Result<(String, Placed), StoreError> {
    let origin: Option<MemberId> =
        row.maybe_text(10)?.and_then(|origin| record::member_id(origin.as_bytes()));
    let sender = origin.filter(|origin| is_own(origin.node)).map(|origin| origin.connection);
    let bytes = |text: Option<String>| text.map(Bytes::from);
    let publish = Publish {
        kind: row.text(5)?.into(),
        data: row.text(6)?.into(),
        priority: u8::try_from(row.int(4)?).ok().and_then(record::priority),
        key: row.maybe_text(7)?.map(Into::into),
        sender: bytes(row.maybe_text(8)?),
        extra: bytes(row.maybe_text(9)?),
        no_echo: sender.is_some(),
        accepted_at: now,
        ..Publish::default()
    };
    let position = StreamPosition { offset: offset(row.int(1)?), epoch };
    let unix = unix(row.int(3)?);
    Ok((row.text(0)?, Placed { position, unix, publish: Arc::new(publish), sender }))
}

/// As JSON text, for [`crate::store::Dialect::rows`].
pub(super) fn json(rows: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(rows).map_err(|_| StoreError::Unexpected("rows that are no JSON"))
}

/// Channels with a place each, as the text of [`fn@json`] with the columns `channel` and `seq`.
pub(super) fn places<'a>(
    places: impl IntoIterator<Item = (&'a str, i64)>,
) -> Result<String, StoreError> {
    let places = places.into_iter().map(|(channel, seq)| json!({ "channel": channel, "seq": seq }));
    json(&places.collect::<Vec<_>>())
}

/// A position as it is stored.
pub(super) fn position(epoch: &str, seq: i64) -> Result<StreamPosition, StoreError> {
    let epoch = Epoch::parse(epoch).ok_or(StoreError::Unexpected("the epoch of a stream"))?;
    Ok(StreamPosition { offset: offset(seq), epoch })
}

/// An offset as it is stored.
pub(super) fn seq(offset: u64) -> i64 {
    offset.try_into().unwrap_or(i64::MAX)
}

/// Reads [`seq`].
pub(super) fn offset(seq: i64) -> u64 {
    seq.try_into().unwrap_or_default()
}

/// A stored time.
pub(super) fn unix(millis: i64) -> Duration {
    Duration::from_millis(millis.try_into().unwrap_or_default())
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}
