//! How connections end: the closing handshake, and tidying up after the socket is gone.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::Shard;
use crate::error::Disconnect;
use crate::event::Event;
use crate::ids::{ConnectionId, ShardId};
use crate::metrics::MessageKind;
use crate::output::Output;
use crate::proto::push;
use crate::session::Phase;
use crate::time::Now;
use crate::ws::frame;

/// Upper bound of the reconnect delay when only one client is sent away: a little spread costs nobody anything.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);

/// Where clients go that this node sends away or does not take.
#[derive(Debug)]
pub(super) struct Moving {
    /// Upper bound of the reconnect delay while the node drains.
    pub(super) reconnect_delay_max: Duration,
    /// Other nodes, told in turn.
    pub(super) urls: Arc<[Box<str>]>,
    /// Clients that were told one of them, and where the turns began.
    told: usize,
}

impl Moving {
    /// Nowhere yet. Turns begin at another node on every shard.
    pub(super) fn new(shard: ShardId) -> Self {
        let reconnect_delay_max = Duration::ZERO;
        Self { reconnect_delay_max, urls: Arc::default(), told: shard.index() }
    }

    /// Where the next client is to go.
    pub(super) fn next_url(&mut self) -> Option<&str> {
        let at = self.told.checked_rem(self.urls.len())?;
        self.told = self.told.wrapping_add(1);
        self.urls.get(at).map(|url| &**url)
    }
}

impl Shard {
    /// Ends a WebSocket for a reason of ours: `disconnect` message (native protocol only), close frame, and a bounded
    /// wait for the client's close frame.
    pub(super) fn disconnect(&mut self, now: Now, id: ConnectionId, reason: Disconnect) {
        let delay_max = match reason {
            Disconnect::Shutdown => self.moving.reconnect_delay_max,
            _ => RECONNECT_DELAY_MAX,
        };
        let close_timeout = self.settings.limits.close_timeout;
        let Some(session) = self.session(id) else { return };
        let native = match session.phase {
            Phase::Closing { .. } | Phase::Gone { .. } => return,
            Phase::Head(_) => {
                return self.finish(id);
            }
            Phase::Echo => false,
            _ => true,
        };
        if native && reason.close_code() >= 4000 {
            let after = self.random.between(Duration::ZERO, delay_max);
            let Some(session) = self.session_mut(id) else { return };
            let serial = session.next_id();
            let url = match reason {
                Disconnect::Shutdown => self.moving.next_url(),
                _ => None,
            };
            let frame = push::disconnect(reason, (after, url), &serial, now.unix);
            self.push_control(id, frame, MessageKind::Control);
        }
        let mut close = Vec::with_capacity(40);
        frame::encode_close(&mut close, reason.close_code(), reason.reason());
        self.push_control(id, close.into(), MessageKind::Control);
        self.end_subscriptions(now, id);
        let deadline = now.mono + close_timeout;
        if let Some(session) = self.session_mut(id) {
            session.ending = Some(reason);
            session.phase = Phase::Closing { deadline };
        }
        self.touch_timer(id, deadline);
    }

    /// The client's close frame: the answer to ours, or the beginning of the end.
    pub(super) fn handle_close_frame(&mut self, now: Now, id: ConnectionId, code: Option<u16>) {
        let Some(session) = self.session_mut(id) else { return };
        if matches!(session.phase, Phase::Closing { .. }) {
            return self.finish(id);
        }
        session.ending = Some(Disconnect::ByClient);
        let mut close = Vec::with_capacity(4);
        frame::encode_close(&mut close, code.unwrap_or(1000), "");
        self.push_control(id, close.into(), MessageKind::Control);
        self.end_subscriptions(now, id);
        self.finish(id);
    }

    /// Nothing more will be said: let the driver flush and close, within the close timeout.
    pub(super) fn finish(&mut self, id: ConnectionId) {
        let deadline = self.now.mono + self.settings.limits.close_timeout;
        let Some(session) = self.session_mut(id) else { return };
        session.phase = Phase::Gone { deadline };
        self.outputs.push_back(Output::Close { id });
        self.touch_timer(id, deadline);
    }

    fn end_subscriptions(&mut self, now: Now, id: ConnectionId) {
        let Some(session) = self.session_mut(id) else { return };
        session.pending = Vec::new();
        let held = session.large_data.take().map_or(0, |data| data.bytes());
        let channels: SmallVec<[u32; 8]> = session.subscriptions.iter().map(|s| s.local).collect();
        self.large_data_bytes = self.large_data_bytes.saturating_sub(held);
        // Nothing is queued for an ending session any more, so what is queued need not be told apart.
        for local in channels {
            if let Some(request) = self.forget_subscription(id, local) {
                self.request(now, request);
            }
        }
    }

    /// The socket is gone (closed by us, by the peer, or handed over) and no completion for it is outstanding: the
    /// slot may be used again. Called exactly once per connection; an id of an earlier generation is ignored.
    pub fn handle_closed(&mut self, now: Now, id: ConnectionId) {
        self.now = now;
        if self.session(id).is_none() {
            return;
        }
        self.end_subscriptions(now, id);
        let slot = &mut self.slots[id.slot() as usize];
        let Some(mut session) = slot.session.take() else { return };
        slot.generation = (slot.generation + 1) & ((1 << ConnectionId::FIELD_BITS) - 1);
        self.free.push(id.slot());
        self.outbox_bytes = self.outbox_bytes.saturating_sub(session.outbox.clear());
        self.admission.disconnect(session.peer.address);
        if session.user_counted {
            self.admission.release_user(&session.user);
        }
        if session.websocket_counted {
            self.admission.release_session();
        }
        self.metrics.connections -= 1;
        if session.is_authenticated() {
            self.metrics.sessions -= 1;
            let reason = session.ending.unwrap_or(Disconnect::ConnectionLost);
            let duration = now.mono.saturating_sub(session.opened_at.get());
            self.metrics.session_ended(reason, duration);
            self.tell_disconnected(&session, reason, duration);
            self.outputs.push_back(Output::Event(Event::Disconnected {
                connection: id,
                session: session.public_id,
                user: session.user,
                reason,
                duration,
            }));
        }
    }

    /// A panic was caught while this connection was handled: forget what can be forgotten of it. An `Abort` output
    /// follows.
    pub fn handle_panic(&mut self, now: Now, id: ConnectionId) {
        self.metrics.panics += 1;
        if let Some(session) = self.session_mut(id) {
            session.ending = Some(Disconnect::Internal);
            session.phase = Phase::Gone { deadline: now.mono };
        }
        self.outputs.push_back(Output::Abort { id });
    }
}
