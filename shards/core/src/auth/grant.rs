//! What an application gives a connection when it is asked about it, in the words of a token's claims.

use std::sync::Arc;
use std::time::Duration;

use super::claims::{channel_names, info, unix_time, user_id};
use super::strict_json::Members;
use super::{AuthError, Capabilities, Claims};

/// Members of the answer that belong to a grant.
const MEMBERS: [&str; 5] = ["user", "info", "channels", "caps", "expires_at"];

/// What an application's answer gives a connection. Nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// User id, for a connection that has none.
    pub user: Option<Arc<str>>,
    /// JSON text of an object, at most 4 KiB, instead of the token's `info`.
    pub info: Option<Arc<[u8]>>,
    /// Server-side subscriptions beside the token's.
    pub channels: Box<[Box<str>]>,
    /// Instead of the token's `caps`.
    pub capabilities: Option<Capabilities>,
    /// End of the connection, Unix time; that of the token when it is earlier.
    pub expires_at: Option<Duration>,
}

impl Grant {
    /// Reads the members `user`, `info`, `channels`, `caps` and `expires_at` of a JSON object, as strictly as those of a
    /// token, and leaves `others` to the caller.
    ///
    /// # Errors
    /// No object, a member twice or of a wrong type, or one that is neither of a grant nor among `others`.
    pub fn parse(json: &[u8], others: &[&str]) -> Result<Self, AuthError> {
        let members = Members::parse(json).map_err(|_| AuthError::Malformed)?;
        if members.names().any(|name| !MEMBERS.contains(&name) && !others.contains(&name)) {
            return Err(AuthError::Claims);
        }
        Ok(Self {
            user: members.get("user").map(user_id).transpose()?,
            info: members.get("info").map(info).transpose()?,
            channels: members.get("channels").map_or(Ok(Box::default()), channel_names)?,
            capabilities: members.get("caps").map(Capabilities::parse).transpose()?,
            expires_at: members.get("expires_at").map(unix_time).transpose()?,
        })
    }

    /// The claims of a connection that had `claims`, with what is given here. `now_unix` stands for the time of issue when
    /// there was no token, so that a later revocation reaches the connection.
    pub fn apply(self, claims: Option<&Claims>, now_unix: Duration) -> Claims {
        let mut claims = claims.cloned().unwrap_or_else(|| Claims {
            user: self.user.unwrap_or_default(),
            token_id: None,
            issued_at: Some(now_unix),
            expires_at: None,
            channels: Box::default(),
            capabilities: Capabilities::default(),
            info: None,
        });
        let mut channels = claims.channels.into_vec();
        for channel in self.channels {
            if !channels.contains(&channel) {
                channels.push(channel);
            }
        }
        claims.channels = channels.into();
        claims.info = self.info.or(claims.info);
        claims.capabilities = self.capabilities.unwrap_or(claims.capabilities);
        claims.expires_at = match (claims.expires_at, self.expires_at) {
            (Some(token), Some(given)) => Some(token.min(given)),
            (token, given) => token.or(given),
        };
        claims
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::auth::Permission;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn what_is_given_comes_on_top_of_a_token() {
        let token = Claims {
            user: "alice".into(),
            token_id: Some("t1".into()),
            issued_at: None,
            expires_at: Some(NOW + Duration::from_secs(60)),
            channels: Box::from(["a".into(), "b".into()]),
            capabilities: Capabilities::default(),
            info: Some(br#"{"name":"A"}"#.as_slice().into()),
        };
        let text = br#"{"allow":true,"channels":["b","c"],"expires_at":1800000100,
            "caps":[{"channels":["x:*"],"allow":["pub"]}]}"#;
        let claims = Grant::parse(text, &["allow"]).unwrap().apply(Some(&token), NOW);
        assert_eq!(&*claims.channels, ["a".into(), "b".into(), "c".into()]);
        assert_eq!((claims.expires_at, claims.issued_at), (token.expires_at, None));
        assert_eq!((claims.info, claims.token_id), (token.info, token.token_id));
        assert!(claims.capabilities.allows("x:1", Permission::Publish));
    }

    #[test]
    fn without_a_token_everything_is_given() {
        let text = br#"{"user":"bob","info":{"a": 1},"expires_at":1800000100}"#;
        let claims = Grant::parse(text, &[]).unwrap().apply(None, NOW);
        assert_eq!((&*claims.user, claims.issued_at), ("bob", Some(NOW)));
        assert_eq!(claims.expires_at, Some(NOW + Duration::from_secs(100)));
        assert_eq!(claims.info.as_deref(), Some(br#"{"a":1}"#.as_slice()));
        let nobody = Grant::default().apply(None, NOW);
        assert!(nobody.user.is_empty());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "[]",
            r#"{"allow":true}"#,
            r#"{"user":""}"#,
            r#"{"user":7}"#,
            r#"{"user":"a","user":"b"}"#,
            r#"{"info":"x"}"#,
            r#"{"channels":"a"}"#,
            r#"{"caps":[{"channels":["a"],"allow":["all"]}]}"#,
            r#"{"expires_at":"soon"}"#,
        ] {
            assert!(Grant::parse(text.as_bytes(), &[]).is_err(), "{text}");
        }
    }
}
