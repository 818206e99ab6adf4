//! Questions of nobody in particular.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use gateway_core::hook::{HookAsk, HookClient, HookQuestion};
use gateway_core::ids::{ConnectionId, SessionId, ShardId};

/// A question of connection 1 on shard 0, wanted as long as the first part lives.
pub(crate) fn question(ask: HookAsk) -> (Arc<()>, HookQuestion) {
    let asker = Arc::new(());
    let question = HookQuestion {
        connection: ConnectionId::new(ShardId(0), 1, 1),
        request: 1,
        asker: Arc::downgrade(&asker),
        client: HookClient {
            session: SessionId::from_bytes([7; 16]),
            user: "alice".into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            user_agent: None,
            info: None,
        },
        ask,
    };
    (asker, question)
}
