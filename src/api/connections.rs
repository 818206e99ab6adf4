//! Connections and nodes as operators see them: `connections`, `connection`, `info`.

use std::sync::Arc;

use gateway_core::error::ErrorCode;
use gateway_core::ids::ShardId;
use gateway_core::message::{ShardOp, ShardOutcome};
use serde::{Deserialize, Serialize};

use super::everywhere::{self, Question};
use super::requests::{ConnectionRequest, ConnectionsRequest, InfoRequest};
use super::results::{ConnectionResult, ConnectionsResult, InfoResult, NodeInfo};
use super::{ApiError, payload};
use crate::plane::SharedPlane;

/// Connections of a page when the caller does not say.
const PAGE_DEFAULT: u32 = 100;
/// Most connections of a page.
const PAGE_MAX: u32 = 1_000;
/// A node's part of a page ends early when the names of channels in it reach so many bytes: it is one message between nodes.
const PAGE_BYTES: usize = 1 << 20;
/// Connections that a shard is asked for at once.
const PART: u32 = 100;

/// Where a page begins: node, shard and slot.
type Place = (u64, u16, u32);

/// Connections of one node, and where to go on at it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodePage {
    connections: Vec<ConnectionResult>,
    next: Option<(u16, u32)>,
}

/// Lists connections, node after node, shard after shard, in slot order. Connections that come and go between two pages may be
/// missed; one that stays is listed exactly once.
pub(super) async fn connections(
    plane: &SharedPlane,
    request: ConnectionsRequest,
) -> Result<ConnectionsResult, ApiError> {
    let limit = request.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("`limit` must be 1 to {PAGE_MAX}")));
    }
    let (nodes, own) = everywhere::nodes(plane);
    let cursor = request.cursor.as_deref().map(parse_cursor).transpose()?;
    let (first, shard, slot) = cursor.unwrap_or_else(|| (nodes[0], 0, 0));
    let mut result = ConnectionsResult {
        connections: Vec::new(),
        next_cursor: None,
        // The node that the cursor names is gone, with what it had; or nobody knows which nodes there are.
        partial: !nodes.contains(&first) || everywhere::is_stale(plane),
    };
    let mut missing = false;
    for node in nodes.into_iter().filter(|node| *node >= first) {
        let room = limit - result.connections.len() as u32;
        let from = if node == first { (shard, slot) } else { (0, 0) };
        // One node is waited for at most, so that the call keeps its own time.
        if room == 0 || missing {
            result.next_cursor = Some(cursor_of((node, from.0, from.1)));
            break;
        }
        let user = request.user.clone();
        let page = if node == own {
            Some(own_connections(plane, user, from, room).await?)
        } else {
            let question = Question::Connections { user, from, limit: room };
            everywhere::ask_one(plane, node, &question).await
        };
        let Some(page) = page else {
            (result.partial, missing) = (true, true);
            continue;
        };
        result.connections.extend(page.connections);
        if let Some((shard, slot)) = page.next {
            result.next_cursor = Some(cursor_of((node, shard, slot)));
            break;
        }
    }
    Ok(result)
}

/// Connections of this node from a shard and slot on.
pub(super) async fn own_connections(
    plane: &SharedPlane,
    user: Option<String>,
    (mut shard, mut from_slot): (u16, u32),
    limit: u32,
) -> Result<NodePage, ApiError> {
    let name = Arc::clone(&plane.settings.load().node);
    let user: Option<Arc<str>> = user.map(Into::into);
    let shards = plane.bridge.shards().count();
    let mut connections = Vec::new();
    let mut bytes = 0;
    while shard < shards {
        let room = limit.saturating_sub(connections.len() as u32);
        if room == 0 || bytes > PAGE_BYTES {
            return Ok(NodePage { connections, next: Some((shard, from_slot)) });
        }
        let room = room.min(PART);
        let op = ShardOp::Connections { user: user.clone(), from_slot, limit: room };
        let ShardOutcome::Connections { page, next_slot } =
            plane.bridge.ask(ShardId(shard), op).await?
        else {
            return Err(ApiError::unexpected_answer());
        };
        for info in page.into_iter().take(room as usize) {
            bytes += info.channels.iter().map(|channel| channel.len() + 8).sum::<usize>();
            connections.push(ConnectionResult::new(&name, info));
        }
        match next_slot {
            // A shard may look at a bounded number of slots per question, so a short page is not its last.
            Some(next) if next > from_slot => from_slot = next,
            _ => (shard, from_slot) = (shard + 1, 0),
        }
    }
    Ok(NodePage { connections, next: None })
}

