//! Durable channels: publications are rows in the database before anybody gets them.
//!
//! It stands where the broker between nodes stands for other channels (core, `broker.rs`): a home asks, and is told. The place
//! of a publication is given out by the database (`append`), in batches (`writer`). After the commit this node's home hears of it
//! directly, those of other nodes through Redis, which may be away: `watch` finds what it did not carry. Homes keep the
//! newest publications; older ones are read here (`read`). What is no longer kept is deleted by `keeper`.

mod append;
mod keeper;
mod read;
mod rows;
mod watch;
mod writer;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use gateway_core::broker::{BrokerOp, BrokerRequest, ChannelUpdate, Placed, Retention};
use gateway_core::error::{ClientError, ErrorCode};
use gateway_core::message::{
    ChannelName, ChannelOutcome, ChannelReply, Epoch, HistoryQuery, Origin, Publish, StreamPosition,
};
use gateway_core::occurrence::PlacedMessage;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bridge::Bridge;
use crate::broker::mail::Mail;
use crate::broker::members::Members;
use crate::broker::{Broker, record};
use crate::config::Config;
use crate::config::sections::DurableSection;
use crate::events::Events;
use crate::store::{BatchStats, Dialect, Store, StoreError, now_ms};
use append::{Append, AppendKind, Appends};
use read::Reader;
use watch::Watch;
use writer::Write;

/// Numbers since the start.
#[derive(Debug, Default)]
pub(crate) struct DurableStats {
    /// Publications and removals.
    pub writes: BatchStats,
    /// Snapshots that homes got.
    pub snapshots: AtomicU64,
    /// Pages that were read because a home did not have them.
    pub pages: AtomicU64,
    /// Channels that a look found behind the database.
    pub behind: AtomicU64,
    /// Publications that were deleted, by age or number.
    pub deleted: AtomicU64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Durable {
    store: Arc<Store>,
    mail: Arc<Mail>,
    bridge: Bridge,
    broker: OnceLock<Arc<Broker>>,
    /// Where messages of clients are told, when anywhere.
    events: Option<Arc<Events>>,
    appends: Appends,
    queues: Vec<mpsc::Sender<Write>>,
    /// Their far ends, until the tasks are started.
    writers: Mutex<Vec<mpsc::Receiver<Write>>>,
    spread: RandomState,
    watch: Watch,
    pages: Semaphore,
    section: DurableSection,
    deadline: Duration,
    /// What one answer to a client may carry.
    bytes_max: i64,
    /// Bytes of publications that wait.
    waiting_bytes: AtomicUsize,
    /// The longest life of a publication.
    ttl_max: Duration,
    stats: DurableStats,
    /// Whether the role may not make partitions.
    partitions_denied: AtomicBool,
}

impl Durable {
    /// Durable channels in `store`, when the configuration has any. Nothing runs before [`Self::spawn`].
    ///
    /// # Errors
    /// When the database cannot be asked who it is.
    pub(crate) async fn new(
        config: &Config,
        store: &Arc<Store>,
        (bridge, mail): (&Bridge, &Arc<Mail>),
        events: Option<&Arc<Events>>,
    ) -> Result<Self, StoreError> {
        let section = config.durable.clone();
        let writers = if config.database.url.is_some() { section.writers } else { 1 };
        let waiting_max = (section.writes_waiting_max / writers).max(1) as usize;
        let (queues, writers) = (0..writers).map(|_| mpsc::channel(waiting_max)).unzip();
        let ttls =
            config.namespaces.iter().map(|(_, section)| section).filter(|section| section.durable);
        Ok(Self {
            appends: Appends {
                incarnation: incarnation(store).await?,
                idempotency_ttl: config.channels.idempotency_ttl,
            },
            store: Arc::clone(store),
            mail: Arc::clone(mail),
            bridge: bridge.clone(),
            broker: OnceLock::new(),
            events: events.map(Arc::clone),
            queues,
            writers: Mutex::new(writers),
            spread: RandomState::new(),
            watch: Watch::default(),
            pages: Semaphore::new(section.pages_at_once_max as usize),
            deadline: config.database.query_timeout,
            bytes_max: config.channels.recovery_bytes_max.try_into().unwrap_or(i64::MAX),
            waiting_bytes: AtomicUsize::new(0),
            ttl_max: ttls.map(|namespace| namespace.history_ttl).max().unwrap_or_default(),
            section,
            stats: DurableStats::default(),
            partitions_denied: AtomicBool::new(false),
        })
    }

