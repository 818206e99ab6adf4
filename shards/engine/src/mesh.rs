//! All mailboxes of the node, as one shard (or the control plane) sees them.
//!
//! A shard rings each other shard at most once a turn: [`Mesh::try_send`] only notes the target, [`Mesh::ring_all`]
//! wakes those that sleep.

use std::sync::Arc;

use gateway_core::ids::ShardId;
use gateway_core::message::ShardMessage;

use crate::mailbox::{Mail, Mailbox, PlacedSocket};

/// Mailboxes by shard.
pub(crate) type Mailboxes = Arc<[Mailbox]>;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Mesh {
    mailboxes: Mailboxes,
    /// Shards with new mail since the last `ring_all`, each once.
    noted: Vec<ShardId>,
    is_noted: Vec<bool>,
    wakeups: u64,
}

impl Mesh {
    pub(crate) fn new(mailboxes: Mailboxes) -> Self {
        let is_noted = vec![false; mailboxes.len()];
        Self { mailboxes, noted: Vec::new(), is_noted, wakeups: 0 }
    }

    /// Puts `message` into the mailbox of `target`, or gives it back when that is full.
    pub(crate) fn try_send(
        &mut self,
        target: ShardId,
        message: ShardMessage,
    ) -> Result<(), ShardMessage> {
        match self.mailboxes[target.index()].queue.push(Mail::Message(message)) {
            Ok(()) => {
                self.note(target);
                Ok(())
            }
            Err(Mail::Message(message)) => Err(message),
            Err(Mail::Socket(_)) => unreachable!("a message was pushed"),
        }
    }

    /// Moves a socket to the shard that will serve it, or gives it back when the mailbox is full.
    pub(crate) fn try_place(
        &mut self,
        target: ShardId,
        placed: PlacedSocket,
    ) -> Result<(), PlacedSocket> {
        match self.mailboxes[target.index()].queue.push(Mail::Socket(placed)) {
            Ok(()) => {
                self.note(target);
                Ok(())
            }
            Err(Mail::Socket(placed)) => Err(placed),
            Err(Mail::Message(_)) => unreachable!("a socket was pushed"),
        }
    }

    fn note(&mut self, target: ShardId) {
        if !self.is_noted[target.index()] {
            self.is_noted[target.index()] = true;
            self.noted.push(target);
        }
    }

    /// Wakes every shard with new mail that sleeps.
    pub(crate) fn ring_all(&mut self) {
        for target in self.noted.drain(..) {
            self.is_noted[target.index()] = false;
            self.wakeups += u64::from(self.mailboxes[target.index()].bell.ring());
        }
    }

    /// Times that another shard was woken.
    pub(crate) fn wakeups(&self) -> u64 {
        self.wakeups
    }
}
