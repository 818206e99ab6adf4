//! Questions to other nodes and their answers, over pub/sub.
//!
//! A question goes to all nodes or to one. Whoever asks waits for the nodes that the cluster lists, up to a deadline; what
//! is missing then makes the result partial, which the caller is told. Answers that come later find nobody.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::nodes::Nodes;
use super::orders::{Affected, Kept, Order, carry_out};
use super::rates::{self, Rates, Report};
use super::subscriber::Subscriber;
use crate::api::everywhere::{self, Question};
use crate::plane::{Plane, SharedPlane};
use crate::redis::Redis;

/// Refusals of questions that may be on their way out at one time.
const REFUSALS_MAX: usize = 1024;
/// Between two looks at a configuration that shares no rates.
const RATES_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What goes between nodes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Letter {
    Question(Asked),
    Answer(Answer),
    /// From whom, and what its busiest users sent.
    Rates(u64, Report),
}

#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    id: u64,
    from: u64,
    /// The only node that is asked.
    to: Option<u64>,
    /// Pub/sub channel of the answer.
    answer_to: String,
    question: Question,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    id: u64,
    from: u64,
    /// Absent when the node could not answer.
    body: Option<Box<RawValue>>,
    /// Whether something is missing in it.
    partial: bool,
}

/// What other nodes answered.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// JSON of each.
    pub answers: Vec<Box<RawValue>>,
    /// Whether anything is missing.
    pub partial: bool,
}

impl Gathered {
    /// Answers that can be read; one that cannot, perhaps of another version, makes the result partial.
    pub(crate) fn read<T: DeserializeOwned>(self) -> (Vec<T>, bool) {
        let asked = self.answers.len();
        let answers: Vec<T> =
            self.answers.iter().filter_map(|json| serde_json::from_str(json.get()).ok()).collect();
        let partial = self.partial || answers.len() < asked;
        (answers, partial)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Calls {
    redis: Arc<Redis>,
    subscriber: Arc<Subscriber>,
    nodes: Arc<Nodes>,
    kept: Kept,
    rates: Rates,
    plane: OnceLock<Weak<Plane>>,
    /// Pub/sub channel of all nodes.
    all: String,
    /// What comes before the number of a node in the name of its own channel.
    inbox_stem: String,
    deadline: Duration,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
    /// Questions that all answered, and others.
    outcomes: [AtomicU64; 2],
    /// Questions of others that are answered, and those that are refused, at one time.
    answering: Arc<Semaphore>,
    refusing: Arc<Semaphore>,
    refused: AtomicU64,
}

/// A question that waits for answers; given up when dropped, so that a cancelled call leaves nothing behind.
#[derive(Debug)]
struct Ticket<'a> {
    calls: &'a Calls,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.calls.waiting().remove(&self.id);
    }
}

impl Calls {
    pub(super) fn new(
        (redis, subscriber): (Arc<Redis>, Arc<Subscriber>),
        nodes: Arc<Nodes>,
        (kept, rates): (Kept, Rates),
        prefix: &str,
        (deadline, questions_max): (Duration, usize),
    ) -> Self {
        Self {
            redis,
            subscriber,
            nodes,
            kept,
            rates,
            plane: OnceLock::new(),
            all: format!("{prefix}:nodes:{{all}}"),
            inbox_stem: format!("{prefix}:node:"),
            deadline,
            waiting: Mutex::default(),
            outcomes: Default::default(),
            answering: Arc::new(Semaphore::new(questions_max)),
            refusing: Arc::new(Semaphore::new(REFUSALS_MAX)),
            refused: AtomicU64::new(0),
        }
    }

    /// Questions of others are answered from then on.
    pub(super) fn attend(&self, plane: &SharedPlane) {
        // It is called once.
        let _first = self.plane.set(Arc::downgrade(plane));
    }

    fn inbox(&self, node: u64) -> String {
        format!("{}{{{node:016x}}}", self.inbox_stem)
    }

    /// Pub/sub channels to be subscribed.
    pub(super) fn topics(&self) -> [String; 2] {
        [self.all.clone(), self.inbox(self.nodes.own_first())]
    }

