//! The processor as its users see it, in paused time unless a thread has to block.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::handler::Failure;
use super::stats::LaneCounts;
use super::*;

/// What one call of the handler does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Done,
    DoneAfter(Duration),
    Retry(Option<Duration>),
    Dead,
    Hang,
    Panic,
    /// Panics before there is a future.
    PanicAtOnce,
    /// Hangs, and panics when it is dropped.
    PanicInDrop,
}

use Act::{Dead, Done, DoneAfter, Hang, Panic, PanicAtOnce, PanicInDrop, Retry};

/// The acts of its attempts, of which the last is repeated; after them those of `Handler::dead`.
#[derive(Clone, Debug)]
struct Job(u32, Vec<Act>, Vec<Act>);

fn job(id: u32, acts: &[Act]) -> Job {
    Job(id, acts.to_vec(), vec![Done])
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Handle(u32, u32),
    Dead(u32, DeadReason),
}

/// Calls, with the milliseconds since the start.
#[derive(Clone)]
struct Script {
    began: Instant,
    calls: Arc<Mutex<Vec<(u128, Call)>>>,
}

struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        panic!("in drop");
    }
}

impl Script {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push((self.began.elapsed().as_millis(), call));
    }

    fn calls(&self) -> Vec<(u128, Call)> {
        self.calls.lock().unwrap().clone()
    }

    /// Jobs in the order in which their attempts began.
    fn order(&self) -> Vec<u32> {
        let id = |(_, call): &(u128, Call)| match call {
            Call::Handle(id, _) | Call::Dead(id, _) => *id,
        };
        self.calls.lock().unwrap().iter().map(id).collect()
    }
}

async fn act(act: Act) -> Outcome {
    match act {
        DoneAfter(time) => sleep(time).await,
        Retry(after) => return Outcome::Retry { after },
        Dead => return Outcome::Dead("told so".into()),
        Hang => std::future::pending().await,
        Panic => panic!("by {act:?}"),
        PanicInDrop => {
            let _guard = PanicsInDrop;
            std::future::pending::<()>().await;
        }
        Done | PanicAtOnce => {}
    }
    Outcome::Done
}

impl Handler<Job> for Script {
    fn handle(&self, job: &Job, attempt: u32) -> impl Future<Output = Outcome> + Send {
        self.note(Call::Handle(job.0, attempt));
        let now = job.1[(attempt as usize - 1).min(job.1.len() - 1)];
        assert!(!matches!(now, PanicAtOnce), "{now:?}");
        act(now)
    }

