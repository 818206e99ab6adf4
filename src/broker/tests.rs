//! What may wait for Redis, and for how long.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway_core::admission::Admission;
use gateway_core::broker::{BrokerOp, BrokerRequest, Retention};
use gateway_core::error::ErrorCode;
use gateway_core::ids::ShardId;
use gateway_core::message::{ChannelName, Origin, Publish, ShardMessage};

use super::Broker;
use super::mail::Mail;
use super::publisher::{Write, WriteKind};
use crate::bridge::testing::TestShards;
use crate::bridge::{Bridge, BridgeLimits, Shards};
use crate::cluster::Cluster;
use crate::config::{Config, Sources};

const ROOM: &str = "room";

/// A broker of which nothing runs, at a Redis that is not there.
fn broker(settings: &[(&str, &str)]) -> (Arc<TestShards>, Arc<Broker>) {
    let with = [("REDIS_URL", "redis://127.0.0.1:1"), ("ENVIRONMENT", "development")];
    let variables = with.iter().chain(settings).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let sources = Sources { variables: variables.collect(), ..Sources::default() };
    let config = Config::load(&sources).unwrap().config;
    let shards = Arc::new(TestShards::new(1024));
    let limits = BridgeLimits {
        request_timeout: Duration::from_secs(1),
        snapshot_timeout: Duration::from_secs(1),
        requests_max: 16,
    };
    let bridge = Bridge::new(Arc::clone(&shards) as Arc<dyn Shards>, limits);
    let mail = Arc::new(Mail::new(bridge.clone(), 1024));
    let cluster = Cluster::start(&config).unwrap().unwrap();
    let admission = Arc::new(Admission::new(1));
    let broker = Broker::start(&config, (&bridge, admission), (&mail, None), (&cluster, None));
    (shards, broker.unwrap())
}

fn publish(broker: &Broker, bytes: usize) {
    let publish = Publish { data: Bytes::from(vec![b'1'; bytes]), ..Publish::default() };
    let retention = Retention { size: 10, ttl: Duration::from_secs(60) };
    let op = BrokerOp::Publish {
        origin: Origin::Hub(ShardId(0)),
        publish: Box::new(publish),
        retention,
    };
    broker.handle(BrokerRequest { channel: ChannelName::from(ROOM), durable: false, op });
}

/// Messages of the errors that were answered; every one is temporary.
fn refusals(shards: &TestShards) -> Vec<String> {
    let mut messages = Vec::new();
    while let Some(message) = shards.take(0) {
        let ShardMessage::Reply(reply) = message else { panic!("{message:?}") };
        let error = reply.outcome.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable);
        messages.push(error.message);
    }
    messages
}

fn refused(broker: &Broker) -> u64 {
    broker.counts().writes[2]
}

#[tokio::test]
async fn more_writes_than_may_wait_are_refused() {
    let (shards, broker) = broker(&[("ARCHMESH__REDIS__WRITES_WAITING_MAX", "16")]);
    for _ in 0..20 {
        publish(&broker, 10);
    }
    let messages = refusals(&shards);
    assert_eq!((messages.len(), refused(&broker), broker.counts().waiting), (4, 4, 16));
    assert!(messages[0].contains("redis.writes_waiting_max"), "{messages:?}");
}

#[tokio::test]
async fn more_bytes_than_may_wait_are_refused() {
    let settings = [
        ("ARCHMESH__REDIS__WRITES_WAITING_BYTES_MAX", "64KiB"),
        ("ARCHMESH__REDIS__COMPRESSION_BYTES_MIN", "0"),
    ];
    let (shards, broker) = broker(&settings);
    for _ in 0..10 {
        publish(&broker, 10_000);
    }
    assert_eq!((refusals(&shards).len(), broker.counts().waiting), (4, 6));
    publish(&broker, 1_000);
    assert_eq!(refusals(&shards).len(), 0, "a small one has room");
}

#[tokio::test]
async fn one_that_is_larger_than_the_bound_passes_alone() {
    let settings = [
        ("ARCHMESH__REDIS__WRITES_WAITING_BYTES_MAX", "64KiB"),
        ("ARCHMESH__REDIS__COMPRESSION_BYTES_MIN", "0"),
    ];
    let (shards, broker) = broker(&settings);
    publish(&broker, 100_000);
    publish(&broker, 10);
    assert_eq!((refusals(&shards).len(), broker.counts().waiting), (1, 1));
}

/// What has waited too long is answered before it is sent, and makes room.
#[tokio::test]
async fn writes_that_wait_too_long_are_answered() {
    let (shards, broker) = broker(&[("ARCHMESH__REDIS__COMMAND_TIMEOUT", "1s")]);
    let write = |age: u64| Write {
        channel: ROOM.into(),
        kind: WriteKind::Remove { origin: Origin::Hub(ShardId(0)) },
        payload: Bytes::new(),
        at: Instant::now().checked_sub(Duration::from_secs(age)).unwrap(),
        told: None,
    };
    let publisher = &broker.instances[0].publisher;
    publisher.push(write(2));
    assert!(publisher.next_batch().is_none());
    let said = "Redis cannot be reached, or takes no writes: nothing was published; try again";
    assert_eq!(refusals(&shards), [said]);
    assert_eq!((broker.counts().writes[1], publisher.waiting_bytes()), (1, 0));
    publisher.push(write(2));
    publisher.push(write(0));
    let batch = publisher.next_batch().unwrap();
    assert_eq!((batch.len(), refusals(&shards).len()), (1, 1));
    assert!(publisher.waiting_bytes() > 0, "what is under way holds its bytes");
}

#[tokio::test]
async fn one_call_carries_a_bounded_number_of_bytes() {
    let (_shards, broker) = broker(&[("ARCHMESH__REDIS__COMPRESSION_BYTES_MIN", "0")]);
    for _ in 0..6 {
        publish(&broker, 1 << 20);
    }
    let publisher = &broker.instances[0].publisher;
    let lengths: Vec<usize> =
        std::iter::from_fn(|| publisher.next_batch()).map(|batch| batch.len()).collect();
    assert_eq!(lengths, [4, 2]);
}
