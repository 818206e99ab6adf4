//! A template as its author writes it: a JSON document.
//!
//! Owns the form of the document, how it is read, and the digest by which two documents are the same. What its texts
//! mean is checked in [`super::Template::compile`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::error::TemplateError;
use super::field::Field;
use crate::notify::kinds::{Category, Priority};

/// Bytes of a document, at most.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// A template as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateDocument {
    /// By which notifications name it.
    pub name: String,
    /// What its texts may use.
    #[serde(default)]
    pub variables: BTreeMap<String, Declaration>,
    /// Texts by language tag.
    pub locales: BTreeMap<String, LocaleTexts>,
    /// Whose texts are taken for people whose language has none.
    pub fallback_locale: String,
    /// Of notifications that name none themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// Of notifications that name none themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

/// What a variable may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VariableType {
    /// Text.
    String,
    /// Whole or decimal number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// `http` or `https` URL, or a path that begins with `/`.
    Url,
    /// Values to loop over.
    List,
    /// Named values.
    Object,
}

impl VariableType {
    /// As a phrase: `a string`.
    pub(crate) fn phrase(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Url => "a URL",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }
}

/// Declaration of a variable.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Declaration {
    /// What it may hold.
    #[serde(rename = "type")]
    pub kind: VariableType,
    /// Whether it has to be given.
    #[serde(default)]
    pub required: bool,
    /// Characters of a string or URL, items of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// When it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Json>,
    /// For previews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Json>,
}

/// Texts in one language.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocaleTexts {
    /// What every delivery channel falls back to for its head line.
    pub title: String,
    /// What every delivery channel falls back to for its body.
    pub message: String,
    /// The button or link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionTexts>,
    /// Of mails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailTexts>,
    /// Of text messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sms: Option<SmsTexts>,
    /// Of pushes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_push: Option<WebPushTexts>,
}

/// The button or link.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ActionTexts {
    /// What stands on it.
    pub label: String,
    /// Where it leads.
    pub url: String,
}

/// Of mails.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmailTexts {
    /// Instead of the title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Instead of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Without it a mail is plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
}

/// Of text messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SmsTexts {
    /// Instead of the message.
    pub text: String,
}

/// Of pushes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WebPushTexts {
    /// Instead of the title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Instead of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl LocaleTexts {
    /// Source of a text, when the locale has it.
    pub(crate) fn get(&self, field: Field) -> Option<&str> {
        let action = self.action.as_ref();
        let email = self.email.as_ref();
        let push = self.web_push.as_ref();
        match field {
            Field::Title => Some(&self.title),
            Field::Message => Some(&self.message),
            Field::ActionLabel => action.map(|action| action.label.as_str()),
            Field::ActionUrl => action.map(|action| action.url.as_str()),
            Field::EmailSubject => email.and_then(|email| email.subject.as_deref()),
            Field::EmailText => email.and_then(|email| email.text.as_deref()),
            Field::EmailHtml => email.and_then(|email| email.html.as_deref()),
            Field::SmsText => self.sms.as_ref().map(|sms| sms.text.as_str()),
            Field::WebPushTitle => push.and_then(|push| push.title.as_deref()),
            Field::WebPushBody => push.and_then(|push| push.body.as_deref()),
        }
    }
}

impl TemplateDocument {
    /// Reads JSON. The error names the field.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, TemplateError> {
        if json.len() > DOCUMENT_BYTES_MAX {
            return Err(too_large(json.len()));
        }
        let mut reader = serde_json::Deserializer::from_slice(json);
        let document = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = match error.path().to_string() {
                path if path == "." => "the document".to_owned(),
                path => path,
            };
            TemplateError::field(path, format!("cannot be read: {}", error.inner()))
        })?;
        let rest = reader.end();
        rest.map_err(|error| TemplateError::field("the document", format!("is not one: {error}")))?;
        Ok(document)
    }

    /// The document with every map in order and nothing optional that is not there: equal documents give equal texts.
    pub(crate) fn canonical(&self) -> Result<String, TemplateError> {
        let unreadable = |error: serde_json::Error| {
            TemplateError::field("the document", format!("has no JSON form: {error}"))
        };
        let value = serde_json::to_value(self).map_err(unreadable)?;
        let mut out = String::new();
        write_sorted(&value, &mut out);
        if out.len() > DOCUMENT_BYTES_MAX {
            return Err(too_large(out.len()));
        }
        Ok(out)
    }
}

