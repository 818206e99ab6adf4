//! A lane against an HTTP server of the test: order, bounds, outages, signatures.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use gateway_core::hook::HookAsk;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use super::super::{HookSetups, Hooks};
use super::testing::question;
use super::*;
use crate::bridge::testing::TestShards;
use crate::bridge::{BridgeLimits, Shards};
use crate::config::{Config, Sources};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What the server does with questions.
struct Server {
    arrived: mpsc::Sender<(HeaderMap, Value)>,
    /// A permit for each answer.
    gate: Semaphore,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

async fn serve(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let busy = server.busy.fetch_add(1, Ordering::SeqCst) + 1;
    server.busiest.fetch_max(busy, Ordering::SeqCst);
    let question: Value = serde_json::from_slice(&body).unwrap();
    let method = question["method"].as_str().unwrap_or_default().to_owned();
    let _gone = server.arrived.try_send((headers, question));
    if let Ok(permit) = server.gate.acquire().await {
        permit.forget();
    }
    server.busy.fetch_sub(1, Ordering::SeqCst);
    match method.as_str() {
        "fail" => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        "large" => (StatusCode::OK, format!("{{\"result\":\"{}\"}}", "x".repeat(70_000))),
        "nonsense" => (StatusCode::OK, "yes".to_owned()),
        _ => (StatusCode::OK, json!({"result": method}).to_string()),
    }
}

struct Bench {
    hooks: Hooks,
    shards: Arc<TestShards>,
    server: Arc<Server>,
    arrived: mpsc::Receiver<(HeaderMap, Value)>,
}

impl Bench {
    async fn new(more: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (sender, arrived) = mpsc::channel(1_000);
        let server = Arc::new(Server {
            arrived: sender,
            gate: Semaphore::new(0),
            busy: AtomicUsize::new(0),
            busiest: AtomicUsize::new(0),
        });
        let router = Router::new().route("/", post(serve)).with_state(Arc::clone(&server));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let shards = Arc::new(TestShards::new(1_000));
        let limits = BridgeLimits {
            request_timeout: Duration::from_secs(1),
            snapshot_timeout: Duration::from_secs(1),
            requests_max: 64,
        };
        let bridge = Bridge::new(Arc::clone(&shards) as Arc<dyn Shards>, limits);
        let hooks = Hooks::new(setups(&url, more), &bridge, 0);
        Self { hooks, shards, server, arrived }
    }

    /// Asks; the answer is wanted as long as what is given back lives.
    fn call(&self, method: &str) -> Arc<()> {
        let (asker, question) = question(HookAsk::Rpc { method: method.into(), data: "1".into() });
        self.hooks.ask(question);
        asker
    }

    async fn arrival(&mut self) -> (HeaderMap, Value) {
        self.arrived.recv().await.unwrap()
    }

    async fn answer(&self) -> Verdict {
        loop {
            match self.shards.take(0) {
                Some(ShardMessage::Hooked(answer)) => return answer.verdict,
                Some(other) => panic!("{other:?}"),
                None => tokio::task::yield_now().await,
            }
        }
    }

    fn state(&self) -> HookState {
        self.hooks.states().find(|state| state.kind == HookKind::Rpc).unwrap()
    }

    fn outcome(&self, name: &str) -> u64 {
        self.state().outcomes[OUTCOMES.iter().position(|known| *known == name).unwrap()]
    }
}

fn setups(url: &str, more: &[(&str, &str)]) -> HookSetups {
    let given = [("RPC__URL", url), ("SECRETS", SECRET), ("RPC__TIMEOUT", "60s")];
    let kept = given.iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name));
    let variables = kept.chain(more);
    let variables = variables
        .map(|(name, value)| (format!("ARCHMESH__HOOKS__{name}"), (*value).to_owned()))
        .collect();
    let config = Config::load(&Sources { variables, ..Sources::default() }).unwrap().config;
    HookSetups::new(&config).unwrap()
}

fn unavailable(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Fail(error) if error.code == ErrorCode::Unavailable)
}

#[tokio::test]
async fn a_question_is_signed_and_says_who_asks() {
    let mut bench = Bench::new(&[]).await;
    bench.server.gate.add_permits(10);
    let _asker = bench.call("hello");
    let (headers, asked) = bench.arrival().await;
    assert_eq!(bench.answer().await, Verdict::Result("\"hello\"".into()));
    assert_eq!(
        (&asked["type"], &asked["method"], &asked["data"]),
        (&json!("rpc"), &json!("hello"), &json!(1))
    );
    assert_eq!(asked["client"]["user"], "alice");
    assert_eq!(asked["id"], headers["webhook-id"].to_str().unwrap());
    assert_eq!(headers["x-archmesh-hook"], "rpc");
    assert!(headers["webhook-signature"].to_str().unwrap().starts_with("v1,"));
    assert_eq!((bench.outcome("allowed"), bench.hooks.times(HookKind::Rpc).len()), (1, 1));
}

