//! Setup: gateways with durable channels, on PostgreSQL and on SQLite.
//!
//! Must hold: what holds in memory, and more: what was acknowledged is a row, and whoever comes back gets all of it, also from
//! a gateway that has just been started and from beyond what a home keeps in memory.

mod faults;
mod streams;

use serde_json::{Value, json};

use crate::broker::REPAIRED_MAX;
use crate::gateway::{Gateway, Setup, with_settings};
use crate::notifications::database::{Database, on_both_databases};
use crate::redis::Redis;
use crate::socket::Socket;
use crate::support::{eventually, within};

/// Namespaces that are durable in these tests.
const DURABLE: [(&str, &str); 2] =
    [("namespaces.chat.durable", "true"), ("namespaces.user.durable", "true")];

macro_rules! as_in_memory {
    ($($module:ident::$name:ident),+ $(,)?) => {
        mod as_in_memory {
            mod sqlite {
                $(#[test] fn $name() { super::super::as_in_memory(&crate::durable::Database::sqlite(), crate::$module::$name); })+
            }
            mod postgresql {
                $(#[test] fn $name() { super::super::as_in_memory(&crate::durable::Database::postgres(), crate::$module::$name); })+
            }
        }
    };
}

for_every_kind_of_channel!(as_in_memory);

on_both_databases!(
    streams::a_restarted_node_goes_on_where_it_was,
    streams::publications_are_rows_that_can_be_read,
    streams::old_and_superfluous_publications_are_deleted,
    streams::a_removed_history_stays_removed,
    streams::another_life_of_the_database_is_another_stream,
    streams::a_key_holds_over_a_restart,
    streams::what_is_outside_of_the_stream_is_no_row,
    streams::a_backup_is_restored_as_another_stream,
);

/// Runs a test of other channels with durable ones.
fn as_in_memory(database: &Database, test: impl FnOnce()) {
    let [_, option] = database.options();
    let (key, value) = option.split_once('=').unwrap();
    with_settings(&[&DURABLE[..], &[(key, value)]].concat(), test);
}

fn setup(database: &Database) -> Setup {
    DURABLE.iter().fold(database.setup(), |setup, (key, value)| setup.set(key, value))
}

fn offsets(messages: &Value) -> Vec<u64> {
    let messages = messages.as_array().expect("a list of publications");
    messages.iter().map(|message| message["offset"].as_u64().expect("an offset")).collect()
}

#[test]
fn a_namespace_becomes_durable_at_a_restart_only() {
    let database = Database::sqlite();
    let toml = |durable| format!("[[namespaces]]\nname = \"chat\"\ndurable = {durable}\n");
    let gateway = database.setup().toml(&toml(false)).start();
    gateway.publish("chat:room", json!(1));
    gateway.rewrite(&toml(true));
    gateway.signal("HUP");
    let told = eventually("the log says so", || gateway.log.events("restart_needed").pop());
    assert!(told.to_string().contains("namespaces.chat.durable"), "{told}");
    gateway.publish("chat:room", json!(2));
    assert_eq!(database.number("SELECT count(*) FROM archmesh_publications"), 0);
}

/// Two nodes, and a member of one channel on each.
fn two_in_a_room(database: &Database, redis: &Redis) -> ([Gateway; 2], [Socket; 2]) {
    let nodes = [(); 2].map(|()| setup(database).set("redis.url", redis.url()).start());
    let mut users = ["ada", "bob"].into_iter();
    let sockets = nodes.each_ref().map(|node| {
        let mut socket = Socket::connect(node, users.next().expect("one for each node"));
        socket.subscribe("chat:room");
        socket
    });
    (nodes, sockets)
}

#[test]
fn members_of_all_nodes_are_present() {
    let (database, redis) = (Database::postgres(), Redis::start(&[]));
    let ([a, b], [mut ada, mut bob]) = two_in_a_room(&database, &redis);
    let stats = bob.call("presence_stats", json!({"channel": "chat:room"}));
    assert_eq!(stats["data"]["users"], 2, "who is there is known with the first answer: {stats}");
    assert_eq!(ada.take("join")["data"]["user_id"], "bob");
    bob.publish("chat:room", json!(1));
    assert_eq!(ada.take("message")["data"], 1);
    drop(bob);
    assert_eq!(ada.take("leave")["data"]["user_id"], "bob");
    // Nobody's publication waits for the comparison of positions.
    assert_eq!(a.metric("archmesh_durable_behind_total", &[]), 0.0);
    drop(redis);
    within(REPAIRED_MAX, "presence without Redis is partial", || {
        let stats = a.result("presence_stats", &json!({"channel": "chat:room"}));
        (stats["partial"] == true).then_some(())
    });
    let page = a.result("history", &json!({"channel": "chat:room", "limit": 10}));
    assert!(page["partial"].is_null(), "publications are in the database: {page}");
    let mut cyd = Socket::connect(&b, "cyd");
    cyd.subscribe("chat:other");
    assert_eq!(cyd.publish("chat:other", json!(1))["offset"], 1);
}

#[test]
fn members_are_right_after_a_cut_without_a_publication() {
    let (database, redis) = (Database::postgres(), Redis::start(&[]));
    let node = |url: &str| setup(&database).set("redis.url", url);
    crate::broker::repairs::check_members_after_a_cut(&redis, "chat:room", node);
}

/// A home that lacks something asks for all of it: publications, and members.
#[test]
fn who_asks_for_publications_gets_the_members_too() {
    let (database, redis) = (Database::postgres(), Redis::start(&[]));
    let (_nodes, [mut ada, mut bob]) = two_in_a_room(&database, &redis);
    ada.take("join");
    bob.publish("chat:room", json!(1));
    assert_eq!(bob.take("message")["offset"], 1);
    // Nobody is told of either.
    let forget = "for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do \
                  if string.find(redis.call('HGET', KEYS[1], field), 'ada', 1, true) then \
                  redis.call('HDEL', KEYS[1], field) end end return redis.call('HLEN', KEYS[1])";
    let left = redis.ask(&format!("EVAL \"{forget}\" 1 archmesh:{{chat:room}}:members"));
    assert_eq!(left, ":1");
    let rest = "created_at, priority, type, data, key, sender, extra, origin";
    database.query(&format!(
        "WITH kept AS (INSERT INTO archmesh_publications (channel, seq, expires_at, {rest}) \
         SELECT channel, 2, expires_at, {rest} FROM archmesh_publications RETURNING seq) \
         UPDATE archmesh_streams SET top_seq = 2 \
         WHERE channel = 'chat:room' AND EXISTS (SELECT 1 FROM kept)"
    ));
    assert_eq!(bob.take("message")["offset"], 2);
    assert_eq!(bob.take("leave")["data"]["user_id"], "ada");
    assert_eq!(ada.call("ping", json!({}))["type"], "pong", "she is there in truth");
}

#[test]
fn the_documented_rights_are_enough() {
    let database = Database::postgres();
    drop(setup(&database).start());
    let role = database.documented_role();
    let mut gateway = Setup::new().set("database.migrate", false);
    for (key, value) in DURABLE {
        gateway = gateway.set(key, value);
    }
    let gateway = gateway.set("database.url", role.url()).start();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.subscribe("chat:room");
    ada.publish("chat:room", json!(1));
    assert_eq!(ada.take("message")["offset"], 1);
    let note = json!({"user": "ada", "title": "t", "message": "m", "category": "user_action"});
    gateway.result("v1/notifications", &note);
    ada.take("notification");
    eventually("the log says what it may not", || gateway.log.events("partitions_denied").pop());
    assert!(gateway.log.events("failovers_unseen").is_empty());
}