/// SHA-256 of a canonical document, in hex.
pub(crate) fn digest(canonical: &str) -> String {
    format!("{:x}", Sha256::digest(canonical))
}

fn too_large(bytes: usize) -> TemplateError {
    let problem =
        format!("has {bytes} bytes, more than {DOCUMENT_BYTES_MAX}; use fewer or shorter texts");
    TemplateError::field("the document", problem)
}

/// Maps keep the order of writing in some builds of the JSON library, so that they are sorted here.
fn write_sorted(value: &Json, out: &mut String) {
    match value {
        Json::Object(map) => {
            let sorted: BTreeMap<&String, &Json> = map.iter().collect();
            out.push('{');
            for (index, (key, value)) in sorted.into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                write_scalar(&Json::String(key.clone()), out);
                out.push(':');
                write_sorted(value, out);
            }
            out.push('}');
        }
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                write_sorted(item, out);
            }
            out.push(']');
        }
        scalar => write_scalar(scalar, out),
    }
}

fn write_scalar(value: &Json, out: &mut String) {
    write!(out, "{value}").expect("writing to a string never fails");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"name":"a","locales":{"en":{"title":"T","message":"M"}},
        "fallback_locale":"en"}"#;

    fn digest_of(json: &str) -> String {
        digest(&TemplateDocument::from_json(json.as_bytes()).unwrap().canonical().unwrap())
    }

    fn problem(json: &str) -> String {
        TemplateDocument::from_json(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn equal_documents_have_one_digest() {
        let first = digest_of(SMALL);
        assert_eq!(first.len(), 64);
        let reordered = r#"{"fallback_locale":"en","variables":{},"priority":null,
            "locales":{"en":{"message":"M","title":"T","email":null}},"name":"a"}"#;
        assert_eq!(digest_of(reordered), first);
        assert_ne!(digest_of(&SMALL.replace("\"M\"", "\"m\"")), first);
    }

    #[test]
    fn values_inside_defaults_are_sorted_and_aliases_are_one() {
        let with = |default: &str, priority: &str| {
            SMALL.replacen(
                '{',
                &format!(
                    r#"{{"priority":"{priority}","variables":{{"o":{{"type":"object",
                    "required":false,"default":{default}}}}},"#
                ),
                1,
            )
        };
        let first = digest_of(&with(r#"{"x":1,"y":[{"b":2,"a":1}]}"#, "normal"));
        assert_eq!(digest_of(&with(r#"{"y":[{"a":1,"b":2}],"x":1}"#, "medium")), first);
        assert_ne!(digest_of(&with(r#"{"y":[{"a":1,"b":3}],"x":1}"#, "normal")), first);
        assert_ne!(digest_of(&with(r#"{"x":1,"y":[{"b":2,"a":1}]}"#, "high")), first);
    }

    #[test]
    fn errors_name_the_field() {
        let unknown = problem(&SMALL.replace("\"title\"", "\"titel\":1,\"title\""));
        assert!(unknown.starts_with("locales.en.titel cannot be read: unknown field"), "{unknown}");
        assert!(unknown.contains("`title`, `message`"), "{unknown}");
        let missing = problem(&SMALL.replace("\"title\":\"T\",", ""));
        assert!(
            missing.starts_with("locales.en cannot be read: missing field `title`"),
            "{missing}"
        );
        let kind = problem(&SMALL.replacen('{', r#"{"variables":{"x":{"type":"text"}},"#, 1));
        assert!(kind.starts_with("variables.x.type cannot be read: unknown variant"), "{kind}");
        let category = problem(&SMALL.replacen('{', r#"{"category":"No!","#, 1));
        let expected = "category cannot be read: \"No!\" is no category: use";
        assert!(category.starts_with(expected), "{category}");
        let tail = problem(&format!("{SMALL} x"));
        assert!(tail.starts_with("the document is not one"), "{tail}");
        let large = problem(&" ".repeat(DOCUMENT_BYTES_MAX + 1));
        assert!(large.contains("use fewer or shorter texts"), "{large}");
    }
}
