//! Commands that ask the application: connect, subscribe, publish, rpc.
//!
//! What the command was waits in its [`Pending`](crate::session::Pending) entry, or in the phase of a session that attaches;
//! hub and homes know nothing of it until the application has allowed it. An answer that nobody waits for any more is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::Shard;
use super::commands::invalid;
use super::subscribe::At;
use crate::auth::{ChannelClaims, Grant};
use crate::error::{ClientError, Disconnect, ErrorCode};
use crate::hook::{HookAnswer, HookAsk, HookClient, HookQuestion, Verdict};
use crate::ids::ConnectionId;
use crate::message::{ChannelName, ChannelOp, ControlMessage, Publish, StreamPosition};
use crate::output::Output;
use crate::proto::command::{RecoverFrom, RpcData};
use crate::proto::reply;
use crate::session::{
    Asked, AskedCommand, AskedConnect, PendingKind, Phase, Session, SubscriptionState,
};
use crate::time::Now;

const METHOD_BYTES_MAX: usize = 128;

/// An answer of another kind than the question: a fault of the gateway.
fn mismatch() -> ClientError {
    ClientError::new(ErrorCode::SystemError, "the answer does not fit the question")
}

impl Shard {
    /// Asks whether the connection may go on to its subscriptions. Its phase is `Attaching` already.
    pub(super) fn ask_connect(
        &mut self,
        id: ConnectionId,
        token: Option<Box<str>>,
        recover: &BTreeMap<String, RecoverFrom>,
    ) {
        let Some(session) = self.session_mut(id) else { return };
        let request = session.next_request();
        let Phase::Attaching(attaching) = &mut session.phase else { return };
        let asker = Arc::new(());
        let waits = Arc::clone(&asker);
        attaching.asked =
            Some(Box::new(AskedConnect { request, _asker: asker, recover: recover.clone() }));
        self.ask_application((id, request, &waits), HookAsk::Connect { token });
    }

    /// Keeps a subscribe that nothing stands against until the application has answered.
    pub(super) fn ask_subscribe(
        &mut self,
        (id, reply_to): (ConnectionId, &str),
        channel: ChannelName,
        recover: Option<StreamPosition>,
        token: Option<ChannelClaims>,
    ) {
        let ask = HookAsk::Subscribe { channel: Arc::clone(&channel) };
        let command = AskedCommand::Subscribe { channel, recover, token };
        self.ask_and_keep((id, reply_to), command, Some(ask));
    }

    /// Keeps a publish until the application has answered, and those before it of this connection in the channel have left.
    pub(super) fn ask_publish(
        &mut self,
        at: (ConnectionId, &str),
        channel: ChannelName,
        publish: Publish,
        asks: bool,
    ) {
        let ask = asks.then(|| HookAsk::Publish {
            channel: Arc::clone(&channel),
            kind: publish.kind.clone(),
            data: publish.data.clone(),
        });
        let verdict = (!asks).then_some(Verdict::Allow);
        self.ask_and_keep(at, AskedCommand::Publish { channel, publish, verdict }, ask);
    }

    pub(super) fn handle_rpc(&mut self, now: Now, at: At<'_>, data: RpcData<'_>) {
        if let Err(error) = self.try_rpc(at, data) {
            self.reply_error(now, at.0, at.1, &error);
        }
    }

    fn try_rpc(&mut self, (id, reply_to, _): At<'_>, call: RpcData<'_>) -> Result<(), ClientError> {
        if !self.settings.hooks.rpc {
            let message = "this node calls no application (hooks.rpc.url)";
            return Err(ClientError::new(ErrorCode::NotFound, message));
        }
        self.check_in_flight(id)?;
        let method = call.method;
        if method.is_empty()
            || method.len() > METHOD_BYTES_MAX
            || method.chars().any(char::is_control)
        {
            return Err(invalid(format!(
                "`method` has 1 to {METHOD_BYTES_MAX} bytes and no control character"
            )));
        }
        let data = call.data.map_or("null", serde_json::value::RawValue::get);
        let data = Bytes::copy_from_slice(data.as_bytes());
        let ask = HookAsk::Rpc { method: method.into(), data };
        self.ask_and_keep((id, reply_to), AskedCommand::Rpc, Some(ask));
        Ok(())
    }

    fn ask_and_keep(
        &mut self,
        (id, reply_to): (ConnectionId, &str),
        command: AskedCommand,
        ask: Option<HookAsk>,
    ) {
        let Some(session) = self.session_mut(id) else { return };
        let request = session.expect_reply(reply_to, PendingKind::Hook);
        let asker = Arc::new(());
        let waits = Arc::clone(&asker);
        if let Some(pending) = session.pending.last_mut() {
            pending.asked = Some(Box::new(Asked { _asker: asker, command }));
        }
        if let Some(ask) = ask {
            self.ask_application((id, request, &waits), ask);
        }
    }

