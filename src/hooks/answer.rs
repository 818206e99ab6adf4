//! Answers of the application, read strictly: a misspelt member must not become a permission.

use gateway_core::auth::Grant;
use gateway_core::error::ClientError;
use gateway_core::hook::{HookAsk, HookQuestion, Verdict};
use gateway_core::proto::json::depth;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Longest text for the client.
const REASON_BYTES_MAX: usize = 512;
/// What a client is told that was refused without a reason.
const REASON_DEFAULT: &str = "the application refused";

/// Members of an answer to `connect` that do not belong to a grant.
const DECISION: [&str; 1] = ["allow"];

/// The answer cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer cannot be understood: {0}; see docs/hooks.md")]
pub(super) struct Unreadable(pub(super) &'static str);

/// Whether it is a yes; everything else is read when that is known.
#[derive(Deserialize)]
struct Allow {
    allow: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Yes<'a> {
    #[serde(rename = "allow")]
    _allow: bool,
    #[serde(default, borrow, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct No {
    #[serde(rename = "allow")]
    _allow: bool,
    #[serde(default)]
    code: u32,
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Called<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    error: Option<CallError>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallError {
    code: u32,
    message: String,
}

/// A member that is there, `null` included.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Reads the answer to `question`. Payloads may be nested `depth_max` levels deep.
///
/// # Errors
/// It is no such answer.
pub(super) fn read(
    question: &HookQuestion,
    body: &[u8],
    depth_max: u32,
) -> Result<Verdict, Unreadable> {
    let text = std::str::from_utf8(body).map_err(|_| Unreadable("it is not UTF-8"))?;
    if depth(body) > depth_max {
        return Err(Unreadable("it is nested too deeply (limits.json_depth_max)"));
    }
    if let HookAsk::Rpc { .. } = question.ask {
        return rpc(text);
    }
    let Allow { allow } = serde_json::from_str(text)
        .map_err(|_| Unreadable("it is no object with `allow` true or false"))?;
    if !allow {
        let no: No = serde_json::from_str(text)
            .map_err(|_| Unreadable("a refusal has `allow`, `code` and `reason` only"))?;
        return refusal(no.code, no.reason.as_deref().unwrap_or(REASON_DEFAULT));
    }
    if let HookAsk::Connect { .. } = question.ask {
        return grant(question, body);
    }
    let yes: Yes<'_> = serde_json::from_str(text)
        .map_err(|_| Unreadable("it has a member that does not belong to the question"))?;
    match (yes.data, &question.ask) {
        (None, _) => Ok(Verdict::Allow),
        (Some(data), HookAsk::Publish { .. }) => {
            Ok(Verdict::Replace(data.get().as_bytes().to_vec().into()))
        }
        (Some(_), _) => Err(Unreadable("`data` belongs to answers about publications")),
    }
}

fn grant(question: &HookQuestion, body: &[u8]) -> Result<Verdict, Unreadable> {
    let grant = Grant::parse(body, &DECISION).map_err(|_| {
        Unreadable(
            "one of `user`, `info`, `channels`, `caps`, `expires_at` is wrong, or another is there",
        )
    })?;
    if grant.user.is_some() && !question.client.user.is_empty() {
        return Err(Unreadable("it names a user, and the token has named one already"));
    }
    if grant == Grant::default() {
        return Ok(Verdict::Allow);
    }
    Ok(Verdict::Grant(Box::new(grant)))
}

fn rpc(text: &str) -> Result<Verdict, Unreadable> {
    let called: Called<'_> = serde_json::from_str(text)
        .map_err(|_| Unreadable("it has neither `result` nor `error {code, message}`"))?;
    match (called.result, called.error) {
        (Some(result), None) => Ok(Verdict::Result(result.get().as_bytes().to_vec().into())),
        (None, Some(error)) => refusal(error.code, &error.message),
        _ => Err(Unreadable("it needs one of `result` and `error`")),
    }
}

fn refusal(code: u32, reason: &str) -> Result<Verdict, Unreadable> {
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control)
    {
        return Err(Unreadable("a reason has 1 to 512 bytes and no control character"));
    }
    Ok(Verdict::Refuse(ClientError::of_application(code, reason)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::lane::testing::question;
    use super::*;

    fn check(ask: HookAsk, user: &str, body: &str) -> Result<Verdict, Unreadable> {
        let (_asker, mut question) = question(ask);
        question.client.user = user.into();
        read(&question, body.as_bytes(), 8)
    }

    fn connect(user: &str, body: &str) -> Result<Verdict, Unreadable> {
        check(HookAsk::Connect { token: None }, user, body)
    }

    fn subscribe(body: &str) -> Result<Verdict, Unreadable> {
        check(HookAsk::Subscribe { channel: "a".into() }, "u", body)
    }

    fn publish(body: &str) -> Result<Verdict, Unreadable> {
        let ask = HookAsk::Publish { channel: "a".into(), kind: "".into(), data: "1".into() };
        check(ask, "u", body)
    }

    fn call(body: &str) -> Result<Verdict, Unreadable> {
        check(HookAsk::Rpc { method: "m".into(), data: "1".into() }, "u", body)
    }

    #[test]
    fn good_answers() {
        assert_eq!(connect("u", r#"{"allow":true}"#), Ok(Verdict::Allow));
        let Ok(Verdict::Grant(grant)) = connect("", r#"{"allow":true,"user":"bob"}"#) else {
            panic!("a grant")
        };
        assert_eq!(grant.user.as_deref(), Some("bob"));
        assert_eq!(subscribe(r#"{"allow":true}"#), Ok(Verdict::Allow));
        assert_eq!(publish(r#"{"allow":true,"data":null}"#), Ok(Verdict::Replace("null".into())));
        assert_eq!(publish(r#"{"allow":true}"#), Ok(Verdict::Allow));
        assert_eq!(call(r#"{"result":null}"#), Ok(Verdict::Result("null".into())));
        let refused =
            |code, text: &str| Ok(Verdict::Refuse(ClientError::of_application(code, text)));
        assert_eq!(subscribe(r#"{"allow":false,"code":7,"reason":"no"}"#), refused(7, "no"));
        assert_eq!(subscribe(r#"{"allow":false}"#), refused(0, REASON_DEFAULT));
        assert_eq!(call(r#"{"error":{"code":4,"message":"x"}}"#), refused(4, "x"));
    }

    #[test]
    fn what_is_not_understood_is_no_permission() {
        for body in [
            "",
            "true",
            "[]",
            "{}",
            r#"{"allow":1}"#,
            r#"{"allow":"true"}"#,
            r#"{"allow":true,"allow":false}"#,
            r#"{"allow":true,"reason":"x"}"#,
            r#"{"allow":true,"data":1}"#,
            r#"{"allow":false,"reason":""}"#,
            r#"{"allow":false,"code":-1}"#,
            r#"{"allow":false,"why":"x"}"#,
        ] {
            assert!(subscribe(body).is_err(), "{body}");
            assert!(connect("u", body).is_err(), "{body}");
        }
        assert!(connect("u", r#"{"allow":true,"user":"bob"}"#).is_err(), "the token has named one");
        assert!(connect("u", r#"{"allow":true,"chanels":["a"]}"#).is_err());
        for body in
            ["{}", r#"{"result":1,"error":{"code":1,"message":"x"}}"#, r#"{"error":"x"}"#, "1"]
        {
            assert!(call(body).is_err(), "{body}");
        }
        let deep = format!(r#"{{"result":{}1{}}}"#, "[".repeat(9), "]".repeat(9));
        assert!(call(&deep).is_err());
    }
}
