//! End-to-end tests of the built binary: a real process, real sockets, and clients that nobody here wrote.
//!
//! `gate`, `gateway`, `http`, `netns`, `postgres`, `redis`, `seen`, `socket` and `support` are the harness; every other file is
//! one hazard, and its header says the setup and what must hold. Nothing here sleeps: a test waits for what it can observe, with a
//! deadline. The foreign clients and tools are installed by `make test`; without them the tests that need them fail and
//! say so.

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unreachable_pub)]
#![allow(clippy::float_cmp, reason = "counters are whole numbers, which a float holds exactly")]
#![allow(clippy::needless_pass_by_value, reason = "`json!` at the call reads best by value")]
#![allow(clippy::format_collect, clippy::large_stack_arrays, reason = "test data, made once")]

/// Tests that hold for every kind of channel: in memory, through Redis, durable.
macro_rules! for_every_kind_of_channel {
    ($with:ident) => {
        $with!(
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
    };
}

mod gate;
mod gateway;
mod http;
mod netns;
mod postgres;
mod program;
mod raw;
mod redis;
mod seen;
mod socket;
mod support;

mod abuse;
mod auth;
mod balancer;
mod broker;
mod capacity;
mod chaos;
mod churn;
mod clients;
mod cluster;
mod cluster_reads;
mod delivery;
mod drain;
mod durable;
mod events;
mod heartbeat;
mod hooks;
mod http_api;
mod http_server;
mod limits;
mod loadtest;
mod metrics;
mod notifications;
mod panic;
mod partial;
mod placement;
mod poisoned;
mod pubsub;
mod recovery;
mod run_script;
mod slow;
mod startup;
mod through_redis;
mod tls;
