//! What a service worker gets, in JSON and within the bound of one push message.
//!
//! What does not fit is left out, from the least to the most important: the end of the message, then the metadata, then
//! the action. A notification that is cut short sends its reader to the application, a refused one sends nobody.

use serde::Serialize;
use serde_json::value::RawValue;

use super::encryption::PLAINTEXT_BYTES_MAX;
use crate::notify::senders::message::{Action, DeliveryId, Outgoing, Priority};

/// Ends a text that was cut.
const ELLIPSIS: char = '\u{2026}';
/// Bytes of text, as JSON, below which something else is left out rather than more text.
const TEXT_BYTES_MIN: usize = 256;

#[derive(Clone, Serialize)]
struct Payload<'a> {
    id: &'a DeliveryId,
    category: &'a str,
    priority: Priority,
    title: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a Action>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    /// Whether something was left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

/// The payload; nothing when not even the fixed parts fit.
pub(super) fn payload(message: &Outgoing) -> Option<Vec<u8>> {
    let whole = Payload {
        id: &message.delivery,
        category: &message.category,
        priority: message.priority,
        title: message.title.clone(),
        message: message.message.clone(),
        action: message.action.as_ref(),
        metadata: message.metadata.as_deref(),
        truncated: false,
    };
    let json = serde_json::to_vec(&whole).ok()?;
    if json.len() <= PLAINTEXT_BYTES_MAX {
        return Some(json);
    }
    let cut = Payload { truncated: true, ..whole };
    let without_metadata = Payload { metadata: None, ..cut.clone() };
    let without_action = Payload { action: None, ..without_metadata.clone() };
    let needed = TEXT_BYTES_MIN.min(escaped(&cut.title) + escaped(&cut.message));
    [cut, without_metadata, without_action].into_iter().find_map(|payload| fit(payload, needed))
}

/// Cuts title and message so that the whole fits; nothing when less than `needed` bytes are left for them.
fn fit(mut payload: Payload<'_>, needed: usize) -> Option<Vec<u8>> {
    let title = std::mem::take(&mut payload.title);
    let message = std::mem::take(&mut payload.message);
    let fixed = serde_json::to_vec(&payload).ok()?.len();
    let room = PLAINTEXT_BYTES_MAX.checked_sub(fixed).filter(|room| *room >= needed)?;
    payload.title = cut(title, room);
    payload.message = cut(message, room - escaped(&payload.title));
    serde_json::to_vec(&payload).ok()
}

/// Bytes of a text as JSON, without the quotes.
fn escaped(text: &str) -> usize {
    text.chars().map(escaped_char).sum()
}

fn escaped_char(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => c.len_utf8(),
    }
}

/// The text when it fits into so many bytes of JSON, otherwise its beginning and an ellipsis.
fn cut(text: String, bytes_max: usize) -> String {
    if escaped(&text) <= bytes_max {
        return text;
    }
    let Some(mut room) = bytes_max.checked_sub(ELLIPSIS.len_utf8()) else {
        return String::new();
    };
    let fits = |c: &char| match room.checked_sub(escaped_char(*c)) {
        Some(left) => {
            room = left;
            true
        }
        None => false,
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    cut.push(ELLIPSIS);
    cut
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::notify::senders::testing;

    fn parsed(message: &Outgoing) -> Value {
        let json = payload(message).unwrap();
        assert!(json.len() <= PLAINTEXT_BYTES_MAX, "{} bytes", json.len());
        serde_json::from_slice(&json).unwrap()
    }

    fn metadata(bytes: usize) -> Box<RawValue> {
        serde_json::value::to_raw_value(&"m".repeat(bytes)).unwrap()
    }

    #[test]
    fn a_message_that_fits_is_whole() {
        let message = testing::outgoing("d1");
        assert_eq!(
            parsed(&message),
            serde_json::json!({
                "id": "d1",
                "category": "workflow_failed",
                "priority": "high",
                "title": message.title,
                "message": message.message,
                "action": {"label": "Open", "url": "https://app.example/runs/7"},
                "metadata": {"run": 7},
            })
        );
    }

    #[test]
    fn the_text_is_cut_first_and_fills_the_room() {
        let mut message = testing::outgoing("d1");
        message.message = "x".repeat(10_000);
        let json = payload(&message).unwrap();
        assert_eq!(json.len(), PLAINTEXT_BYTES_MAX);
        let payload = parsed(&message);
        assert!(payload["message"].as_str().unwrap().ends_with("xx\u{2026}"));
        assert_eq!(payload["truncated"], true);
        assert_eq!(payload["metadata"]["run"], 7);
        assert_eq!(payload["title"], message.title.as_str());
    }

    #[test]
    fn metadata_and_action_go_when_text_would_not_fit() {
        let mut message = testing::outgoing("d1");
        message.message = "x".repeat(1_000);
        message.metadata = Some(metadata(3_900));
        let cut = parsed(&message);
        assert_eq!((&cut["metadata"], &cut["truncated"]), (&Value::Null, &Value::Bool(true)));
        assert_eq!(cut["message"], message.message.as_str());
        assert_eq!(cut["action"]["label"], "Open");
        message.action.as_mut().unwrap().url = format!("https://app.example/{}", "y".repeat(5_000));
        let cut = parsed(&message);
        assert_eq!(cut["action"], Value::Null);
        assert_eq!(cut["message"], message.message.as_str());
    }

    #[test]
    fn a_long_title_is_cut_too() {
        let mut message = testing::outgoing("d1");
        message.title = "t".repeat(9_000);
        let cut = parsed(&message);
        assert!(cut["title"].as_str().unwrap().len() > 3_000);
        assert_eq!(cut["message"], "");
    }

    #[test]
    fn what_cannot_fit_is_nothing() {
        let mut message = testing::outgoing("d1");
        message.category = "c".repeat(5_000);
        assert_eq!(payload(&message), None);
    }

    proptest! {
        #[test]
        fn every_text_is_cut_between_characters(
            title in "(?s).{0,60}",
            text in "(?s)(.|[\u{0}-\u{1f}\"\\\\]){0,60}",
            times in 1usize..600,
            data in 0usize..5_000,
        ) {
            let mut message = testing::outgoing("d1");
            message.title = title;
            message.message = text.repeat(times);
            message.metadata = Some(metadata(data));
            let whole = message.message.clone();
            let payload = parsed(&message);
            let cut = payload["message"].as_str().unwrap();
            prop_assert!(whole == cut || whole.starts_with(cut.trim_end_matches(ELLIPSIS)));
        }
    }
}
