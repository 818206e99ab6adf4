//! Publications of durable channels that a home has no copy of any more: it asks the database for them.
//!
//! Questions wait here, and nothing else does: publications and other questions go on meanwhile.

use std::sync::Arc;

use super::apply::{check_epoch, missed_count, within_bytes};
use super::channel::HomeChannel;
use super::link::refuse;
use super::{Effect, HomeEnv, Homes};
use crate::broker::{BrokerOp, Placed};
use crate::error::ClientError;
use crate::message::{
    ChannelOp, ChannelOutcome, ChannelReply, ChannelRequest, HistoryQuery, Publication,
    StreamPosition,
};
use crate::metrics::HistoryRead;

/// Questions for which the database was asked, with the number of each.
pub(super) type Paging = Vec<(u32, ChannelRequest)>;

impl HomeChannel {
    /// Takes back the questions that `is_its` says yes to.
    pub(super) fn drop_paging(
        &mut self,
        is_its: impl Fn(&ChannelRequest) -> bool,
    ) -> Vec<ChannelRequest> {
        let Some(paging) = &mut self.paging else { return Vec::new() };
        let dropped = paging.extract_if(.., |(_, request)| is_its(request));
        let dropped = dropped.map(|(_, request)| request).collect();
        self.forget_paging();
        dropped
    }

    fn forget_paging(&mut self) {
        if self.paging.as_ref().is_some_and(|paging| paging.is_empty()) {
            self.paging = None;
        }
    }

    fn encode_all(
        &mut self,
        env: &mut HomeEnv<'_>,
        placed: &[Placed],
        seed: u64,
    ) -> Vec<Arc<Publication>> {
        let encode = |one: &Placed| self.encode(env, (&one.publish, one.position, one.unix), seed);
        placed.iter().map(encode).map(Arc::new).collect()
    }
}

impl Homes {
    /// What a subscriber has missed, when the copy does not reach back so far but the database may.
    pub(super) fn page_before_copy(
        &mut self,
        env: &HomeEnv<'_>,
        index: u32,
        op: &ChannelOp,
    ) -> Option<HistoryQuery> {
        let channel = self.channel_mut(index)?;
        let ChannelOp::Subscribe(subscribe) = op else { return None };
        let namespace = env.settings.namespaces.get(channel.namespace);
        if !channel.durable || channel.link.is_provisional() || !namespace.recovery {
            return None;
        }
        let from = subscribe.recover?;
        let count = missed_count(channel.position, from, env)?;
        let known = count == 0 || channel.history.covers(from.offset);
        let limit = u32::try_from(count).unwrap_or(u32::MAX);
        (!known).then_some(HistoryQuery { since: Some(from), limit, reverse: false })
    }

    /// Asks the database on behalf of `request`, which waits.
    pub(super) fn ask_page(
        &mut self,
        env: &mut HomeEnv<'_>,
        index: u32,
        mut query: HistoryQuery,
        request: ChannelRequest,
    ) {
        let reads = match request.op {
            ChannelOp::History(_) => &mut env.metrics.history_reads,
            _ => &mut env.metrics.recovery_reads,
        };
        reads.add(HistoryRead::Asked as usize, 1);
        let Some(channel) = self.channel_mut(index) else { return };
        query.limit = query.limit.min(env.settings.limits.history_page_max);
        let ticket = channel.next_serial() as u32;
        channel.paging.get_or_insert_default().push((ticket, request));
        channel.ask(env, BrokerOp::Page { ticket, query });
    }

    /// The database answers.
    pub(super) fn take_page(
        &mut self,
        env: &mut HomeEnv<'_>,
        index: u32,
        ticket: u32,
        outcome: Result<(StreamPosition, Vec<Placed>), ClientError>,
    ) {
        let seed = self.seed;
        let Some(channel) = self.channel_mut(index) else { return };
        let Some(paging) = &mut channel.paging else { return };
        let Some(at) = paging.iter().position(|(waiting, _)| *waiting == ticket) else {
            return;
        };
        let (_, request) = paging.swap_remove(at);
        channel.forget_paging();
        let (top, placed) = match outcome {
            Ok(page) => page,
            Err(error) => return refuse(env, request, error),
        };
        let ChannelRequest { origin, channel: name, op } = request;
        let outcome = match op {
            ChannelOp::History(query) => check_epoch(query, top).map(|()| {
                let page = channel.encode_all(env, &placed, seed);
                let publications = within_bytes(page, env.settings.limits.recovery_bytes_max);
                ChannelOutcome::History { top, publications, partial: false }
            }),
            ChannelOp::Subscribe(subscribe) => {
                let same = top.epoch == channel.position.epoch;
                let older = if same { channel.encode_all(env, &placed, seed) } else { Vec::new() };
                self.subscribe(env, &name, (&subscribe, Some(older)), origin)
            }
            op => return self.apply_here(env, ChannelRequest { origin, channel: name, op }),
        };
        env.effects.push(Effect::Reply(ChannelReply { origin, channel: name, outcome }));
    }
}
