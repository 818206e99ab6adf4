//! Mail over SMTP, to one relay of the operator.
//!
//! Owns the connections to it and what its replies mean. `Message-ID` comes from the delivery id, so a mail that is
//! sent again because nobody knows whether it was taken over is one mail for clients that look at it.

mod exchange;
mod mail;
mod pool;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lettre::Address;
use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use tokio::time::timeout;

use super::Sent;
use super::error::{SendError, SendErrorKind, SetupError};
use super::message::{Outgoing, Target};
use crate::config::Secret;
use crate::web_client::{TrustError, read_ca_file, root_cause};
use mail::Sheet;
use pool::{Dialer, Pool};

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SmtpSecurity {
    /// Not at all.
    None,
    /// Begins in plain text and goes over to TLS, or is given up.
    StartTls,
    /// TLS from the first byte.
    Tls,
}

/// Who logs in.
#[derive(Clone, Debug)]
pub(crate) struct SmtpCredentials {
    /// Name at the relay.
    pub user: String,
    /// Its password.
    pub password: Secret<String>,
}

/// How the relay is reached and what stands in every mail.
#[derive(Clone, Debug)]
pub(crate) struct SmtpSettings {
    /// Name or address of the relay.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Protection of the connection.
    pub security: SmtpSecurity,
    /// Login, when the relay wants one.
    pub credentials: Option<SmtpCredentials>,
    /// `Name <address>` or an address.
    pub from: String,
    /// The same form; answers go to `from` without it.
    pub reply_to: Option<String>,
    /// What the gateway calls itself; the domain of `from` without it.
    pub hello_name: Option<String>,
    /// CA certificates that are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// URL of `List-Unsubscribe`.
    pub unsubscribe_url: Option<String>,
    /// For the whole attempt, including the wait for a connection.
    pub deadline: Duration,
    /// Most connections at a time.
    pub connections_max: usize,
    /// How long an unused connection is kept.
    pub idle_max: Duration,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct SmtpSender {
    pool: Pool,
    sheet: Sheet,
    deadline: Duration,
}

impl SmtpSender {
    /// Checks the settings. Connects to nothing yet.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn new(settings: SmtpSettings) -> Result<Self, SetupError> {
        let from = mailbox(&settings.from, "the sender of mails")?;
        let reply_to = settings.reply_to.as_deref();
        let reply_to =
            reply_to.map(|text| mailbox(text, "the reply address of mails")).transpose()?;
        let unsubscribe = settings.unsubscribe_url.clone().map(check_unsubscribe).transpose()?;
        let hello_name = match &settings.hello_name {
            Some(name) => check_hello(name)?.to_owned(),
            None => from.email.domain().to_owned(),
        };
        let credentials = credentials(&settings)?;
        let tls = match settings.security {
            SmtpSecurity::None => None,
            SmtpSecurity::StartTls | SmtpSecurity::Tls => Some(tls_parameters(&settings)?),
        };
        let dialer = Dialer {
            host: settings.host,
            port: settings.port,
            security: settings.security,
            tls,
            credentials: credentials.map(Secret::new),
            hello_name: ClientId::Domain(hello_name),
            // Leaves time for a second address of the host.
            connect_max: settings.deadline / 3,
        };
        let pool = Pool::new(dialer, settings.connections_max, settings.idle_max);
        let sheet = Sheet { from, reply_to, unsubscribe };
        Ok(Self { pool, sheet, deadline: settings.deadline })
    }

    /// Makes one attempt.
    pub(super) async fn send(
        &self,
        message: &Outgoing,
        now_unix: Duration,
    ) -> Result<Sent, SendError> {
        let unfit = |reason| SendError::from(SendErrorKind::Unfit(reason));
        let Target::Email(address) = &message.target else {
            return Err(unfit("a mail needs an email address"));
        };
        let address: Address =
            address.parse().map_err(|_| unfit("the email address is malformed"))?;
        let mail = self.sheet.compose(message, address, now_unix).map_err(unfit)?;
        // A connection whose exchange is cut off here is dropped, and never used for another mail.
        match timeout(self.deadline, self.pool.deliver(&mail)).await {
            Ok(Ok(answer)) => Ok(Sent { answer }),
            Ok(Err(kind)) => Err(kind.into()),
            Err(_) => Err(SendErrorKind::Timeout.into()),
        }
    }
}

fn mailbox(text: &str, setting: &'static str) -> Result<Mailbox, SetupError> {
    let mailbox: Option<Mailbox> = text.parse().ok();
    let plain = |mailbox: &Mailbox| {
        let address: &str = mailbox.email.as_ref();
        address.is_ascii() && !text.chars().any(char::is_control)
    };
    mailbox.filter(plain).ok_or(SetupError::Setting {
        setting,
        problem: "is not an address such as Gateway <gateway@example.com>, in ASCII",
    })
}

/// It stands in a header and in `<>`, and does not change from mail to mail.
fn check_unsubscribe(url: String) -> Result<String, SetupError> {
    let printable = url.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>,".contains(&byte));
    let scheme = ["https://", "http://", "mailto:"].iter().any(|scheme| url.starts_with(scheme));
    if printable && scheme && url.len() <= 900 {
        return Ok(url);
    }
    Err(SetupError::Setting {
        setting: "the unsubscribe URL of mails",
        problem: "is not a URL such as https://example.com/unsubscribe, in ASCII and of at most 900 bytes",
    })
}

fn check_hello(name: &str) -> Result<&str, SetupError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    if !name.is_empty() && name.bytes().all(allowed) {
        return Ok(name);
    }
    Err(SetupError::Setting {
        setting: "the HELO name of the mail relay",
        problem: "is not a host name such as gateway.example.com",
    })
}

fn credentials(settings: &SmtpSettings) -> Result<Option<Credentials>, SetupError> {
    let Some(login) = &settings.credentials else { return Ok(None) };
    let host = settings.host.as_str();
    let here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if settings.security == SmtpSecurity::None && !here {
        return Err(SetupError::Setting {
            setting: "the password of the mail relay",
            problem: "would go over the network in plain text; use starttls or tls",
        });
    }
    Ok(Some(Credentials::new(login.user.clone(), login.password.expose().clone())))
}

fn tls_parameters(settings: &SmtpSettings) -> Result<TlsParameters, SetupError> {
    // Done here so that no caller can forget it; a provider that is installed already stays.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = |error: lettre::transport::smtp::Error| {
        SetupError::from(TrustError::Tls(root_cause(&error)))
    };
    let mut builder =
        TlsParameters::builder(settings.host.clone()).certificate_store(CertificateStore::Default);
    if let Some(path) = &settings.ca_file {
        for certificate in read_ca_file(path)? {
            let certificate = Certificate::from_der(certificate.to_vec()).map_err(tls)?;
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build_rustls().map_err(tls)
}

#[cfg(test)]
mod tests;
