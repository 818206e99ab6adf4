//! What a channel holds in Redis, as `lua/read.lua` answers it.

use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use gateway_core::broker::{MemberId, Scope, Snapshot};
use gateway_core::message::{Member, StreamPosition};

use super::{Common, position, record};

/// Room that is made for publications before they are read.
const PUBLICATIONS_GUESS: usize = 512;

impl Common {
    /// Keys and arguments in the order of `lua/read.lua`.
    pub(super) fn read_parts(
        &self,
        channel: &str,
        (scope, known): (Scope, Option<StreamPosition>),
        position_ttl: Duration,
    ) -> (Vec<String>, Vec<Value>) {
        let names = self.names.keys(channel);
        let (epoch, offset) = known
            .map_or((String::new(), 0), |known| (known.epoch.as_str().to_owned(), known.offset));
        let arguments = vec![
            super::new_epoch().into(),
            position_ttl.as_millis().to_string().into(),
            epoch.into(),
            offset.to_string().into(),
            scope.history_size.to_string().into(),
            (if scope.members { "1" } else { "0" }).into(),
        ];
        (vec![names.meta, names.stream, names.members], arguments)
    }

    /// Reads the answer: the snapshot, and up to where there are no publications any more.
    pub(super) fn snapshot(
        &self,
        answer: Value,
        scope: Scope,
    ) -> Option<(Snapshot, StreamPosition)> {
        let Value::Array(items) = answer else { return None };
        let mut items = items.into_iter();
        let top = position::read(&items.next()?.as_str()?)?;
        let oldest: u64 = items.next()?.as_str()?.parse().ok()?;
        let floor = StreamPosition { offset: oldest.saturating_sub(1), ..top };
        let count: usize = items.next()?.as_str()?.parse().ok()?;
        let oldest = super::unix_now().saturating_sub(scope.history_ttl);
        let mut publications = Vec::with_capacity(count.min(PUBLICATIONS_GUESS));
        for _ in 0..count {
            let offset: u64 = items.next()?.as_str()?.parse().ok()?;
            let payload = bytes_of(items.next()?)?;
            let position = StreamPosition { offset, ..top };
            match self.nodes.placed(position, payload) {
                Some(placed) if placed.unix >= oldest => publications.push(placed),
                // Expired, though newer ones keep the stream alive.
                Some(_) => {}
                None => tracing::warn!(category = "error", event = "publication_unreadable"),
            }
        }
        let members = scope.members.then(|| self.members(items));
        Some((Snapshot { top, publications, server: self.server, members }, floor))
    }

    fn members(&self, mut items: impl Iterator<Item = Value>) -> Vec<(MemberId, Member)> {
        let mut members = Vec::new();
        while let (Some(field), Some(member)) = (items.next(), items.next()) {
            let id = bytes_of(field).and_then(|field| record::member_id(&field));
            let member = bytes_of(member).and_then(|mut bytes| record::take_member(&mut bytes));
            if let (Some(id), Some(member)) = (id, member)
                && self.nodes.note_foreign(id.node)
            {
                members.push((id, member));
            }
        }
        members
    }
}

pub(super) fn bytes_of(value: Value) -> Option<Bytes> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::String(text) => Some(text.into_inner()),
        _ => None,
    }
}