    /// What carries publications to other nodes, and members.
    pub(crate) fn set_broker(&self, broker: &Arc<Broker>) {
        // There is one, and it is set once.
        let _set_before = self.broker.set(Arc::clone(broker));
    }

    /// Starts what runs as long as the node.
    pub(crate) fn spawn(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        let writers =
            std::mem::take(&mut *self.writers.lock().unwrap_or_else(PoisonError::into_inner));
        let limits = (self.section.batch_max as usize, self.deadline);
        for queue in writers {
            tasks.spawn(Arc::clone(self).run_writer(queue, limits));
        }
        for _ in 0..self.section.readers {
            tasks.spawn(Arc::clone(self).run_reader());
        }
        tasks.spawn(Arc::clone(self).run_checks());
        tasks.spawn(Arc::clone(self).run_keeper());
    }

    /// Numbers since the start.
    pub(crate) fn stats(&self) -> &DurableStats {
        &self.stats
    }

    /// Attached channels.
    pub(crate) fn attached(&self) -> usize {
        self.watch.count()
    }

    /// Whether the database takes no publications, though it may answer otherwise.
    pub(crate) fn is_failing(&self) -> bool {
        self.stats.writes.is_failing()
    }

    fn queue_of(&self, channel: &str) -> usize {
        (self.spread.hash_one(channel) % self.queues.len() as u64) as usize
    }

    fn reader(&self) -> Reader<'_, impl Fn(u64) -> bool> {
        let broker = self.broker.get();
        Reader {
            store: &self.store,
            appends: &self.appends,
            is_own: move |node| match broker {
                Some(broker) => broker.is_own(node),
                None => node == ALONE,
            },
            now: self.bridge.shards().now().mono,
            bytes_max: self.bytes_max,
        }
    }

    /// A home asks. Never waits.
    pub(crate) fn handle(self: &Arc<Self>, request: BrokerRequest) {
        let BrokerRequest { channel, durable, op } = request;
        match op {
            BrokerOp::Attach(scope) => {
                let broker = self.broker.get();
                self.watch.attach(&channel, scope, scope.members && broker.is_some());
                if let Some(broker) = broker {
                    broker.attach_durable(&channel, scope);
                }
            }
            BrokerOp::Sync(known, scope) => {
                self.watch.sync(&channel, scope, known);
                // What was not told may have been members.
                if let Some(broker) = self.broker.get().filter(|_| scope.members) {
                    broker.attach_durable(&channel, scope);
                }
            }
            BrokerOp::Detach => {
                self.watch.leave(&channel);
                if let Some(broker) = self.broker.get() {
                    broker.handle(BrokerRequest { channel, durable, op: BrokerOp::Detach });
                }
            }
            BrokerOp::Publish { origin, publish, retention } => {
                self.publish(channel, origin, publish, retention);
            }
            BrokerOp::HistoryRemove { origin } => {
                let append = Append { channel, kind: AppendKind::Remove };
                self.write(Write { append, origin, at: Instant::now() });
            }
            BrokerOp::Page { ticket, query } => {
                tokio::spawn(Arc::clone(self).page(channel, ticket, query));
            }
            members @ (BrokerOp::Joined { .. }
            | BrokerOp::Left { .. }
            | BrokerOp::Members(_)
            | BrokerOp::Forget { .. }) => {
                if let Some(broker) = self.broker.get() {
                    broker.handle(BrokerRequest { channel, durable, op: members });
                }
            }
        }
    }

    fn publish(
        &self,
        channel: ChannelName,
        origin: Origin,
        publish: Box<Publish>,
        retention: Retention,
    ) {
        let taken_at = now_ms();
        if publish.skip_history {
            return self.publish_outside(&channel, origin, *publish, taken_at);
        }
        if [&publish.key, &publish.idempotency_key]
            .into_iter()
            .flatten()
            .any(|key| key.contains('\0'))
        {
            let message = "a key in a durable channel must not contain the character U+0000";
            let outcome = Err(ClientError::new(ErrorCode::InvalidMessageFormat, message));
            return self.mail.reply(ChannelReply { origin, channel, outcome });
        }
        let sender = publish.sender_without_copy(origin);
        let own = self.broker.get().map_or(ALONE, |broker| broker.own_node());
        let member = sender.map(|sender| record::member_field(own, sender));
        let kind = AppendKind::Publish { publish, retention, origin: member, taken_at };
        self.write(Write { append: Append { channel, kind }, origin, at: Instant::now() });
    }

