//! The turn loop of one shard: the only task of its executor.
//!
//! One turn: take requests and mail, enter the ring, hand every completion to the shard, run deadlines, do what the
//! shard wishes, flush each dirty connection once, give buffers back, wake others. Nothing here waits but the one
//! read of the shard's eventfd, after a whole turn with notifications on found nothing to do.

mod accept;
mod output;
mod receive;

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gateway_core::admission::Admission;
use gateway_core::ids::{ConnectionId, ShardId};
use gateway_core::settings::Settings;
use gateway_core::time::Now;
use gateway_core::{Shard, ShardInit};

use crate::bridge::{ControlEvent, ControlSender};
use crate::config::EngineConfig;
use crate::connection::{Connection, panic_text};
use crate::engine::{abort, now};
use crate::listener::Listener;
use crate::log::Log;
use crate::mailbox::{Mail, Mailbox};
use crate::mesh::{Mailboxes, Mesh};
use crate::metrics::{EngineMetrics, ShardSnapshot};
use crate::placement::{Placer, Rota};
use crate::ring::{Completion, Op, Ring, RingSizes};
use accept::Waiting;

/// Messages taken from the mailbox in one turn.
const MAIL_PER_TURN: usize = 1024;
/// Mail is taken for so long in one turn: a burst of large fan-outs must not hold sockets and deadlines up.
const MAIL_TIME_MAX: Duration = Duration::from_millis(5);
/// Completions handled in one turn before dirty connections are flushed.
const COMPLETIONS_PER_TURN: usize = 256;
/// An idle shard turns so often, to show that it lives and to bring its load up to date.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Sleep while messages wait for room in another shard's mailbox.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(1);
/// From the order to end until connections that still have something to send are cut.
const SHUTDOWN_FLUSH_MAX: Duration = Duration::from_secs(1);
/// Longest TLS record, decrypted.
const PLAIN_BYTES_MAX: usize = 16 * 1024;

/// What a pump is made from.
pub(crate) struct PumpInit {
    pub(crate) id: ShardId,
    pub(crate) config: EngineConfig,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) rota: Arc<Rota>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) control: ControlSender,
    pub(crate) listeners: Vec<TcpListener>,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Busy,
    Idle,
    /// Nothing is left and the order to end was given.
    Finished,
}

/// See the module's documentation.
pub(crate) struct Pump {
    id: ShardId,
    config: EngineConfig,
    settings: Arc<Settings>,
    shard: Shard,
    ring: Ring,
    mesh: Mesh,
    mailboxes: Mailboxes,
    control: ControlSender,
    placer: Placer,
    listeners: Vec<Option<Listener>>,
    /// Sockets whose first bytes are awaited to choose their shard.
    waiting: Waiting,
    /// By slot of the connection's id.
    connections: Vec<Option<Connection>>,
    live: usize,
    tls: Option<Arc<rustls::ServerConfig>>,
    metrics: EngineMetrics,
    log: Log,
    now: Now,
    turn: u32,
    completions: Vec<Completion>,
    /// Room for decrypted bytes; empty without TLS.
    plain: Vec<u8>,
    /// Room to put small pieces of an outbox together.
    copied: Vec<u8>,
    /// Connections whose receive is to be armed again, in turn.
    rearm: VecDeque<ConnectionId>,
    /// A receive found no buffer in the last turn.
    exhausted: bool,
    /// Connections that must be flushed besides those the shard calls dirty.
    flush: Vec<ConnectionId>,
    /// Connections whose stream ended in this turn.
    ended: Vec<ConnectionId>,
    /// Monotonic time at which the ring's timeout fires.
    timeout: Option<Duration>,
    /// When what is left is cut, once the order to end was given.
    shutdown_until: Option<Duration>,
    last_busy: Option<Instant>,
    busy_in_window: Duration,
    window_started: Duration,
}

impl Pump {
    /// Must be called on the thread that will run it.
    pub(crate) fn new(init: PumpInit) -> io::Result<Self> {
        let PumpInit { id, config, mailboxes, rota, settings, admission, control, listeners } =
            init;
        let mut ring = Ring::new(RingSizes {
            completion_entries: config.completion_entries,
            buffers: config.receive_buffers,
            buffer_bytes: config.receive_buffer_bytes,
        })?;
        ring.watch(std::os::fd::AsFd::as_fd(&mailboxes[id.index()].bell));
        let shards = mailboxes.len();
        // Each shard has its own stream of the node's seed.
        let mut seed = config.seed;
        for (byte, of_id) in seed.iter_mut().zip(id.0.to_le_bytes()) {
            *byte ^= of_id;
        }
        let shard = Shard::new(ShardInit {
            id,
            shards: shards as u16,
            hash_seed: config.hash_seed,
            seed,
            settings: Arc::clone(&settings),
            admission,
        });
        let now = now(&config);
        mailboxes[id.index()].board.beat(now);
        Ok(Self {
            id,
            shard,
            ring,
            mesh: Mesh::new(Arc::clone(&mailboxes)),
            placer: Placer::new(id, config.balance, rota, Arc::clone(&mailboxes), config.hash_seed),
            mailboxes,
            control,
            listeners: listeners.into_iter().map(|socket| Some(Listener::new(socket))).collect(),
            waiting: Waiting::default(),
            connections: Vec::new(),
            live: 0,
            tls: config.tls.clone(),
            metrics: EngineMetrics::new(shards),
            log: Log::new(id, config.log_records_per_second),
            now,
            turn: 0,
            completions: Vec::new(),
            plain: if config.tls.is_some() { vec![0; PLAIN_BYTES_MAX] } else { Vec::new() },
            copied: Vec::new(),
            rearm: VecDeque::new(),
            exhausted: false,
            flush: Vec::new(),
            ended: Vec::new(),
            timeout: None,
            shutdown_until: None,
            last_busy: None,
            busy_in_window: Duration::ZERO,
            window_started: now.mono,
            settings,
            config,
        })
    }

