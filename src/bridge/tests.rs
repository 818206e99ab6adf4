//! Hazard: an answer that is late, missing or meant for somebody else reaches a caller, or leaves something behind.

#![allow(clippy::unwrap_used)]

use gateway_core::error::ErrorCode;
use gateway_core::message::{Epoch, StreamPosition};

use super::testing::TestShards;
use super::*;

fn bridge(capacity: usize, requests_max: usize) -> (Arc<TestShards>, Bridge) {
    let shards = Arc::new(TestShards::new(capacity));
    let limits = BridgeLimits {
        request_timeout: Duration::from_millis(50),
        snapshot_timeout: Duration::from_millis(50),
        requests_max,
    };
    (Arc::clone(&shards), Bridge::new(shards, limits))
}

fn published(correlation: u64) -> ControlMessage {
    let position = StreamPosition { offset: 7, epoch: Epoch(*b"abcdefgh") };
    ControlMessage::Channel { correlation, outcome: Ok(ChannelOutcome::Published(position)) }
}

fn correlation(message: Option<ShardMessage>) -> u64 {
    match message.unwrap() {
        ShardMessage::Request(request) => match request.origin {
            Origin::Control(correlation) => correlation,
            other => panic!("{other:?} is no origin of the control plane"),
        },
        ShardMessage::Control(request) => request.correlation,
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test]
async fn an_answer_finds_its_question_at_the_home_shard() {
    let (shards, bridge) = bridge(8, 8);
    let odd = bridge.begin("abc", ChannelOp::HistoryRemove).unwrap();
    let even = bridge.begin("abcd", ChannelOp::HistoryRemove).unwrap();
    assert_eq!(bridge.requests_in_flight(), 2);
    // Answered in the other order.
    bridge.handle_message(published(correlation(shards.take(0))));
    bridge.handle_message(published(correlation(shards.take(1))));
    for pending in [odd, even] {
        assert!(
            matches!(pending.wait().await.unwrap(), ChannelOutcome::Published(p) if p.offset == 7)
        );
    }
    assert_eq!((bridge.requests_in_flight(), bridge.late_answers()), (0, 0));
}

#[tokio::test]
async fn a_full_mailbox_is_a_temporary_error_at_once() {
    let (_, bridge) = bridge(0, 8);
    let error = bridge.begin("abc", ChannelOp::Presence).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.code.is_temporary());
    assert_eq!(bridge.requests_in_flight(), 0);
}

#[tokio::test]
async fn the_table_of_questions_is_bounded() {
    let (_, bridge) = bridge(8, 1);
    let first = bridge.begin("abc", ChannelOp::Presence).unwrap();
    assert_eq!(bridge.begin("abc", ChannelOp::Presence).unwrap_err().code, ErrorCode::Unavailable);
    drop(first);
    bridge.begin("abc", ChannelOp::Presence).unwrap();
}

#[tokio::test]
async fn a_late_answer_is_counted_and_dropped() {
    let (shards, bridge) = bridge(8, 8);
    let error = bridge.request("abc", ChannelOp::Presence).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ConnectionTimeout);
    bridge.handle_message(published(correlation(shards.take(1))));
    assert_eq!((bridge.requests_in_flight(), bridge.late_answers()), (0, 1));
}

#[tokio::test]
async fn a_missing_shard_makes_a_gathering_partial() {
    let (shards, bridge) = bridge(8, 8);
    let asking = {
        let bridge = bridge.clone();
        tokio::spawn(async move {
            bridge.ask_all(|| ShardOp::Channels { prefix: "".into(), limit: 1 }).await.unwrap()
        })
    };
    let message = loop {
        tokio::task::yield_now().await;
        if let Some(message) = shards.take(1) {
            break message;
        }
    };
    let outcome = ShardOutcome::Affected(3);
    bridge.handle_message(ControlMessage::Shard {
        correlation: correlation(Some(message)),
        shard: ShardId(1),
        outcome,
    });
    let gathered = asking.await.unwrap();
    assert!(gathered.partial);
    assert!(matches!(gathered.answers[..], [(ShardId(1), ShardOutcome::Affected(3))]));
    assert_eq!(bridge.requests_in_flight(), 0);
}

#[tokio::test]
async fn snapshots_without_any_answer_are_partial_and_shared() {
    let (shards, bridge) = bridge(8, 8);
    let (first, second) = tokio::join!(bridge.snapshots(), bridge.snapshots());
    assert!(first.partial && second.partial);
    assert_eq!(first.known().count(), 0);
    assert_eq!(shards.take_snapshot_requests().len(), 2, "two scrapes at once ask each shard once");
}
