//! Which local connections are subscribed to which channel, and how far each channel has come on this shard.
//!
//! All live subscribers of a channel stand at one position, because the mailbox from the home is FIFO. A publication
//! that does not follow the position shows a gap, which is repaired from the home's history while newer ones wait.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::ids::ConnectionId;
use crate::message::{ChannelName, Publication, StreamPosition};
use crate::name_index::NameIndex;
use crate::settings::{NamespaceIndex, Settings};

/// Publications that wait for a repair; with more the gap is told to clients instead.
const REPAIR_BUFFER_MAX: usize = 4096;

/// Live subscribers of a channel: walked from end to end for every publication. Each subscription remembers its place
/// here, so that it is left without a search; the last one then takes the place. One or two need no memory of their own.
pub(crate) type Subscribers = SmallVec<[ConnectionId; 2]>;

/// What to do with a publication or a position that came from the home.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Give it to the subscribers.
    Deliver,
    /// Seen before, or nobody is subscribed.
    Ignore,
    /// Kept until the repair under way is answered.
    Wait,
    /// Something is missing: ask the home for what comes after this position.
    Repair(StreamPosition),
    /// It belongs to another epoch: the stream has begun anew.
    Renewed,
    /// The repair has taken too long and too much waits: tell the clients what they lost.
    GiveUp,
}

/// A channel with at least one subscription here, live or pending.
#[derive(Debug)]
pub(crate) struct LocalChannel {
    pub(crate) name: ChannelName,
    pub(crate) namespace: NamespaceIndex,
    /// Position of all live subscribers.
    pub(crate) position: Option<StreamPosition>,
    /// Live subscribers, each once.
    pub(crate) subscribers: Subscribers,
    /// Live and pending subscriptions.
    pub(crate) subscriptions: u32,
    /// Those of them whose connection negotiated compression.
    pub(crate) compressed: u32,
    /// The repair that is under way.
    repair: Option<Box<Repair>>,
}

/// A gap that the home has been asked about.
#[derive(Debug, Default)]
struct Repair {
    /// Publications that came meanwhile.
    waiting: VecDeque<Arc<Publication>>,
}

impl LocalChannel {
    /// Judges a publication and moves the position when it is to be delivered.
    pub(crate) fn accept(&mut self, publication: &Arc<Publication>) -> Verdict {
        let Some(position) = self.position else { return Verdict::Ignore };
        let offset = publication.position.offset;
        if offset == 0 {
            return Verdict::Deliver;
        }
        if publication.position.epoch != position.epoch {
            return Verdict::Renewed;
        }
        if let Some(repair) = &mut self.repair {
            if repair.waiting.len() >= REPAIR_BUFFER_MAX {
                return Verdict::GiveUp;
            }
            repair.waiting.push_back(Arc::clone(publication));
            return Verdict::Wait;
        }
        if offset <= position.offset {
            return Verdict::Ignore;
        }
        if offset == position.offset + 1 {
            self.position = Some(publication.position);
            return Verdict::Deliver;
        }
        let waiting = VecDeque::from([Arc::clone(publication)]);
        self.repair = Some(Box::new(Repair { waiting }));
        Verdict::Repair(position)
    }

    /// The home stands at `top`; answers what that means here.
    pub(crate) fn compare(&mut self, top: StreamPosition) -> Verdict {
        let Some(position) = self.position else { return Verdict::Ignore };
        if top.epoch != position.epoch {
            return Verdict::Renewed;
        }
        if self.repair.is_some() || top.offset <= position.offset {
            return Verdict::Ignore;
        }
        self.repair = Some(Box::default());
        Verdict::Repair(position)
    }

    /// The stream has begun anew and stands at `top`.
    pub(crate) fn begin_anew(&mut self, top: StreamPosition) {
        self.position = Some(top);
        self.repair = None;
    }

    /// Ends a repair: what waited, oldest first.
    pub(crate) fn finish_repair(&mut self) -> VecDeque<Arc<Publication>> {
        self.repair.take().map_or_else(VecDeque::new, |repair| repair.waiting)
    }

    /// Whether a repair is under way.
    pub(crate) fn is_repairing(&self) -> bool {
        self.repair.is_some()
    }
}

fn name_in(slots: &[Option<LocalChannel>], local: u32) -> &str {
    slots.get(local as usize).and_then(Option::as_ref).map_or("", |channel| &channel.name)
}

