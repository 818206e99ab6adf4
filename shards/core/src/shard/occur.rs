//! What happened, on its way to the control plane.
//!
//! Occurrences leave in their order. Those that find the control queue full wait here, and so does everything after them;
//! above a bound they are dropped and counted. Channels that become watched or unwatched are never dropped: their names are
//! kept, each once, and told with what is true when there is room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;

use super::Shard;
use crate::error::Disconnect;
use crate::ids::ConnectionId;
use crate::message::{ChannelName, ControlMessage};
use crate::metrics::DropKind;
use crate::occurrence::{Happening, Occurrence};
use crate::output::Output;
use crate::session::Session;

/// What waits for room in the control queue.
#[derive(Debug, Default)]
pub(super) struct Untold {
    occurrences: VecDeque<Occurrence>,
    bytes: usize,
    channels: HashSet<ChannelName, foldhash::fast::FixedState>,
}

impl Untold {
    /// Whether anything does, so that nothing newer may pass it.
    pub(super) fn waits(&self) -> bool {
        !self.occurrences.is_empty() || !self.channels.is_empty()
    }
}

impl Shard {
    /// Something has happened that the settings ask for.
    pub(super) fn occur(&mut self, what: impl FnOnce() -> Happening) {
        let occurrence = Occurrence { at: self.now.unix, what: what() };
        self.outputs.push_back(Output::Control(ControlMessage::Occurred(Box::new(occurrence))));
    }

    /// The control queue is full, or others wait already.
    pub(super) fn keep_untold(&mut self, occurrence: Occurrence) {
        if let Happening::Watched { channel, .. } = occurrence.what {
            self.untold.channels.insert(channel);
            return;
        }
        let (settings, bytes) = (&self.settings.occurrences, occurrence.bytes());
        if self.untold.occurrences.len() >= settings.waiting_max
            || self.untold.bytes + bytes > settings.waiting_bytes_max
        {
            self.metrics.dropped.add(DropKind::Occurrence as usize, 1);
            return;
        }
        self.untold.bytes += bytes;
        self.untold.occurrences.push_back(occurrence);
    }

    /// Offers what waits once more, before anything newer.
    pub(super) fn retry_untold(&mut self) {
        if !self.untold.waits() {
            return;
        }
        let Untold { occurrences, channels, .. } = std::mem::take(&mut self.untold);
        for occurrence in occurrences.into_iter().rev() {
            let message = ControlMessage::Occurred(Box::new(occurrence));
            self.outputs.push_front(Output::Control(message));
        }
        // Behind whatever is on its way about the same channel: this is newer.
        for channel in channels {
            let watched = self.homes.is_watched(&channel);
            self.occur(|| Happening::Watched { channel, watched });
        }
    }

    /// A session is ready.
    pub(super) fn tell_connected(&mut self, id: ConnectionId) {
        if !self.settings.occurrences.sessions {
            return;
        }
        let Some(session) = self.session_mut(id) else { return };
        session.told = true;
        let (session, user, address, user_agent) = (
            session.public_id,
            Arc::clone(&session.user),
            session.peer.address,
            session.user_agent.clone(),
        );
        self.occur(|| Happening::Connected { session, user, address, user_agent });
    }

    /// A session has ended; one that never was ready is nobody's business.
    pub(super) fn tell_disconnected(
        &mut self,
        session: &Session,
        reason: Disconnect,
        duration: Duration,
    ) {
        if !session.told {
            return;
        }
        let user = Arc::clone(&session.user);
        let (session, address) = (session.public_id, session.peer.address);
        self.occur(|| Happening::Disconnected { session, user, address, reason, duration });
    }
}
