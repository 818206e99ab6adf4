//! Questions as the application gets them.

use gateway_core::hook::{HookAsk, HookQuestion};
use serde::Serialize;
use serde_json::value::RawValue;

/// Body of a request.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    node: &'a str,
    /// Unix milliseconds.
    timestamp: u64,
    client: Client<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Client<'a> {
    session: String,
    /// `null` for anonymous.
    user: Option<&'a str>,
    address: String,
    user_agent: Option<&'a str>,
    info: Option<&'a RawValue>,
}

/// JSON text of a question; `None` when what it carries is no JSON, which the core excludes.
pub(super) fn body(
    question: &HookQuestion,
    (id, node): (&str, &str),
    timestamp: u64,
) -> Option<Vec<u8>> {
    let client = &question.client;
    let mut body = Body {
        kind: question.ask.kind().as_str(),
        id,
        node,
        timestamp,
        client: Client {
            session: client.session.text().to_string(),
            user: Some(&*client.user).filter(|user| !user.is_empty()),
            address: client.address.to_string(),
            user_agent: client.user_agent.as_deref(),
            info: match client.info.as_deref() {
                Some(info) => Some(raw(info)?),
                None => None,
            },
        },
        token: None,
        channel: None,
        message_type: None,
        method: None,
        data: None,
    };
    match &question.ask {
        HookAsk::Connect { token } => body.token = token.as_deref(),
        HookAsk::Subscribe { channel } => body.channel = Some(channel),
        HookAsk::Publish { channel, kind, data } => {
            body.channel = Some(channel);
            body.message_type = Some(if kind.is_empty() { "message" } else { kind });
            body.data = Some(raw(data)?);
        }
        HookAsk::Rpc { method, data } => {
            body.method = Some(method);
            body.data = Some(raw(data)?);
        }
    }
    serde_json::to_vec(&body).ok()
}

fn raw(json: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(json).ok()
}
