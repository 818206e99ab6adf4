//! Deliveries on their way out: claimed from the store, worked off by priority, and their outcome written back.
//!
//! A claim is a lease: a row that is `sending` and whose lease has ended is claimed again, by any node, so a node that
//! dies costs time and no delivery. Rows that wait here for a worker have their leases renewed. Retries are rows with a
//! later time, not jobs in memory. So everything here may be repeated: a mail or a webhook carries the same id each time.
//!
//! Rows of one digest leave as one message.
//!
//! Each delivery channel has workers and room of its own, so one that is slow or far behind takes nothing from the others.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::channels::Attempt;
use super::kinds::{DeliveryChannel, Priority};
use super::leases::{Lease, Leases};
use super::outgoing::Parcel;
use super::senders::{SendError, retry_delay};
use super::{Notifications, NotifyError, now_ms};
use crate::config::sections::DeliverySection;
use crate::processor::{
    DeadReason, Handler, KeyOrder, LaneLimits, LaneTimes, Outcome, Processor, ProcessorLimits,
    ProcessorSnapshot,
};
use crate::store::{Arg, Row, StoreError};

/// Rows that are claimed in one transaction.
const CLAIM_MAX: usize = 256;
/// For what is around an attempt, which has a deadline of its own.
const JOB_SLACK: Duration = Duration::from_secs(30);
/// Renewals in the time of a lease, so that one may fail.
const RENEWALS: u32 = 3;
/// How long a claimed row waits for room among the jobs before it goes back.
const ROOM_WAIT: Duration = Duration::from_millis(100);
/// Tries of a job whose notification cannot be read because the store is away; then its lease ends.
const READS_MAX: u32 = 5;

/// Outcomes of attempts, in order of the counters.
pub(crate) const OUTCOMES: [&str; 5] = ["sent", "retrying", "failed", "dead", "left_alone"];

/// A claimed row.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub id: i64,
    pub notification: String,
    pub user: String,
    pub channel: DeliveryChannel,
    pub contact: i64,
    pub locale: Option<String>,
    pub digest_key: Option<String>,
    pub priority: Priority,
    pub attempts: u32,
}

/// What a worker does: one message for one row, or for all rows of a digest.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// The oldest first.
    pub claims: Vec<Claim>,
    /// Held for as long as the job is.
    leases: Vec<Lease>,
}

/// Numbers of the dispatcher.
#[derive(Debug, Default)]
pub(crate) struct DispatchStats {
    outcomes: [AtomicU64; OUTCOMES.len()],
}

impl DispatchStats {
    fn count(&self, outcome: &str) {
        let index = OUTCOMES.iter().position(|known| *known == outcome).unwrap_or_default();
        self.outcomes[index].fetch_add(1, Ordering::Relaxed);
    }

    /// Attempts by [`OUTCOMES`].
    pub(crate) fn outcomes(&self) -> [u64; OUTCOMES.len()] {
        std::array::from_fn(|index| self.outcomes[index].load(Ordering::Relaxed))
    }
}

/// Claims rows and hands them to the workers.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    lines: Vec<Line>,
    stats: Arc<DispatchStats>,
    leases: Leases,
    /// Whether no more is claimed; held while something is.
    is_stopped: Mutex<bool>,
}

/// Workers of one delivery channel.
#[derive(Debug)]
struct Line {
    channel: DeliveryChannel,
    processor: Processor<Job>,
}

struct Work {
    notifications: Weak<Notifications>,
    stats: Arc<DispatchStats>,
}

fn limits(section: &DeliverySection) -> ProcessorLimits {
    let jobs_max = section.jobs_max as usize;
    let lane = |weight, workers_percent| LaneLimits { jobs_max, weight, workers_percent };
    ProcessorLimits {
        jobs_max,
        lanes: [lane(1, 50), lane(2, 75), lane(4, 90), lane(8, 100)],
        key_jobs_max: jobs_max,
        key_order: KeyOrder::Parallel(4),
        workers_min: section.workers_min.min(section.workers_max) as usize,
        workers_max: section.workers_max as usize,
        job_timeout: section.timeout + JOB_SLACK,
        attempts_max: READS_MAX,
        ..ProcessorLimits::default()
    }
}

impl Dispatcher {
    /// Starts the workers.
    pub(super) fn start(notifications: &Arc<Notifications>) -> Self {
        let stats = Arc::<DispatchStats>::default();
        let line = |channel| {
            let work =
                Work { notifications: Arc::downgrade(notifications), stats: Arc::clone(&stats) };
            let processor = Processor::start(limits(&notifications.delivery), work)
                .expect("the bounds of the section lie within those of the processor");
            Line { channel, processor }
        };
        let lines = notifications.channels.kinds().map(line).collect();
        let (leases, is_stopped) = (Leases::default(), Mutex::new(false));
        Self { lines, stats, leases, is_stopped }
    }

