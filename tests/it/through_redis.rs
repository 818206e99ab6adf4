//! Setup: the tests of `pubsub` and `recovery`, with gateways that keep their channels in a real Redis.
//!
//! Must hold: what holds in memory. Only a restart differs: in memory it forgets, Redis remembers.

use serde_json::json;

use crate::gateway::{Gateway, with_redis};
use crate::redis::Redis;
use crate::socket::Socket;

macro_rules! through_redis {
    ($($module:ident::$name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                let redis = Redis::start(&[]);
                with_redis(&redis.url(), crate::$module::$name);
            }
        )+
    };
}

for_every_kind_of_channel!(through_redis);

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
