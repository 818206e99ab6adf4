//! Publishing through the server API over a few kept HTTP connections, one request in flight on each.

use std::collections::VecDeque;

use super::Load;
use crate::checker::Violation;
use crate::fleet::{ConnId, Event, Fleet};
use crate::schedule::Nanos;
use crate::target::Target;
use crate::wire::{ApiAnswer, epoch};

/// Where the server API is, and who asks.
#[derive(Clone, Debug)]
pub(crate) struct ApiAccess {
    /// The publish endpoint.
    pub(crate) target: Target,
    /// Key.
    pub(crate) key: String,
    /// Connections.
    pub(crate) connections: u32,
}

#[derive(Debug, Default)]
struct Line {
    connection: Option<ConnId>,
    /// The publication in flight.
    number: Option<u64>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct ApiPool {
    access: ApiAccess,
    lines: Vec<Line>,
    /// Publications that wait for a line.
    waiting: VecDeque<(u64, Vec<u8>)>,
}

impl ApiPool {
    pub(super) fn new(access: ApiAccess) -> Self {
        let lines = (0..access.connections.max(1)).map(|_| Line::default()).collect();
        Self { access, lines, waiting: VecDeque::new() }
    }

    pub(super) fn publish(&mut self, fleet: &mut Fleet, number: u64, body: &[u8]) {
        let mut request = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.access.target.path, self.access.target.host, self.access.key, body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.waiting.push_back((number, request));
        self.send_waiting(fleet);
    }

    fn send_waiting(&mut self, fleet: &mut Fleet) {
        for line in &mut self.lines {
            if line.number.is_some() {
                continue;
            }
            let Some((number, request)) = self.waiting.pop_front() else { return };
            let target = &self.access.target;
            let id = *line.connection.get_or_insert_with(|| fleet.dial_http(target));
            line.number = Some(number);
            fleet.send_raw(id, &request);
        }
    }

    fn line(&mut self, id: ConnId) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.connection == Some(id))
    }
}

impl Load {
    /// An event of a connection that is no member.
    pub(super) fn api_event(
        &mut self,
        fleet: &mut Fleet,
        id: ConnId,
        event: &Event<'_>,
        now: Nanos,
    ) {
        let Some(line) = self.api.as_mut().and_then(|api| api.line(id)) else { return };
        let number = match event {
            Event::Response(..) => line.number.take(),
            Event::Ended(_) => {
                line.connection = None;
                line.number.take()
            }
            Event::Open | Event::Abandoned | Event::Message(_) => return,
        };
        if let Some(number) = number {
            self.api_answer(number, event, now);
        }
        if let Some(api) = &mut self.api {
            api.send_waiting(fleet);
        }
    }

    fn api_answer(&mut self, number: u64, event: &Event<'_>, now: Nanos) {
        self.messages += 1;
        if let Event::Response(200, body) = event
            && let Ok(ApiAnswer { result: Some(position) }) = serde_json::from_slice(body)
        {
            return self.acknowledged(number, (epoch(&position.epoch), position.offset), now);
        }
        self.ledger.refuse(number);
        self.violations.add(Violation::Refused, 1, || match event {
            Event::Response(status, body) => {
                let body = String::from_utf8_lossy(&body[..body.len().min(200)]);
                format!("the server API answered publication {number} with {status}: {body}")
            }
            other => format!("the server API left publication {number} unanswered: {other:?}"),
        });
    }
}