    async fn dead(&self, job: &Job, reason: &DeadReason) {
        self.note(Call::Dead(job.0, reason.clone()));
        let calls = self.calls();
        let told = |(_, call): &&(u128, Call)| matches!(call, Call::Dead(id, _) if *id == job.0);
        let before = calls.iter().filter(told).count() - 1;
        act(job.2[before.min(job.2.len() - 1)]).await;
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One worker, no patience, delays of exactly what is asked.
fn limits() -> ProcessorLimits {
    ProcessorLimits {
        workers_min: 1,
        workers_max: 1,
        job_timeout: ms(1_000),
        attempts_max: 3,
        retry_base: ms(1),
        retry_max: ms(1),
        ..ProcessorLimits::default()
    }
}

fn start(limits: ProcessorLimits) -> (Processor<Job>, Script) {
    let script = Script { began: Instant::now(), calls: Arc::default() };
    (Processor::start(limits, script.clone()).unwrap(), script)
}

/// Waits until nothing is held.
async fn rest(processor: &Processor<Job>) {
    let deadline = Instant::now() + ms(3_600_000);
    assert!(processor.shared.settle(deadline, |queue| queue.held() == 0).await);
}

fn counts(processor: &Processor<Job>) -> LaneCounts {
    processor.snapshot().lanes[1].counts
}

async fn run(acts: &[Act], dead: &[Act]) -> (Vec<(u128, Call)>, LaneCounts) {
    let (processor, script) = start(limits());
    let job = Job(7, acts.to_vec(), dead.to_vec());
    processor.try_push(Priority::Normal, "a", job).unwrap();
    rest(&processor).await;
    (script.calls(), counts(&processor))
}

#[tokio::test(start_paused = true)]
async fn a_retry_comes_when_it_was_asked_for() {
    let (calls, counts) = run(&[Retry(Some(ms(5_000))), Done], &[]).await;
    assert_eq!(calls, [(0, Call::Handle(7, 1)), (5_000, Call::Handle(7, 2))]);
    let expected = LaneCounts { accepted: 1, retried: 1, done: 1, ..LaneCounts::default() };
    assert_eq!(counts, expected);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded_and_a_timeout_and_a_panic_are_failed_ones() {
    let (calls, counts) = run(&[Hang, Panic, PanicInDrop], &[Done]).await;
    let last = Failure::Panicked;
    assert_eq!(calls.len(), 4);
    assert_eq!(calls[3].1, Call::Dead(7, DeadReason::Attempts { attempts: 3, last }));
    let (timed_out, panicked) = (1, 2);
    let expected = LaneCounts { accepted: 1, retried: 2, dead: 1, timed_out, panicked, ..counts };
    assert_eq!((counts, counts.done, counts.abandoned), (expected, 0, 0));
    let (calls, counts) = run(&[PanicAtOnce, Hang], &[Done]).await;
    let last = Failure::TimedOut;
    assert_eq!(calls[3].1, Call::Dead(7, DeadReason::Attempts { attempts: 3, last }));
    assert_eq!((counts.panicked, counts.timed_out, counts.dead), (1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dead_job_is_told_of_until_it_works() {
    let (calls, counts) = run(&[Dead], &[Panic, Hang, Done]).await;
    assert_eq!(calls.len(), 4, "one attempt, three calls");
    assert_eq!(calls[3].1, Call::Dead(7, DeadReason::Handler("told so".into())));
    assert_eq!((counts.dead, counts.abandoned, counts.retried), (1, 0, 2));
    let (calls, counts) = run(&[Dead], &[Panic]).await;
    assert_eq!(calls.len(), 4);
    assert_eq!((counts.dead, counts.abandoned, counts.panicked), (0, 1, 3));
}

#[tokio::test(start_paused = true)]
async fn lanes_share_by_weight_and_the_critical_one_goes_first() {
    let (processor, script) = start(limits());
    for (lane, priority) in Priority::ALL.into_iter().enumerate() {
        for number in 0..20_u32 {
            let job = job(lane as u32 * 100 + number, &[DoneAfter(ms(1))]);
            processor.try_push(priority, "a", job).unwrap();
        }
    }
    rest(&processor).await;
    let lanes: Vec<u32> = script.order().iter().map(|id| id / 100).collect();
    assert_eq!(lanes[0], 3);
    let share = |lane| lanes[..30].iter().filter(|of| **of == lane).count();
    assert_eq!([share(0), share(1), share(2), share(3)], [2, 4, 8, 16]);
    assert_eq!(lanes.len(), 80);
}

#[tokio::test(start_paused = true)]
async fn a_key_with_many_jobs_does_not_delay_another_one() {
    let (processor, script) = start(limits());
    for id in 0..1_000 {
        processor.try_push(Priority::Normal, "busy", job(id, &[DoneAfter(ms(1))])).unwrap();
    }
    let refused = processor.try_push(Priority::Normal, "busy", job(1_000, &[Done])).unwrap_err();
    assert_eq!((refused.why, refused.job.0), (Full::Key, 1_000));
    sleep(ms(100)).await;
    let begun = script.order().len();
    processor.try_push(Priority::Normal, "one", job(2_000, &[Done])).unwrap();
    rest(&processor).await;
    let place = script.order().iter().position(|id| *id == 2_000).unwrap();
    assert!(place <= begun + 1, "it began as number {place}, pushed after {begun}");
    assert_eq!(counts(&processor).refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_hangs_leaves_workers_to_the_others() {
    let limits = ProcessorLimits { workers_max: 4, job_timeout: ms(60_000), ..limits() };
    let target = limits.wait_target;
    let (processor, script) = start(limits);
    for id in 0..100 {
        let key = format!("{id}");
        processor.try_push(Priority::Low, key, job(id, &[Hang])).unwrap();
    }
    sleep(ms(900)).await;
    let snapshot = processor.snapshot();
    assert_eq!((snapshot.lanes[0].running, snapshot.busy), (2, 2), "half of 4");
    processor.try_push(Priority::Critical, "a", job(500, &[Done])).unwrap();
    sleep(target + ms(1)).await;
    assert_eq!(processor.snapshot().workers, 3, "one more, for a job that it can run");
    processor.try_push(Priority::Critical, "a", job(501, &[Done])).unwrap();
    sleep(ms(1)).await;
    let calls = script.calls();
    let began = |id| calls.iter().find(|(_, call)| *call == Call::Handle(id, 1)).unwrap().0;
    assert_eq!((began(500), began(501)), (1_000, 1_001));
}

#[tokio::test(start_paused = true)]
async fn workers_follow_the_load() {
    let mut limits = ProcessorLimits { workers_min: 2, workers_max: 16, ..limits() };
    limits.key_order = KeyOrder::Parallel(1_000);
    assert_eq!((limits.idle, limits.wait_target), (ms(30_000), ms(100)));
    let (processor, _) = start(limits);
    tokio::task::yield_now().await;
    for id in 0..20 {
        processor.try_push(Priority::Critical, "a", job(id, &[DoneAfter(ms(150))])).unwrap();
    }
    sleep(ms(90)).await;
    assert_eq!(processor.snapshot().workers, 2, "nobody waited for long");
    sleep(ms(20)).await;
    assert_eq!(processor.snapshot().workers, 3);
    rest(&processor).await;
    let grown = processor.snapshot().workers;
    assert!(grown > 4, "{grown}");
    sleep(ms(29_800)).await;
    assert_eq!(processor.snapshot().workers, grown, "not idle for long");
    sleep(ms(201)).await;
    let snapshot = processor.snapshot();
    assert_eq!((snapshot.workers, snapshot.busy), (2, 0));
    // A full lane does not wait for `wait_target`: the first step is 1 worker, each next one half of those there are.
    for id in 0..600 {
        processor.try_push(Priority::Critical, "a", job(id, &[DoneAfter(ms(500))])).unwrap();
    }
    sleep(ms(1)).await;
    assert_eq!(processor.snapshot().workers, 3);
    sleep(ms(300)).await;
    assert_eq!(processor.snapshot().workers, 16);
}

#[tokio::test(start_paused = true)]
async fn light_load_does_not_keep_all_workers() {
    let mut limits = ProcessorLimits { workers_max: 8, ..limits() };
    limits.key_order = KeyOrder::Parallel(1_000);
    let idle = limits.idle;
    let (processor, _) = start(limits);
    for id in 0..400 {
        processor.try_push(Priority::Critical, "a", job(id, &[DoneAfter(ms(20))])).unwrap();
    }
    rest(&processor).await;
    assert_eq!(processor.snapshot().workers, 8);
    let until = Instant::now() + idle + ms(1_000);
    while Instant::now() < until {
        processor.try_push(Priority::Normal, "a", job(0, &[Done])).unwrap();
        sleep(ms(1_000)).await;
    }
    assert!(processor.snapshot().workers <= 2, "{}", processor.snapshot().workers);
}

#[tokio::test(start_paused = true)]
async fn push_waits_for_room() {
    let mut limits = limits();
    limits.lanes[1].jobs_max = 1;
    let (processor, script) = start(limits);
    let push = |id, acts: &[Act], wait| {
        processor.push(Priority::Normal, "a", job(id, acts), Instant::now() + ms(wait))
    };
    push(1, &[DoneAfter(ms(500))], 0).await.unwrap();
    let refused = push(2, &[Done], 400).await.unwrap_err();
    assert_eq!((refused.why, refused.job.0), (Full::Lane(Priority::Normal), 2));
    assert_eq!(script.began.elapsed(), ms(400));
    assert!(timeout(ms(50), push(3, &[Done], 400)).await.is_err(), "given up by its caller");
    push(4, &[Done], 400).await.unwrap();
    assert_eq!(script.began.elapsed(), ms(500));
    rest(&processor).await;
    assert_eq!(script.order(), [1, 4]);
    assert_eq!((counts(&processor).accepted, counts(&processor).refused), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_finishes_early_hands_nothing_back() {
    let (processor, script) = start(limits());
    for id in 0..10 {
        processor.try_push(Priority::Normal, "a", job(id, &[DoneAfter(ms(100))])).unwrap();
    }
    assert!(processor.drain(Instant::now() + ms(60_000)).await.is_empty());
    assert_eq!(script.began.elapsed(), ms(1_000));
    sleep(ms(1)).await;
    let refused = processor.try_push(Priority::Low, "a", job(10, &[Done])).unwrap_err();
    assert_eq!(refused.why, Full::Draining);
    let snapshot = processor.snapshot();
    assert_eq!((snapshot.phase, snapshot.held, snapshot.workers), (Phase::Stopped, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_hands_back_what_is_not_finished_in_order() {
    let (processor, script) = start(limits());
    let acts = [
        vec![Retry(Some(ms(10_000)))],
        vec![DoneAfter(ms(600))],
        vec![Retry(None)],
        vec![Dead],
        vec![DoneAfter(ms(900))],
        vec![Done],
    ];
    for (id, acts) in acts.iter().enumerate() {
        processor.try_push(Priority::Normal, "a", job(id as u32, acts)).unwrap();
    }
    sleep(ms(1)).await;
    assert_eq!(processor.snapshot().delayed, 1);
    let back = processor.drain(Instant::now() + ms(1_000)).await;
    assert_eq!(script.began.elapsed(), ms(1_001), "its deadline");
    let ids: Vec<u32> = back.iter().map(|job| job.0).collect();
    assert_eq!(ids, [0, 2, 4, 5], "delayed, asked for a retry, ran at the deadline, queued");
    let counts = counts(&processor);
    assert_eq!((counts.done, counts.dead, counts.handed_back), (1, 1, 4));
    let calls = script.calls().len();
    sleep(ms(100_000)).await;
    assert_eq!(script.calls().len(), calls, "nothing runs any more");
    assert_eq!(processor.snapshot().workers, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_dropped_loses_nothing() {
    let mut limits = limits();
    limits.lanes[1].jobs_max = 3;
    let (processor, _) = start(limits);
    processor.try_push(Priority::Normal, "a", job(0, &[Retry(Some(ms(900)))])).unwrap();
    sleep(ms(1)).await;
    for id in 1..3 {
        processor.try_push(Priority::Normal, "a", job(id, &[Hang])).unwrap();
    }
    let waits = processor.push(Priority::Normal, "a", job(9, &[Done]), Instant::now() + ms(9_000));
    let drain = timeout(ms(10), processor.drain(Instant::now() + ms(500)));
    let (refused, drained) = tokio::join!(waits, drain);
    assert_eq!(refused.unwrap_err().why, Full::Draining, "it waits no longer");
    assert!(drained.is_err());
    let back = processor.drain(Instant::now()).await;
    assert_eq!(back.iter().map(|job| job.0).collect::<Vec<_>>(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_ages_and_times() {
    let (processor, _) = start(limits());
    processor.try_push(Priority::Normal, "a", job(0, &[DoneAfter(ms(800))])).unwrap();
    sleep(ms(100)).await;
    processor.try_push(Priority::High, "a", job(1, &[DoneAfter(ms(10))])).unwrap();
    sleep(ms(300)).await;
    processor.try_push(Priority::High, "b", job(2, &[Retry(Some(ms(5_000))), Done])).unwrap();
    let high = &processor.snapshot().lanes[2];
    assert_eq!((high.depth, high.held, high.running, high.oldest), (2, 2, 0, Some(ms(300))));
    rest(&processor).await;
    let high = &processor.snapshot().lanes[2];
    assert_eq!((high.depth, high.oldest), (0, None));
    let high = &processor.times()[2];
    assert_eq!((high.wait_us.len(), high.run_us.len()), (3, 3));
    let near = |us: u64, ms: u64| us.abs_diff(ms * 1_000) <= ms * 10;
    assert!(near(high.wait_us.max(), 700), "{}", high.wait_us.max());
    assert!(near(high.run_us.max(), 10), "{}", high.run_us.max());
    assert_eq!(high.wait_us.min(), 0, "the delay of a retry is no waiting");
}

#[tokio::test(start_paused = true)]
async fn dropped_without_a_drain_it_drops_its_jobs() {
    struct Counted;
    impl Handler<Arc<()>> for Counted {
        async fn handle(&self, _: &Arc<()>, _: u32) -> Outcome {
            std::future::pending().await
        }
        async fn dead(&self, _: &Arc<()>, _: &DeadReason) {}
    }
    let processor = Processor::start(limits(), Counted).unwrap();
    let job = Arc::new(());
    processor.try_push(Priority::Low, "a", Arc::clone(&job)).unwrap();
    processor.try_push(Priority::Low, "b", Arc::clone(&job)).unwrap();
    sleep(ms(1)).await;
    assert_eq!(processor.snapshot().busy, 1);
    drop(processor);
    sleep(ms(1)).await;
    assert_eq!(Arc::strong_count(&job), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_waits_leaves_the_thread_to_others() {
    let (processor, _) = start(limits());
    for id in 0..1_000 {
        processor.try_push(Priority::Normal, "a", job(id, &[Done])).unwrap();
    }
    while counts(&processor).done == 0 {
        tokio::task::yield_now().await;
    }
    assert!(counts(&processor).done < 1_000);
}

/// Blocks its thread until it is let go.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<[bool; 2]>, Condvar)>);

impl Gate {
    fn set(&self, what: usize) {
        self.0.0.lock().unwrap()[what] = true;
        self.0.1.notify_all();
    }

    fn wait(&self, what: usize) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |set| !set[what]).unwrap());
    }
}

impl Handler<u32> for Gate {
    async fn handle(&self, _: &u32, _: u32) -> Outcome {
        self.set(0);
        self.wait(1);
        Outcome::Done
    }

    async fn dead(&self, _: &u32, _: &DeadReason) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_does_not_hold_a_drain() {
    let gate = Gate::default();
    let limits = ProcessorLimits { stop_grace: ms(100), ..limits() };
    let processor = Processor::start(limits, gate.clone()).unwrap();
    processor.try_push(Priority::Low, "a", 1).unwrap();
    processor.try_push(Priority::Low, "a", 2).unwrap();
    let begun = gate.clone();
    tokio::task::spawn_blocking(move || begun.wait(0)).await.unwrap();
    assert_eq!(processor.drain(Instant::now()).await, [2]);
    assert_eq!(processor.snapshot().busy, 1);
    gate.set(1);
    assert!(processor.shared.settle(Instant::now() + ms(60_000), |q| q.running() == 0).await);
}

/// Gives way once, or not at all.
struct Quick;

impl Handler<u32> for Quick {
    async fn handle(&self, job: &u32, attempt: u32) -> Outcome {
        if job.is_multiple_of(3) {
            tokio::task::yield_now().await;
        }
        match (job % 7, attempt) {
            (0, 1) => Outcome::Retry { after: None },
            _ => Outcome::Done,
        }
    }

    async fn dead(&self, _: &u32, _: &DeadReason) {}
}

/// A lost wake-up would leave a job behind, or a pusher that waits for room.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_lose_no_wake_up() {
    for key_order in [KeyOrder::Ordered, KeyOrder::Parallel(2)] {
        let limits = ProcessorLimits {
            jobs_max: 64,
            workers_min: 3,
            workers_max: 6,
            idle: ms(1),
            grow_every: ms(1),
            wait_target: ms(1),
            key_order,
            ..limits()
        };
        let processor = Arc::new(Processor::start(limits, Quick).unwrap());
        let pushers = (0..8_u32).map(|pusher| {
            let processor = Arc::clone(&processor);
            tokio::spawn(async move {
                for number in 0..2_500 {
                    let priority = Priority::ALL[number as usize % 4];
                    let key = format!("{}", (pusher + number) % 5);
                    let deadline = Instant::now() + ms(60_000);
                    processor.push(priority, key, number, deadline).await.unwrap();
                }
            })
        });
        for pusher in pushers.collect::<Vec<_>>() {
            pusher.await.unwrap();
        }
        let deadline = Instant::now() + ms(60_000);
        assert!(processor.shared.settle(deadline, |queue| queue.held() == 0).await);
        let done: u64 = processor.snapshot().lanes.iter().map(|lane| lane.counts.done).sum();
        assert_eq!(done, 20_000);
    }
}