    fn mailbox(&self) -> &Mailbox {
        &self.mailboxes[self.id.index()]
    }

    /// Turns until the order to end is carried out. It is the only task of its executor and never leaves it.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut parked = false;
        let mut woke = false;
        loop {
            let turned = catch_unwind(AssertUnwindSafe(|| self.measured_turn(parked)));
            let turn = match turned {
                Ok(turn) => turn?,
                Err(panic) => abort(self.id, &panic_text(panic.as_ref())),
            };
            match turn {
                Turn::Busy => {
                    // Woken for a single turn's work, a shard is likely to sleep again at once; under load it stays
                    // awake and spares others the wake-up calls.
                    self.set_parked(&mut parked, std::mem::take(&mut woke));
                }
                // Only a turn that began parked, so that every sender since has to ring, may be followed by sleep.
                Turn::Idle if !parked => self.set_parked(&mut parked, true),
                Turn::Idle => {
                    self.metrics.parks += 1;
                    self.last_busy = None;
                    self.ring.sleep()?;
                    self.set_parked(&mut parked, false);
                    woke = true;
                }
                Turn::Finished => return Ok(()),
            }
        }
    }

    fn set_parked(&self, parked: &mut bool, to: bool) {
        if *parked != to {
            *parked = to;
            if to {
                self.mailbox().bell.park();
            } else {
                self.mailbox().bell.unpark();
            }
        }
    }

    /// Another thread rang. The counter goes back to 0, so that the next ring is seen as well.
    fn handle_wake(&mut self, more: bool) {
        let mailboxes = Arc::clone(&self.mailboxes);
        let bell = &mailboxes[self.id.index()].bell;
        // Fails when the counter was taken for an earlier completion already.
        let _ = bell.eventfd().take();
        if !more {
            self.ring.watch(std::os::fd::AsFd::as_fd(bell));
        }
    }

    fn measured_turn(&mut self, parked: bool) -> io::Result<Turn> {
        let started = Instant::now();
        if let Some(previous) = self.last_busy.take() {
            self.metrics.lagged(started - previous);
        }
        self.now = now(&self.config);
        self.mailbox().board.beat(self.now);
        self.metrics.turns += 1;
        self.turn = self.turn.wrapping_add(1);
        let turn = self.take_turn(parked)?;
        if turn == Turn::Busy {
            let duration = started.elapsed();
            self.last_busy = Some(started);
            self.busy_in_window += duration;
            if self.metrics.turn_took(duration, self.config.stall_threshold) {
                self.log.stall(self.now, duration);
            }
        }
        self.update_load();
        Ok(turn)
    }

    fn take_turn(&mut self, parked: bool) -> io::Result<Turn> {
        let mut busy = self.take_requests();
        busy |= self.take_mail();
        self.arm_listeners();
        self.arm_receives();
        if parked && !busy {
            self.arm_timeout();
        }
        self.ring.turn(COMPLETIONS_PER_TURN)?;
        busy |= self.handle_completions();
        busy |= self.run_deadlines();
        self.shard.retry_backlog(self.now);
        busy |= self.poll_outputs();
        busy |= self.flush_dirty();
        self.close_ended();
        // Closing may have brought new wishes.
        busy |= self.poll_outputs();
        self.ring.publish_buffers();
        self.mesh.ring_all();
        self.control.ring();
        if self.shutdown_until.is_some() && self.live == 0 && self.nothing_accepted() {
            return Ok(Turn::Finished);
        }
        let pending = busy
            || !self.rearm.is_empty()
            || !self.flush.is_empty()
            || self.ring.has_pending()
            || !self.mailbox().queue.is_empty();
        Ok(if pending { Turn::Busy } else { Turn::Idle })
    }

    /// What other threads ask of the engine itself.
    fn take_requests(&mut self) -> bool {
        let mailboxes = Arc::clone(&self.mailboxes);
        let mailbox = &mailboxes[self.id.index()];
        let mut busy = false;
        if let Some(config) = mailbox.tls.pop()
            && self.tls.is_some()
        {
            self.tls = Some(config);
            busy = true;
        }
        if mailbox.stop_accepting.load(Ordering::Acquire) {
            busy |= self.stop_listeners();
        }
        if mailbox.shutdown.load(Ordering::Acquire) && self.shutdown_until.is_none() {
            self.shutdown_until = Some(self.now.mono + SHUTDOWN_FLUSH_MAX);
            self.close_all();
            self.stop_waiting();
            busy = true;
        }
        while let Some(correlation) = mailbox.snapshots.pop() {
            self.send_snapshot(correlation);
            busy = true;
        }
        busy
    }

    fn send_snapshot(&mut self, correlation: u64) {
        self.metrics.wakeups = self.mesh.wakeups();
        self.metrics.completion_overflows = self.ring.overflows();
        let mailbox = &self.mailboxes[self.id.index()];
        let snapshot = Box::new(ShardSnapshot {
            core: self.shard.metrics().clone(),
            engine: self.metrics.clone(),
            mailbox_depth: mailbox.queue.len(),
            mailbox_capacity: mailbox.queue.capacity(),
            connections: mailbox.board.connections.load(Ordering::Relaxed),
        });
        let event = ControlEvent::Snapshot { correlation, shard: self.id, snapshot };
        if self.control.try_send(event).is_err() {
            self.count_control_drop();
        }
    }

    fn take_mail(&mut self) -> bool {
        let mailboxes = Arc::clone(&self.mailboxes);
        let mailbox = &mailboxes[self.id.index()];
        let started = Instant::now();
        for taken in 0..MAIL_PER_TURN {
            match mailbox.queue.pop() {
                Some(Mail::Message(message)) => self.shard.handle_message(self.now, message),
                Some(Mail::Socket(placed)) => self.serve(placed),
                None => return taken > 0,
            }
            self.relieve_outboxes();
            if started.elapsed() >= MAIL_TIME_MAX {
                break;
            }
        }
        true
    }

    /// Makes the ring wake the shard when something is due. Only the earliest time is armed; a timeout that fires too
    /// early costs one idle turn.
    fn arm_timeout(&mut self) {
        let mut due = self.now.mono + HEARTBEAT_INTERVAL;
        if self.shard.has_backlog() {
            due = due.min(self.now.mono + BACKLOG_INTERVAL);
        }
        let deadlines =
            [self.shard.next_deadline(), self.next_accept_deadline(), self.shutdown_until];
        for deadline in deadlines.into_iter().flatten() {
            due = due.min(deadline);
        }
        // Rounded up, so that the deadline has passed when the timeout fires.
        let after = due.saturating_sub(self.now.mono) + Duration::from_micros(1);
        match self.timeout {
            None => self.ring.arm_timeout(after),
            Some(armed) if due < armed => self.ring.update_timeout(after),
            Some(_) => return,
        }
        self.timeout = Some(due);
    }

    fn handle_completions(&mut self) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.take_completions(&mut completions);
        let mut busy = false;
        for completion in completions.drain(..) {
            match completion.op {
                // Counts as work, so that the shard never sleeps before the next timeout is armed.
                Op::Timeout => {
                    self.timeout = None;
                    busy = true;
                }
                Op::TimeoutUpdate | Op::CancelOther => {}
                Op::Wake => {
                    self.handle_wake(completion.more);
                    busy = true;
                }
                Op::Accept => {
                    self.handle_accept(completion);
                    busy = true;
                }
                Op::PollIn => {
                    self.handle_first_bytes(completion.key);
                    busy = true;
                }
                Op::Receive => {
                    self.handle_receive(completion);
                    busy = true;
                }
                Op::PollOut | Op::Cancel => {
                    self.handle_operation_end(&completion);
                    busy = true;
                }
            }
            self.relieve_outboxes();
        }
        self.completions = completions;
        busy
    }

    fn run_deadlines(&mut self) -> bool {
        let mono = self.now.mono;
        let mut busy = self.run_accept_deadlines();
        if self.shard.next_deadline().is_some_and(|deadline| deadline <= mono) {
            self.shard.handle_deadline(self.now);
            busy = true;
        }
        if self.shutdown_until.is_some_and(|until| until <= mono) && self.live > 0 {
            self.kill_all();
        }
        busy
    }

    fn update_load(&mut self) {
        let window = self.now.mono.saturating_sub(self.window_started);
        if window < HEARTBEAT_INTERVAL {
            return;
        }
        let permille = self.busy_in_window.as_micros() * 1000 / window.as_micros().max(1);
        self.metrics.load_permille = permille.min(1000) as u32;
        let board = &self.mailbox().board;
        board.load.store(self.metrics.load_permille, Ordering::Relaxed);
        board.placed.store(0, Ordering::Relaxed);
        self.window_started = self.now.mono;
        self.busy_in_window = Duration::ZERO;
    }

    /// The connection `id`, unless it is gone.
    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        lookup(&mut self.connections, id)
    }
}

fn lookup(connections: &mut [Option<Connection>], id: ConnectionId) -> Option<&mut Connection> {
    connections.get_mut(id.slot() as usize)?.as_mut().filter(|connection| connection.id == id)
}