    /// Numbers since the start.
    pub(crate) fn stats(&self) -> &DispatchStats {
        &self.stats
    }

    /// How long jobs of all delivery channels waited and ran, by lane.
    pub(crate) fn times(&self) -> Option<[LaneTimes; 4]> {
        let mut lines = self.lines.iter().map(|line| line.processor.times());
        let mut sum = lines.next()?;
        for times in lines {
            for (sum, lane) in sum.iter_mut().zip(&times) {
                sum.add(lane);
            }
        }
        Some(sum)
    }

    /// Depths and counts of the lanes, of all delivery channels together.
    pub(crate) fn snapshot(&self) -> Option<ProcessorSnapshot> {
        let snapshots = self.snapshots().into_iter().map(|(_, snapshot)| snapshot);
        snapshots.reduce(|mut sum, other| {
            sum.add(&other);
            sum
        })
    }

    /// Depths and counts of the lanes, of each delivery channel.
    pub(crate) fn snapshots(&self) -> Vec<(DeliveryChannel, ProcessorSnapshot)> {
        self.lines.iter().map(|line| (line.channel, line.processor.snapshot())).collect()
    }

    /// Claims and hands out until the future is dropped.
    pub(super) async fn run(self: Arc<Self>, notifications: Arc<Notifications>, wake: Arc<Notify>) {
        loop {
            // An outage has been logged by the store; the next look tries again.
            let claimed = self.claim(&notifications).await.unwrap_or(0);
            if claimed < CLAIM_MAX {
                let _woken =
                    tokio::time::timeout(notifications.poll_interval, wake.notified()).await;
            }
        }
    }

    /// Renews the leases of what waits or runs here, until the future is dropped.
    pub(super) async fn renew(self: Arc<Self>, notifications: Arc<Notifications>) {
        let lease = lease(&notifications.delivery);
        loop {
            tokio::time::sleep(lease / RENEWALS).await;
            let rows = self.leases.rows();
            if let Err(error) = notifications.renew_leases(&rows, lease).await {
                tracing::warn!(category = "delivery", event = "delivery_leases_not_renewed", %error);
            }
        }
    }

    /// Finishes what is under way; what is left goes back.
    pub(super) async fn drain(&self, notifications: &Notifications, limit: Duration) {
        *self.is_stopped.lock().await = true;
        let deadline = Instant::now() + limit;
        let left = join_all(self.lines.iter().map(|line| line.processor.drain(deadline))).await;
        let claims = left.iter().flatten().flat_map(|job| &job.claims);
        let ids: Vec<i64> = claims.map(|claim| claim.id).collect();
        if let Err(error) = notifications.give_back(&ids, 0).await {
            tracing::warn!(category = "delivery", event = "deliveries_not_given_back", %error);
        }
    }

    /// Claims what is due. Answers the most that were claimed of one delivery channel.
    async fn claim(&self, notifications: &Notifications) -> Result<usize, StoreError> {
        let is_stopped = self.is_stopped.lock().await;
        if *is_stopped {
            return Ok(0);
        }
        let due = notifications.due_lanes().await?;
        let mut most = 0;
        for line in &self.lines {
            let of_line = due.iter().filter(|(channel, _)| *channel == line.channel);
            let lanes: Vec<Priority> = of_line.map(|(_, priority)| *priority).collect();
            most = most.max(self.claim_line(notifications, line, &lanes).await?);
        }
        Ok(most)
    }

    /// The more urgent lanes are claimed first, each as far as the processor has room for it.
    async fn claim_line(
        &self,
        notifications: &Notifications,
        line: &Line,
        due: &[Priority],
    ) -> Result<usize, StoreError> {
        let held = line.processor.snapshot().held;
        let mut room = (notifications.delivery.jobs_max as usize).saturating_sub(held);
        let mut claimed = 0;
        for priority in Priority::ALL.into_iter().rev().filter(|lane| due.contains(lane)) {
            // A part of the room is kept for each lane below, so that none of them starves.
            let share = (room / (priority.index() + 1)).clamp(usize::from(room > 0), CLAIM_MAX);
            if share == 0 {
                break;
            }
            let lane = (line.channel, priority);
            let claims = notifications.store.run(notifications.claim_lane(lane, share)).await?;
            claimed += claims.len();
            room = room.saturating_sub(claims.len());
            self.hand_out(notifications, line, (priority, claims)).await?;
        }
        Ok(claimed)
    }

