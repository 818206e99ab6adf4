//! The running engine: starts one thread per shard, and the handle through which other threads reach them.

use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway_core::admission::Admission;
use gateway_core::ids::ShardId;
use gateway_core::message::ShardMessage;
use gateway_core::route::home_shard;
use gateway_core::settings::Settings;
use gateway_core::time::Now;
use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement};

use crate::bridge::{ControlReceiver, ControlSender, control_queue};
use crate::config::EngineConfig;
use crate::connection::panic_text;
use crate::error::EngineError;
use crate::listener::bind_all;
use crate::mailbox::{Mail, Mailbox};
use crate::mesh::Mailboxes;
use crate::placement::Rota;
use crate::pump::{Pump, PumpInit};

/// The executor's own ring only waits for one eventfd.
const EXECUTOR_RING_DEPTH: usize = 64;
/// Memory for the executor's own I/O: reads of 8 bytes.
const EXECUTOR_IO_BYTES: usize = 256 * 1024;
/// Longer than any process runs without a restart of the host.
const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A running engine. Dropping it does not end it: see [`EngineHandle::shutdown`] and [`Self::join`].
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    threads: Vec<JoinHandle<Result<(), EngineError>>>,
}

/// Reaches the shards of a running engine from any thread. No call waits.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: EngineConfig,
    mailboxes: Mailboxes,
    addresses: Vec<SocketAddr>,
}

/// The clock of the node.
pub(crate) fn now(config: &EngineConfig) -> Now {
    Now {
        mono: config.started.elapsed(),
        unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
    }
}

impl Engine {
    /// Opens the listeners and starts every shard; returns when all of them accept.
    ///
    /// # Errors
    /// The configuration is out of bounds, an address cannot be listened on, or a thread cannot be set up. Nothing is
    /// left running then.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the engine is an owner of what it is started with"
    )]
    pub fn start(
        config: EngineConfig,
        settings: Arc<Settings>,
        admission: Arc<Admission>,
    ) -> Result<(Self, ControlReceiver), EngineError> {
        config.check()?;
        let shards = config.shards.len();
        let setup = |what| move |source| EngineError::Setup { shard: 0, what, source };
        let (listeners, addresses) = bind_all(&config.listeners, shards, config.backlog)?;
        let (control, receiver) =
            control_queue(config.control_messages_max).map_err(setup("the control queue"))?;
        let mailboxes: Mailboxes = (0..shards)
            .map(|_| Mailbox::new(config.mailbox_messages_max))
            .collect::<Result<Vec<_>, _>>()
            .map_err(setup("a mailbox"))?
            .into();
        let rota = Arc::new(Rota::new(&config.shards));
        let shared = Arc::new(Shared { config, mailboxes, addresses });
        let mut engine =
            Self { handle: EngineHandle { shared: Arc::clone(&shared) }, threads: Vec::new() };
        let (ready, readiness) = sync_channel(shards);
        for (index, listeners) in listeners.into_iter().enumerate() {
            let thread = ShardThread {
                id: ShardId(index as u16),
                shared: Arc::clone(&shared),
                rota: Arc::clone(&rota),
                settings: Arc::clone(&settings),
                admission: Arc::clone(&admission),
                control: control.clone(),
                listeners,
                ready: ready.clone(),
            };
            let spawned = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || thread.run());
            match spawned {
                Ok(thread) => engine.threads.push(thread),
                Err(source) => {
                    let shard = index as u16;
                    return Err(engine.give_up(EngineError::Setup {
                        shard,
                        what: "a thread",
                        source,
                    }));
                }
            }
        }
        drop(ready);
        // A shard that fails drops its end; the reason is what its thread returns.
        if readiness.iter().take(shards).count() < shards {
            return Err(engine.give_up(EngineError::Died { shard: 0 }));
        }
        Ok((engine, receiver))
    }

    fn give_up(self, fallback: EngineError) -> EngineError {
        self.handle.shutdown();
        self.join().err().unwrap_or(fallback)
    }

    /// A handle for other threads.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Waits until every shard has ended.
    ///
    /// # Errors
    /// The first shard that ended badly.
    pub fn join(self) -> Result<(), EngineError> {
        let mut result = Ok(());
        for (index, thread) in self.threads.into_iter().enumerate() {
            let died = EngineError::Died { shard: index as u16 };
            let ended = thread.join().unwrap_or(Err(died));
            result = result.and(ended);
        }
        result
    }
}

