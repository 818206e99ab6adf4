//! JSON objects as a token may carry them: no member twice, bounded nesting, bounded number of members.
//!
//! Two readers that disagree about which of two equal members counts are how a token means one thing to its issuer
//! and another to its verifier, so such an object is refused whole. Names are compared after unescaping.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Deepest nesting below the object itself.
const DEPTH_MAX: u32 = 16;
/// Most members of one object; the search for a duplicate is quadratic in it.
const MEMBERS_MAX: usize = 256;

/// Not such an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotStrict;

/// Members of an object as unparsed JSON text, names unescaped.
#[derive(Debug)]
pub(super) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads one object that takes up all of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, NotStrict> {
        let text = simdutf8::basic::from_utf8(bytes).map_err(|_| NotStrict)?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let members = deserializer.deserialize_map(MembersVisitor).map_err(|_| NotStrict)?;
        deserializer.end().map_err(|_| NotStrict)?;
        for (_, value) in &members {
            if value.get().starts_with(['{', '[']) {
                check(value.get())?;
            }
        }
        Ok(Self(members))
    }

    /// Names of the members.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// JSON text of a member.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(member, _)| member == name).map(|(_, value)| value.get())
    }
}

/// Whether `text` is one JSON value without duplicate members, nested at most [`DEPTH_MAX`] deep.
fn check(text: &str) -> Result<(), NotStrict> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Checked { depth: 1 }.deserialize(&mut deserializer).map_err(|_| NotStrict)?;
    deserializer.end().map_err(|_| NotStrict)
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Self::Value = Vec::new();
        while let Some(name) = map.next_key_seed(Name)? {
            if members.len() == MEMBERS_MAX || members.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom("duplicate or too many members"));
            }
            members.push((name, map.next_value()?));
        }
        Ok(members)
    }
}

/// A member name, borrowed when it holds no escape.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// Walks a value and refuses what is not strict.
struct Checked {
    depth: u32,
}

impl Checked {
    fn deeper<E: Error>(&self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom("nested too deep"));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names: Vec<Cow<'de, str>> = Vec::new();
        while let Some(name) = map.next_key_seed(Name)? {
            if names.len() == MEMBERS_MAX || names.contains(&name) {
                return Err(A::Error::custom("duplicate or too many members"));
            }
            names.push(name);
            map.next_value_seed(self.deeper()?)?;
        }
        Ok(())
    }
}

/// Removes the white space between the tokens of a valid JSON text.
pub(super) fn compact(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut in_string = false;
    let mut escaped = false;
    for &byte in text.as_bytes() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte == b'"' {
            in_string = true;
        } else if byte.is_ascii_whitespace() {
            continue;
        }
        out.push(byte);
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn accepted(text: &str) -> bool {
        Members::parse(text.as_bytes()).is_ok()
    }

    #[test]
    fn objects_only() {
        assert!(accepted("{}"));
        assert!(accepted(r#" {"a":1,"b":[{"c":null}],"d":"x"} "#));
        for text in
            ["", "[]", "1", "null", "{", "{}{}", "{} x", r#"{"a":}"#, r#"{"a":1,}"#, "{a:1}"]
        {
            assert!(!accepted(text), "{text}");
        }
    }

    #[test]
    fn a_member_twice_is_refused_at_every_depth() {
        assert!(!accepted(r#"{"a":1,"a":1}"#));
        assert!(!accepted(r#"{"sub":1,"s\u0075b":2}"#));
        assert!(!accepted(r#"{"x":{"a":1,"a":2}}"#));
        assert!(!accepted(r#"{"x":[[{"a":1,"\u0061":2}]]}"#));
        assert!(accepted(r#"{"x":{"a":1},"y":{"a":2}}"#));
    }

    #[test]
    fn nesting_and_members_are_bounded() {
        let nested =
            |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(accepted(&nested(15)));
        assert!(!accepted(&nested(17)));
        assert!(!accepted(&nested(100_000)));
        let wide = |count: usize| {
            let members: Vec<_> = (0..count).map(|n| format!(r#""m{n}":0"#)).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(accepted(&wide(MEMBERS_MAX)));
        assert!(!accepted(&wide(MEMBERS_MAX + 1)));
        assert!(!accepted(&format!(r#"{{"x":{}}}"#, wide(MEMBERS_MAX + 1))));
    }

    #[test]
    fn compact_keeps_strings() {
        let text = "{ \"a b\" :\n[ 1 , \"x \\\" y\\\\\" ] }";
        assert_eq!(compact(text), br#"{"a b":[1,"x \" y\\"]}"#);
    }

    #[test]
    fn values_are_found_by_unescaped_name() {
        let members = Members::parse(br#"{"s\u0075b": "x"}"#).unwrap();
        assert_eq!(members.get("sub"), Some(r#""x""#));
        assert_eq!(members.get("exp"), None);
    }
}
