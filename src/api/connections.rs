//! Connections and the node as operators see them: `connections`, `connection`, `info`.

use std::sync::Arc;

use gateway_core::error::ErrorCode;
use gateway_core::ids::ShardId;
use gateway_core::message::{ShardOp, ShardOutcome};

use super::requests::{ConnectionRequest, ConnectionsRequest, InfoRequest};
use super::results::{ConnectionResult, ConnectionsResult, InfoResult, NodeInfo};
use super::{ApiError, payload};
use crate::plane::SharedPlane;

/// Connections of a page when the caller does not say.
const PAGE_DEFAULT: u32 = 100;
/// Most connections of a page.
const PAGE_MAX: u32 = 1_000;

/// Lists connections, shard after shard, in slot order. Connections that come and go between two pages may be missed;
/// one that stays is listed exactly once.
pub(super) async fn connections(
    plane: &SharedPlane,
    request: ConnectionsRequest,
) -> Result<ConnectionsResult, ApiError> {
    let limit = request.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("`limit` must be 1 to {PAGE_MAX}")));
    }
    let user: Option<Arc<str>> = request.user.map(Into::into);
    let (mut shard, mut from_slot) = request.cursor.as_deref().map_or(Ok((0, 0)), parse_cursor)?;
    let shards = plane.bridge.shards().count();
    let mut connections = Vec::new();
    while shard < shards {
        let room = limit - connections.len() as u32;
        if room == 0 {
            return Ok(ConnectionsResult {
                connections,
                next_cursor: Some(format!("{shard}.{from_slot}")),
            });
        }
        let op = ShardOp::Connections { user: user.clone(), from_slot, limit: room };
        let ShardOutcome::Connections { page, next_slot } =
            plane.bridge.ask(ShardId(shard), op).await?
        else {
            return Err(ApiError::unexpected_answer());
        };
        connections.extend(page.into_iter().take(room as usize).map(ConnectionResult::from));
        match next_slot {
            // A shard may look at a bounded number of slots per question, so a short page is not its last.
            Some(next) if next > from_slot => from_slot = next,
            _ => (shard, from_slot) = (shard + 1, 0),
        }
    }
    Ok(ConnectionsResult { connections, next_cursor: None })
}

/// One connection in detail.
pub(super) async fn connection(
    plane: &SharedPlane,
    request: ConnectionRequest,
) -> Result<ConnectionResult, ApiError> {
    payload::check_text("session", &request.session, &plane.settings.load().limits)?;
    let session: Box<str> = request.session.into();
    let gathered =
        plane.bridge.ask_all(|| ShardOp::Connection { session: session.clone() }).await?;
    let found = gathered.answers.into_iter().find_map(|(_, outcome)| match outcome {
        ShardOutcome::Connection(found) => found,
        _ => None,
    });
    match found {
        Some(info) => Ok(ConnectionResult::from(*info)),
        None if gathered.partial => Err(ApiError::partial()),
        None => Err(ApiError::new(ErrorCode::NotFound, "no connection has this session id")),
    }
}

/// The node and its size.
pub(super) async fn info(plane: &SharedPlane, _: InfoRequest) -> Result<InfoResult, ApiError> {
    let snapshots = plane.bridge.snapshots().await;
    let sum = |read: fn(&gateway_core::metrics::ShardMetrics) -> u64| {
        snapshots.known().map(|(_, snapshot)| read(&snapshot.core)).sum()
    };
    let node = NodeInfo {
        name: plane.settings.load().node.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        shards: plane.bridge.shards().count(),
        num_clients: sum(|core| core.sessions),
        num_subs: sum(|core| core.subscriptions),
        num_channels: sum(|core| core.channels),
        uptime: plane.uptime().as_secs(),
        partial: snapshots.partial,
    };
    Ok(InfoResult { nodes: vec![node] })
}

/// `shard.slot`, as given out before.
fn parse_cursor(cursor: &str) -> Result<(u16, u32), ApiError> {
    let parsed = cursor
        .split_once('.')
        .and_then(|(shard, slot)| Some((shard.parse().ok()?, slot.parse().ok()?)));
    parsed.ok_or_else(|| ApiError::bad_request("`cursor` is not a `next_cursor` of this call"))
}
