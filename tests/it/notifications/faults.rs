//! Setup: a gateway or two under load, senders that retry with their keys, two devices of each user, and one fault.
//!
//! Must hold, whatever came: what was acknowledged is in the inboxes once and under one id, and every device has got it; the
//! numbers of an inbox are those of its rows; everything is published; health is degraded meanwhile and healthy afterwards.
//!
//! `NOTIFICATIONS_SEED` repeats what is sent to whom, `CHAOS_LOG` is the level of the nodes' logs.

mod clients;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Database, list};
use crate::chaos::hold;
use crate::gateway::{Gateway, Setup};
use crate::postgres::{Postgres, PostgresDatabase};
use crate::redis::Redis;
use crate::support::{eventually, within};
use clients::{Clients, Sent, USERS, user_name};

/// Acknowledged notifications before and after a fault.
const CALM: usize = 40;
/// How long the database stands still.
const STANDSTILL: Duration = Duration::from_secs(4);

/// Everything that a run consists of.
struct World {
    name: &'static str,
    database: Database,
    redis: Option<Redis>,
    nodes: Vec<Gateway>,
    clients: Clients,
}

fn setup(database: &Database, redis: Option<&Redis>) -> Setup {
    let level = std::env::var("CHAOS_LOG").unwrap_or_else(|_| "info".to_owned());
    let setup = database
        .setup()
        .set("log.level", level)
        .set("database.query_timeout", "1s")
        .set("database.connect_timeout", "1s")
        .set("database.breaker_open", "300ms")
        .set("redis.breaker_open", "300ms")
        .set("drain.timeout", "5s")
        .set("drain.reconnect_delay_max", "1ms")
        .full_disk();
    match redis {
        Some(redis) => setup.set("redis.url", redis.url()),
        None => setup,
    }
}

impl World {
    fn start(name: &'static str, database: Database, nodes: usize) -> Self {
        // Nodes that know each other tell each other's clients.
        let redis = (nodes > 1).then(|| Redis::start(&[]));
        let nodes: Vec<Gateway> =
            (0..nodes).map(|_| setup(&database, redis.as_ref()).start()).collect();
        let clients = Clients::start(nodes.iter().map(|node| node.public).collect());
        let world = Self { name, database, redis, nodes, clients };
        world.clients.await_calm(CALM);
        world
    }

    /// Ends a node at once; another one takes its place.
    fn kill_and_replace(&mut self, index: usize) {
        self.nodes[index].signal("KILL");
        self.nodes[index].await_exit(Duration::from_secs(10));
        self.replace(index);
    }

    /// A new node takes the place of one that has ended.
    fn replace(&mut self, index: usize) {
        self.nodes[index] = setup(&self.database, self.redis.as_ref()).start();
        self.clients.moved(index, self.nodes[index].public);
    }

    fn health(&self, index: usize) -> Value {
        self.nodes[index].get("/health").json()["status"].clone()
    }

    fn await_health(&self, status: &str) {
        for index in 0..self.nodes.len() {
            eventually(&format!("node {index} is {status}"), || {
                (self.health(index) == status).then_some(())
            });
        }
    }

    /// All is well again, and nothing was lost.
    fn finish(mut self) {
        self.clients.await_calm(CALM);
        self.await_health("healthy");
        for node in &mut self.nodes {
            assert!(node.is_running(), "a node has ended by itself");
        }
        let sent = self.clients.stop_sending();
        self.database.await_published();
        let outcome = self.clients.finish(&sent);
        for node in &self.nodes {
            for user in 0..USERS {
                check_inbox(node, user, &sent);
            }
        }
        let failed = "SELECT count(*) FROM archmesh_outbox WHERE failed_at IS NOT NULL";
        assert_eq!(self.database.number(failed), 0);
        eventually("no device marks any more", || {
            (self.nodes[0].metric("archmesh_inbox_writes_waiting", &[]) == 0.0).then_some(())
        });
        self.database.check_counters();
        eprintln!("{}: {outcome}", self.name);
    }
}

