//! Two gateways on one database under load, and one fault.
//!
//! Must hold: what was acknowledged reaches every watcher once and in order, and nobody is told of a loss: there is none.

use std::time::Duration;

use super::setup;
use crate::chaos::clients::{Clients, Evenness};
use crate::chaos::{await_agreement, hold};
use crate::gateway::{Gateway, Setup};
use crate::notifications::database::Database;
use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::support::within;

/// Acknowledged publications before and after a fault.
const CALM: usize = 60;
/// How long things may take after a fault on a busy machine.
const WELL_MAX: Duration = Duration::from_secs(60);

struct World {
    database: Database,
    redis: Option<Redis>,
    nodes: Vec<Gateway>,
    clients: Clients,
}

impl World {
    fn start(database: Database, redis: Option<Redis>, nodes: usize) -> Self {
        let nodes: Vec<Gateway> =
            (0..nodes).map(|_| node(&database, redis.as_ref()).start()).collect();
        let clients = Clients::start(&nodes.iter().map(|node| node.public).collect::<Vec<_>>());
        let world = Self { database, redis, nodes, clients };
        world.await_calm();
        world
    }

    fn await_calm(&self) {
        let from = self.clients.acknowledged();
        within(WELL_MAX, "publications are acknowledged", || {
            assert!(!self.clients.has_failed(), "a client has failed; its message is above");
            (self.clients.acknowledged() >= from + CALM).then_some(())
        });
    }

    fn replace(&mut self, index: usize) {
        self.nodes[index] = node(&self.database, self.redis.as_ref()).start();
        self.clients.moved(index, self.nodes[index].public);
    }

    fn finish(mut self) {
        self.await_calm();
        within(WELL_MAX, "the publishers pause", || self.clients.pause().then_some(()));
        within(WELL_MAX, "everybody has everything", || {
            (self.clients.evenness() == Evenness::Even).then_some(())
        });
        for node in &mut self.nodes {
            assert!(node.is_running(), "a node has ended by itself");
        }
        if self.redis.is_some() || self.nodes.len() == 1 {
            await_agreement(&self.nodes, &self.clients);
        }
        let (acknowledged, told) = self.clients.finish();
        assert_eq!(told, 0, "watchers that were told of a loss");
        let rows = self.database.number("SELECT count(*) FROM archmesh_publications");
        let acknowledged = i64::try_from(acknowledged).unwrap();
        assert!(rows >= acknowledged, "{rows} rows of {acknowledged}");
        let holes = "SELECT count(*) FROM archmesh_streams s WHERE s.top_seq <> \
                     (SELECT count(*) FROM archmesh_publications p WHERE p.channel = s.channel)";
        assert_eq!(self.database.number(holes), 0, "places are given out without holes");
        eprintln!("{acknowledged} acknowledged");
    }
}

fn node(database: &Database, redis: Option<&Redis>) -> Setup {
    let setup = setup(database)
        .set("namespaces.chat.history_size", 100_000)
        .set("database.query_timeout", "1s")
        .set("database.connect_timeout", "1s")
        .set("database.breaker_open", "300ms")
        .set("redis.breaker_open", "300ms")
        .set("durable.check_interval", "200ms");
    match redis {
        Some(redis) => setup.set("redis.url", redis.url()),
        None => setup,
    }
}

fn on_postgres(redis: bool) -> World {
    World::start(Database::postgres(), redis.then(|| Redis::start(&[])), 2)
}

#[test]
fn a_killed_gateway() {
    let mut world = on_postgres(true);
    for index in [0, 1, 0] {
        world.nodes[index].signal("KILL");
        world.nodes[index].await_exit(Duration::from_secs(10));
        world.await_calm();
        world.replace(index);
        world.await_calm();
    }
    world.finish();
}

#[test]
fn a_killed_gateway_on_sqlite() {
    let mut world = World::start(Database::sqlite(), None, 1);
    for _ in 0..3 {
        world.nodes[0].signal("KILL");
        world.nodes[0].await_exit(Duration::from_secs(10));
        world.replace(0);
        world.await_calm();
    }
    world.finish();
}

#[test]
fn a_killed_redis() {
    let mut world = on_postgres(true);
    let redis = world.redis.as_mut().unwrap();
    redis.kill();
    world.await_calm();
    hold(Duration::from_secs(1));
    world.await_calm();
    world.redis.as_mut().unwrap().restart();
    world.await_calm();
    world.redis.as_ref().unwrap().ask("FLUSHALL");
    world.finish();
}

#[test]
fn a_standing_redis() {
    let world = on_postgres(true);
    let redis = world.redis.as_ref().unwrap();
    redis.signal("STOP");
    world.await_calm();
    hold(Duration::from_secs(4));
    world.await_calm();
    redis.signal("CONT");
    world.finish();
}

#[test]
fn no_redis_at_all() {
    let world = on_postgres(false);
    world.await_calm();
    world.finish();
}

#[test]
fn a_killed_database() {
    let mut server = Postgres::start();
    let database = Database::Postgres(server.database());
    let world = World::start(database, Some(Redis::start(&[])), 2);
    server.kill();
    hold(Duration::from_secs(1));
    server.restart();
    world.await_calm();
    world.finish();
}

/// Tables are larger than files may be, and their pages are full: every row needs a new page, and there is none.
#[test]
fn a_full_database() {
    let server = Postgres::start();
    let database = Database::Postgres(server.database());
    let world = World::start(database, None, 1);
    world.database.query(
        "INSERT INTO archmesh_publications (channel, seq, expires_at, created_at, priority, type, data) \
         SELECT 'filler:', n, (SELECT max(expires_at) FROM archmesh_publications), 1, 0, '', '1' \
         FROM generate_series(1, 200000) n",
    );
    for _ in 0..2 {
        server.limit_files(Some(16 << 20));
        within(WELL_MAX, "the node says that nothing is written", || {
            (world.nodes[0].get("/health").json()["status"] == "degraded").then_some(())
        });
        hold(Duration::from_millis(500));
        server.limit_files(None);
        world.await_calm();
    }
    world.database.query("DELETE FROM archmesh_publications WHERE channel = 'filler:'");
    world.finish();
}

#[test]
fn a_standing_database() {
    let server = Postgres::start();
    let database = Database::Postgres(server.database());
    let world = World::start(database, Some(Redis::start(&[])), 2);
    server.signal("STOP");
    hold(Duration::from_secs(3));
    server.signal("CONT");
    world.finish();
}
