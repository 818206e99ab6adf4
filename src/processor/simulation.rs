//! Random jobs, outcomes, timeouts, panics and drains in paused time, over many seeds, against a model that is told of
//! every call.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
// Unlike a panic it is not printed.
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::*;

const SEEDS: u64 = 300;
const STEPS: u32 = 250;

#[derive(Clone, Debug)]
struct Job {
    id: u64,
    key: u8,
    priority: Priority,
    /// Pushed at once, hence accepted in the order of the ids.
    in_order: bool,
}

type Place = (Priority, u8);

/// What the model knows. Violations are noted, because a panic in a handler is caught.
#[derive(Debug, Default)]
struct World {
    /// Attempts so far, and calls about its death.
    calls: BTreeMap<u64, (u32, u32)>,
    ended: BTreeSet<u64>,
    running: BTreeMap<Place, BTreeSet<u64>>,
    /// The last job of a key that began: of all, and of those accepted in order.
    last: [BTreeMap<Place, u64>; 2],
    violations: Vec<String>,
}

#[derive(Clone)]
struct Model {
    seed: u64,
    limits: ProcessorLimits,
    world: Arc<Mutex<World>>,
}

/// A call under way; leaves when it is dropped, however that comes.
struct Running<'a>(&'a Model, &'a Job);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut world = self.0.world.lock().unwrap();
        world.running.get_mut(&(self.1.priority, self.1.key)).unwrap().remove(&self.1.id);
    }
}

impl Model {
    /// What chance has in store for a call: the same for the same seed.
    fn random(&self, job: &Job, call: u32) -> fastrand::Rng {
        let mix = self.seed.wrapping_mul(1_000_003) ^ (job.id << 20) ^ u64::from(call);
        fastrand::Rng::with_seed(mix)
    }

    fn begin<'a>(&'a self, job: &'a Job, attempt: Option<u32>) -> Running<'a> {
        let place = (job.priority, job.key);
        let mut guard = self.world.lock().unwrap();
        let world = &mut *guard;
        let calls = world.calls.entry(job.id).or_default();
        match attempt {
            Some(_) => calls.0 += 1,
            None => calls.1 += 1,
        }
        let (attempts, told) = *calls;
        let ordered = self.limits.key_order == KeyOrder::Ordered;
        let [last, in_order] = [0, 1].map(|map: usize| world.last[map].get(&place).copied());
        let over =
            |id: &u64| world.ended.contains(id) || world.calls[id].1 == self.limits.attempts_max;
        world.running.entry(place).or_default().insert(job.id);
        let of_key = world.running[&place].len();
        let of_lane: usize = world
            .running
            .iter()
            .filter(|(of, _)| of.0 == job.priority)
            .map(|(_, of)| of.len())
            .sum();
        let all: usize = world.running.values().map(BTreeSet::len).sum();
        let checks = [
            (!world.ended.contains(&job.id), "runs after its end"),
            (attempt.is_none_or(|attempt| attempt == attempts && told == 0), "skips an attempt"),
            (attempts <= self.limits.attempts_max, "has too many attempts"),
            (told <= self.limits.attempts_max, "is told of too often"),
            (of_key <= self.limits.key_order.running_max(), "runs beside its key's others"),
            (of_lane <= self.limits.running_max(job.priority), "takes too much of the workers"),
            (all <= self.limits.workers_max, "runs on a worker too many"),
            (
                !ordered || last.is_none_or(|last| last == job.id || over(&last)),
                "overtakes a retry",
            ),
            (
                !ordered || !job.in_order || in_order.is_none_or(|last| last <= job.id),
                "is out of order",
            ),
        ];
        for (holds, what) in checks {
            if !holds {
                world.violations.push(format!("{job:?} {what}"));
            }
        }
        world.last[0].insert(place, job.id);
        if job.in_order {
            world.last[1].insert(place, job.id);
        }
        Running(self, job)
    }

    fn end(&self, job: &Job) {
        self.world.lock().unwrap().ended.insert(job.id);
    }
}

