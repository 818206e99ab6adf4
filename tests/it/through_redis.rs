//! Setup: the tests of `pubsub` and `recovery`, with gateways that keep their channels in a real Redis.
//!
//! Must hold: what holds in memory. Only a restart differs: in memory it forgets, Redis remembers.

use serde_json::json;

use crate::gateway::{Gateway, with_redis};
use crate::redis::Redis;
use crate::socket::Socket;
use crate::{pubsub, recovery};

macro_rules! through_redis {
    ($($module:ident::$name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                let redis = Redis::start(&[]);
                with_redis(&redis.url(), $module::$name);
            }
        )+
    };
}

through_redis!(
    pubsub::one_shard_delivers,
    pubsub::two_shards_deliver,
    pubsub::every_shard_gets_what_any_shard_publishes,
    pubsub::the_server_api_reaches_sockets,
    pubsub::order_holds_while_many_publish,
    pubsub::server_side_subscriptions_come_with_the_welcome,
    pubsub::presence_tells_who_is_there,
    pubsub::a_repeated_publication_is_published_once,
    pubsub::large_data_goes_both_ways,
    recovery::exactly_what_was_missed_comes_back,
    recovery::what_the_history_does_not_hold_is_said,
    recovery::no_gap_and_no_duplicate_while_others_publish,
    recovery::the_first_message_may_carry_positions,
    recovery::history_is_read_in_pages,
);

#[test]
fn a_restarted_node_goes_on_where_it_was() {
    let redis = Redis::start(&[]);
    with_redis(&redis.url(), || {
        let before = Gateway::start();
        let mut socket = Socket::connect(&before, "ada");
        let position = socket.publish("chat:room", json!({"n": 1}));
        drop(before);
        let after = Gateway::start();
        let mut socket = Socket::connect(&after, "ada");
        socket.publish("chat:room", json!({"n": 2}));
        let reply = socket.recover("chat:room", &position);
        assert_eq!(reply["recovered"], true, "{reply}");
        assert_eq!(reply["messages"][0]["data"]["n"], 2, "{reply}");
    });
}