/// One connection in detail, wherever it is.
pub(super) async fn connection(
    plane: &SharedPlane,
    request: ConnectionRequest,
) -> Result<ConnectionResult, ApiError> {
    payload::check_text("session", &request.session, &plane.settings.load().limits)?;
    let (mut found, mut partial) = own_connection(plane, &request.session).await?;
    if found.is_none() {
        let question = Question::Connection { session: request.session };
        let (answers, missing) =
            everywhere::ask_others::<Vec<ConnectionResult>>(plane, &question).await;
        found = answers.into_iter().flatten().next();
        partial |= missing;
    }
    match found {
        Some(connection) => Ok(connection),
        None if partial => Err(ApiError::partial()),
        None => Err(ApiError::new(ErrorCode::NotFound, "no connection has this session id")),
    }
}

/// A connection of this node, and whether a shard did not answer.
pub(super) async fn own_connection(
    plane: &SharedPlane,
    session: &str,
) -> Result<(Option<ConnectionResult>, bool), ApiError> {
    let gathered = plane.bridge.ask_all(|| ShardOp::Connection { session: session.into() }).await?;
    let found = gathered.answers.into_iter().find_map(|(_, outcome)| match outcome {
        ShardOutcome::Connection(found) => found,
        _ => None,
    });
    let name = Arc::clone(&plane.settings.load().node);
    Ok((found.map(|info| ConnectionResult::new(&name, *info)), gathered.partial))
}

/// All nodes and their sizes.
pub(super) async fn info(plane: &SharedPlane, _: InfoRequest) -> Result<InfoResult, ApiError> {
    let others = everywhere::ask_others::<NodeInfo>(plane, &Question::Info);
    let (own, (mut nodes, partial)) = tokio::join!(own_info(plane), others);
    nodes.push(own);
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let partial = partial || nodes.iter().any(|node| node.partial);
    Ok(InfoResult { nodes, partial })
}

/// This node and its size.
pub(super) async fn own_info(plane: &SharedPlane) -> NodeInfo {
    let snapshots = plane.bridge.snapshots().await;
    let sum = |read: fn(&gateway_core::metrics::ShardMetrics) -> u64| {
        snapshots.known().map(|(_, snapshot)| read(&snapshot.core)).sum()
    };
    NodeInfo {
        name: plane.settings.load().node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        shards: plane.bridge.shards().count(),
        num_clients: sum(|core| core.sessions),
        num_subs: sum(|core| core.subscriptions),
        num_channels: sum(|core| core.channels),
        uptime: plane.uptime().as_secs(),
        partial: snapshots.partial,
    }
}

fn cursor_of((node, shard, slot): Place) -> String {
    format!("{node:x}.{shard}.{slot}")
}

/// Reads [`cursor_of`].
fn parse_cursor(cursor: &str) -> Result<Place, ApiError> {
    let mut parts = cursor.splitn(3, '.');
    let mut next = || parts.next();
    let parsed = (|| {
        let node = u64::from_str_radix(next()?, 16).ok()?;
        Some((node, next()?.parse().ok()?, next()?.parse().ok()?))
    })();
    parsed.ok_or_else(|| ApiError::bad_request("`cursor` is not a `next_cursor` of this call"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_strictly() {
        for place in [(0, 0, 0), (u64::MAX, 3, 4_000_000_000), (0x1f, 1, 2)] {
            assert_eq!(parse_cursor(&cursor_of(place)).ok(), Some(place));
        }
        for bad in ["", "1", "1.2", "g.0.0", "1.70000.0", "1.0.-1", "1.0.0.0", "1..0"] {
            assert!(parse_cursor(bad).is_err(), "{bad}");
        }
    }
}