    async fn hand_out(
        &self,
        notifications: &Notifications,
        line: &Line,
        (priority, claims): (Priority, Vec<Claim>),
    ) -> Result<(), StoreError> {
        let mut refused = Vec::new();
        for job in jobs_of(claims, &self.leases) {
            let user = Arc::<str>::from(job.claims[0].user.as_str());
            let deadline = Instant::now() + ROOM_WAIT;
            if let Err(back) = line.processor.push(priority, user, job, deadline).await {
                refused.extend(back.job.claims.iter().map(|claim| claim.id));
            }
        }
        notifications.give_back(&refused, notifications.poll_interval.as_millis() as i64).await
    }
}

/// How long a claim holds.
fn lease(section: &DeliverySection) -> Duration {
    section.timeout + section.lease_slack
}

/// A row that is claimed again, because the database was away for longer than a lease, stays in the job that has it.
fn jobs_of(claims: Vec<Claim>, leases: &Leases) -> Vec<Job> {
    let mut jobs = Vec::new();
    let mut digests: BTreeMap<(String, String, i64), Job> = BTreeMap::new();
    for claim in claims {
        let Some(lease) = leases.take(claim.id) else { continue };
        match &claim.digest_key {
            Some(key) => {
                let digest = (claim.user.clone(), key.clone(), claim.contact);
                let job = digests.entry(digest).or_default();
                job.claims.push(claim);
                job.leases.push(lease);
            }
            None => jobs.push(Job { claims: vec![claim], leases: vec![lease] }),
        }
    }
    jobs.extend(digests.into_values());
    jobs
}

/// Until when is `$2`.
const CLAIM: &str = "UPDATE archmesh_deliveries SET status = 'sending', attempts = attempts + 1, due_at = $2, \
                     updated_at = $1";
/// What [`claim_of`] reads.
const CLAIMED: &str =
    "RETURNING id, notification_id, user_id, channel, contact_id, locale, digest_key, attempts";

fn claim_of(row: &Row, priority: Priority) -> Result<Claim, StoreError> {
    let channel = row.text(3)?.parse();
    Ok(Claim {
        id: row.int(0)?,
        notification: row.text(1)?,
        user: row.text(2)?,
        channel: channel.map_err(|_| StoreError::Unexpected("a delivery channel"))?,
        contact: row.int(4)?,
        locale: row.maybe_text(5)?,
        digest_key: row.maybe_text(6)?,
        priority,
        attempts: u32::try_from(row.int(7)?).unwrap_or(u32::MAX),
    })
}

impl Handler<Job> for Work {
    async fn handle(&self, job: &Job, _attempt: u32) -> Outcome {
        let Some(notifications) = self.notifications.upgrade() else {
            return Outcome::Dead("the node is stopping".into());
        };
        let Ok(fate) = notifications.attempt(job).await else {
            // Nothing was sent.
            return Outcome::Retry { after: None };
        };
        self.stats.count(fate.name());
        // An outcome that cannot be written is found again when the lease of the rows ends.
        if let Err(error) = notifications.write_fate(job, &fate).await {
            tracing::warn!(category = "delivery", event = "delivery_outcome_not_written", %error);
        }
        Outcome::Done
    }

    async fn dead(&self, job: &Job, reason: &DeadReason) {
        // The store is away, or the gateway itself is at fault. The lease of the rows ends, and they are tried again.
        let (delivery, reason) = (job.claims[0].id, reason.to_string());
        tracing::error!(category = "delivery", event = "delivery_worker_failed", delivery, reason);
    }
}

