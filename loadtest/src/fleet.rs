//! Thousands of client connections on one thread: an epoll loop without tasks.
//!
//! The fleet moves bytes, upgrades, frames and pongs; what to send and what to make of a message is decided by a
//! [`Driver`]. Everything the driver sends in one turn leaves together at its end. What comes is handled in `input`.

mod connection;
mod dialer;
mod framing;
mod input;
mod upgrade;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use gateway_core::ws::deflate::{Deflater, Inflater};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};

pub(crate) use connection::Abandon;
pub(crate) use dialer::Dialer;
pub(crate) use upgrade::request;

use crate::output::Progress;
use crate::schedule::{Clock, MILLISECOND, Nanos, SECOND};
use crate::series::Status;
use crate::target::Target;
use connection::{Connection, Phase};

const TIMER: Token = Token(usize::MAX);
const EVENTS_MAX: usize = 4096;
const READ_BYTES: usize = 256 << 10;

/// The level that the gateway compresses with by default; the generator compresses like it.
const DEFLATE_LEVEL: u32 = 3;

/// The driver is asked at least this often.
const TICK_MAX: Nanos = 100 * MILLISECOND;

/// A connection of the fleet; never mistaken for a later one in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnId {
    slot: u32,
    generation: u32,
}

impl ConnId {
    fn token(self) -> Token {
        Token((self.generation as usize) << 32 | self.slot as usize)
    }

    fn from_token(token: Token) -> Self {
        Self { slot: token.0 as u32, generation: (token.0 >> 32) as u32 }
    }

    /// Index that is unique among the open connections.
    pub(crate) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The upgrade was answered with another status than 101.
    Refused(u16, String),
    /// The server sent a close frame, first or in answer to ours.
    Closed(u16),
    /// The connection ended without a close frame.
    Eof,
    /// The socket failed.
    Failed(io::ErrorKind),
    /// The server broke the protocol.
    Protocol(&'static str),
    /// TLS did not come about, or was broken.
    Tls(String),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(status, body) => write!(f, "refused with status {status}: {body}"),
            Self::Closed(code) => write!(f, "closed with code {code}"),
            Self::Eof => f.write_str("ended without a close frame"),
            Self::Failed(kind) => write!(f, "{kind}"),
            Self::Protocol(what) => f.write_str(what),
            Self::Tls(what) => write!(f, "TLS: {what}"),
        }
    }
}

/// Something that happened to a connection.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// The WebSocket is open.
    Open,
    /// A text message.
    Message(&'a [u8]),
    /// An HTTP response.
    Response(u16, &'a [u8]),
    /// It was left on purpose, as [`Abandon`] said.
    Abandoned,
    /// It is over; its id means nothing any more.
    Ended(Ending),
}

/// What the fleet does between two questions to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Waits for events until then at the latest.
    Until(Nanos),
    /// Stops.
    Done,
}

/// Who decides.
pub(crate) trait Driver {
    /// What is due; asked after every turn.
    fn tick(&mut self, fleet: &mut Fleet, now: Nanos) -> Next;
    /// What happened.
    fn event(&mut self, fleet: &mut Fleet, id: ConnId, event: Event<'_>, now: Nanos);
    /// How it goes; what is told of the time since the last question is forgotten.
    fn status(&mut self, now: Nanos) -> Status;
}

/// Counted by the fleet itself.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Traffic {
    /// Bytes read from sockets.
    pub(crate) bytes_in: u64,
    /// Bytes written to sockets.
    pub(crate) bytes_out: u64,
    /// Pings answered.
    pub(crate) pings: u64,
    /// Compressed messages received.
    pub(crate) inflated: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// The generator's clock.
    pub(crate) clock: Clock,
    /// What went over the wire.
    pub(crate) traffic: Traffic,
    poll: Poll,
    timer: OwnedFd,
    slots: Vec<(u32, Option<Connection>)>,
    free: Vec<u32>,
    dirty: Vec<ConnId>,
    endings: VecDeque<(ConnId, Ending)>,
    /// Connections that are read again, though no event may come for what they hold.
    resumed: Vec<ConnId>,
    chunk: Vec<u8>,
    plain: Vec<u8>,
    dialer: Dialer,
    inflater: Inflater,
    deflater: Deflater,
}

