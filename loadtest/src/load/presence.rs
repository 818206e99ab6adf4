//! Who is there: subscriptions that come and go, the pushes about them, and lists of members.

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;

use super::members::Stage;
use super::{Load, Notice};
use crate::fleet::Fleet;
use crate::wire::{self, Envelope, Presence, PresenceList, Welcome};

/// A member came to a channel, or left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The member.
    pub(crate) subject: u32,
    /// Its connection.
    pub(crate) session: u64,
    /// Whether it came.
    pub(crate) joined: bool,
}

/// Who is in a channel, as the server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Counted connections and users.
    pub(crate) counts: (u64, u64),
    /// Connections, in order.
    pub(crate) sessions: Vec<u64>,
}

fn hash(session: &str) -> u64 {
    FixedState::default().hash_one(session)
}

/// The connection that a `welcome` names.
pub(super) fn session_of(envelope: &Envelope<'_>) -> Option<u64> {
    envelope.typed::<Welcome<'_>>().map(|welcome| hash(&welcome.session_id))
}

impl Load {
    /// What every user id of this load begins with.
    pub(super) fn user_stem(&self) -> String {
        self.names.stem.replace(':', "-")
    }

    /// A ready member subscribes to its channels, without a past; or ends its subscriptions.
    pub(crate) fn set_present(&mut self, fleet: &mut Fleet, index: u32, present: bool) {
        let member = &mut self.members[index as usize];
        let Some(id) = member.connection.filter(|_| member.stage == Stage::Ready) else { return };
        for subscription in &mut member.subscriptions {
            subscription.position = None;
            subscription.wanted = present;
            let command = if present {
                member.unanswered += 1;
                wire::subscribe(&self.names, subscription.channel, None)
            } else {
                wire::unsubscribe(&self.names, subscription.channel)
            };
            fleet.send(id, &command);
        }
    }

    /// A member comes without its subscriptions the next time.
    pub(crate) fn want_nothing(&mut self, index: u32) {
        for subscription in &mut self.members[index as usize].subscriptions {
            subscription.wanted = false;
            subscription.position = None;
        }
    }

    /// A member asks who is in its channel.
    pub(crate) fn ask_presence(&mut self, fleet: &mut Fleet, index: u32) {
        let channel = self.plan.channel_of(index);
        if let Some(id) = self.members[index as usize].connection {
            fleet.send(id, &wire::presence(&self.names, channel));
        }
    }

    /// Connections that must be in a channel, in order.
    pub(crate) fn present_in(&self, channel: u32) -> Vec<u64> {
        let present = self.members.iter().filter(|member| {
            let mut live = member.subscriptions.iter().filter(|subscription| subscription.live);
            live.any(|subscription| subscription.channel == channel)
        });
        let mut sessions: Vec<_> = present.map(|member| member.session).collect();
        sessions.sort_unstable();
        sessions
    }

    /// The connection of a member.
    pub(crate) fn session(&self, index: u32) -> u64 {
        self.members[index as usize].session
    }

    /// What the server has said about a channel.
    pub(crate) fn listed(&self, channel: u32) -> Option<&Listed> {
        self.listed.get(channel as usize)?.as_ref()
    }

    /// A subscription has ended because its member wanted it.
    pub(super) fn unsubscribed(&mut self, index: u32, channel: u32) -> Option<Notice> {
        let subscriptions = &mut self.members[index as usize].subscriptions;
        let subscription = subscriptions.iter_mut().find(|s| s.channel == channel)?;
        subscription.live = false;
        Some(Notice::Subscribed(index, false))
    }

    /// A push about a member of this load.
    pub(super) fn presence_push(&self, index: u32, envelope: &Envelope<'_>) -> Option<Notice> {
        let presence = envelope.typed::<Presence<'_>>()?;
        let number: u32 = presence.user_id.strip_prefix(&self.user_stem())?.parse().ok()?;
        let subject = number.checked_sub(self.plan.first)?;
        let joined = envelope.kind == "join";
        let change = Change { subject, session: hash(&presence.session_id), joined };
        Some(Notice::Presence(index, change))
    }

    /// A list of members.
    pub(super) fn presence_list(
        &mut self,
        channel: u32,
        envelope: &Envelope<'_>,
    ) -> Option<Notice> {
        let list = envelope.typed::<PresenceList<'_>>()?;
        let mut sessions: Vec<_> =
            list.members.iter().map(|member| hash(&member.session_id)).collect();
        sessions.sort_unstable();
        let listed = Listed { counts: (list.clients, list.users), sessions };
        *self.listed.get_mut(channel as usize)? = Some(listed);
        Some(Notice::Listed(channel))
    }
}
