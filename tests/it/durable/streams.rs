//! What durable channels promise beyond those in memory.

use std::time::Duration;

use serde_json::{Value, json};

use super::{offsets, setup};
use crate::notifications::backup::archmesh;
use crate::notifications::database::Database;
use crate::socket::Socket;
use crate::support::eventually;

pub fn a_restarted_node_goes_on_where_it_was(database: &Database) {
    let mut before = setup(database).start();
    let mut socket = Socket::connect(&before, "ada");
    let position = socket.publish("chat:room", json!({"n": 1}));
    for n in 2..=600 {
        before.publish("chat:room", json!({ "n": n }));
    }
    before.signal("KILL");
    before.await_exit(Duration::from_secs(10));
    let after = setup(database).start();
    let mut socket = Socket::connect(&after, "ada");
    let reply = socket.recover("chat:room", &position);
    assert_eq!(reply["recovered"], true, "{reply}");
    assert_eq!(offsets(&reply["messages"]), (2..=600).collect::<Vec<_>>());
    let next = socket.publish("chat:room", json!({"n": 601}));
    assert_eq!((&next["offset"], &next["epoch"]), (&json!(601), &position["epoch"]));
    assert_eq!(socket.take("message")["data"]["n"], 601);
}

pub fn publications_are_rows_that_can_be_read(database: &Database) {
    let gateway = setup(database).start();
    let body = json!({"channel": "chat:room", "data": {"text": "ü\u{0}"}, "type": "edit", "priority": "high"});
    gateway.result("publish", &body);
    let rows =
        database.query("SELECT channel, seq, type, data, priority FROM archmesh_publications");
    let data = json!({"text": "ü\u{0}"}).to_string();
    assert_eq!(rows, [["chat:room", "1", "edit", &data, "3"].map(str::to_owned)]);
    // What cannot be a row is refused, and hurts nobody.
    let mut socket = Socket::connect(&gateway, "ada");
    let bad = json!({"channel": "chat:room", "data": 1, "key": "a\u{0}b"});
    let reply = socket.call("publish", bad);
    assert_eq!(reply["data"]["error_code"], "INVALID_MESSAGE_FORMAT", "{reply}");
    assert_eq!(socket.publish("chat:room", json!(2))["offset"], 2);
}

pub fn old_and_superfluous_publications_are_deleted(database: &Database) {
    let count = |channel: &str| {
        let sql = "SELECT count(*) FROM archmesh_publications WHERE channel =";
        database.number(&format!("{sql} '{channel}'"))
    };
    let gateway = setup(database)
        .toml("[[namespaces]]\nname = \"brief\"\nhistory_size = 1000\nhistory_ttl = \"1s\"\ndurable = true\n")
        .set("namespaces.chat.history_size", 20)
        .set("durable.clean_interval", "100ms")
        .start();
    for n in 1..=100 {
        gateway.publish("chat:room", json!(n));
    }
    gateway.publish("brief:moment", json!(1));
    eventually("the channel has not much more than it keeps", || {
        (20..=25).contains(&count("chat:room")).then_some(())
    });
    eventually("what has expired is not read any more", || {
        let read = gateway.result("history", &json!({"channel": "brief:moment", "limit": 10}));
        read["publications"].as_array().unwrap().is_empty().then_some(())
    });
    let read = gateway.result("history", &json!({"channel": "chat:room", "limit": 100}));
    assert_eq!(offsets(&read["publications"]), (81..=100).collect::<Vec<_>>());
    if matches!(database, Database::Sqlite(_)) {
        eventually("what has expired is deleted", || (count("brief:moment") == 0).then_some(()));
    } else {
        // It lies in a partition, which goes as a whole on the day after.
        let its = "SELECT tableoid::regclass::text FROM archmesh_publications WHERE channel = 'brief:moment'";
        let over = "UPDATE archmesh_publication_partitions SET to_at = 1 WHERE name IN";
        database.query(&format!("{over} ({its})"));
        eventually("the partition is dropped", || (count("brief:moment") == 0).then_some(()));
        gateway.publish("chat:room", json!(101));
    }
    gateway.await_metric("archmesh_durable_deleted_total", &[], |deleted| deleted >= 75.0);
}

