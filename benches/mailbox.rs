//! What does a hop between two shards cost: when both are awake, and when the receiver sleeps on its eventfd?
//!
//! The queue and the wake-up rule are the engine's (push, full fence, write only when the owner has parked); its own
//! types are private, so that the rule is written down here once more. Beside it stands glommio's own channel between
//! two executors, which the engine could have used: one queue per pair of shards, its bell inside the executor's ring.

#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::queue::ArrayQueue;
use glommio::channels::shared_channel::{self, SharedReceiver, SharedSender};
use glommio::{GlommioError, LocalExecutorBuilder, Placement};
use rustix::event::{EventfdFlags, eventfd};

const CAPACITY: usize = 65_536;
const STOP: u64 = u64::MAX;

struct Mailbox {
    queue: ArrayQueue<u64>,
    parked: AtomicBool,
    bell: OwnedFd,
}

impl Mailbox {
    fn new() -> Self {
        let bell = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        Self { queue: ArrayQueue::new(CAPACITY), parked: AtomicBool::new(false), bell }
    }

    fn push(&self, value: u64) {
        while self.queue.push(value).is_err() {
            thread::yield_now();
        }
    }

    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::SeqCst) {
            rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).expect("an eventfd takes a one");
        }
    }

    /// Takes one, asleep on the eventfd until there is one.
    fn wait(&self) -> u64 {
        loop {
            if let Some(value) = self.queue.pop() {
                return value;
            }
            self.parked.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.queue.is_empty() {
                rustix::io::read(&self.bell, &mut [0_u8; 8]).expect("an eventfd can be read");
            }
            self.parked.store(false, Ordering::Relaxed);
        }
    }

    /// Takes one, never asleep.
    fn spin(&self) -> u64 {
        loop {
            if let Some(value) = self.queue.pop() {
                return value;
            }
            std::hint::spin_loop();
        }
    }
}

/// Time of so many round trips between this thread and one that answers with `receive`.
fn round_trips(count: u64, receive: fn(&Mailbox) -> u64) -> Duration {
    let (there, back) = (Arc::new(Mailbox::new()), Arc::new(Mailbox::new()));
    let answering = {
        let (there, back) = (Arc::clone(&there), Arc::clone(&back));
        thread::spawn(move || {
            loop {
                let value = receive(&there);
                if value == STOP {
                    return;
                }
                back.push(value);
                back.ring();
            }
        })
    };
    let begin = Instant::now();
    for value in 0..count {
        there.push(value);
        there.ring();
        assert_eq!(receive(&back), value);
    }
    let elapsed = begin.elapsed();
    there.push(STOP);
    there.ring();
    answering.join().expect("the other thread ends");
    elapsed
}

/// Time of a stream of so many messages, the sender ringing once per 64, as a shard does once per turn.
fn stream(count: u64) -> Duration {
    let mailbox = Arc::new(Mailbox::new());
    let receiving = {
        let mailbox = Arc::clone(&mailbox);
        thread::spawn(move || while mailbox.wait() != STOP {})
    };
    let begin = Instant::now();
    for value in 0..count {
        mailbox.push(value);
        if value % 64 == 63 {
            mailbox.ring();
        }
    }
    mailbox.push(STOP);
    mailbox.ring();
    receiving.join().expect("the other thread ends");
    begin.elapsed()
}

/// Runs both ends of a channel between two executors, each on a thread of its own; answers what `first` does.
fn two_executors<A, B>(
    first: impl FnOnce() -> A + Send + 'static,
    second: impl FnOnce() -> B + Send + 'static,
) -> Duration
where
    A: Future<Output = Duration> + 'static,
    B: Future<Output = ()> + 'static,
{
    let executor = || LocalExecutorBuilder::new(Placement::Unbound);
    let answering = executor().spawn(second).expect("an executor");
    let asking = executor().spawn(first).expect("an executor");
    answering.join().expect("the other executor ends");
    asking.join().expect("the executor ends")
}

fn channel() -> (SharedSender<u64>, SharedReceiver<u64>) {
    shared_channel::new_bounded(CAPACITY)
}

fn glommio_round_trips(count: u64) -> Duration {
    let ((to_there, there), (to_back, back)) = (channel(), channel());
    let asking = async move || {
        let (there, back) = (to_there.connect().await, back.connect().await);
        let begin = Instant::now();
        for value in 0..count {
            there.try_send(value).expect("there is room");
            assert_eq!(back.recv().await, Some(value));
        }
        begin.elapsed()
    };
    let answering = async move || {
        let (there, back) = (there.connect().await, to_back.connect().await);
        while let Some(value) = there.recv().await {
            back.try_send(value).expect("there is room");
        }
    };
    two_executors(asking, answering)
}

fn glommio_stream(count: u64) -> Duration {
    let (sender, receiver) = channel();
    let sending = async move || {
        let sender = sender.connect().await;
        for value in 0..count {
            while let Err(GlommioError::WouldBlock(_)) = sender.try_send(value) {
                thread::yield_now();
            }
        }
    };
    let receiving = async move || {
        let receiver = receiver.connect().await;
        let begin = Instant::now();
        let mut received = 0;
        while receiver.recv().await.is_some() {
            received += 1;
        }
        assert_eq!(received, count);
        begin.elapsed()
    };
    two_executors(receiving, sending)
}

fn mailbox(c: &mut Criterion) {
    let mut group = c.benchmark_group("mailbox");
    let alone = ArrayQueue::new(CAPACITY);
    group.bench_function("push_and_pop_same_thread", |b| {
        b.iter(|| {
            alone.push(black_box(1_u64)).expect("there is room");
            alone.pop()
        });
    });
    group.bench_function("round_trip_asleep", |b| {
        b.iter_custom(|count| round_trips(count, Mailbox::wait));
    });
    // Needs two cores; on one, every step waits for the scheduler.
    group.bench_function("round_trip_awake", |b| {
        b.iter_custom(|count| round_trips(count, Mailbox::spin));
    });
    group.bench_function("glommio_round_trip", |b| b.iter_custom(glommio_round_trips));
    group.throughput(Throughput::Elements(1));
    group.bench_function("glommio_stream", |b| b.iter_custom(glommio_stream));
    group.bench_function("stream", |b| b.iter_custom(stream));
    group.finish();
}

criterion_group!(benches, mailbox);
criterion_main!(benches);
