//! Setup: a gateway that asks an application, the one of `examples/hooks.py`, before clients may do something.
//!
//! Must hold: the application's word decides each of the four, in the order of the commands; one that is slow or away holds up
//! nobody but those who asked it; bounds are kept; it comes back without a restart.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::delivery::outside::Program;
use crate::gateway::{Gateway, Setup};
use crate::socket::{Opening, Socket};
use crate::support::{eventually, heavy, root, token};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The application; ended when dropped.
struct Application(Program);

impl Application {
    fn start() -> Self {
        Self::at(0)
    }

    fn at(port: u16) -> Self {
        Self(Program::start("hooks_app.py", &json!({"secret": SECRET, "port": port})))
    }

    fn port(&self) -> u16 {
        u16::try_from(self.0.hello.as_u64().expect("a port")).unwrap()
    }

    /// Seconds that an answer takes from now on.
    fn delay(&mut self, hook: &str, seconds: Value) {
        self.0.ask(&json!({hook: seconds}));
    }

    /// Questions of a hook so far.
    fn asked(&mut self, hook: &str) -> Vec<Value> {
        let all = self.0.ask(&json!("stats"))["asked"].as_array().unwrap().clone();
        all.into_iter().filter(|question| question["type"] == hook).collect()
    }

    fn busiest(&mut self, hook: &str) -> u64 {
        self.0.ask(&json!("stats"))["busiest"][hook].as_u64().unwrap_or_default()
    }

    /// A gateway that asks it about everything in `asked:`.
    fn setup(&self, hooks: &[&str]) -> Setup {
        let urls = hooks.iter().map(|hook| {
            format!("[hooks.{hook}]\nurl = \"http://127.0.0.1:{}/{hook}\"\n", self.port())
        });
        let asks = |hook: &str| hooks.contains(&hook);
        let toml = format!(
            "[hooks]\nsecrets = [\"{SECRET}\"]\nbreaker_failures = 3\nbreaker_open = \"300ms\"\n{}\
             [[namespaces]]\nname = \"asked\"\nsubscribe = \"signed_in\"\npublish = \"signed_in\"\n\
             subscribe_hook = {}\npublish_hook = {}\n",
            urls.collect::<String>(),
            asks("subscribe"),
            asks("publish"),
        );
        Setup::new().toml(&toml)
    }
}

fn code(error: &Value) -> &Value {
    assert_eq!(error["type"], "error", "{error}");
    &error["data"]["error_details"]["code"]
}

fn unavailable(answer: &Value) -> bool {
    answer["data"]["error_code"] == "UNAVAILABLE"
        && answer["data"]["error_details"]["temporary"] == true
}

fn open(gateway: &Gateway, user: &str) -> Socket {
    Socket::open(gateway, &Opening::with_token(&token(user))).expect("an upgrade")
}

#[test]
fn the_word_of_the_application_decides() {
    let mut application = Application::start();
    let gateway = application.setup(&["connect", "subscribe", "publish", "rpc"]).start();
    let mut ann = Socket::connect(&gateway, "ann");
    assert!(ann.welcome().to_string().contains("chat:lobby"), "{}", ann.welcome());
    let mut mallory = open(&gateway, "mallory");
    let error = mallory.take("error");
    assert_eq!(
        (code(&error), &error["data"]["error_message"]),
        (&json!(403), &json!("this account is closed"))
    );
    assert_eq!(mallory.wait_close().code, Some(4505));

    ann.subscribe("asked:room");
    let refused = ann.call("subscribe", json!({"channel": "asked:secret"}));
    assert_eq!(code(&refused), 404);

    ann.publish("asked:room", json!("hello"));
    let got = ann.take("message");
    assert_eq!((&got["data"], &got["sender"]["info"]), (&json!("hello"), &json!({"name": "ann"})));
    let refused = ann.call("publish", json!({"channel": "asked:room", "data": "spam"}));
    assert_eq!(code(&refused), 422);
    ann.publish("asked:room", json!("darn"));
    assert_eq!(ann.take("message")["data"], "d***", "the application may change it");
    let before = application.asked("publish").len();
    gateway.publish("asked:room", json!("spam"));
    assert_eq!(ann.take("message")["data"], "spam", "the server API is the application's own");
    assert_eq!(application.asked("publish").len(), before);

    let answer = ann.call("rpc", json!({"method": "add", "data": [1, 2, 3]}));
    assert_eq!((&answer["type"], &answer["data"]["result"]), (&json!("rpc_result"), &json!(6)));
    let error = ann.call("rpc", json!({"method": "divide"}));
    assert_eq!(
        (code(&error), &error["data"]["error_message"]),
        (&json!(404), &json!("no method divide"))
    );

    let asked = application.asked("subscribe");
    let documentation = std::fs::read_to_string(root().join("docs/hooks.md")).unwrap();
    let example = documentation.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let example: Value = serde_json::from_str(example).unwrap();
    let members = |question: &Value| {
        let members = question.as_object().unwrap().keys().cloned();
        members.chain(question["client"].as_object().unwrap().keys().cloned()).collect::<Vec<_>>()
    };
    assert_eq!(members(&asked[0]), members(&example), "the example of the documentation");
    let client = &asked[0]["client"];
    assert_eq!((&client["user"], &client["session"]), (&json!("ann"), &json!(ann.session())));
    assert_eq!(
        (&client["address"], &client["info"]),
        (&json!("127.0.0.1"), &json!({"name": "ann"}))
    );
    let outcome = |hook, outcome| {
        let labels = [("hook", hook), ("outcome", outcome)];
        gateway.metric("archmesh_hook_questions_total", &labels)
    };
    assert_eq!((outcome("connect", "allowed"), outcome("connect", "refused")), (1.0, 1.0));
    assert_eq!((outcome("rpc", "allowed"), outcome("publish", "refused")), (1.0, 1.0));
    assert_eq!(gateway.metric("archmesh_hook_answer_seconds_count", &[("hook", "publish")]), 3.0);
}

