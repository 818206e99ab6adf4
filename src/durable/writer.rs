//! Publishes on their way into the database: as many queues as transactions at one time, each channel always in the same one.
//!
//! A queue is worked off in batches, one after the other, so what one node takes for a channel keeps its order. Homes hear of
//! a publication after its commit, and whoever published it after that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gateway_core::broker::{ChannelUpdate, Placed};
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::message::{ChannelOutcome, ChannelReply, Origin};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::append::{Append, AppendKind, Appended};
use super::{Durable, rows};
use crate::store::{StoreError, commit_batch};

/// Publications of one transaction, about.
const BATCH_BYTES: usize = 4 << 20;

/// A change that waits, and who asked for it.
#[derive(Debug)]
pub(super) struct Write {
    pub append: Append,
    pub origin: Origin,
    pub at: Instant,
}

impl Durable {
    /// Makes a change, or answers that there is no room for it.
    pub(super) fn write(&self, write: Write) {
        let queue = &self.queues[self.queue_of(&write.append.channel)];
        let weight = write.append.weight();
        let waiting = self.waiting_bytes.fetch_add(weight, Ordering::Relaxed);
        let refused = if waiting > self.section.waiting_bytes_max {
            Some(write)
        } else {
            queue.try_send(write).err().map(TrySendError::into_inner)
        };
        if let Some(write) = refused {
            self.waiting_bytes.fetch_sub(weight, Ordering::Relaxed);
            self.stats.writes.refused.fetch_add(1, Ordering::Relaxed);
            let message = "too many publications wait for the database (durable.writes_waiting_max, \
                           durable.waiting_bytes_max); try again";
            self.answer(write, Err(ClientError::new(ErrorCode::Unavailable, message)));
        }
    }

    /// Changes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.max_capacity() - queue.capacity()).sum()
    }

    /// Works a queue off until its near end is gone.
    pub(super) async fn run_writer(
        self: Arc<Self>,
        mut queue: mpsc::Receiver<Write>,
        (batch_max, deadline): (usize, Duration),
    ) {
        let mut batch = Vec::with_capacity(batch_max);
        while queue.recv_many(&mut batch, batch_max).await > 0 {
            let mut rest = batch.drain(..).peekable();
            while rest.peek().is_some() {
                let (mut part, mut bytes) = (Vec::new(), 0);
                while bytes < BATCH_BYTES
                    && let Some(write) = rest.next()
                {
                    let weight = write.append.weight();
                    self.waiting_bytes.fetch_sub(weight, Ordering::Relaxed);
                    if write.at.elapsed() >= deadline {
                        let message = "the database is too slow: nothing was published; try again";
                        self.answer(write, Err(ClientError::new(ErrorCode::Unavailable, message)));
                        continue;
                    }
                    bytes += weight;
                    part.push(write);
                }
                if !part.is_empty() {
                    self.write_batch(part).await;
                }
            }
        }
    }

    async fn write_batch(&self, batch: Vec<Write>) {
        let (appends, askers): (Vec<Append>, Vec<_>) =
            batch.into_iter().map(|write| (write.append, write.origin)).unzip();
        let stats = ("streams", &self.stats.writes);
        let outcomes = commit_batch(&self.store, stats, &self.appends, &appends).await;
        for ((append, origin), outcome) in appends.into_iter().zip(askers).zip(outcomes) {
            let channel = Arc::clone(&append.channel);
            let outcome = outcome.map_err(|error| refusal(&error)).map(|appended| {
                let removal = matches!(append.kind, AppendKind::Remove);
                self.tell(append, origin, appended);
                if removal {
                    ChannelOutcome::HistoryRemoved(appended.position)
                } else {
                    ChannelOutcome::Published(appended.position)
                }
            });
            self.mail.reply(ChannelReply { origin, channel, outcome });
        }
    }

    /// Tells the home on this node and those on others.
    fn tell(&self, append: Append, origin: Origin, Appended { position, fresh }: Appended) {
        if !fresh {
            return;
        }
        let Append { channel, kind } = append;
        let update = match kind {
            AppendKind::Remove => {
                self.tell_others(&channel, position, None);
                ChannelUpdate::Removed(position)
            }
            AppendKind::Publish { publish, taken_at, .. } => {
                let unix = rows::unix(taken_at);
                self.tell_others(&channel, position, Some((&publish, origin, unix)));
                self.tell_application(&channel, &publish, position);
                let sender = publish.sender_without_copy(origin);
                ChannelUpdate::Published(Placed {
                    position,
                    unix,
                    publish: Arc::new(*publish),
                    sender,
                })
            }
        };
        self.watch.saw(&channel, position);
        if !self.mail.tell(&channel, update) {
            self.watch.gave_up(&channel);
        }
    }

    fn answer(&self, write: Write, outcome: Result<ChannelOutcome, ClientError>) {
        let (origin, channel) = (write.origin, write.append.channel);
        self.mail.reply(ChannelReply { origin, channel, outcome });
    }
}

fn refusal(error: &StoreError) -> ClientError {
    let message = match error.root() {
        StoreError::Open => "the database cannot be reached: nothing was published; try again",
        error if error.is_outage() => {
            "the database failed, or did not answer in time: it is not known whether it was published; try again, \
             with the same idempotency_key"
        }
        error if error.is_conflict() => "others were in the way: nothing was published; try again",
        StoreError::Unexpected(_) | StoreError::Failed(_) => {
            "the database does not take the publication; the gateway's log says why"
        }
        _ => "the database did not take the publication; try again",
    };
    let code = match error.root() {
        error if error.is_outage() || error.is_conflict() => ErrorCode::Unavailable,
        StoreError::Unexpected(_) | StoreError::Failed(_) => ErrorCode::SystemError,
        _ => ErrorCode::Unavailable,
    };
    ClientError::new(code, message)
}