/// What came of ending a subscription.
#[derive(Debug, Default)]
pub(crate) struct Released {
    pub(crate) channel: Option<ChannelName>,
    /// Whether it was the shard's last one of the channel.
    pub(crate) last: bool,
    /// Whether any other subscription of the shard wants compressed frames.
    pub(crate) compression: bool,
    /// The connection that has taken the place among the subscribers.
    pub(crate) moved: Option<ConnectionId>,
}

/// All local channels of a shard.
#[derive(Debug)]
pub(crate) struct Hub {
    slots: Vec<Option<LocalChannel>>,
    free: Vec<u32>,
    by_name: NameIndex,
    /// Live subscriptions.
    pub(crate) live: u64,
}

impl Hub {
    pub(crate) fn new(seed: u64) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), by_name: NameIndex::new(seed), live: 0 }
    }

    pub(crate) fn find(&self, channel: &str) -> Option<u32> {
        self.by_name.find(channel, |local| name_in(&self.slots, local))
    }

    pub(crate) fn get(&self, local: u32) -> Option<&LocalChannel> {
        self.slots.get(local as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, local: u32) -> Option<&mut LocalChannel> {
        self.slots.get_mut(local as usize)?.as_mut()
    }

    /// Counts a new pending subscription; answers the channel's index and its shared name.
    pub(crate) fn reserve(
        &mut self,
        channel: &ChannelName,
        namespace: NamespaceIndex,
        compressed: bool,
    ) -> (u32, ChannelName) {
        let local = self.find(channel).unwrap_or_else(|| self.add(channel, namespace));
        let Some(slot) = self.get_mut(local) else { unreachable!("the index was just found") };
        slot.subscriptions += 1;
        slot.compressed += u32::from(compressed);
        (local, Arc::clone(&slot.name))
    }

    fn add(&mut self, name: &ChannelName, namespace: NamespaceIndex) -> u32 {
        let entry = Some(LocalChannel {
            name: Arc::clone(name),
            namespace,
            position: None,
            subscribers: Subscribers::default(),
            subscriptions: 0,
            compressed: 0,
            repair: None,
        });
        let local = if let Some(local) = self.free.pop() {
            self.slots[local as usize] = entry;
            local
        } else {
            self.slots.push(entry);
            self.slots.len() as u32 - 1
        };
        self.by_name.insert(local, |local| name_in(&self.slots, local));
        local
    }

    /// A pending subscription is live from `top` on. Answers its place among the subscribers, and what `top` means for
    /// the others of this channel.
    pub(crate) fn go_live(
        &mut self,
        local: u32,
        id: ConnectionId,
        top: StreamPosition,
    ) -> (u32, Verdict) {
        let Some(channel) = self.get_mut(local) else { return (0, Verdict::Ignore) };
        let place = channel.subscribers.len() as u32;
        channel.subscribers.push(id);
        let verdict = if place > 0 {
            channel.compare(top)
        } else {
            channel.position = Some(top);
            channel.repair = None;
            Verdict::Ignore
        };
        self.live += 1;
        (place, verdict)
    }

    /// Ends a subscription of a connection that negotiated compression or not; `place` is given when it was live.
    pub(crate) fn release(&mut self, local: u32, place: Option<u32>, compressed: bool) -> Released {
        let Some(channel) = self.get_mut(local) else { return Released::default() };
        let mut released =
            Released { channel: Some(Arc::clone(&channel.name)), ..Released::default() };
        if let Some(place) = place {
            channel.subscribers.swap_remove(place as usize);
            released.moved = channel.subscribers.get(place as usize).copied();
            if channel.subscribers.len() <= channel.subscribers.inline_size() {
                channel.subscribers.shrink_to_fit();
            }
        }
        channel.subscriptions -= 1;
        channel.compressed -= u32::from(compressed);
        released.last = channel.subscriptions == 0;
        released.compression = channel.compressed > 0;
        if released.last {
            self.by_name.remove(local, |local| name_in(&self.slots, local));
            self.slots[local as usize] = None;
            self.free.push(local);
        }
        self.live -= u64::from(place.is_some());
        released
    }

    /// Settings have changed: look every namespace up again.
    pub(crate) fn reconfigure(&mut self, settings: &Settings) {
        for channel in self.slots.iter_mut().flatten() {
            channel.namespace = settings
                .namespaces
                .find(&channel.name)
                .map_or(crate::settings::NAMESPACE_REMOVED, |(index, _)| index);
        }
    }
}
