//! The texts that a locale can have: what each is for, and how long it may be.

use std::fmt;

/// What a text becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// One line of plain text.
    Line,
    /// Plain text.
    Text,
    /// A URL.
    Url,
    /// HTML of a mail.
    Html,
}

/// One text of a locale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    /// What every delivery channel falls back to for its head line.
    Title,
    /// What every delivery channel falls back to for its body.
    Message,
    /// Text of the button or link.
    ActionLabel,
    /// Where the button or link leads.
    ActionUrl,
    /// Head line of a mail.
    EmailSubject,
    /// Plain part of a mail.
    EmailText,
    /// HTML part of a mail.
    EmailHtml,
    /// Text message.
    SmsText,
    /// Head line of a push.
    WebPushTitle,
    /// Body of a push.
    WebPushBody,
}

impl Field {
    /// Every one of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Title,
        Self::Message,
        Self::ActionLabel,
        Self::ActionUrl,
        Self::EmailSubject,
        Self::EmailText,
        Self::EmailHtml,
        Self::SmsText,
        Self::WebPushTitle,
        Self::WebPushBody,
    ];

    /// Path inside a locale.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Message => "message",
            Self::ActionLabel => "action.label",
            Self::ActionUrl => "action.url",
            Self::EmailSubject => "email.subject",
            Self::EmailText => "email.text",
            Self::EmailHtml => "email.html",
            Self::SmsText => "sms.text",
            Self::WebPushTitle => "web_push.title",
            Self::WebPushBody => "web_push.body",
        }
    }

    /// What it becomes.
    pub(crate) fn target(self) -> Target {
        match self {
            Self::Title | Self::ActionLabel | Self::EmailSubject | Self::WebPushTitle => {
                Target::Line
            }
            Self::Message | Self::EmailText | Self::SmsText | Self::WebPushBody => Target::Text,
            Self::ActionUrl => Target::Url,
            Self::EmailHtml => Target::Html,
        }
    }

    /// Bytes of its source, at most.
    pub(crate) fn source_bytes_max(self) -> usize {
        match self {
            Self::Title | Self::ActionLabel | Self::EmailSubject | Self::WebPushTitle => 2 << 10,
            Self::ActionUrl | Self::SmsText => 4 << 10,
            Self::WebPushBody => 8 << 10,
            Self::Message => 16 << 10,
            Self::EmailText => 64 << 10,
            Self::EmailHtml => 128 << 10,
        }
    }

    /// Bytes of the finished text, at most. A push has to fit 4 KiB as a whole; a message of more than ten parts is
    /// one that networks drop.
    pub(crate) fn output_bytes_max(self) -> usize {
        match self {
            Self::ActionLabel => 128,
            Self::WebPushTitle => 256,
            Self::Title | Self::EmailSubject => 512,
            Self::SmsText => 1_600,
            Self::ActionUrl | Self::WebPushBody => 2 << 10,
            Self::Message => 16 << 10,
            Self::EmailText => 128 << 10,
            Self::EmailHtml => 256 << 10,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}
