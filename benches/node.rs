//! One shard in memory with clients that read everything at once: no socket, no kernel.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use gateway_core::admission::Admission;
use gateway_core::auth::{KeyAlgorithm, KeySet, SigningKey, VerificationKey, mint};
use gateway_core::ids::{ConnectionId, ShardId};
use gateway_core::message::{ChannelOp, ChannelRequest, Origin, Publish, ShardMessage};
use gateway_core::settings::{Access, Namespace, Namespaces, Peer, Settings};
use gateway_core::time::Now;
use gateway_core::ws::frame::{self, Opcode};
use gateway_core::{Output, Shard, ShardInit};
use serde_json::json;

const SECRET: &[u8] = b"a secret of the benchmarks, 32 bytes or more";
const HASH_SEED: u64 = 42;
const SLICES: usize = 64;

pub(crate) struct Node {
    pub(crate) shard: Shard,
    pub(crate) now: Now,
    key: SigningKey,
}

fn settings() -> Settings {
    let keys =
        vec![VerificationKey::from_secret(KeyAlgorithm::Hs256, SECRET).expect("long enough")];
    let namespace = |name: &str, history_size| Namespace {
        subscribe: Access::SignedIn,
        publish: Access::SignedIn,
        history_size,
        history_ttl: Duration::from_secs(600),
        recovery: history_size > 0,
        ..Namespace::closed(name)
    };
    let mut settings = Settings::for_tests(KeySet::from(keys));
    settings.namespaces = Namespaces::new(vec![namespace("kept", 100), namespace("live", 0)]);
    settings.websocket.compression = true;
    settings.websocket.compression_level = 3;
    settings.limits.connections_max = 1_000_000;
    settings.limits.outbox_bytes_max = 2 << 20;
    settings.limits.history_bytes_max = 256 << 20;
    settings.limits.token_cache_entries_max = 20_000;
    settings
}

impl Node {
    pub(crate) fn new() -> Self {
        let shard = Shard::new(ShardInit {
            id: ShardId(0),
            shards: 1,
            hash_seed: HASH_SEED,
            seed: [7; 32],
            settings: Arc::new(settings()),
            admission: Arc::new(Admission::new(HASH_SEED)),
        });
        let now = Now { mono: Duration::from_secs(1), unix: Duration::from_secs(1_800_000_000) };
        let key = SigningKey::from_secret(KeyAlgorithm::Hs256, SECRET).expect("long enough");
        Self { shard, now, key }
    }

    /// The request head of `user`, who may offer to read compressed messages.
    pub(crate) fn head(&self, user: &str, deflated: bool) -> Vec<u8> {
        let offer = if deflated { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        let issued = self.now.unix.as_secs();
        let claims = json!({"sub": user, "iat": issued, "exp": issued + 3600});
        let token = mint(&self.key, &claims).expect("claims can be signed");
        format!(
            "GET /ws HTTP/1.1\r\nHost: gateway.test\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
             Accept-Language: en\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\
             Authorization: Bearer {token}\r\n\r\n"
        )
        .into_bytes()
    }

    /// From an accepted socket to a `welcome` that has been sent.
    pub(crate) fn connect(&mut self, head: &[u8]) -> ConnectionId {
        let peer = Peer { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 1, tls: false };
        let id = self.shard.open(self.now, peer).expect("nothing limits connections here");
        let sent = self.bytes(id, &mut head.to_vec());
        assert!(sent > 400, "a 101 and a welcome, not a refusal: {sent} bytes");
        id
    }

    /// Bytes from a client; answers the bytes sent to all clients in consequence.
    pub(crate) fn bytes(&mut self, id: ConnectionId, bytes: &mut [u8]) -> usize {
        self.shard.handle_bytes(self.now, id, bytes);
        self.settle()
    }

    /// A command as a masked frame.
    pub(crate) fn command(kind: &str, data: &serde_json::Value) -> Vec<u8> {
        let text = json!({"type": kind, "id": "1", "data": data}).to_string();
        let mut out = Vec::new();
        frame::encode_masked(&mut out, Opcode::Text, text.as_bytes(), [1, 2, 3, 4]);
        out
    }

    pub(crate) fn subscribe(&mut self, id: ConnectionId, channel: &str) {
        let mut command = Self::command("subscribe", &json!({"channel": channel}));
        let sent = self.bytes(id, &mut command);
        assert!(sent > 0, "subscribed");
    }

    /// A publication from the server API, up to the outboxes.
    pub(crate) fn publish(&mut self, channel: &Arc<str>, data: &bytes::Bytes) {
        let publish =
            Publish { data: data.clone(), accepted_at: self.now.mono, ..Publish::default() };
        let request = ChannelRequest {
            origin: Origin::Control(1),
            channel: Arc::clone(channel),
            op: ChannelOp::Publish(publish),
        };
        self.shard.handle_message(self.now, ShardMessage::Request(Box::new(request)));
    }

    /// Sends everything; answers the bytes.
    pub(crate) fn settle(&mut self) -> usize {
        while let Some(output) = self.shard.poll_output() {
            assert!(!matches!(output, Output::Abort { .. }), "nobody is slow here");
        }
        let mut total = 0;
        while let Some(id) = self.shard.next_dirty() {
            loop {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let filled = self.shard.gather(id, &mut slices);
                let bytes: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
                if bytes == 0 {
                    break;
                }
                self.shard.handle_sent(self.now, id, bytes);
                total += bytes;
            }
        }
        total
    }
}