    /// What has no place in the stream is no row.
    fn publish_outside(
        &self,
        channel: &ChannelName,
        origin: Origin,
        publish: Publish,
        taken_at: i64,
    ) {
        let position = StreamPosition { offset: 0, epoch: OUTSIDE };
        let unix = rows::unix(taken_at);
        self.tell_others(channel, position, Some((&publish, origin, unix)));
        self.tell_application(channel, &publish, position);
        let sender = publish.sender_without_copy(origin);
        let placed = Placed { position, unix, publish: Arc::new(publish), sender };
        self.mail.tell(channel, ChannelUpdate::Published(placed));
        let outcome = Ok(ChannelOutcome::Published(position));
        self.mail.reply(ChannelReply { origin, channel: Arc::clone(channel), outcome });
    }

    /// A client's message has its place.
    fn tell_application(&self, channel: &ChannelName, publish: &Publish, position: StreamPosition) {
        if let Some(events) = self.events.as_ref().filter(|_| publish.told) {
            events.note_message(PlacedMessage::new(channel, publish, position));
        }
    }

    fn tell_others(
        &self,
        channel: &ChannelName,
        position: StreamPosition,
        publication: Option<(&Publish, Origin, Duration)>,
    ) {
        if let Some(broker) = self.broker.get() {
            let of = publication.map(|(publish, origin, unix)| {
                (publish, publish.sender_without_copy(origin), unix)
            });
            broker.tell_others(channel, position, of);
        }
    }

    async fn page(self: Arc<Self>, channel: ChannelName, ticket: u32, query: HistoryQuery) {
        let outcome = match self.pages.acquire().await {
            Ok(_permit) => {
                self.stats.pages.fetch_add(1, Ordering::Relaxed);
                self.reader().page(&channel, query).await.map_err(ClientError::from)
            }
            Err(_) => Err(ClientError::overloaded()),
        };
        self.mail.tell(&channel, ChannelUpdate::Page(ticket, outcome));
    }

    /// A node told of a publication through Redis.
    pub(crate) fn saw(&self, channel: &str, position: StreamPosition) {
        self.watch.saw(channel, position);
    }

    /// News of members came through Redis.
    pub(crate) fn saw_members(&self, channel: &str, update: &ChannelUpdate) {
        self.watch.saw_members(channel, update);
    }

    /// Something could not be passed on to the home, which is told to ask.
    pub(crate) fn gave_up(&self, channel: &str) {
        self.watch.gave_up(channel);
    }

    /// Redis carries publications of the channel to this node from now on; some may have come before.
    pub(crate) fn suspect(&self, channel: &ChannelName) {
        self.watch.suspect(channel);
    }

    /// Members of the channel on other nodes, `None` when they cannot be had now.
    pub(crate) fn members_are(&self, channel: &ChannelName, members: Option<Members>) {
        self.watch.members_are(channel, members);
    }
}

/// Epoch of what has no place in a stream; no stream has it.
const OUTSIDE: Epoch = Epoch(*b"00000000");

/// Number of a node that has no cluster.
const ALONE: u64 = 0;

/// SQL for the life of the database: another one after a failover or a restore, which may have lost what was newest.
async fn incarnation(store: &Store) -> Result<String, StoreError> {
    if store.dialect() == Dialect::Sqlite {
        return Ok("'file'".to_owned());
    }
    let line = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    let ask = |sql: String| async move {
        store.read(sql, &[]).await?.first().map_or(Ok(String::new()), |row| row.text(0))
    };
    match ask(format!("SELECT system_identifier::text || {line} FROM pg_control_system()")).await {
        Ok(life) => {
            let cluster = life.get(..life.len().saturating_sub(8)).unwrap_or_default();
            Ok(format!("('{cluster}/' || {line})"))
        }
        Err(error) if error.is_outage() => Err(error),
        Err(error) => {
            tracing::warn!(
                category = "database",
                event = "failovers_unseen",
                %error,
                mend = "GRANT EXECUTE ON FUNCTION pg_control_system(), pg_walfile_name(pg_lsn) to the gateway's role; \
                        without it, begin streams anew by hand after a failover that lost commits (docs/database.md)"
            );
            Ok("'unseen'".to_owned())
        }
    }
}
