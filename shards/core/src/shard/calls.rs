//! Commands that the control plane answers: notifications and preferences.

use bytes::Bytes;

use super::Shard;
use super::subscribe::At;
use crate::call::{CallAnswer, CallKind, ClientCall};
use crate::error::{ClientError, ErrorCode};
use crate::ids::ConnectionId;
use crate::message::ControlMessage;
use crate::metrics::MessageKind;
use crate::output::Output;
use crate::proto::{push, reply};
use crate::session::PendingKind;
use crate::time::Now;

impl Shard {
    pub(super) fn handle_call(&mut self, now: Now, at: At<'_>, kind: CallKind, data: &str) {
        if let Err(error) = self.try_call(at, kind, data) {
            self.reply_error(now, at.0, at.1, &error);
        }
    }

    fn try_call(
        &mut self,
        (id, reply_to, _): At<'_>,
        kind: CallKind,
        data: &str,
    ) -> Result<(), ClientError> {
        if !self.settings.notifications {
            let message = "notifications are switched off on this node (notifications.enabled)";
            return Err(ClientError::new(ErrorCode::NotFound, message));
        }
        self.check_in_flight(id)?;
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        if session.user.is_empty() {
            let message = "an anonymous connection has no notifications; connect with a token";
            return Err(ClientError::new(ErrorCode::PermissionDenied, message));
        }
        let request = session.expect_reply(reply_to, PendingKind::Call);
        let data = Bytes::copy_from_slice(data.as_bytes());
        self.call(id, request, kind, data);
        Ok(())
    }

    /// Tells the control plane that a user's session is ready, so that it can send what was missed.
    pub(super) fn announce_arrival(&mut self, id: ConnectionId) {
        let signed_in = self.session(id).is_some_and(|session| !session.user.is_empty());
        if self.settings.notifications && signed_in {
            self.call(id, ClientCall::UNASKED, CallKind::Arrived, Bytes::from_static(b"{}"));
        }
    }

    fn call(&mut self, id: ConnectionId, request: u32, kind: CallKind, data: Bytes) {
        let Some(session) = self.session(id) else { return };
        let user = std::sync::Arc::clone(&session.user);
        let call = ClientCall { connection: id, request, user, kind, data };
        self.outputs.push_back(Output::Control(ControlMessage::Call(Box::new(call))));
    }

    /// The queue to the control plane is full.
    pub(super) fn handle_call_refused(&mut self, now: Now, call: &ClientCall) {
        let outcome = Err(ClientError::overloaded());
        let (connection, request) = (call.connection, call.request);
        self.handle_called(now, CallAnswer { connection, request, outcome });
    }

    /// The control plane answers a call, or tells a connection something unasked.
    pub(super) fn handle_called(&mut self, now: Now, answer: CallAnswer) {
        let CallAnswer { connection: id, request, outcome } = answer;
        let Some(session) = self.session_mut(id) else { return };
        let pending = session.take_pending(request);
        if request != ClientCall::UNASKED && pending.is_none() {
            return;
        }
        if !session.is_ready() {
            return;
        }
        let reply_to = pending.map(|pending| pending.reply_to);
        let messages = match (outcome, &reply_to) {
            (Ok(messages), _) => messages,
            (Err(error), Some(reply_to)) => return self.reply_error(now, id, reply_to, &error),
            (Err(_), None) => return,
        };
        let mut reply_to = reply_to.as_deref();
        for message in messages {
            if let Some(reply_to) = reply_to.take() {
                self.reply(now, id, reply_to, |head, _| reply::called(head, &message));
                continue;
            }
            let Some(session) = self.session_mut(id) else { return };
            let serial = session.next_id();
            let frame = push::told(&message, &serial, now.unix);
            self.push_control(id, frame, MessageKind::Notifications);
        }
    }
}