    /// Questions that all answered, and those with a missing answer.
    pub(super) fn counts(&self) -> [u64; 2] {
        [0, 1].map(|outcome: usize| self.outcomes[outcome].load(Ordering::Relaxed))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries an order out here and on all other nodes, also on those that came a moment ago.
    pub(super) async fn give(&self, bridge: &crate::bridge::Bridge, order: &Order) -> Affected {
        let everywhere_else = async {
            let (kept, seen) =
                tokio::join!(self.kept.keep(order), self.nodes.see_again(self.deadline / 4));
            // It is sent even if nobody is listed: who listens hears it.
            let question = Question::Order(order.clone());
            let gathered = self.ask(self.nodes.others(), None, &question).await;
            let (answers, partial) = gathered.read::<Affected>();
            let partial =
                partial || !seen || kept.is_err() || answers.iter().any(|answer| answer.partial);
            Affected { count: answers.iter().map(|answer| answer.count).sum(), partial }
        };
        let (here, there) = tokio::join!(carry_out(bridge, order), everywhere_else);
        Affected { count: here.count + there.count, partial: here.partial || there.partial }
    }

    /// What was said may have been missed.
    pub(super) fn may_have_missed(&self) {
        // Something in it may have been invalidated.
        if let Some(plane) = self.plane.get().and_then(Weak::upgrade) {
            plane.cache.clear_local();
        }
        self.kept.may_have_missed();
    }

    /// Looks whether revocations have been missed.
    pub(super) fn look_for_revocations(&self) {
        self.kept.may_have_missed();
    }

    /// Whether revocations may be unknown to this node.
    pub(super) fn is_behind(&self) -> bool {
        self.kept.is_behind()
    }

    /// Questions that were refused because too many waited.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Learns of revocations that were missed until the future is dropped.
    pub(super) async fn learn(&self) {
        self.kept.run().await;
    }

    /// A shard names a user who sends much.
    pub(super) fn note_busy(&self, user: Arc<str>) {
        self.rates.note_busy(user);
    }

    /// Messages of users on other nodes that were counted here.
    pub(super) fn charged(&self) -> u64 {
        self.rates.charged()
    }

    /// Tells the others what the busiest users sent, in every interval, until the future is dropped.
    pub(super) async fn share_rates(&self, configured: Duration) {
        loop {
            let plane = self.plane.get().and_then(Weak::upgrade);
            let interval = plane.and_then(|plane| rates::interval(&plane, configured));
            tokio::time::sleep(interval.unwrap_or(RATES_LOOK_INTERVAL)).await;
            let report = self.rates.report();
            if interval.is_some() && !report.is_empty() {
                // What is not heard is not counted elsewhere; the next report tells what comes then.
                let _sent = self.send(&self.all, &Letter::Rates(self.nodes.own(), report)).await;
            }
        }
    }

    /// Asks all other nodes that the cluster lists.
    pub(super) async fn ask_others(&self, question: &Question) -> Gathered {
        let others = self.nodes.others();
        if others.is_empty() {
            return Gathered { answers: Vec::new(), partial: self.nodes.is_stale() };
        }
        self.ask(others, None, question).await
    }

    /// Asks one node.
    pub(super) async fn ask_one(&self, node: u64, question: &Question) -> Gathered {
        self.ask(vec![node], Some(node), question).await
    }

    async fn ask(&self, mut missing: Vec<u64>, to: Option<u64>, question: &Question) -> Gathered {
        let (ticket, mut incoming) = self.enter(missing.len());
        let id = ticket.id;
        let asked = Asked {
            id,
            from: self.nodes.own_now(),
            to,
            answer_to: self.inbox(self.nodes.own_first()),
            question: question.clone(),
        };
        let sent = self.send(&self.all, &Letter::Question(asked)).await;
        let mut gathered = Gathered { answers: Vec::new(), partial: !sent };
        let deadline = Instant::now() + self.deadline;
        while sent && !missing.is_empty() {
            let Ok(Some(answer)) = tokio::time::timeout_at(deadline, incoming.recv()).await else {
                break;
            };
            missing.retain(|node| *node != answer.from);
            gathered.partial |= answer.partial || answer.body.is_none();
            gathered.answers.extend(answer.body);
        }
        drop(ticket);
        gathered.partial |= !missing.is_empty();
        self.outcomes[usize::from(gathered.partial)].fetch_add(1, Ordering::Relaxed);
        gathered
    }

    fn enter(&self, answers_max: usize) -> (Ticket<'_>, mpsc::Receiver<Answer>) {
        let id = RandomState::new().hash_one("question");
        let (sender, incoming) = mpsc::channel(answers_max.max(1));
        self.waiting().insert(id, sender);
        (Ticket { calls: self, id }, incoming)
    }

    async fn send(&self, topic: &str, letter: &Letter) -> bool {
        match serde_json::to_string(letter) {
            Ok(text) => self.subscriber.send(&self.redis, topic, text).await.is_ok(),
            Err(_) => false,
        }
    }

    /// A message arrived on one of [`Self::topics`]. `None` when it cannot be read; `Some(false)` when it is not for this part.
    pub(super) fn handle(self: &Arc<Self>, topic: &str, body: &[u8]) -> Option<bool> {
        if topic != self.all && !topic.starts_with(&self.inbox_stem) {
            return Some(false);
        }
        match serde_json::from_slice(body).ok()? {
            Letter::Answer(answer) => {
                if let Some(sender) = self.waiting().get(&answer.id) {
                    // A node that answers twice finds no room.
                    let _full = sender.try_send(answer);
                }
            }
            Letter::Rates(from, _) if self.nodes.is_own(from) => {}
            Letter::Rates(_, report) => {
                let plane = self.plane.get().and_then(Weak::upgrade)?;
                self.rates.charge(&report, &plane.settings.load());
            }
            Letter::Question(asked)
                if self.nodes.is_own_now(asked.from)
                    || asked.to.is_some_and(|node| !self.nodes.is_own_now(node)) => {}
            Letter::Question(asked) => self.take_question(asked),
        }
        Some(true)
    }

    /// Answers a question, or says that it cannot when too many are under way.
    fn take_question(self: &Arc<Self>, asked: Asked) {
        let calls = Arc::clone(self);
        if let Ok(turn) = Arc::clone(&self.answering).try_acquire_owned() {
            tokio::spawn(async move {
                calls.answer(asked).await;
                drop(turn);
            });
            return;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        match asked.question {
            // A revocation is kept.
            Question::Order(_) => self.look_for_revocations(),
            Question::Forget { .. } => self.may_have_missed(),
            _ => {}
        }
        // Who hears no refusal waits longer for the same.
        if let Ok(turn) = Arc::clone(&self.refusing).try_acquire_owned() {
            tokio::spawn(async move {
                calls.send_answer(&asked.answer_to, asked.id, (None, true)).await;
                drop(turn);
            });
        }
    }

    async fn answer(&self, asked: Asked) {
        let Asked { id, answer_to, question, .. } = asked;
        let Some(plane) = self.plane.get().and_then(Weak::upgrade) else { return };
        let (body, partial) = match everywhere::answer(&plane, question).await {
            Some((body, partial)) => (Some(body), partial),
            None => (None, true),
        };
        self.send_answer(&answer_to, id, (body, partial)).await;
    }

    async fn send_answer(
        &self,
        answer_to: &str,
        id: u64,
        (body, partial): (Option<Box<RawValue>>, bool),
    ) {
        let letter = Letter::Answer(Answer { id, from: self.nodes.own_now(), body, partial });
        // Without it the other node says that its result is partial.
        let _sent = self.send(answer_to, &letter).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_read_as_they_were_written() {
        let body = RawValue::from_string("{\"count\":3,\"partial\":false}".to_owned()).unwrap();
        let letter =
            Letter::Answer(Answer { id: u64::MAX, from: 7, body: Some(body), partial: true });
        let text = serde_json::to_string(&letter).unwrap();
        let Letter::Answer(answer) = serde_json::from_slice(text.as_bytes()).unwrap() else {
            panic!("{text}")
        };
        assert_eq!((answer.id, answer.from, answer.partial), (u64::MAX, 7, true));
        let gathered = Gathered { answers: vec![answer.body.unwrap()], partial: false };
        let (read, partial) = gathered.read::<Affected>();
        assert_eq!((read, partial), (vec![Affected { count: 3, partial: false }], false));
    }

    #[test]
    fn what_cannot_be_read_is_missing() {
        let body = RawValue::from_string("[]".to_owned()).unwrap();
        let gathered = Gathered { answers: vec![body], partial: false };
        assert_eq!(gathered.read::<Affected>(), (Vec::new(), true));
    }
}
