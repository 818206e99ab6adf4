//! The commands of one mail on a connection, and what the replies to them mean.

use std::error::Error as _;

use lettre::transport::smtp::Error;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt, Rset};
use lettre::transport::smtp::extension::{Extension, MailBodyParameter, MailParameter};

use super::mail::Mail;
use crate::notify::senders::error::{Answer, SendErrorKind};
use crate::web_client::root_cause;

/// How far the conversation had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Greeting, TLS.
    Connect,
    /// Login.
    Login,
    /// Before and after the recipient.
    Mail,
    /// The recipient.
    Recipient,
}

/// The relay's reply that it took the mail over.
///
/// # Errors
/// What went wrong, and whether the connection can be used again.
pub(super) async fn hand_over(
    connection: &mut AsyncSmtpConnection,
    mail: &Mail,
) -> Result<Answer, (SendErrorKind, bool)> {
    let mut parameters = Vec::new();
    if mail.needs_utf8() {
        let info = connection.server_info();
        let able = [Extension::SmtpUtfEight, Extension::EightBitMime]
            .into_iter()
            .all(|extension| info.supports_feature(extension));
        if !able {
            let reason = "the email address is not ASCII and the mail relay does not know SMTPUTF8";
            return Err((SendErrorKind::Unfit(reason), true));
        }
        parameters =
            vec![MailParameter::SmtpUtfEight, MailParameter::Body(MailBodyParameter::EightBitMime)];
    }
    match transact(connection, mail, parameters).await {
        Ok(answer) => Ok(answer),
        Err((stage, error)) => {
            let kind = meaning(stage, &error);
            // After a reply the conversation is in step, and reset starts over.
            let in_step = error.status().is_some_and(|code| u16::from(code) != 421);
            Err((kind, in_step && connection.command(Rset).await.is_ok()))
        }
    }
}

async fn transact(
    connection: &mut AsyncSmtpConnection,
    mail: &Mail,
    parameters: Vec<MailParameter>,
) -> Result<Answer, (Stage, Error)> {
    let other = |error| (Stage::Mail, error);
    connection.command(MailFrom::new(Some(mail.from.clone()), parameters)).await.map_err(other)?;
    let recipient = Rcpt::new(mail.to.clone(), Vec::new());
    connection.command(recipient).await.map_err(|error| (Stage::Recipient, error))?;
    connection.command(Data).await.map_err(other)?;
    let reply = connection.message(&mail.text).await.map_err(other)?;
    let code = reply.code().into();
    Ok(Answer::Smtp { code, enhanced: reply.first_word().and_then(enhanced_code) })
}

/// What a failure says about the mail. Before the mail is offered, nothing is its fault.
pub(super) fn meaning(stage: Stage, error: &Error) -> SendErrorKind {
    let Some(code) = error.status() else {
        return match stage {
            Stage::Connect | Stage::Login => SendErrorKind::Connect(root_cause(error)),
            Stage::Mail | Stage::Recipient => SendErrorKind::Interrupted(root_cause(error)),
        };
    };
    // The text of the reply is looked at for its code only: it may repeat the address.
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    let enhanced = text.split_whitespace().next().and_then(enhanced_code);
    classify(stage, code.into(), enhanced)
}

fn classify(stage: Stage, code: u16, enhanced: Option<(u16, u16, u16)>) -> SendErrorKind {
    let answer = Answer::Smtp { code, enhanced };
    match stage {
        Stage::Login => SendErrorKind::Login(answer),
        Stage::Connect => SendErrorKind::Unavailable(answer),
        _ if code < 500 => SendErrorKind::Unavailable(answer),
        Stage::Recipient if is_dead_mailbox(code, enhanced) => SendErrorKind::Gone(answer),
        Stage::Mail | Stage::Recipient => SendErrorKind::Refused(answer),
    }
}

/// 550 also stands for policy; the enhanced code, where there is one, tells them apart.
fn is_dead_mailbox(code: u16, enhanced: Option<(u16, u16, u16)>) -> bool {
    match enhanced {
        None => code == 550,
        // No such mailbox, domain, syntax, moved, null MX; disabled.
        Some((5, 1, 1 | 2 | 3 | 6 | 10) | (5, 2, 1)) => matches!(code, 550 | 551 | 553 | 556),
        Some(_) => false,
    }
}

/// `5.1.1` and the like.
fn enhanced_code(word: &str) -> Option<(u16, u16, u16)> {
    let mut parts = word.split('.').map(|part| part.parse::<u16>().ok().filter(|n| *n < 1_000));
    let code = (parts.next()??, parts.next()??, parts.next()??);
    (parts.next().is_none() && matches!(code.0, 2 | 4 | 5)).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(stage: Stage, code: u16, enhanced: Option<(u16, u16, u16)>) -> &'static str {
        classify(stage, code, enhanced).as_str()
    }

    #[test]
    fn codes_decide() {
        for (stage, code, enhanced, expected) in [
            (Stage::Recipient, 550, None, "gone"),
            (Stage::Recipient, 550, Some((5, 1, 1)), "gone"),
            (Stage::Recipient, 553, Some((5, 1, 3)), "gone"),
            (Stage::Recipient, 550, Some((5, 2, 1)), "gone"),
            (Stage::Recipient, 550, Some((5, 7, 1)), "refused"),
            (Stage::Recipient, 552, Some((5, 2, 2)), "refused"),
            (Stage::Recipient, 553, None, "refused"),
            (Stage::Recipient, 451, Some((4, 7, 1)), "unavailable"),
            (Stage::Recipient, 450, None, "unavailable"),
            (Stage::Mail, 550, Some((5, 1, 1)), "refused"),
            (Stage::Mail, 550, None, "refused"),
            (Stage::Mail, 421, None, "unavailable"),
            (Stage::Login, 535, Some((5, 7, 8)), "login"),
            (Stage::Login, 454, None, "login"),
            (Stage::Connect, 554, None, "unavailable"),
        ] {
            assert_eq!(name(stage, code, enhanced), expected, "{stage:?} {code} {enhanced:?}");
        }
    }

    #[test]
    fn enhanced_codes_are_told_from_other_words() {
        assert_eq!(enhanced_code("5.1.1"), Some((5, 1, 1)));
        assert_eq!(enhanced_code("4.7.650"), Some((4, 7, 650)));
        for word in ["", "5.1", "5.1.1.1", "10.0.0.1", "1.2.3", "5.x.1", "5.1.1000", "<a@b.c>"] {
            assert_eq!(enhanced_code(word), None, "{word}");
        }
    }
}
