//! From an accepted socket to a WebSocket: admission, request head, handshake.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::authenticate::{Identity, explain};
use super::{Shard, Slot};
use crate::auth::Claims;
use crate::event::Event;
use crate::hook::ConnectHook;
use crate::ids::{ConnectionId, SessionId};
use crate::message::ChannelName;
use crate::metrics::{MessageKind, RefusalReason};
use crate::outbox::Outbox;
use crate::output::Output;
use crate::proto::SUBPROTOCOL;
use crate::proxies::FORWARDED_HEADER;
use crate::rate::Gcra;
use crate::session::{Phase, Session};
use crate::settings::Peer;
use crate::time::Now;
use crate::ws::handshake::{self, Accepted, Offer, Refusal, RequestHead};

/// An upgrade that nothing stands against.
struct Upgrade {
    accepted: Accepted,
    next: Next,
}

/// What follows the upgrade.
enum Next {
    /// The echo endpoint.
    Echo,
    /// The user is known; `None` is anonymous.
    Attach(Option<Arc<Claims>>),
    /// The token is for the application.
    Ask(String),
    /// The token comes in the first message.
    AwaitToken,
}

/// Prefix of a subprotocol entry that carries a token.
const BEARER_SUBPROTOCOL: &str = "bearer.";

const USER_AGENT_BYTES_MAX: usize = 128;