impl Handler<Job> for Model {
    async fn handle(&self, job: &Job, attempt: u32) -> Outcome {
        let _running = self.begin(job, Some(attempt));
        let mut random = self.random(job, attempt);
        if random.bool() {
            sleep(Duration::from_millis(random.u64(1..120))).await;
        }
        match random.u8(..20) {
            0 => std::future::pending().await,
            1 => resume_unwind(Box::new("by chance")),
            2..6 => Outcome::Retry { after: None },
            6..8 => Outcome::Retry { after: Some(Duration::from_millis(random.u64(..3_000))) },
            8 => Outcome::Dead("by chance".into()),
            _ => {
                self.end(job);
                Outcome::Done
            }
        }
    }

    async fn dead(&self, job: &Job, _: &DeadReason) {
        let _running = self.begin(job, None);
        let call = self.world.lock().unwrap().calls[&job.id].1;
        match self.random(job, 1_000 + call).u8(..4) {
            0 => std::future::pending().await,
            1 => resume_unwind(Box::new("by chance")),
            2 => tokio::task::yield_now().await,
            _ => {}
        }
        self.end(job);
    }
}

fn limits(random: &mut fastrand::Rng) -> ProcessorLimits {
    let workers_min = random.usize(1..=3);
    ProcessorLimits {
        jobs_max: random.usize(5..80),
        lanes: [(); 4].map(|()| LaneLimits {
            jobs_max: random.usize(3..40),
            weight: random.u32(1..=8),
            workers_percent: random.u8(30..=100),
        }),
        key_jobs_max: random.usize(1..20),
        key_order: if random.bool() {
            KeyOrder::Ordered
        } else {
            KeyOrder::Parallel(random.usize(1..=4))
        },
        workers_min,
        workers_max: workers_min + random.usize(..8),
        grow_fill_percent: random.u8(10..=100),
        wait_target: Duration::from_millis(random.u64(1..300)),
        grow_every: Duration::from_millis(random.u64(1..100)),
        idle: Duration::from_millis(random.u64(200..5_000)),
        job_timeout: Duration::from_millis(random.u64(60..400)),
        attempts_max: random.u32(1..=4),
        retry_base: Duration::from_millis(random.u64(1..100)),
        retry_max: Duration::from_millis(random.u64(100..2_000)),
        retry_after_max: Duration::from_millis(random.u64(100..2_000)),
        stop_grace: Duration::from_secs(1),
    }
}