impl EngineHandle {
    /// How many shards the node has.
    pub fn shards(&self) -> u16 {
        self.shared.mailboxes.len() as u16
    }

    /// The shard that orders `channel`.
    pub fn home_of(&self, channel: &str) -> ShardId {
        home_shard(channel, self.shards(), self.shared.config.hash_seed)
    }

    /// Puts `message` into the mailbox of `shard` and wakes it.
    ///
    /// # Errors
    /// The mailbox is full; the message comes back.
    pub fn try_send(&self, shard: ShardId, message: ShardMessage) -> Result<(), ShardMessage> {
        let mailbox = self.mailbox(shard);
        match mailbox.queue.push(Mail::Message(message)) {
            Ok(()) => {
                mailbox.bell.ring();
                Ok(())
            }
            Err(Mail::Message(message)) => Err(message),
            Err(Mail::Socket(_)) => unreachable!("a message was pushed"),
        }
    }

    /// Asks for a [`crate::ControlEvent::Snapshot`]; `false` when too many requests wait already.
    pub fn request_snapshot(&self, shard: ShardId, correlation: u64) -> bool {
        let mailbox = self.mailbox(shard);
        let accepted = mailbox.snapshots.push(correlation).is_ok();
        mailbox.bell.ring();
        accepted
    }

    /// Addresses listened on, in configured order, port 0 resolved.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.shared.addresses
    }

    /// Every shard accepts what has reached its listeners, then closes them. Open connections go on.
    pub fn stop_accepting(&self) {
        for mailbox in &*self.shared.mailboxes {
            mailbox.stop_accepting.store(true, Ordering::Release);
            mailbox.bell.ring();
        }
    }

    /// Every shard stops accepting, sends what waits in its outboxes as far as that goes within a second, closes what
    /// is left and ends.
    pub fn shutdown(&self) {
        for mailbox in &*self.shared.mailboxes {
            mailbox.stop_accepting.store(true, Ordering::Release);
            mailbox.shutdown.store(true, Ordering::Release);
            mailbox.bell.ring();
        }
    }

    /// New connections use `config`, open ones keep theirs. Without effect when the engine was started without TLS.
    #[expect(clippy::needless_pass_by_value, reason = "every shard becomes an owner")]
    pub fn replace_tls(&self, config: Arc<rustls::ServerConfig>) {
        for mailbox in &*self.shared.mailboxes {
            mailbox.tls.force_push(Arc::clone(&config));
            mailbox.bell.ring();
        }
    }

    /// Time since the shard's last turn. An idle shard turns once a second.
    pub fn heartbeat_age(&self, shard: ShardId) -> Duration {
        let nanos = self.mailbox(shard).board.heartbeat.load(Ordering::Relaxed);
        self.shared.config.started.elapsed().saturating_sub(Duration::from_nanos(nanos))
    }

    /// Busy part of a shard's last second, in thousandths.
    pub fn load_permille(&self, shard: ShardId) -> u32 {
        self.mailbox(shard).board.load.load(Ordering::Relaxed)
    }

    /// The moment, on the axis that all shards use.
    pub fn now(&self) -> Now {
        now(&self.shared.config)
    }

    fn mailbox(&self, shard: ShardId) -> &Mailbox {
        &self.shared.mailboxes[shard.index()]
    }
}

/// Everything one shard's thread is started with.
struct ShardThread {
    id: ShardId,
    shared: Arc<Shared>,
    rota: Arc<Rota>,
    settings: Arc<Settings>,
    admission: Arc<Admission>,
    control: ControlSender,
    listeners: Vec<TcpListener>,
    ready: SyncSender<()>,
}