    fn ask_application(
        &mut self,
        (connection, request, asker): (ConnectionId, u32, &Arc<()>),
        ask: HookAsk,
    ) {
        let Some(session) = self.session(connection) else { return };
        let question = HookQuestion {
            connection,
            request,
            asker: Arc::downgrade(asker),
            client: HookClient {
                session: session.public_id,
                user: Arc::clone(&session.user),
                address: session.peer.address,
                user_agent: session.user_agent.clone(),
                info: session.claims.as_ref().and_then(|claims| claims.info.clone()),
            },
            ask,
        };
        self.outputs.push_back(Output::Control(ControlMessage::Hook(Box::new(question))));
    }

    /// The queue to the control plane is full.
    pub(super) fn handle_hook_refused(&mut self, now: Now, question: &HookQuestion) {
        let verdict = Verdict::Fail(ClientError::overloaded());
        let (connection, request) = (question.connection, question.request);
        self.handle_hooked(now, HookAnswer { connection, request, verdict });
    }

    /// The application has answered, or could not be asked.
    pub(super) fn handle_hooked(&mut self, now: Now, answer: HookAnswer) {
        let HookAnswer { connection: id, request, verdict } = answer;
        let Some(session) = self.session_mut(id) else { return };
        if let Phase::Attaching(attaching) = &mut session.phase {
            if let Some(asked) = attaching.asked.take_if(|asked| asked.request == request) {
                self.connect_answered(now, id, &asked.recover, verdict);
            }
            return;
        }
        if !session.is_ready() {
            return;
        }
        let pending = session.pending.iter_mut().find(|pending| pending.request == request);
        let Some(asked) = pending.and_then(|pending| pending.asked.as_deref_mut()) else { return };
        if let AskedCommand::Publish { channel, verdict: kept, .. } = &mut asked.command {
            let channel = Arc::clone(channel);
            kept.get_or_insert(verdict);
            return self.release_publishes(now, id, &channel);
        }
        let Some(pending) = session.take_pending(request) else { return };
        let Some(asked) = pending.asked else { return };
        let reply_to = &*pending.reply_to;
        let done = match (asked.command, verdict) {
            (_, Verdict::Refuse(error) | Verdict::Fail(error)) => Err(error),
            (AskedCommand::Subscribe { channel, recover, token }, Verdict::Allow) => {
                self.subscribe_allowed(now, (id, reply_to), &channel, (recover, token))
            }
            (AskedCommand::Rpc, Verdict::Result(result)) => {
                self.reply(now, id, reply_to, |head, _| reply::rpc_result(head, &result));
                Ok(())
            }
            _ => Err(mismatch()),
        };
        if let Err(error) = done {
            self.reply_error(now, id, reply_to, &error);
        }
    }

    fn connect_answered(
        &mut self,
        now: Now,
        id: ConnectionId,
        recover: &BTreeMap<String, RecoverFrom>,
        verdict: Verdict,
    ) {
        let refused = match verdict {
            Verdict::Allow => Ok(()),
            Verdict::Grant(grant) => self.take_grant(now, id, *grant),
            Verdict::Refuse(error) => Err((error, Disconnect::Refused)),
            Verdict::Fail(error) => Err((error, Disconnect::Unavailable)),
            Verdict::Replace(_) | Verdict::Result(_) => Err((mismatch(), Disconnect::Unavailable)),
        };
        match refused {
            Ok(()) => self.make_server_subscriptions(now, id, recover),
            Err((error, disconnect)) => {
                let Some(session) = self.session(id) else { return };
                let Phase::Attaching(attaching) = &session.phase else { return };
                let reply_to = attaching.reply_to.clone();
                self.reply_error(now, id, &reply_to, &error);
                self.disconnect(now, id, disconnect);
            }
        }
    }

    /// Gives the connection what the application has given it.
    fn take_grant(
        &mut self,
        now: Now,
        id: ConnectionId,
        grant: Grant,
    ) -> Result<(), (ClientError, Disconnect)> {
        let admission = Arc::clone(&self.admission);
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let claims = Arc::new(grant.apply(session.claims.as_deref(), now.unix));
        let user = Arc::clone(&claims.user);
        session.claims = Some(claims);
        if session.user == user {
            return Ok(());
        }
        session.message_keys = admission.message_keys(&user, session.peer.address);
        self.count_user(id, &user).map_err(|refusal| {
            let error = ClientError::new(ErrorCode::LimitExceeded, refusal.message);
            (error, Disconnect::ConnectionLimit)
        })
    }