#[tokio::test]
async fn so_many_at_once_so_many_waiting_and_no_more() {
    let mut bench = Bench::new(&[("RPC__CONCURRENCY_MAX", "2"), ("RPC__WAITING_MAX", "3")]).await;
    let mut askers: Vec<_> = (0..5).map(|n| bench.call(&format!("m{n}"))).collect();
    for _ in 0..2 {
        bench.arrival().await;
    }
    assert_eq!((bench.state().in_flight, bench.state().waiting), (2, 3));
    askers.push(bench.call("too many"));
    assert!(unavailable(&bench.answer().await), "refused at once, while all the others wait");
    assert_eq!(bench.outcome("overloaded"), 1);
    bench.server.gate.add_permits(5);
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(bench.answer().await);
    }
    assert!(answers.iter().all(|verdict| matches!(verdict, Verdict::Result(_))), "{answers:?}");
    assert_eq!(bench.server.busiest.load(Ordering::SeqCst), 2);
    let order: Vec<_> = [bench.arrival().await, bench.arrival().await, bench.arrival().await]
        .map(|(_, question)| question["method"].clone())
        .into();
    let mut sorted = order.clone();
    sorted.sort_by_key(ToString::to_string);
    assert_eq!(sorted, ["m2", "m3", "m4"]);
}

#[tokio::test]
async fn a_client_that_has_left_is_not_asked_about() {
    let mut bench = Bench::new(&[("RPC__CONCURRENCY_MAX", "1"), ("RPC__WAITING_MAX", "2")]).await;
    let _first = bench.call("first");
    bench.arrival().await;
    let leaving = [bench.call("a"), bench.call("b")];
    drop(leaving);
    // The queue is full of questions that nobody waits for: they make room.
    tokio::time::pause();
    tokio::time::advance(SWEEP_INTERVAL).await;
    tokio::time::resume();
    let _second = bench.call("second");
    assert_eq!((bench.state().waiting, bench.outcome("left")), (1, 2));
    let third = bench.call("third");
    drop(third);
    bench.server.gate.add_permits(10);
    assert_eq!(bench.answer().await, Verdict::Result("\"first\"".into()));
    assert_eq!(bench.answer().await, Verdict::Result("\"second\"".into()));
    while bench.outcome("left") < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.arrival().await.1["method"], "second");
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes() {
    let more = [("RPC__CONCURRENCY_MAX", "1"), ("WAITING_BYTES_MAX", "64KiB")];
    let mut bench = Bench::new(&more).await;
    let call = |bench: &Bench| {
        let data = format!("\"{}\"", "x".repeat(30_000)).into();
        let (asker, question) = question(HookAsk::Rpc { method: "m".into(), data });
        bench.hooks.ask(question);
        asker
    };
    let _first = call(&bench);
    bench.arrival().await;
    let _waiting = [call(&bench), call(&bench)];
    assert_eq!(bench.state().waiting, 2);
    let _refused = call(&bench);
    assert!(unavailable(&bench.answer().await));
    bench.server.gate.add_permits(10);
    for _ in 0..3 {
        assert!(matches!(bench.answer().await, Verdict::Result(_)));
    }
    let _again = call(&bench);
    assert!(matches!(bench.answer().await, Verdict::Result(_)));
}

#[tokio::test]
async fn time_begins_when_the_question_arrives() {
    let mut bench = Bench::new(&[("RPC__CONCURRENCY_MAX", "1"), ("RPC__TIMEOUT", "100ms")]).await;
    let begun = Instant::now();
    let _askers = [bench.call("a"), bench.call("b"), bench.call("c")];
    bench.arrival().await;
    for _ in 0..3 {
        assert!(unavailable(&bench.answer().await));
    }
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert_eq!(bench.outcome("timeout"), 3, "those behind it have waited as long");
}

#[tokio::test]
async fn failures_open_the_breaker_and_one_good_answer_closes_it() {
    let bench = Bench::new(&[("BREAKER_FAILURES", "3"), ("BREAKER_OPEN", "200ms")]).await;
    bench.server.gate.add_permits(1_000);
    for method in ["fail", "large", "nonsense"] {
        let _asker = bench.call(method);
        assert!(unavailable(&bench.answer().await), "{method}");
    }
    assert_eq!((bench.outcome("failed"), bench.outcome("unreadable")), (2, 1));
    assert!(bench.hooks.any_open());
    let _asker = bench.call("x");
    assert!(unavailable(&bench.answer().await));
    assert_eq!(bench.outcome("breaker"), 1, "it was not asked");
    loop {
        let _asker = bench.call("x");
        if bench.answer().await == Verdict::Result("\"x\"".into()) {
            break;
        }
    }
    assert!(!bench.hooks.any_open());
}

#[tokio::test]
async fn on_failure_decides_for_subscribe_and_not_for_floods() {
    let more = [
        ("SUBSCRIBE__URL", "http://127.0.0.1:1/"),
        ("SUBSCRIBE__ON_FAILURE", "allow"),
        ("CONNECT__URL", "http://127.0.0.1:1/"),
    ];
    let bench = Bench::new(&more).await;
    let (_asker, asked) = question(HookAsk::Subscribe { channel: "a".into() });
    bench.hooks.ask(asked);
    assert_eq!(bench.answer().await, Verdict::Allow);
    let (_asker, asked) = question(HookAsk::Connect { token: None });
    bench.hooks.ask(asked);
    assert!(unavailable(&bench.answer().await), "a connection is never let in without an answer");
}

#[tokio::test]
async fn what_is_switched_off_meanwhile_answers_all_the_same() {
    let bench = Bench::new(&[]).await;
    bench
        .hooks
        .replace(HookSetups::new(&Config::load(&Sources::default()).unwrap().config).unwrap());
    let _asker = bench.call("x");
    assert!(unavailable(&bench.answer().await));
    assert_eq!(bench.state().breaker, None);
}