/// The inbox holds each notification to the user once.
fn check_inbox(node: &Gateway, user: usize, sent: &BTreeMap<u64, Sent>) {
    let mut found = Vec::new();
    let mut request = json!({"limit": 200});
    loop {
        let page = list(node, &user_name(user), request.clone());
        for item in page["items"].as_array().unwrap() {
            let n: u64 = item["title"].as_str().unwrap().parse().unwrap();
            found.push((n, item["notification_id"].as_str().unwrap().to_owned()));
        }
        let Some(next) = page["next"].as_i64() else { break };
        request["before"] = json!(next);
    }
    found.sort();
    let to_user = sent.iter().filter(|(_, sent)| sent.users.contains(&user));
    let wanted: Vec<(u64, String)> = to_user.map(|(n, sent)| (*n, sent.id.clone())).collect();
    assert_eq!(found, wanted, "inbox of user {user}");
}

/// A server of the test's own, because it is harmed.
fn own_server() -> (Postgres, Database) {
    let server = Postgres::start();
    let database = server.database();
    (server, Database::Postgres(database))
}

fn gateway_is_killed(name: &'static str, database: Database) {
    let mut world = World::start(name, database, 1);
    for _ in 0..2 {
        world.kill_and_replace(0);
        world.clients.await_calm(CALM);
    }
    world.finish();
}

#[test]
fn a_killed_gateway_loses_nothing_on_sqlite() {
    gateway_is_killed("killed gateway, SQLite", Database::sqlite());
}

#[test]
fn a_killed_gateway_loses_nothing_on_postgresql() {
    gateway_is_killed("killed gateway, PostgreSQL", Database::postgres());
}

/// As at a deployment: it answers what is under way and says goodbye.
fn gateway_is_ended(name: &'static str, database: Database) {
    let mut world = World::start(name, database, 1);
    for _ in 0..2 {
        world.nodes[0].signal("TERM");
        let status = world.nodes[0].await_exit(Duration::from_secs(10));
        assert!(status.success(), "{status}");
        world.replace(0);
        world.clients.await_calm(CALM);
    }
    world.finish();
}

#[test]
fn an_ended_gateway_loses_nothing_on_sqlite() {
    gateway_is_ended("ended gateway, SQLite", Database::sqlite());
}

#[test]
fn an_ended_gateway_loses_nothing_on_postgresql() {
    gateway_is_ended("ended gateway, PostgreSQL", Database::postgres());
}

/// Publishing waits for Redis, taking notifications does not.
#[test]
fn a_killed_redis_loses_nothing() {
    let mut world = World::start("killed Redis", Database::postgres(), 2);
    for _ in 0..2 {
        world.redis.as_mut().unwrap().kill();
        world.await_health("degraded");
        world.clients.await_calm(CALM);
        world.redis.as_mut().unwrap().restart();
        world.clients.await_calm(CALM);
    }
    world.finish();
}

#[test]
fn a_kept_file_loses_nothing() {
    let world = World::start("kept file", Database::sqlite(), 1);
    world.database.keep_file(STANDSTILL);
    assert_eq!(world.health(0), "degraded");
    world.finish();
}

#[test]
fn a_killed_postgresql_loses_nothing() {
    let (mut server, database) = own_server();
    let world = World::start("killed PostgreSQL", database, 1);
    server.kill();
    world.await_health("degraded");
    // It serves on: a node without its database still carries publications.
    world.nodes[0].publish("chat:room", json!(1));
    assert_eq!(world.nodes[0].get("/ready").status, 200);
    // Once only: before it recovers it syncs all its files, which takes seconds on a busy disk.
    server.restart();
    world.finish();
}

#[test]
fn a_standstill_of_postgresql_loses_nothing() {
    let (server, database) = own_server();
    let world = World::start("PostgreSQL stands still", database, 1);
    server.signal("STOP");
    let began = std::time::Instant::now();
    world.await_health("degraded");
    hold(STANDSTILL.saturating_sub(began.elapsed()));
    server.signal("CONT");
    world.finish();
}