/// When to come back to a node that is full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Shard {
    /// A socket was accepted. On refusal the caller closes the socket (after writing the plain HTTP answer
    /// [`RefusalReason`] stands for, when the socket is not TLS).
    pub fn open(&mut self, now: Now, peer: Peer) -> Result<ConnectionId, RefusalReason> {
        if let Err(reason) = self.admit(now, peer) {
            return Err(self.count_refusal(reason));
        }
        let slot = if let Some(slot) = self.free.pop() {
            slot
        } else {
            self.slots.push(Slot { generation: 0, session: None });
            self.slots.len() as u32 - 1
        };
        let id = ConnectionId::new(self.id, slot, self.slots[slot as usize].generation);
        self.now = now;
        let nobody = Arc::clone(&self.nobody);
        let session = Session {
            id,
            peer,
            phase: Phase::Head(Vec::new()),
            decoder: None,
            outbox: Outbox::new(),
            dirty: false,
            flush_left: 0,
            websocket_counted: false,
            deflate: false,
            inflate: false,
            user_counted: false,
            told: false,
            ending: None,
            opened_at: now.mono.into(),
            last_input: now.mono.into(),
            timer_at: None,
            next_ping_at: now.mono.into(),
            ping_sent_at: None,
            drain_at: None,
            claims: None,
            user: nobody,
            public_id: SessionId::NONE,
            subscriptions: Vec::new(),
            pending: Vec::new(),
            next_request: 0,
            serial: 0,
            rate: Gcra::default(),
            rate_violations: 0,
            bad_messages: 0,
            message_keys: self.admission.message_keys("", peer.address),
            messages_in: 0,
            messages_out: 0,
            large_data: None,
            user_agent: None,
        };
        self.slots[slot as usize].session = Some(Box::new(session));
        self.heads.push_back(id);
        self.forget_old_heads();
        self.metrics.connections += 1;
        self.touch_timer(id, now.mono + self.settings.limits.handshake_timeout);
        Ok(id)
    }

    /// Keeps the list of half-open connections about as long as there are any.
    fn forget_old_heads(&mut self) {
        while let Some(&oldest) = self.heads.front() {
            let waiting =
                self.session(oldest).is_some_and(|session| matches!(session.phase, Phase::Head(_)));
            if waiting {
                break;
            }
            self.heads.pop_front();
        }
    }

    /// Counts the socket. When the node is full of sockets, the one here that has waited longest without a complete
    /// request makes room, so that half-open connections cannot keep others out.
    fn admit(&mut self, now: Now, peer: Peer) -> Result<(), RefusalReason> {
        let limits = &self.settings.limits;
        let is_proxy = self.settings.proxies.trusts(peer.address);
        let admitted = if is_proxy {
            self.admission.try_connect_proxy(now.mono, peer.address, limits)
        } else {
            self.admission.try_connect(now.mono, peer.address, limits)
        };
        if admitted != Err(RefusalReason::NodeFull) {
            return admitted;
        }
        while let Some(oldest) = self.heads.pop_front() {
            let Some(session) = self.session_mut(oldest) else { continue };
            if matches!(session.phase, Phase::Head(_)) {
                session.phase = Phase::Gone { deadline: now.mono };
                self.metrics.refused.add(RefusalReason::HandshakeTimeout as usize, 1);
                self.outputs.push_back(Output::Abort { id: oldest });
                let limits = &self.settings.limits;
                let address_max = if is_proxy { 0 } else { limits.connections_per_address_max };
                return self.admission.connect_instead(peer.address, address_max);
            }
        }
        admitted
    }

    fn count_refusal(&mut self, reason: RefusalReason) -> RefusalReason {
        self.metrics.refused.add(reason as usize, 1);
        reason
    }

    /// The TLS handshake of the connection failed; the caller will close it.
    pub fn handle_tls_failure(&mut self, now: Now, id: ConnectionId) {
        let deadline = now.mono + self.settings.limits.close_timeout;
        if let Some(session) = self.session_mut(id) {
            session.phase = Phase::Gone { deadline };
            self.metrics.refused.add(RefusalReason::Tls as usize, 1);
        }
    }

    /// More bytes of the request head.
    pub(super) fn handle_head_bytes(&mut self, now: Now, id: ConnectionId, bytes: &mut [u8]) {
        let settings = Arc::clone(&self.settings);
        let limits = &settings.limits;
        let Some(session) = self.session_mut(id) else { return };
        let Phase::Head(buffer) = &mut session.phase else { return };
        buffer.extend_from_slice(bytes);
        let buffer = std::mem::take(buffer);
        match RequestHead::parse(&buffer, limits.head_bytes_max, limits.headers_max) {
            Ok(None) => session.phase = Phase::Head(buffer),
            Ok(Some(head)) => self.handle_head(now, id, &head, buffer),
            Err(refusal) => self.refuse_handshake(id, &refusal, RefusalReason::BadRequest),
        }
    }

    fn handle_head(
        &mut self,
        now: Now,
        id: ConnectionId,
        head: &RequestHead,
        mut received: Vec<u8>,
    ) {
        let settings = Arc::clone(&self.settings);
        let websocket = &settings.websocket;
        let echo = settings.diagnostics.echo_path.as_deref() == Some(&*head.path);
        let ours = *head.path == *websocket.path || echo;
        if !ours || !head.is_upgrade() {
            let deadline = now.mono + settings.limits.close_timeout;
            if let Some(session) = self.session_mut(id) {
                session.phase = Phase::Gone { deadline };
            }
            self.outputs.push_back(Output::HandOver { id, received });
            return;
        }
        let checked =
            self.learn_client(id, head).and_then(|()| self.check_upgrade(now, id, head, echo));
        match checked {
            Err((refusal, reason)) => self.refuse_handshake(id, &refusal, reason),
            Ok(upgrade) => {
                let mut rest = received.split_off(head.len.min(received.len()));
                self.begin_websocket(now, id, head, upgrade);
                if !rest.is_empty() {
                    self.handle_bytes(now, id, &mut rest);
                }
            }
        }
    }

    /// From here on a connection of a proxy counts as its client's.
    fn learn_client(
        &mut self,
        id: ConnectionId,
        head: &RequestHead,
    ) -> Result<(), (Refusal, RefusalReason)> {
        let settings = Arc::clone(&self.settings);
        let admission = Arc::clone(&self.admission);
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let proxy = session.peer.address;
        let client = settings.proxies.client(proxy, head.header_all(FORWARDED_HEADER));
        if client == proxy {
            return Ok(());
        }
        admission.readdress(proxy, client, &settings.limits).map_err(|reason| {
            let message = "this address has too many connections \
                           (limits.connections_per_address_max)";
            (Refusal::new(429, "address_limit", message).with_retry_after(RETRY_AFTER), reason)
        })?;
        session.peer.address = client;
        session.message_keys = admission.message_keys("", client);
        Ok(())
    }

    /// Everything that may stand against the upgrade: origin, load, RFC 6455, token, the user's connections.
    fn check_upgrade(
        &mut self,
        now: Now,
        id: ConnectionId,
        head: &RequestHead,
        echo: bool,
    ) -> Result<Upgrade, (Refusal, RefusalReason)> {
        let settings = Arc::clone(&self.settings);
        let websocket = &settings.websocket;
        if let Some(origin) = head.header("origin")
            && !echo
            && !websocket.origins.allows(origin, head.header("host"))
        {
            let message = "this origin is not in the allow-list (websocket.origins)";
            let refusal = Refusal::new(403, "origin_not_allowed", message);
            return Err((refusal, RefusalReason::Origin));
        }
        if let Some(refused) = self.overloaded() {
            return Err(refused);
        }
        let offer = Offer { subprotocols: &[SUBPROTOCOL], compression: websocket.compression };
        let accepted = handshake::accept(head, &offer)
            .map_err(|refusal| (refusal, RefusalReason::BadRequest))?;
        let token = if echo { None } else { handshake_token(head, settings.auth.query_token) };
        if settings.hooks.connect == ConnectHook::InsteadOfToken && !echo {
            let next = token.map_or(Next::AwaitToken, Next::Ask);
            return Ok(Upgrade { accepted, next });
        }
        let claims = match token.as_deref().filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => Some(self.verify(now, id, token).map_err(|error| {
                let (reason, message) = explain(error);
                (Refusal::new(401, reason, message), RefusalReason::Unauthorized)
            })?),
        };
        if let Some(claims) = &claims {
            self.count_user(id, &claims.user)
                .map_err(|refusal| (refusal, RefusalReason::UserLimit))?;
        }
        let next = match (echo, claims) {
            (true, _) => Next::Echo,
            (false, Some(claims)) => Next::Attach(Some(claims)),
            (false, None) if token.is_some() && settings.auth.anonymous => Next::Attach(None),
            (false, None) => Next::AwaitToken,
        };
        Ok(Upgrade { accepted, next })
    }

    /// Answers the upgrade.
    fn begin_websocket(
        &mut self,
        now: Now,
        id: ConnectionId,
        head: &RequestHead,
        upgrade: Upgrade,
    ) {
        let Upgrade { accepted, next } = upgrade;
        let Some(session) = self.session_mut(id) else { return };
        session.deflate = accepted.deflate.as_ref().is_some_and(|deflate| deflate.compress);
        session.inflate = accepted.deflate.is_some();
        session.websocket_counted = true;
        session.user_agent = head.header("user-agent").map(|text| {
            text.chars().take(USER_AGENT_BYTES_MAX).collect::<String>().into_boxed_str()
        });
        session.phase =
            if matches!(next, Next::Echo) { Phase::Echo } else { Phase::Unauthenticated };
        self.admission.add_session();
        self.metrics.connections_total += 1;
        self.push_control(id, accepted.response.into(), MessageKind::Control);
        match next {
            Next::Attach(claims) => {
                self.attach(now, id, Identity::Verified(claims), ("", &BTreeMap::new()));
            }
            Next::Ask(token) => {
                self.attach(now, id, Identity::Unverified(&token), ("", &BTreeMap::new()));
            }
            Next::Echo | Next::AwaitToken => self.schedule_session(now, id),
        }
    }

    /// Why this node takes no further WebSocket now, and which one may. Plain HTTP (health checks) is still answered.
    fn overloaded(&mut self) -> Option<(Refusal, RefusalReason)> {
        let (name, message, reason) = if self.admission.is_draining() {
            let message = "this node is shutting down; connect again to reach another";
            ("draining", message, RefusalReason::Draining)
        } else if self.admission.sessions() >= self.settings.limits.connections_max {
            let message = "this node holds all the connections it may (limits.connections_max)";
            ("node_full", message, RefusalReason::NodeFull)
        } else {
            return None;
        };
        let refusal = Refusal::new(503, name, message).with_retry_after(RETRY_AFTER);
        let refusal = match self.moving.next_url() {
            Some(url) => refusal.with_location(url),
            None => refusal,
        };
        Some((refusal, reason))
    }

    /// Answers with HTTP instead of an upgrade and closes.
    pub(super) fn refuse_handshake(
        &mut self,
        id: ConnectionId,
        refusal: &Refusal,
        reason: RefusalReason,
    ) {
        self.metrics.refused.add(reason as usize, 1);
        let Some(session) = self.session_mut(id) else { return };
        let address = session.peer.address;
        self.outputs.push_back(Output::Event(Event::HandshakeRefused {
            address,
            status: refusal.status,
            reason: refusal.reason,
        }));
        self.push_control(id, refusal.to_http().into(), MessageKind::Control);
        self.finish(id);
    }

    /// Channels that the server subscribes this user to.
    pub(super) fn server_channels(&self, user: &str, claimed: &[Box<str>]) -> Vec<ChannelName> {
        use crate::settings::AutoSubscribe;
        let mut channels: Vec<ChannelName> = Vec::new();
        for namespace in self.settings.namespaces.iter() {
            match namespace.auto_subscribe {
                AutoSubscribe::Never => {}
                AutoSubscribe::Everyone => channels.push((*namespace.name).into()),
                AutoSubscribe::User if user.is_empty() => {}
                AutoSubscribe::User => channels.push(format!("{}:{user}", namespace.name).into()),
            }
        }
        for channel in claimed {
            if !channels.iter().any(|known| **known == **channel) {
                channels.push((**channel).into());
            }
        }
        channels
    }
}

/// The token that came with the handshake, wherever it was put: `Some("")` for an empty query token.
fn handshake_token(head: &RequestHead, query_token: bool) -> Option<String> {
    if let Some(value) = head.header("authorization")
        && let Some((scheme, token)) = value.split_once(' ')
        && scheme.eq_ignore_ascii_case("bearer")
    {
        return Some(token.trim().to_owned());
    }
    let offered = head
        .header_all("sec-websocket-protocol")
        .flat_map(|value| value.split(','))
        .find_map(|entry| entry.trim().strip_prefix(BEARER_SUBPROTOCOL).map(str::to_owned));
    if offered.is_some() {
        return offered;
    }
    if query_token { head.query_param("token").map(std::borrow::Cow::into_owned) } else { None }
}
