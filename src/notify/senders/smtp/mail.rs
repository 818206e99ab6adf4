//! One mail as text: headers, a plain part and an HTML part.
//!
//! Nothing of a message reaches a header as it is: control characters become spaces, and the library encodes the rest.

use std::time::{Duration, UNIX_EPOCH};

use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::{Address, Message};

use crate::notify::senders::message::{DeliveryId, Outgoing};

/// Longest subject in characters; what follows is in the text anyway.
const SUBJECT_CHARS_MAX: usize = 200;

/// What stands in every mail.
#[derive(Debug)]
pub(super) struct Sheet {
    /// `From`, and the sender of the envelope.
    pub from: Mailbox,
    /// `Reply-To`.
    pub reply_to: Option<Mailbox>,
    /// `List-Unsubscribe`.
    pub unsubscribe: Option<String>,
}

/// A mail in its envelope.
pub(super) struct Mail {
    /// Sender of the envelope.
    pub from: Address,
    /// The one recipient.
    pub to: Address,
    /// Headers and body.
    pub text: Vec<u8>,
}

impl Mail {
    /// Whether the relay must know SMTPUTF8 to take it.
    pub(super) fn needs_utf8(&self) -> bool {
        !self.text.is_ascii() || !AsRef::<str>::as_ref(&self.to).is_ascii()
    }
}

impl Sheet {
    /// Writes the mail of a message.
    ///
    /// # Errors
    /// Why it cannot be a mail.
    pub(super) fn compose(
        &self,
        message: &Outgoing,
        to: Address,
        now_unix: Duration,
    ) -> Result<Mail, &'static str> {
        let email = message.email.as_ref().ok_or("it has no rendered email")?;
        let mut builder = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to.clone()))
            .subject(subject(&email.subject))
            .date(UNIX_EPOCH + now_unix)
            .message_id(Some(message_id(&message.delivery, &self.from.email)))
            .raw_header(header("Auto-Submitted", "auto-generated".to_owned()));
        if let Some(reply_to) = &self.reply_to {
            builder = builder.reply_to(reply_to.clone());
        }
        if let Some(url) = &self.unsubscribe {
            builder = builder.raw_header(header("List-Unsubscribe", format!("<{url}>")));
        }
        let mail = match &email.html {
            Some(html) => builder
                .multipart(MultiPart::alternative_plain_html(email.text.clone(), html.clone())),
            None => builder.singlepart(SinglePart::plain(email.text.clone())),
        };
        let text = mail.map_err(|_| "no mail can be made of it")?.formatted();
        Ok(Mail { from: self.from.email.clone(), to, text })
    }
}

/// One line of bounded length.
fn subject(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(SUBJECT_CHARS_MAX).collect::<String>().trim().to_owned()
}

fn message_id(id: &DeliveryId, from: &Address) -> String {
    format!("<{}@{}>", id.as_str(), from.domain())
}

fn header(name: &'static str, value: String) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::notify::senders::message::RenderedEmail;
    use crate::notify::senders::testing;

    const NOW: Duration = Duration::from_hours(490_000);

    fn compose(subject: &str, text: &str, html: Option<&str>) -> Mail {
        let sheet = Sheet {
            from: "Gäte <gateway@example.com>".parse().unwrap(),
            reply_to: Some("help@example.com".parse().unwrap()),
            unsubscribe: Some("https://example.com/unsubscribe".to_owned()),
        };
        let mut message = testing::outgoing("d1");
        message.email = Some(RenderedEmail {
            subject: subject.to_owned(),
            text: text.to_owned(),
            html: html.map(str::to_owned),
        });
        sheet.compose(&message, "ann@example.net".parse().unwrap(), NOW).unwrap()
    }

    /// Names of the headers, folded lines left out.
    fn header_names(mail: &Mail) -> Vec<String> {
        let text = std::str::from_utf8(&mail.text).unwrap();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        head.split("\r\n")
            .filter(|line| !line.starts_with([' ', '\t']))
            .map(|line| line.split_once(':').unwrap().0.to_owned())
            .collect()
    }

    const NAMES: [&str; 10] = [
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "Auto-Submitted",
        "Reply-To",
        "List-Unsubscribe",
        "MIME-Version",
        "Content-Type",
    ];

    #[test]
    fn a_mail_without_rendered_text_is_none() {
        let sheet =
            Sheet { from: "a@example.com".parse().unwrap(), reply_to: None, unsubscribe: None };
        let mut message = testing::outgoing("d1");
        message.email = None;
        let result = sheet.compose(&message, "ann@example.net".parse().unwrap(), NOW);
        assert_eq!(result.err(), Some("it has no rendered email"));
    }

    #[test]
    fn addresses_cannot_carry_headers() {
        for address in [
            "ann@example.net\r\nBcc: eve@example.net",
            "ann@example.net\nX: y",
            "ann@example.net>",
            "Ann <ann@example.net>",
            "ann@example.net, eve@example.net",
            "ann",
            "",
            "a b@example.net",
            "ann@example.net\0",
        ] {
            assert!(address.parse::<Address>().is_err(), "{address:?}");
        }
    }

    #[test]
    fn a_long_subject_is_cut() {
        let mail = compose(&"é".repeat(5_000), "text", None);
        assert!(mail.text.len() < 4_000, "{}", mail.text.len());
    }

    proptest! {
        #[test]
        fn no_text_adds_a_header(
            subject in "(\r\n|[\r\n:A-Za-z\u{80}-\u{2030} ]){0,60}",
            text in any::<String>(),
            html in proptest::option::of(any::<String>()),
        ) {
            let mail = compose(&subject, &text, html.as_deref());
            let mut names = header_names(&mail);
            names.retain(|name| name != "Content-Transfer-Encoding");
            prop_assert_eq!(names, NAMES);
            prop_assert!(mail.text.is_ascii() && !mail.needs_utf8());
            let longest = mail.text.split(|byte| *byte == b'\n').map(<[u8]>::len).max();
            prop_assert!(longest < Some(1_000), "{longest:?}");
        }
    }
}