impl Fleet {
    /// An empty fleet.
    pub(crate) fn new(clock: Clock, dialer: Dialer) -> io::Result<Self> {
        let poll = Poll::new()?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(Self {
            clock,
            traffic: Traffic::default(),
            poll,
            timer,
            slots: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            endings: VecDeque::new(),
            resumed: Vec::new(),
            chunk: vec![0; READ_BYTES],
            plain: Vec::new(),
            dialer,
            inflater: Inflater::new(),
            deflater: Deflater::new(DEFLATE_LEVEL),
        })
    }

    /// Starts a WebSocket connection that sends `head` once TCP is up. A failure is told by [`Event::Ended`] too.
    pub(crate) fn dial(
        &mut self,
        target: &Target,
        head: Vec<u8>,
        abandon: Option<Abandon>,
    ) -> ConnId {
        self.start(target, Phase::Connecting { head, abandon })
    }

    /// Starts an HTTP connection for [`Self::send_raw`].
    pub(crate) fn dial_http(&mut self, target: &Target) -> ConnId {
        self.start(target, Phase::Http)
    }

    fn start(&mut self, target: &Target, phase: Phase) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let id = ConnId { slot, generation: self.slots[slot as usize].0 };
        let started = self.dialer.connect(target.address).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, id.token(), interest)?;
            Ok(Connection::new(stream, phase, target.session()?))
        });
        match started {
            Ok(connection) => self.slots[id.slot()].1 = Some(connection),
            Err(error) => self.endings.push_back((id, Ending::Failed(error.kind()))),
        }
        id
    }

    fn get(&mut self, id: ConnId) -> Option<&mut Connection> {
        let (generation, connection) = self.slots.get_mut(id.slot())?;
        connection.as_mut().filter(|_| *generation == id.generation)
    }

    fn remove(&mut self, id: ConnId) -> Option<Connection> {
        let slot = self.slots.get_mut(id.slot()).filter(|slot| slot.0 == id.generation)?;
        let connection = slot.1.take();
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(id.slot);
        connection
    }

    /// Sends a text message, compressed where that was negotiated.
    pub(crate) fn send(&mut self, id: ConnId, payload: &[u8]) {
        let mask = mask_of(payload.len() as u64 ^ self.traffic.bytes_out);
        let deflates = self.get(id).is_some_and(|connection| match &connection.phase {
            Phase::Open(decoder) => decoder.deflates(),
            _ => false,
        });
        if deflates {
            let mut deflated = Vec::new();
            self.deflater.deflate(payload, &mut deflated);
            self.write(id, |out| framing::push_deflated(out, &deflated, mask));
        } else {
            self.write(id, |out| framing::push_text(out, payload, mask));
        }
    }

    /// Reads nothing from the connection until [`Self::resume`]. Its receive buffer is made small, so that the server
    /// has to keep what it sends.
    pub(crate) fn pause(&mut self, id: ConnId) {
        if let Some(connection) = self.get(id) {
            connection.paused = true;
            connection.shrink_receive_buffer();
        }
    }

    /// Reads from a paused connection again.
    pub(crate) fn resume(&mut self, id: ConnId) {
        if let Some(connection) = self.get(id) {
            connection.paused = false;
            self.resumed.push(id);
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, id: ConnId, bytes: &[u8]) {
        self.write(id, |out| out.extend_from_slice(bytes));
    }

    /// Sends a close frame; [`Event::Ended`] comes with the server's answer.
    pub(crate) fn close(&mut self, id: ConnId) {
        if let Some(connection) = self.get(id)
            && let Phase::Open(decoder) = &mut connection.phase
        {
            connection.phase = Phase::Closing(std::mem::take(decoder));
            self.write(id, |out| framing::push_close(out, 1000, [3, 1, 4, 1]));
        }
    }

    /// Ends the connection at once with a reset; no event follows.
    pub(crate) fn abort(&mut self, id: ConnId) {
        if let Some(connection) = self.remove(id) {
            connection.reset_on_close();
        }
    }

    fn write(&mut self, id: ConnId, append: impl FnOnce(&mut Vec<u8>)) {
        let Some(connection) = self.get(id) else { return };
        append(&mut connection.outbound);
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(id);
        }
    }

    fn flush(&mut self) {
        for id in std::mem::take(&mut self.dirty) {
            let Some(connection) = self.get(id) else { continue };
            connection.dirty = false;
            match connection.flush() {
                Ok(written) => self.traffic.bytes_out += written as u64,
                Err(error) => self.endings.push_back((id, Ending::Failed(error.kind()))),
            }
        }
    }

    /// Waits for events. The timer makes this exact: epoll itself counts in whole milliseconds.
    fn wait(&mut self, events: &mut Events, now: Nanos, until: Nanos) -> io::Result<()> {
        let wait = until.saturating_sub(now).min(TICK_MAX);
        if wait > 0 {
            let at = Timespec { tv_sec: 0, tv_nsec: wait.min(SECOND - 1).cast_signed() };
            let never = Timespec { tv_sec: 0, tv_nsec: 0 };
            let time = Itimerspec { it_interval: never, it_value: at };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
        }
        let timeout = if wait == 0 { Duration::ZERO } else { Duration::from_nanos(TICK_MAX) };
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }

    fn tell_endings(&mut self, driver: &mut dyn Driver) {
        while let Some((id, ending)) = self.endings.pop_front() {
            self.end(id, ending, driver);
        }
    }

    fn end(&mut self, id: ConnId, ending: Ending, driver: &mut dyn Driver) {
        if self.slots.get(id.slot()).is_none_or(|slot| slot.0 != id.generation) {
            return;
        }
        self.remove(id);
        let now = self.clock.now();
        driver.event(self, id, Event::Ended(ending), now);
    }

    fn ready(&mut self, id: ConnId, event: &mio::event::Event, driver: &mut dyn Driver) {
        if event.is_read_closed() || event.is_error() {
            // It comes once, also to a connection that is paused.
            if let Some(connection) = self.get(id) {
                connection.read_closed = true;
            }
        }
        if event.is_writable() || event.is_error() {
            self.writable(id, driver);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.readable(id, driver);
        }
    }

    fn writable(&mut self, id: ConnId, driver: &mut dyn Driver) {
        let Some(connection) = self.get(id) else { return };
        if matches!(connection.phase, Phase::Connecting { .. }) {
            match connection.is_connected() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.end(id, Ending::Failed(error.kind()), driver),
            }
            let phase = std::mem::replace(&mut connection.phase, Phase::Upgrading);
            let Phase::Connecting { mut head, abandon } = phase else { return };
            match abandon {
                Some(Abandon::Connected) => head.clear(),
                Some(Abandon::HalfHead) => head.truncate(head.len() / 2),
                Some(Abandon::Reset) | None => {}
            }
            connection.outbound = head;
            if let Some(abandon) = abandon {
                return self.abandon(id, abandon, driver);
            }
        }
        match connection.flush() {
            Ok(written) => self.traffic.bytes_out += written as u64,
            Err(error) => self.end(id, Ending::Failed(error.kind()), driver),
        }
    }

    fn abandon(&mut self, id: ConnId, abandon: Abandon, driver: &mut dyn Driver) {
        let Some(mut connection) = self.remove(id) else { return };
        // The server may have gone first, which is as good an end as any here.
        let _ = connection.flush();
        if abandon == Abandon::Reset {
            connection.reset_on_close();
        }
        drop(connection);
        let now = self.clock.now();
        driver.event(self, id, Event::Abandoned, now);
    }
}

/// Masks need to differ, not to be secret: nobody between the generator and the server is to be fooled.
fn mask_of(seed: u64) -> [u8; 4] {
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32)
        .to_le_bytes()
        .first_chunk()
        .copied()
        .unwrap_or_default()
}

/// Runs `driver` on the fleet until it is done.
pub(crate) fn run(
    fleet: &mut Fleet,
    driver: &mut dyn Driver,
    progress: &mut Progress,
) -> io::Result<()> {
    let mut events = Events::with_capacity(EVENTS_MAX);
    loop {
        for id in std::mem::take(&mut fleet.resumed) {
            fleet.readable(id, driver);
        }
        fleet.tell_endings(driver);
        let now = fleet.clock.now();
        let next = driver.tick(fleet, now);
        fleet.flush();
        progress.tell(now, next == Next::Done, || driver.status(now));
        let Next::Until(until) = next else { return Ok(()) };
        let idle = fleet.endings.is_empty() && fleet.resumed.is_empty();
        let until = if idle { until } else { now };
        fleet.wait(&mut events, now, until)?;
        for event in &events {
            if event.token() != TIMER {
                fleet.ready(ConnId::from_token(event.token()), event, driver);
            }
        }
        fleet.flush();
    }
}