/// What becomes of a job's rows.
#[derive(Debug)]
enum Fate {
    /// Handed over; `true` when that is all there is to know of it.
    Sent { delivered: bool },
    /// To be tried again, after so many milliseconds.
    Retry { after_ms: i64, error: Cow<'static, str> },
    /// Not tried at all.
    LeftAlone { after_ms: i64 },
    /// Never.
    Failed(Cow<'static, str>),
    /// Given up after the last attempt.
    Dead(Cow<'static, str>),
}

impl Fate {
    fn name(&self) -> &'static str {
        match self {
            Self::Sent { .. } => "sent",
            Self::Retry { .. } => "retrying",
            Self::LeftAlone { .. } => "left_alone",
            Self::Failed(_) => "failed",
            Self::Dead(_) => "dead",
        }
    }
}

impl Notifications {
    /// Lanes in which something is due. It reads only, for most looks find nothing.
    async fn due_lanes(&self) -> Result<Vec<(DeliveryChannel, Priority)>, StoreError> {
        // Another node may have ways out that this one has not: their rows are for it.
        let lanes = self.channels.kinds().flat_map(|channel| {
            Priority::ALL
                .map(|priority| json!({"channel": channel.as_str(), "priority": priority.number()}))
        });
        let lanes = Value::Array(lanes.collect()).to_string();
        let sql = format!(
            "SELECT r.channel, r.priority FROM {} WHERE EXISTS (SELECT 1 FROM archmesh_deliveries d \
             WHERE d.status IN ('pending', 'retrying', 'sending') AND d.channel = r.channel \
             AND d.priority = r.priority AND d.due_at <= $2)",
            self.store.dialect().rows("$1", &[("channel", true), ("priority", false)])
        );
        let rows = self.store.read(sql, &[Arg::Text(&lanes), Arg::Int(now_ms())]).await?;
        let lane = |row: &Row| {
            let channel = row.text(0)?.parse();
            let channel = channel.map_err(|_| StoreError::Unexpected("a delivery channel"))?;
            let priority = Priority::from_number(row.int(1)?);
            Ok((channel, priority.ok_or(StoreError::Unexpected("a priority"))?))
        };
        rows.iter().map(lane).collect()
    }

    /// Claims rows that are due, the oldest first.
    async fn claim_lane(
        &self,
        (channel, priority): (DeliveryChannel, Priority),
        limit: usize,
    ) -> Result<Vec<Claim>, StoreError> {
        let mut transaction = self.store.begin().await?;
        let now = now_ms();
        let sql = format!(
            "{CLAIM} WHERE id IN (SELECT id FROM archmesh_deliveries \
             WHERE status IN ('pending', 'retrying', 'sending') AND channel = $5 \
             AND priority = $3 AND due_at <= $1 ORDER BY due_at LIMIT $4 {}) {CLAIMED}",
            transaction.dialect().skip_locked()
        );
        let until = now + lease(&self.delivery).as_millis() as i64;
        let (lane, limit) = (priority.number(), i64::try_from(limit).unwrap_or(i64::MAX));
        let channel = Arg::Text(channel.as_str());
        let args = [Arg::Int(now), Arg::Int(until), Arg::Int(lane), Arg::Int(limit), channel];
        let rows = transaction.fetch(sql, &args).await?;
        if rows.is_empty() {
            transaction.roll_back().await?;
            return Ok(Vec::new());
        }
        let claims = rows.iter().map(|row| claim_of(row, priority));
        let mut claims = claims.collect::<Result<Vec<_>, _>>()?;
        let digests = claims.iter().filter(|claim| claim.digest_key.is_some());
        let digests: Vec<Value> = digests
            .map(|claim| json!({"user_id": claim.user, "digest_key": claim.digest_key, "contact_id": claim.contact}))
            .collect();
        if !digests.is_empty() {
            // All that is due of a digest leaves with it, whatever its priority, and however much it is.
            let columns = [("user_id", true), ("digest_key", true), ("contact_id", false)];
            let sql = format!(
                "{CLAIM} WHERE id IN (SELECT id FROM archmesh_deliveries WHERE status IN ('pending', 'retrying') \
                 AND channel = $4 AND due_at <= $1 AND (user_id, digest_key, contact_id) IN \
                 (SELECT r.user_id, r.digest_key, r.contact_id FROM {}) {}) {CLAIMED}",
                transaction.dialect().rows("$3", &columns),
                transaction.dialect().skip_locked()
            );
            let digests = Value::Array(digests).to_string();
            let args = [Arg::Int(now), Arg::Int(until), Arg::Text(&digests), channel];
            for row in &transaction.fetch(sql, &args).await? {
                claims.push(claim_of(row, priority)?);
            }
        }
        transaction.commit().await?;
        claims.sort_unstable_by_key(|claim| claim.id);
        Ok(claims)
    }

    /// Only of rows that nobody has finished meanwhile.
    async fn renew_leases(&self, rows: &[i64], lease: Duration) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows = json!(rows).to_string();
        let sql = format!(
            "UPDATE archmesh_deliveries SET due_at = $2 WHERE id IN {} AND status = 'sending'",
            self.store.dialect().numbers("$1")
        );
        let until = now_ms() + lease.as_millis() as i64;
        self.store.write(sql, &[Arg::Text(&rows), Arg::Int(until)]).await?;
        Ok(())
    }

    /// One attempt; an error is the store's, and nothing was sent.
    async fn attempt(&self, job: &Job) -> Result<Fate, StoreError> {
        let parcel = match self.parcel(job).await {
            Ok(Parcel::Ready(message)) => message,
            Ok(Parcel::Nothing(why)) => return Ok(Fate::Failed(why)),
            Err(NotifyError::Store(error)) => return Err(error),
            Err(NotifyError::Invalid(why)) => return Ok(Fate::Failed(why.into())),
        };
        let claim = &job.claims[0];
        let now_unix = Duration::from_millis(now_ms() as u64);
        Ok(match self.channels.send(claim.channel, &parcel, now_unix).await {
            Attempt::Sent => {
                let delivered =
                    matches!(claim.channel, DeliveryChannel::Webhook | DeliveryChannel::Sms);
                Fate::Sent { delivered }
            }
            Attempt::LeftAlone(after) => Fate::LeftAlone { after_ms: after.as_millis() as i64 },
            Attempt::Unknown => Fate::Failed("this delivery channel is switched off".into()),
            Attempt::Failed(error) => self.after_failure(job, &error).await,
        })
    }

    async fn after_failure(&self, job: &Job, error: &SendError) -> Fate {
        let claim = &job.claims[0];
        let (channel, kind) = (claim.channel, error.kind.as_str());
        tracing::debug!(category = "delivery", event = "delivery_attempt_failed", delivery = claim.id, %channel, kind);
        if error.is_gone() && claim.contact != 0 {
            // It stays until the next message finds it dead again.
            let _kept = self.forget_contact(&claim.user, claim.contact).await;
        }
        if error.is_retryable() {
            return self.retry(job, error.retry_after, error.to_string().into());
        }
        Fate::Failed(error.to_string().into())
    }

    fn retry(&self, job: &Job, retry_after: Option<Duration>, error: Cow<'static, str>) -> Fate {
        let attempts = job.claims.iter().map(|claim| claim.attempts).max().unwrap_or(1);
        if attempts >= self.delivery.attempts_max {
            return Fate::Dead(error);
        }
        let (base, max) = (self.delivery.retry_base, self.delivery.retry_max);
        let delay = retry_delay(attempts, base, max, retry_after, fastrand::u64(..));
        Fate::Retry { after_ms: delay.as_millis() as i64, error }
    }

    async fn write_fate(&self, job: &Job, fate: &Fate) -> Result<(), StoreError> {
        let ids: Vec<i64> = job.claims.iter().map(|claim| claim.id).collect();
        let (status, after_ms, error) = match fate {
            Fate::Sent { delivered: true } => ("delivered", 0, None),
            Fate::Sent { delivered: false } => ("sent", 0, None),
            Fate::Retry { after_ms, error } => ("retrying", *after_ms, Some(error)),
            Fate::LeftAlone { after_ms } => return self.give_back(&ids, *after_ms).await,
            Fate::Failed(error) => ("failed", 0, Some(error)),
            Fate::Dead(error) => ("dead", 0, Some(error)),
        };
        if matches!(fate, Fate::Failed(_) | Fate::Dead(_)) {
            let claim = &job.claims[0];
            let error = error.map(AsRef::as_ref).unwrap_or_default();
            tracing::warn!(
                category = "delivery", event = "delivery_failed", delivery = claim.id, channel = %claim.channel,
                status, attempts = claim.attempts, error
            );
        }
        let ids = json!(ids).to_string();
        let now = now_ms();
        let sql = format!(
            "UPDATE archmesh_deliveries SET status = $2, due_at = $3, error = $4, updated_at = $5 \
             WHERE id IN {} AND status = 'sending'",
            self.store.dialect().numbers("$1")
        );
        let args = [
            Arg::Text(&ids),
            Arg::Text(status),
            Arg::Int(now + after_ms),
            Arg::Text(error.map(AsRef::as_ref).unwrap_or_default()),
            Arg::Int(now),
        ];
        self.store.write(sql, &args).await?;
        Ok(())
    }

    /// Rows that were claimed and not tried: the claim does not count as an attempt.
    async fn give_back(&self, ids: &[i64], after_ms: i64) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let ids = json!(ids).to_string();
        let sql = format!(
            "UPDATE archmesh_deliveries SET status = CASE WHEN attempts > 1 THEN 'retrying' ELSE 'pending' END, \
             attempts = attempts - 1, due_at = $2, updated_at = $3 WHERE id IN {} AND status = 'sending'",
            self.store.dialect().numbers("$1")
        );
        let now = now_ms();
        let args = [Arg::Text(&ids), Arg::Int(now + after_ms), Arg::Int(now)];
        self.store.write(sql, &args).await?;
        Ok(())
    }
}
