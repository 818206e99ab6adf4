//! One shard in memory with clients that read everything at once: no socket, no kernel.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use gateway_core::admission::Admission;
use gateway_core::auth::{
    Authenticator, KeyAlgorithm, KeySet, SigningKey, TokenRules, VerificationKey, mint,
};
use gateway_core::ids::{ConnectionId, ShardId};
use gateway_core::message::{ChannelOp, ChannelRequest, Origin, Publish, ShardMessage};
use gateway_core::settings::{
    Access, AllowedOrigins, AuthSettings, Diagnostics, HeartbeatSettings, LargeDataLimits, Limits,
    Namespace, Namespaces, Peer, Rate, Settings, WebSocketSettings,
};
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
    Settings {
        node: "bench".into(),
        limits: limits(),
        namespaces: Namespaces::new(vec![namespace("kept", 100), namespace("live", 0)]),
        websocket: WebSocketSettings {
            path: "/ws".into(),
            origins: AllowedOrigins::Any,
            compression: false,
            compression_level: 3,
            compression_bytes_min: 512,
        },
        auth: AuthSettings {
            authenticator: Arc::new(Authenticator::new(
                TokenRules::default(),
                KeySet::from(keys),
                None,
            )),
            anonymous: false,
            query_token: true,
            expiry_grace: Duration::from_secs(25),
        },
        heartbeat: HeartbeatSettings {
            ping_interval: Duration::from_secs(30),
            pong_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
        },
        diagnostics: Diagnostics::default(),
    }
}

fn limits() -> Limits {
    Limits {
        connections_max: 1_000_000,
        connections_per_user_max: 0,
        connections_per_address_max: 0,
        handshakes: Rate::UNLIMITED,
        head_bytes_max: 8192,
        headers_max: 100,
        handshake_timeout: Duration::from_secs(5),
        auth_timeout: Duration::from_secs(10),
        message_bytes_max: 1 << 20,
        fragments_max: 1024,
        json_depth_max: 64,
        subscriptions_max: 256,
        requests_in_flight_max: 128,
        channel_name_bytes_max: 255,
        channels_per_shard_max: 100_000,
        outbox_bytes_max: 2 << 20,
        shard_outbox_bytes_max: 1 << 30,
        recovery_bytes_max: 1 << 20,
        history_page_max: 1000,
        history_bytes_max: 256 << 20,
        presence_members_max: 1000,
        presence_interval: Duration::from_millis(500),
        close_timeout: Duration::from_secs(5),
        messages_per_connection: Rate::UNLIMITED,
        messages_per_user: Rate::UNLIMITED,
        messages_per_address: Rate::UNLIMITED,
        rate_violations_max: 100,
        bad_messages_max: 10,
        large_data: LargeDataLimits {
            chunk_bytes_max: 64 << 10,
            chunks_max: 1000,
            transfers_max: 4,
            connection_bytes_max: 64 << 20,
            shard_bytes_max: 256 << 20,
            expiry: Duration::from_secs(60),
        },
        idempotency_ttl: Duration::from_secs(300),
        idempotency_keys_max: 1000,
        channel_idle_ttl: Duration::from_secs(3600),
        last_seen_ttl: Duration::from_secs(86_400),
        last_seen_max: 100_000,
        token_cache_entries_max: 20_000,
    }
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

    /// The request head of `user`.
    pub(crate) fn head(&self, user: &str) -> Vec<u8> {
        let issued = self.now.unix.as_secs();
        let claims = json!({"sub": user, "iat": issued, "exp": issued + 3600});
        let token = mint(&self.key, &claims).expect("claims can be signed");
        format!(
            "GET /ws HTTP/1.1\r\nHost: gateway.test\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
             Accept-Language: en\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
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
