//! The `caps` claim: permissions on channels that a token carries itself.

use std::sync::Arc;

use serde::Deserialize;

use super::AuthError;
use super::claims::is_channel_name;

/// Channel patterns of one token, all entries together.
const PATTERNS_MAX: usize = 128;

/// Something a capability can allow on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// `sub`: subscribe.
    Subscribe,
    /// `pub`: publish.
    Publish,
    /// `prs`: read presence.
    Presence,
    /// `hst`: read history.
    History,
}

impl Permission {
    /// Reads the word in a token.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "sub" => Some(Self::Subscribe),
            "pub" => Some(Self::Publish),
            "prs" => Some(Self::Presence),
            "hst" => Some(Self::History),
            _ => None,
        }
    }

    /// The word in a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Subscribe => "sub",
            Self::Publish => "pub",
            Self::Presence => "prs",
            Self::History => "hst",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What a token allows on which channels; empty by default, one pointer wide, shared by its clones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(Option<Arc<Grants>>);

const _: () = assert!(size_of::<Capabilities>() <= 8, "every session holds one");

#[derive(Debug, PartialEq, Eq)]
struct Grants(Box<[Grant]>);

#[derive(Debug, PartialEq, Eq)]
struct Grant {
    /// Channel name, or its beginning.
    name: Box<str>,
    /// Whether `name` stands for everything that begins with it.
    prefix: bool,
    /// [`Permission::bit`]s.
    allowed: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    channels: Vec<Box<str>>,
    allow: Vec<Box<str>>,
}

impl Capabilities {
    /// Whether the token allows it on this channel.
    pub fn allows(&self, channel: &str, permission: Permission) -> bool {
        self.0.as_deref().is_some_and(|grants| {
            grants.0.iter().any(|grant| {
                grant.allowed & permission.bit() != 0
                    && if grant.prefix {
                        channel.starts_with(&*grant.name)
                    } else {
                        channel == &*grant.name
                    }
            })
        })
    }

    /// Whether the token carries none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Reads the claim. A word or a pattern that is not understood refuses the token, so that a typing error shows
    /// at once instead of as a missing permission later.
    pub(super) fn parse(json: &str) -> Result<Self, AuthError> {
        let entries: Vec<Entry> = serde_json::from_str(json).map_err(|_| AuthError::Claims)?;
        let mut grants = Vec::new();
        for entry in entries {
            let allowed = read_words(&entry.allow)?;
            for pattern in entry.channels {
                if grants.len() == PATTERNS_MAX {
                    return Err(AuthError::Claims);
                }
                grants.push(read_pattern(&pattern, allowed)?);
            }
        }
        Ok(Self((!grants.is_empty()).then(|| Arc::new(Grants(grants.into())))))
    }
}

fn read_words(words: &[Box<str>]) -> Result<u8, AuthError> {
    words.iter().try_fold(0, |bits, word| {
        Permission::parse(word).map(|permission| bits | permission.bit()).ok_or(AuthError::Claims)
    })
}

fn read_pattern(pattern: &str, allowed: u8) -> Result<Grant, AuthError> {
    let (name, prefix) = match pattern.strip_suffix('*') {
        Some(name) => (name, true),
        None => (pattern, false),
    };
    let valid = if prefix && name.is_empty() { true } else { is_channel_name(name) };
    if !valid || name.contains('*') {
        return Err(AuthError::Claims);
    }
    Ok(Grant { name: name.into(), prefix, allowed })
}

/// Reads the `caps` of a channel token, a plain list of words: whether publishing is among them.
pub(super) fn allows_publish(json: &str) -> Result<bool, AuthError> {
    let words: Vec<Box<str>> = serde_json::from_str(json).map_err(|_| AuthError::Claims)?;
    Ok(read_words(&words)? & Permission::Publish.bit() != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn exact_and_prefix_patterns() {
        let caps = Capabilities::parse(
            r#"[{"channels":["workflow:*","chat:room-7"],"allow":["sub","hst"]},{"channels":["chat:room-7"],"allow":["pub"]}]"#,
        )
        .unwrap();
        assert!(caps.allows("workflow:1", Permission::Subscribe));
        assert!(caps.allows("workflow:", Permission::History));
        assert!(!caps.allows("workflow", Permission::Subscribe));
        assert!(!caps.allows("workflow:1", Permission::Publish));
        assert!(caps.allows("chat:room-7", Permission::Publish));
        assert!(!caps.allows("chat:room-77", Permission::Subscribe));
        assert!(!caps.allows("chat:room-7", Permission::Presence));
    }

    #[test]
    fn a_lone_star_is_everything_and_nothing_is_the_default() {
        let all = Capabilities::parse(r#"[{"channels":["*"],"allow":["sub"]}]"#).unwrap();
        assert!(all.allows("anything:at all", Permission::Subscribe));
        assert!(Capabilities::parse("[]").unwrap().is_empty());
        assert!(!Capabilities::default().allows("system", Permission::Subscribe));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for json in [
            "{}",
            "null",
            r#"["sub"]"#,
            r#"[{"channels":["a"]}]"#,
            r#"[{"channels":"a","allow":["sub"]}]"#,
            r#"[{"channels":["a"],"allow":"sub"}]"#,
            r#"[{"channels":["a"],"allow":["admin"]}]"#,
            r#"[{"channels":["a*b"],"allow":["sub"]}]"#,
            r#"[{"channels":["**"],"allow":["sub"]}]"#,
            r#"[{"channels":[""],"allow":["sub"]}]"#,
            r#"[{"channels":["a"],"allow":["sub"],"until":1}]"#,
        ] {
            assert_eq!(Capabilities::parse(json), Err(AuthError::Claims), "{json}");
        }
        let many = vec![r#""c""#; PATTERNS_MAX + 1].join(",");
        let json = format!(r#"[{{"channels":[{many}],"allow":["sub"]}}]"#);
        assert_eq!(Capabilities::parse(&json), Err(AuthError::Claims));
    }

    #[test]
    fn words_round_trip() {
        for permission in
            [Permission::Subscribe, Permission::Publish, Permission::Presence, Permission::History]
        {
            assert_eq!(Permission::parse(permission.as_str()), Some(permission));
        }
    }
}