#[test]
fn ended_connections_lose_nothing() {
    let database = Postgres::shared().database();
    let world = World::start("ended connections", Database::Postgres(database.clone()), 1);
    for _ in 0..15 {
        database.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
        world.clients.await_calm(CALM / 4);
    }
    world.finish();
}

fn lock_inbox(database: &PostgresDatabase) -> std::process::Child {
    let sql = format!(
        "BEGIN; LOCK TABLE archmesh_inbox IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({}); COMMIT",
        STANDSTILL.as_secs()
    );
    let mut command = database.psql();
    command.args(["-c", &sql]).stdout(Stdio::null()).spawn().expect("psql runs")
}

#[test]
fn a_locked_table_loses_nothing() {
    let database = Postgres::shared().database();
    let world = World::start("locked table", Database::Postgres(database.clone()), 1);
    let mut locker = lock_inbox(&database);
    world.await_health("degraded");
    let status = within(STANDSTILL * 3, "the lock is given back", || locker.try_wait().unwrap());
    assert!(status.success());
    world.finish();
}

#[test]
fn one_of_two_gateways_is_killed_and_nothing_is_lost() {
    let mut world = World::start("one of two gateways", Database::postgres(), 2);
    for index in [0, 1] {
        world.kill_and_replace(index);
        world.clients.await_calm(CALM);
    }
    world.finish();
}

#[test]
fn a_full_postgresql_loses_nothing() {
    let server = Postgres::start();
    let world = World::start("full PostgreSQL", Database::Postgres(server.database()), 1);
    // The table is larger than files may be, and its pages are full.
    world.database.query(
        "INSERT INTO archmesh_notifications (id, category, priority, content, created_at) \
         SELECT 'filler' || n, 'system', 0, '{}', 1 FROM generate_series(1, 300000) n",
    );
    for _ in 0..2 {
        server.limit_files(Some(16 << 20));
        world.await_health("degraded");
        hold(Duration::from_millis(500));
        server.limit_files(None);
        world.clients.await_calm(CALM);
        world.await_health("healthy");
    }
    world.finish();
}

#[test]
fn a_full_disk_loses_nothing() {
    let world = World::start("full disk", Database::sqlite(), 1);
    for _ in 0..2 {
        world.nodes[0].limit_files(Some(0));
        world.await_health("degraded");
        hold(Duration::from_millis(500));
        world.nodes[0].limit_files(None);
        world.clients.await_calm(CALM);
        world.await_health("healthy");
    }
    world.finish();
}

#[test]
fn a_node_waits_for_a_database_that_starts_later() {
    let mut server = Postgres::start();
    let database = server.database();
    server.kill();
    let late = || {
        Setup::new().set("database.url", database.url()).set("database.connect_timeout", "100ms")
    };
    let mut gateway = late().set("database.start_timeout", "60s").spawn();
    eventually("the node waits", || {
        let awaited = gateway.log.events("database_awaited");
        (!awaited.is_empty()).then_some(())
    });
    assert!(gateway.is_running() && gateway.log.events("node_started").is_empty());
    server.restart();
    gateway.await_address();
    gateway.await_ready();
    let sent = gateway.result(
        "v1/notifications",
        &json!({"user": "ann", "title": "t", "message": "m", "category": "workflow_failed"}),
    );
    assert_eq!(sent["delivered"], 1, "{sent}");
    server.kill();
    let mut gone = late().set("database.start_timeout", "200ms").spawn();
    let status = gone.await_exit(crate::support::WAIT);
    let log = gone.log.text();
    assert_eq!(status.code(), Some(75), "{log}");
    assert!(log.contains("database.start_timeout"), "{log}");
    let mut stopped = late().set("database.start_timeout", "1h").spawn();
    eventually("the node waits", || {
        (!stopped.log.events("database_awaited").is_empty()).then_some(())
    });
    stopped.signal("TERM");
    assert!(stopped.await_exit(crate::support::WAIT).success(), "it can be stopped meanwhile");
}