#[test]
fn the_application_may_know_the_user_itself() {
    let application = Application::start();
    let gateway =
        application.setup(&["connect"]).set("hooks.connect.mode", "instead_of_token").start();
    let ann = Socket::connect_with(&gateway, "session-of-ann");
    assert_eq!(ann.welcome()["data"]["user_id"], "ann");
    let mut stranger = Socket::open(&gateway, &Opening::with_token("rubbish")).expect("an upgrade");
    assert_eq!(code(&stranger.take("error")), 401);
    assert_eq!(stranger.wait_close().code, Some(4505));
}

/// The slowest but one of a hundred round trips.
fn round_trips(socket: &mut Socket) -> Duration {
    let mut took: Vec<_> = (0..300)
        .map(|n| {
            let begun = Instant::now();
            socket.publish("chat:other", json!(n));
            begun.elapsed()
        })
        .collect();
    took.sort();
    took[took.len() * 99 / 100]
}

#[test]
fn a_slow_application_holds_up_nobody_else() {
    let _turn = heavy();
    let mut application = Application::start();
    let gateway = application
        .setup(&["connect"])
        .shards(1)
        .set("hooks.connect.timeout", "25s")
        .set("limits.auth_timeout", "30s")
        .set("hooks.connect.concurrency_max", 50)
        .start();
    let mut other = Socket::connect(&gateway, "other");
    let idle = round_trips(&mut other);
    application.delay("connect", json!(5));
    let mut waiting: Vec<_> = (0..200).map(|n| open(&gateway, &format!("user-{n}"))).collect();
    gateway.await_metric("archmesh_hook_waiting", &[("hook", "connect")], |count| count == 150.0);
    let busy = round_trips(&mut other);
    let still = gateway.metric("archmesh_hook_waiting", &[("hook", "connect")]);
    assert!(still > 0.0, "all of that happened while they waited");
    assert!(busy < idle * 10 + Duration::from_millis(200), "{busy:?} beside {idle:?} without");
    application.delay("connect", json!(0));
    for socket in &mut waiting {
        socket.await_welcome();
    }
    assert_eq!(application.busiest("connect"), 50);
}

#[test]
fn an_application_that_is_away_is_left_alone_and_comes_back() {
    let application = Application::start();
    let port = application.port();
    let gateway = application
        .setup(&["connect", "subscribe", "publish", "rpc"])
        .set("hooks.publish.on_failure", "allow")
        .start();
    let mut ann = Socket::connect(&gateway, "ann");
    drop(application);
    for _ in 0..5 {
        assert!(unavailable(&ann.call("rpc", json!({"method": "add", "data": []}))));
    }
    for event in ["hook_failed", "hook_breaker_open"] {
        eventually(&format!("the log tells of {event}"), || gateway.log.events(event).pop());
    }
    let health = gateway.get("/health/detailed").json();
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["components"]["hooks"]["rpc"]["status"], "unavailable", "{health}");
    assert_eq!(health["components"]["hooks"]["connect"]["status"], "healthy", "each has its own");
    assert_eq!(gateway.get("/ready").status, 200);

    assert!(unavailable(&ann.call("subscribe", json!({"channel": "asked:room"}))));
    ann.publish("asked:room", json!("on_failure = allow"));
    let mut bob = open(&gateway, "bob");
    assert!(unavailable(&bob.take("error")));
    assert_eq!(bob.take("disconnect")["data"]["reconnect"], true);
    assert_eq!(bob.wait_close().code, Some(4009));

    let _application = Application::at(port);
    eventually("calls are answered again", || {
        let answer = ann.call("rpc", json!({"method": "add", "data": [2, 2]}));
        (answer["data"]["result"] == 4).then_some(())
    });
    ann.subscribe("asked:room");
    Socket::connect(&gateway, "bob");
    assert_eq!(gateway.get("/health").json()["status"], "healthy");
}