struct Simulation {
    seed: u64,
    random: fastrand::Rng,
    model: Model,
    processor: Arc<Processor<Job>>,
    pushes: JoinSet<Option<u64>>,
    accepted: BTreeSet<u64>,
    next: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let model = Model { seed, limits: limits(&mut random), world: Arc::default() };
        let processor =
            Processor::start_with(model.limits.clone(), model.clone(), random.fork()).unwrap();
        Self {
            seed,
            random,
            model,
            processor: Arc::new(processor),
            pushes: JoinSet::new(),
            accepted: BTreeSet::new(),
            next: 0,
        }
    }

    fn push(&mut self, wait: bool) {
        self.next += 1;
        let (id, key) = (self.next, self.random.u8(..6));
        let priority = Priority::ALL[self.random.usize(..4)];
        let job = Job { id, key, priority, in_order: !wait };
        let key = key.to_string();
        if !wait {
            if self.processor.try_push(priority, key, job).is_ok() {
                self.accepted.insert(id);
            }
            return;
        }
        let deadline = Instant::now() + Duration::from_millis(self.random.u64(..2_000));
        let processor = Arc::clone(&self.processor);
        self.pushes.spawn(async move {
            processor.push(priority, key, job, deadline).await.is_ok().then_some(id)
        });
    }

    async fn join_pushes(&mut self) {
        while let Some(pushed) = self.pushes.join_next().await {
            self.accepted.extend(pushed.unwrap());
        }
    }

    /// Bounds and sums, which hold at every moment.
    fn check(&self) {
        let (seed, limits, now) = (self.seed, &self.model.limits, self.processor.snapshot());
        assert_eq!(self.model.world.lock().unwrap().violations, [""; 0], "seed {seed}");
        assert!(now.held <= limits.jobs_max, "seed {seed}");
        assert!(now.busy <= now.workers && now.workers <= limits.workers_max, "seed {seed}");
        assert!(now.workers >= limits.workers_min || now.phase == Phase::Stopped, "seed {seed}");
        let sum = |count: fn(&LaneSnapshot) -> usize| now.lanes.iter().map(count).sum::<usize>();
        assert_eq!(sum(|lane| lane.held), now.held, "seed {seed}");
        assert_eq!(sum(|lane| lane.depth + lane.running) + now.delayed, now.held, "seed {seed}");
        for lane in &now.lanes {
            let most = limits.lanes[lane.priority.index()].jobs_max;
            assert!(lane.held <= most, "seed {seed}");
            let counts = lane.counts;
            let left = counts.done + counts.dead + counts.abandoned + counts.handed_back;
            assert_eq!(counts.accepted, left + lane.held as u64, "seed {seed}");
        }
    }

    /// No job that may run waits beside an idle worker, once everybody had their turn.
    async fn check_awake(&self) {
        for _ in 0..10_000 {
            let asleep = self.processor.shared.with(|state| {
                let workers = state.snapshot(Instant::now()).workers;
                state.queue.can_run() && state.queue.running() < workers
            });
            if !asleep {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("seed {}: nobody woke a worker", self.seed);
    }

    async fn load(&mut self) {
        // The supervisor has yet to start the first workers.
        tokio::task::yield_now().await;
        for _ in 0..STEPS {
            match self.random.u8(..10) {
                0..5 => self.push(false),
                5..7 => self.push(true),
                _ => sleep(Duration::from_millis(self.random.u64(..150))).await,
            }
            self.check();
            self.check_awake().await;
        }
    }

    /// Everything finishes, and the workers go.
    async fn rest(&mut self) {
        self.join_pushes().await;
        let deadline = Instant::now() + Duration::from_hours(1);
        let settled = self.processor.shared.settle(deadline, |queue| queue.held() == 0).await;
        assert!(settled, "seed {}", self.seed);
        sleep(self.model.limits.idle + Duration::from_millis(1)).await;
        self.check();
        assert_eq!(self.processor.snapshot().workers, self.model.limits.workers_min);
    }

    /// What was accepted ended, was abandoned or is handed back, each job once.
    async fn drain(&mut self, wait: Duration) -> usize {
        let begun = Instant::now();
        let back = self.processor.drain(begun + wait).await;
        assert!(begun.elapsed() <= wait, "seed {}", self.seed);
        self.join_pushes().await;
        self.check();
        let seed = self.seed;
        let ids: BTreeSet<u64> = back.iter().map(|job| job.id).collect();
        assert_eq!(ids.len(), back.len(), "seed {seed}: twice");
        let ordered: Vec<u64> = back.iter().filter(|job| job.in_order).map(|job| job.id).collect();
        assert!(ordered.is_sorted(), "seed {seed}: {ordered:?}");
        let calls = {
            let world = self.model.world.lock().unwrap();
            let most = self.model.limits.attempts_max;
            let left = self.accepted.iter().filter(|id| !world.ended.contains(id)).copied();
            // Abandoned: the last call about its death did not go through, and nobody stopped it.
            let (abandoned, unfinished): (BTreeSet<u64>, BTreeSet<u64>) = left.partition(|id| {
                world.calls.get(id).is_some_and(|of| of.1 == most) && !ids.contains(id)
            });
            assert_eq!(ids, unfinished, "seed {seed}");
            let count: u64 =
                self.processor.snapshot().lanes.iter().map(|l| l.counts.abandoned).sum();
            assert_eq!(count, abandoned.len() as u64, "seed {seed}");
            world.calls.clone()
        };
        sleep(Duration::from_hours(1)).await;
        assert_eq!(self.model.world.lock().unwrap().calls, calls, "seed {seed}: it runs on");
        assert_eq!(self.processor.snapshot().workers, 0, "seed {seed}");
        back.len()
    }
}

#[tokio::test(start_paused = true)]
async fn everything_finishes_and_the_workers_go() {
    for seed in 0..SEEDS {
        let mut simulation = Simulation::new(seed);
        simulation.load().await;
        simulation.rest().await;
        assert_eq!(simulation.drain(Duration::ZERO).await, 0, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_at_any_moment_hands_back_exactly_the_rest() {
    let mut back = 0;
    for seed in SEEDS..2 * SEEDS {
        let mut simulation = Simulation::new(seed);
        simulation.load().await;
        let wait = Duration::from_millis(simulation.random.u64(..800));
        back += simulation.drain(wait).await;
    }
    assert!(back > SEEDS as usize, "the seeds leave nothing to hand back");
}