    fn subscribe_allowed(
        &mut self,
        now: Now,
        (id, reply_to): (ConnectionId, &str),
        channel: &ChannelName,
        (recover, token): (Option<StreamPosition>, Option<ChannelClaims>),
    ) -> Result<(), ClientError> {
        let Some(session) = self.session(id) else { return Ok(()) };
        if let Some(token) = &token
            && self.is_revoked(&session.user, token.token_id.as_deref(), token.issued_at)
        {
            let message = "the channel token is revoked";
            return Err(ClientError::new(ErrorCode::PermissionDenied, message));
        }
        if let Some(existing) = self.subscription(id, channel) {
            // The server has subscribed it meanwhile.
            if existing.state == SubscriptionState::Live && recover.is_some() {
                return self.recover_live(now, id, reply_to, (channel, recover));
            }
            let message = "this connection is subscribed to the channel already";
            return Err(ClientError::new(ErrorCode::AlreadySubscribed, message));
        }
        self.begin_subscription(
            now,
            id,
            channel,
            (reply_to, PendingKind::Subscribe, recover, token),
        )
    }

    /// Whether the application is being asked whether it may connect: it is in no channel before.
    pub(super) fn is_asked_about(&self, id: ConnectionId) -> bool {
        self.session(id).is_some_and(
            |session| matches!(&session.phase, Phase::Attaching(attaching) if attaching.asked.is_some()),
        )
    }

    /// Whether the application is being asked about a subscribe to `channel`.
    pub(super) fn asks_subscribe(&self, id: ConnectionId, channel: &str) -> bool {
        self.session(id).is_some_and(|session| asked_subscribe(session, channel).is_some())
    }

    /// Gives up a subscribe that the application is being asked about, and says so. Answers whether there was one.
    pub(super) fn cancel_asked_subscribe(
        &mut self,
        now: Now,
        id: ConnectionId,
        channel: &str,
    ) -> bool {
        let Some(session) = self.session_mut(id) else { return false };
        let Some(request) = asked_subscribe(session, channel) else { return false };
        let Some(pending) = session.take_pending(request) else { return false };
        let message = "unsubscribed before the subscription was complete";
        let error = ClientError::new(ErrorCode::Unavailable, message);
        self.reply_error(now, id, &pending.reply_to, &error);
        true
    }

    /// Whether a publication of the connection in `channel` waits, so that no later one may pass it.
    pub(super) fn is_publish_waiting(&self, id: ConnectionId, channel: &str) -> bool {
        self.session(id).is_some_and(|session| oldest_publish(session, channel).is_some())
    }

    /// Lets the publications go that have their answer, up to the first that has none.
    fn release_publishes(&mut self, now: Now, id: ConnectionId, channel: &ChannelName) {
        loop {
            let Some(session) = self.session_mut(id) else { return };
            let Some((reply_to, publish, verdict)) = take_answered_publish(session, channel) else {
                return;
            };
            if let Err(error) =
                self.publish_answered(now, (id, &reply_to), channel, (publish, verdict))
            {
                self.reply_error(now, id, &reply_to, &error);
            }
        }
    }

    fn publish_answered(
        &mut self,
        now: Now,
        (id, reply_to): (ConnectionId, &str),
        channel: &ChannelName,
        (mut publish, verdict): (Publish, Verdict),
    ) -> Result<(), ClientError> {
        match verdict {
            Verdict::Allow => {}
            Verdict::Replace(data) => publish.data = data,
            Verdict::Refuse(error) | Verdict::Fail(error) => return Err(error),
            Verdict::Grant(_) | Verdict::Result(_) => return Err(mismatch()),
        }
        publish.accepted_at = now.mono;
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let request = session.expect_reply(reply_to, PendingKind::Publish);
        self.ask(now, (id, request), channel, ChannelOp::Publish(publish))
    }
}

fn asked_subscribe(session: &Session, channel: &str) -> Option<u32> {
    let asked = session.pending.iter().find(|pending| {
        matches!(
            pending.asked.as_deref(),
            Some(Asked { command: AskedCommand::Subscribe { channel: asked, .. }, .. })
                if **asked == *channel
        )
    });
    asked.map(|pending| pending.request)
}

/// Place in the list of pending commands of the oldest publish in `channel` that waits for the application.
fn oldest_publish(session: &Session, channel: &str) -> Option<usize> {
    let waiting = session.pending.iter().enumerate().filter(|(_, pending)| {
        matches!(
            pending.asked.as_deref(),
            Some(Asked { command: AskedCommand::Publish { channel: asked, .. }, .. })
                if **asked == *channel
        )
    });
    // Numbers wrap around; the oldest is the farthest from the newest.
    let newest = session.next_request;
    waiting.max_by_key(|(_, pending)| newest.wrapping_sub(pending.request)).map(|(index, _)| index)
}

fn take_answered_publish(
    session: &mut Session,
    channel: &str,
) -> Option<(Box<str>, Publish, Verdict)> {
    let pending = &session.pending[oldest_publish(session, channel)?];
    let answered = matches!(
        pending.asked.as_deref(),
        Some(Asked { command: AskedCommand::Publish { verdict: Some(_), .. }, .. })
    );
    if !answered {
        return None;
    }
    let pending = session.take_pending(pending.request)?;
    match pending.asked?.command {
        AskedCommand::Publish { publish, verdict: Some(verdict), .. } => {
            Some((pending.reply_to, publish, verdict))
        }
        _ => None,
    }
}
