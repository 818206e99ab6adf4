//! Connections to the relay: bounded, kept for the next mail, and only when the last one ended in step.
//!
//! The pool of the library is not used: it keeps a connection whose exchange was dropped half-way, and the replies that
//! are still to come would be taken for those to the next mail. Here a connection comes back only when its exchange
//! ended; one that is dropped is closed.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::SmtpSecurity;
use super::exchange::{Stage, hand_over, meaning};
use super::mail::Mail;
use crate::config::Secret;
use crate::notify::senders::error::{Answer, SendErrorKind};

/// Opens connections.
pub(super) struct Dialer {
    /// Name or address of the relay.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Protection of the connection.
    pub security: SmtpSecurity,
    /// Present unless there is no security.
    pub tls: Option<TlsParameters>,
    /// Login, when the relay wants one.
    pub credentials: Option<Secret<Credentials>>,
    /// What the gateway calls itself.
    pub hello_name: ClientId,
    /// For each address of the host, and for a kept connection to answer.
    pub connect_max: Duration,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("security", &self.security)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// A connection that is ready for a mail.
    async fn dial(&self) -> Result<AsyncSmtpConnection, SendErrorKind> {
        let connect = |error| meaning(Stage::Connect, &error);
        let at_once = self.tls.clone().filter(|_| self.security == SmtpSecurity::Tls);
        let mut connection = AsyncSmtpConnection::connect_tokio1(
            (self.host.as_str(), self.port),
            Some(self.connect_max),
            &self.hello_name,
            at_once,
            None,
        )
        .await
        .map_err(connect)?;
        if let (SmtpSecurity::StartTls, Some(tls)) = (self.security, &self.tls) {
            connection.starttls(tls.clone(), &self.hello_name).await.map_err(connect)?;
        }
        if let Some(credentials) = &self.credentials {
            let mechanisms = [Mechanism::Plain, Mechanism::Login];
            let login = connection.auth(&mechanisms, credentials.expose()).await;
            login.map_err(|error| meaning(Stage::Login, &error))?;
        }
        Ok(connection)
    }
}

struct Idle {
    connection: AsyncSmtpConnection,
    since: Instant,
}

/// See the module's documentation.
pub(super) struct Pool {
    dialer: Dialer,
    permits: Semaphore,
    /// The one used last is at the end. Never more than there are permits.
    idle: Mutex<Vec<Idle>>,
    idle_max: Duration,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("dialer", &self.dialer).finish_non_exhaustive()
    }
}

impl Pool {
    /// At most `connections_max` connections, at least one.
    pub(super) fn new(dialer: Dialer, connections_max: usize, idle_max: Duration) -> Self {
        let permits = Semaphore::new(connections_max.clamp(1, Semaphore::MAX_PERMITS));
        Self { dialer, permits, idle: Mutex::new(Vec::new()), idle_max }
    }

    /// Hands the mail to the relay on a connection of its own.
    ///
    /// # Cancel safety
    /// The connection in use is closed; nobody gets it afterwards.
    pub(super) async fn deliver(&self, mail: &Mail) -> Result<Answer, SendErrorKind> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let mut connection = match self.take().await {
            Some(connection) => connection,
            None => self.dialer.dial().await?,
        };
        match hand_over(&mut connection, mail).await {
            Ok(answer) => {
                self.give_back(connection);
                Ok(answer)
            }
            Err((kind, usable)) => {
                if usable {
                    self.give_back(connection);
                }
                Err(kind)
            }
        }
    }

    /// A kept connection that still answers.
    async fn take(&self) -> Option<AsyncSmtpConnection> {
        loop {
            let mut connection = self.newest()?;
            let answers = timeout(self.dialer.connect_max, connection.test_connected()).await;
            if answers == Ok(true) {
                return Some(connection);
            }
        }
    }

    fn newest(&self) -> Option<AsyncSmtpConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < self.idle_max);
        idle.pop().map(|idle| idle.connection)
    }

    fn give_back(&self, connection: AsyncSmtpConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(Idle { connection, since: Instant::now() });
    }
}