pub fn a_removed_history_stays_removed(database: &Database) {
    let gateway = setup(database).set("durable.clean_interval", "100ms").start();
    let mut socket = Socket::connect(&gateway, "ada");
    let first = socket.publish("chat:room", json!(1));
    socket.publish("chat:room", json!(2));
    gateway.result("history_remove", &json!({"channel": "chat:room"}));
    socket.publish("chat:room", json!(3));
    let read = gateway.result("history", &json!({"channel": "chat:room", "limit": 100}));
    assert_eq!(offsets(&read["publications"]), [3]);
    eventually("the rows are deleted", || {
        let rows = database.number("SELECT count(*) FROM archmesh_publications");
        (rows == 1).then_some(())
    });
    drop(gateway);
    let gateway = setup(database).start();
    let mut socket = Socket::connect(&gateway, "ada");
    let reply = socket.recover("chat:room", &first);
    assert_eq!((&reply["recovered"], &reply["offset"]), (&json!(false), &json!(3)), "{reply}");
}

pub fn another_life_of_the_database_is_another_stream(database: &Database) {
    let gateway = setup(database).start();
    let mut watcher = Socket::connect(&gateway, "bob");
    watcher.subscribe("chat:room");
    let mut socket = Socket::connect(&gateway, "ada");
    let position = socket.publish("chat:room", json!(1));
    // As after a failover to a server that may lack what was newest.
    database.query("UPDATE archmesh_streams SET incarnation = 'another'");
    let next = socket.publish("chat:room", json!(2));
    assert_ne!(next["epoch"], position["epoch"]);
    let lost = watcher.take("lost");
    assert_eq!(
        (&lost["data"]["reason"], &lost["data"]["epoch"]),
        (&json!("epoch"), &next["epoch"])
    );
    assert_eq!(socket.recover("chat:room", &position)["recovered"], false);
    socket.publish("chat:room", json!(3));
    assert_eq!(watcher.wait_for("the third", |message| message["data"] == 3)["offset"], 3);
}

pub fn a_key_holds_over_a_restart(database: &Database) {
    let body = |n: u64| json!({"channel": "chat:room", "data": n, "idempotency_key": "same"});
    let gateway = setup(database).start();
    let first = gateway.result("publish", &body(1));
    drop(gateway);
    let gateway = setup(database).start();
    assert_eq!(gateway.result("publish", &body(2)), first);
    let keys: Vec<Value> = (0..20).map(|_| body(3)).collect();
    let answers = gateway.result(
        "batch",
        &json!({"commands": keys.iter().map(|body| json!({"publish": body})).collect::<Vec<_>>()}),
    );
    assert!(answers.to_string().matches("\"offset\":1").count() >= 20, "{answers}");
    assert_eq!(database.number("SELECT count(*) FROM archmesh_publications"), 1);
}

pub fn what_is_outside_of_the_stream_is_no_row(database: &Database) {
    let gateway = setup(database).start();
    let mut watcher = Socket::connect(&gateway, "bob");
    watcher.subscribe("chat:room");
    gateway.result("publish", &json!({"channel": "chat:room", "data": 1, "skip_history": true}));
    assert_eq!(watcher.take("message")["data"], 1);
    gateway.publish("chat:room", json!(2));
    assert_eq!(watcher.take("message")["offset"], 1);
    assert_eq!(database.number("SELECT count(*) FROM archmesh_publications"), 1);
}

pub fn a_backup_is_restored_as_another_stream(database: &Database) {
    let gateway = setup(database).start();
    let mut socket = Socket::connect(&gateway, "ada");
    let first = socket.publish("chat:room", json!(1));
    socket.publish("chat:room", json!(2));
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    let output = archmesh("backup", ("--to", &backup), database);
    assert!(output.status.success(), "{output:?}");
    // Its place will be given out again.
    socket.publish("chat:room", json!("lost"));
    drop(gateway);
    let another = database.another();
    let output = archmesh("restore", ("--from", &backup), &another);
    assert!(output.status.success(), "{output:?}");
    let gateway = setup(&another).start();
    let mut socket = Socket::connect(&gateway, "ada");
    let reply = socket.recover("chat:room", &first);
    assert_eq!((&reply["recovered"], &reply["offset"]), (&json!(false), &json!(2)), "{reply}");
    let third = socket.publish("chat:room", json!(3));
    assert_eq!(third["offset"], 3);
    assert_ne!(third["epoch"], first["epoch"]);
    let read = gateway.result("history", &json!({"channel": "chat:room", "limit": 100}));
    assert_eq!(offsets(&read["publications"]), [1, 2, 3]);
}