#[test]
fn no_more_at_once_than_allowed_and_a_flood_is_refused_at_once() {
    let mut application = Application::start();
    let gateway = application
        .setup(&["rpc"])
        .set("hooks.rpc.concurrency_max", 3)
        .set("hooks.rpc.waiting_max", 5)
        .set("hooks.rpc.timeout", "30s")
        .start();
    application.delay("rpc", json!(2));
    let mut ann = Socket::connect(&gateway, "ann");
    let ids: Vec<_> =
        (0..20).map(|n| ann.send("rpc", &json!({"method": "add", "data": [n]}))).collect();
    let refused: Vec<_> = ids[8..].iter().map(|id| ann.reply(id)).collect();
    assert!(refused.iter().all(unavailable), "{refused:?}");
    assert!(ann.drain("rpc_result").is_empty(), "while the first are still under way");
    for (n, id) in ids[..8].iter().enumerate() {
        assert_eq!(ann.reply(id)["data"]["result"], n);
    }
    assert_eq!(application.busiest("rpc"), 3);
    assert_eq!(application.asked("rpc").len(), 8);
}

#[test]
fn a_client_that_leaves_is_not_asked_about() {
    let mut application = Application::start();
    let gateway = application.setup(&["rpc"]).set("hooks.rpc.concurrency_max", 1).start();
    application.delay("rpc", json!(1));
    let mut ann = Socket::connect(&gateway, "ann");
    let first = ann.send("rpc", &json!({"method": "add", "data": [1]}));
    let mut bob = Socket::connect(&gateway, "bob");
    bob.send("rpc", &json!({"method": "add", "data": [2]}));
    gateway.await_metric("archmesh_hook_waiting", &[("hook", "rpc")], |count| count == 1.0);
    bob.reset();
    assert_eq!(ann.reply(&first)["data"]["result"], 1);
    let left = [("hook", "rpc"), ("outcome", "left")];
    gateway.await_metric("archmesh_hook_questions_total", &left, |count| count == 1.0);
    assert_eq!(application.asked("rpc").len(), 1);
}

#[test]
fn publications_keep_their_order() {
    let mut application = Application::start();
    let gateway = application.setup(&["publish"]).start();
    application.delay("publish", json!([0, 0.05]));
    let (mut ann, mut bob) = (Socket::connect(&gateway, "ann"), Socket::connect(&gateway, "bob"));
    bob.subscribe("asked:room");
    let ids: Vec<_> = (0..60)
        .map(|n| ann.send("publish", &json!({"channel": "asked:room", "data": n})))
        .collect();
    let got: Vec<_> = (0..60).map(|_| bob.take("message")["data"].clone()).collect();
    assert_eq!(got, (0..60).map(|n| json!(n)).collect::<Vec<_>>());
    for id in &ids {
        assert_eq!(ann.reply(id)["type"], "published");
    }
    let seen: Vec<_> =
        application.asked("publish").iter().map(|question| question["data"].clone()).collect();
    assert_eq!(seen.len(), 60);
}

#[test]
fn hooks_change_while_the_node_runs() {
    let application = Application::start();
    let gateway = Setup::new().start();
    let mut ann = Socket::connect(&gateway, "ann");
    let add = || json!({"method": "add", "data": [1]});
    assert_eq!(ann.call("rpc", add())["data"]["error_code"], "NOT_FOUND");
    gateway.rewrite("[[namespaces]]\nname = \"chat\"\nsubscribe_hook = true\n");
    gateway.signal("HUP");
    eventually("it is refused", || gateway.log.events("reload_refused").pop());
    let url = format!("url = \"http://127.0.0.1:{}/\"\n", application.port());
    gateway.rewrite(&format!("[hooks]\nsecrets = [\"{SECRET}\"]\n[hooks.rpc]\n{url}"));
    gateway.signal("HUP");
    eventually("the hook is on", || (ann.call("rpc", add())["data"]["result"] == 1).then_some(()));
}
