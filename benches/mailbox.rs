//! What does a hop between two shards cost: when both are awake, and when the receiver sleeps on its eventfd?
//!
//! The queue and the wake-up rule are the engine's (push, full fence, write only when the owner has parked); its own
//! types are private, so that the rule is written down here once more.

#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::queue::ArrayQueue;
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
    group.throughput(Throughput::Elements(1));
    group.bench_function("stream", |b| b.iter_custom(stream));
    group.finish();
}

criterion_group!(benches, mailbox);
criterion_main!(benches);
