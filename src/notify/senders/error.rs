//! Why an attempt failed and whether another one makes sense; why a sender cannot be set up.

use std::fmt;
use std::time::Duration;

use crate::web_client::TrustError;

/// What the other side said, as far as it can be shown: codes, no text of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Status of an HTTP response.
    Http(u16),
    /// Reply of a mail server.
    Smtp {
        /// Three digits.
        code: u16,
        /// Enhanced status code such as 5.1.1, when the reply had one.
        enhanced: Option<(u16, u16, u16)>,
    },
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(status) => write!(f, "HTTP {status}"),
            Self::Smtp { code, enhanced: None } => write!(f, "SMTP {code}"),
            Self::Smtp { code, enhanced: Some((class, subject, detail)) } => {
                write!(f, "SMTP {code} {class}.{subject}.{detail}")
            }
        }
    }
}

/// What went wrong. The text names the mend and holds nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendErrorKind {
    /// The deadline passed. The message may have been taken over all the same.
    #[error(
        "no answer before the deadline; when this repeats, raise the timeout or look at the other side"
    )]
    Timeout,
    /// No connection, so nothing was sent.
    #[error("no connection: {0}; check host, port, network and certificate")]
    Connect(String),
    /// The connection broke. The message may have been taken over all the same.
    #[error("the connection broke before the answer: {0}")]
    Interrupted(String),
    /// Not now.
    #[error("not taken for now ({0}); it is worth another attempt later")]
    Unavailable(Answer),
    /// User, password or method of login were not accepted. No fault of the message.
    #[error("login was not accepted ({0}); check the user name and the password")]
    Login(Answer),
    /// Never.
    #[error(
        "refused for good ({0}); check the settings of this delivery channel and what the other side expects"
    )]
    Refused(Answer),
    /// The address or subscription is dead.
    #[error("the target no longer exists ({0}); stop sending to it")]
    Gone(Answer),
    /// The subscription's own time is over.
    #[error("the subscription has expired; the browser must subscribe again")]
    Expired,
    /// The target leads into a network that is closed to it.
    #[error("the host has no public address; allow private addresses if it is meant to be inside")]
    PrivateAddress,
    /// The message cannot go this way.
    #[error("the message cannot be sent this way: {0}")]
    Unfit(&'static str),
}

impl SendErrorKind {
    /// Name in metrics and logs.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connect(_) => "connect",
            Self::Interrupted(_) => "interrupted",
            Self::Unavailable(_) => "unavailable",
            Self::Login(_) => "login",
            Self::Refused(_) => "refused",
            Self::Gone(_) => "gone",
            Self::Expired => "expired",
            Self::PrivateAddress => "private_address",
            Self::Unfit(_) => "unfit",
        }
    }
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub(crate) struct SendError {
    /// What went wrong.
    pub kind: SendErrorKind,
    /// How long the other side asked to be left alone, bounded by the settings.
    pub retry_after: Option<Duration>,
}

impl SendError {
    /// Whether the same attempt may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self.kind {
            SendErrorKind::Timeout
            | SendErrorKind::Connect(_)
            | SendErrorKind::Interrupted(_)
            | SendErrorKind::Unavailable(_)
            | SendErrorKind::Login(_) => true,
            SendErrorKind::Refused(_)
            | SendErrorKind::Gone(_)
            | SendErrorKind::Expired
            | SendErrorKind::PrivateAddress
            | SendErrorKind::Unfit(_) => false,
        }
    }

    /// Whether it speaks against the other side as a whole, so that other messages will not be taken either. A mail server
    /// that refuses one recipient for now, as greylisting does, is well.
    pub(crate) fn is_outage(&self) -> bool {
        match self.kind {
            SendErrorKind::Unavailable(Answer::Smtp { code, enhanced }) => {
                // Closing the channel; subject 3 is the system of the server.
                code == 421 || matches!(enhanced, Some((_, 3, _)))
            }
            _ => self.is_retryable(),
        }
    }

    /// Whether the target is dead and should be removed.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.kind, SendErrorKind::Gone(_) | SendErrorKind::Expired)
    }
}

impl From<SendErrorKind> for SendError {
    fn from(kind: SendErrorKind) -> Self {
        Self { kind, retry_after: None }
    }
}

/// A sender cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// A setting cannot be used. The value is not repeated: it might be secret.
    #[error("{setting} {problem}")]
    Setting {
        /// Which one, as a person says it.
        setting: &'static str,
        /// What is wrong and what it should be.
        problem: &'static str,
    },
    /// Whom to trust is not clear.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_codes() {
        assert_eq!(Answer::Http(503).to_string(), "HTTP 503");
        assert_eq!(Answer::Smtp { code: 550, enhanced: None }.to_string(), "SMTP 550");
        let enhanced = Some((5, 1, 1));
        assert_eq!(Answer::Smtp { code: 550, enhanced }.to_string(), "SMTP 550 5.1.1");
    }

    #[test]
    fn nothing_dead_is_retried() {
        let answer = Answer::Http(410);
        for (kind, retryable, gone) in [
            (SendErrorKind::Timeout, true, false),
            (SendErrorKind::Connect(String::new()), true, false),
            (SendErrorKind::Interrupted(String::new()), true, false),
            (SendErrorKind::Unavailable(answer), true, false),
            (SendErrorKind::Login(answer), true, false),
            (SendErrorKind::Refused(answer), false, false),
            (SendErrorKind::Gone(answer), false, true),
            (SendErrorKind::Expired, false, true),
            (SendErrorKind::PrivateAddress, false, false),
            (SendErrorKind::Unfit("x"), false, false),
        ] {
            let name = kind.as_str();
            let error = SendError::from(kind);
            assert_eq!((error.is_retryable(), error.is_gone()), (retryable, gone), "{name}");
        }
    }

    #[test]
    fn one_recipient_is_not_the_whole_server() {
        for (code, enhanced, outage) in [
            (421, None, true),
            (421, Some((4, 7, 0)), true),
            (452, Some((4, 3, 1)), true),
            (452, Some((4, 2, 2)), false),
            (451, Some((4, 7, 1)), false),
            (450, None, false),
        ] {
            let answer = Answer::Smtp { code, enhanced };
            let error = SendError::from(SendErrorKind::Unavailable(answer));
            assert_eq!(error.is_outage(), outage, "{answer}");
        }
        let error = SendError::from(SendErrorKind::Unavailable(Answer::Http(503)));
        assert!(error.is_outage() && SendError::from(SendErrorKind::Timeout).is_outage());
        assert!(!SendError::from(SendErrorKind::Gone(Answer::Http(410))).is_outage());
    }
}