impl ShardThread {
    fn run(self) -> Result<(), EngineError> {
        let id = self.id;
        // The other shards would wait for a dead one's answers for ever, so the supervisor must start afresh.
        match catch_unwind(AssertUnwindSafe(|| self.run_executor())) {
            Ok(result) => result,
            Err(panic) => abort(id, &panic_text(panic.as_ref())),
        }
    }

    fn run_executor(self) -> Result<(), EngineError> {
        let shard = self.id.0;
        let placement = self.shared.config.shards[self.id.index()]
            .cpu
            .map_or(Placement::Unbound, Placement::Fixed);
        let executor = build_executor(placement, &format!("shard-{shard}"))
            .map_err(|error| EngineError::Executor { shard, reason: error.to_string() })?;
        executor.run(async { self.run_pump() })
    }

    fn run_pump(self) -> Result<(), EngineError> {
        let id = self.id;
        let setup = |what| move |source| EngineError::Setup { shard: id.0, what, source };
        let ready = self.ready;
        let pump = Pump::new(PumpInit {
            id,
            config: self.shared.config.clone(),
            mailboxes: Arc::clone(&self.shared.mailboxes),
            rota: self.rota,
            settings: self.settings,
            admission: self.admission,
            control: self.control,
            listeners: self.listeners,
        })
        .map_err(setup("the ring"))?;
        // Nobody listens any more when another shard failed; then the shutdown flag is set.
        let _ = ready.send(());
        drop(ready);
        match pump.run() {
            Ok(()) => Ok(()),
            Err(error) => abort(id, &format!("the ring failed: {error}")),
        }
    }
}

/// Ends the process: a shard cannot go on.
pub(crate) fn abort(shard: ShardId, reason: &str) -> ! {
    tracing::error!(
        target: "error", event = "shard_died", %shard, reason,
        "a shard died; the process ends so that its supervisor starts it again"
    );
    std::process::abort()
}

/// The executor of a shard, with one task that never leaves it.
///
/// When the executor's preemption timer fires before any task has run in a round (the thread was off its core for so long),
/// the executor takes itself for idle and sleeps, although a task is ready, until something of its own happens; and nothing
/// ever does, because all our events are in our own ring. So the timer never fires.
fn build_executor(placement: Placement, name: &str) -> Result<LocalExecutor, GlommioError<()>> {
    LocalExecutorBuilder::new(placement)
        .name(name)
        .ring_depth(EXECUTOR_RING_DEPTH)
        .io_memory(EXECUTOR_IO_BYTES)
        .preempt_timer(NEVER)
        .make()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    use super::*;

    /// Threads that take turns on one core for longer than a preemption timer would last: sooner or later it would fire before
    /// anything ran.
    #[test]
    fn the_executor_never_sleeps_while_its_task_is_ready() {
        const CORE: usize = 0;
        let over = Arc::new(AtomicBool::new(false));
        let (done, is_done) = sync_channel(1);
        let spinners: Vec<_> = (0..3)
            .map(|_| {
                let over = Arc::clone(&over);
                std::thread::spawn(move || {
                    let executor =
                        LocalExecutorBuilder::new(Placement::Fixed(CORE)).make().unwrap();
                    executor.run(async {
                        while !over.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    });
                })
            })
            .collect();
        std::thread::spawn(move || {
            let executor = build_executor(Placement::Fixed(CORE), "test").unwrap();
            executor.run(async {
                let until = Instant::now() + Duration::from_secs(3);
                while Instant::now() < until {
                    glommio::executor().yield_task_queue_now().await;
                }
            });
            done.send(()).unwrap();
        });
        let ended = is_done.recv_timeout(Duration::from_secs(30));
        over.store(true, Ordering::Relaxed);
        for spinner in spinners {
            spinner.join().unwrap();
        }
        ended.expect("the task comes to its end");
    }
}
