//! A client with the task that keeps it connected.
//!
//! The task is meant to run until the client quits, but some errors end it (a redirection of a Redis Cluster that cannot be
//! followed is one): then nobody would ever answer again. So whoever finds that nothing answers has it started anew.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::ConnectHandle;
use tokio::time::timeout;

/// See the module's documentation.
pub(crate) struct Connection {
    client: Client,
    task: Mutex<Option<ConnectHandle>>,
    timeout: Duration,
}

/// The client's own form is pages long and contains the password.
impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Does not connect yet. No step takes longer than `timeout`.
    pub(super) fn new(client: Client, timeout: Duration) -> Self {
        Self { client, task: Mutex::default(), timeout }
    }

    /// The client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Begins to connect, or begins anew. Must be called inside the runtime.
    pub(crate) fn connect(&self) {
        let task = self.client.connect();
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Starts a task that has ended anew; answers whether that was so.
    pub(crate) fn revive(&self) -> bool {
        let has_ended = {
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.as_ref().is_some_and(ConnectHandle::is_finished)
        };
        if has_ended {
            tracing::warn!(category = "connection", event = "redis_client_restarted");
            self.connect();
        }
        has_ended
    }

    /// Drops the connection and makes another.
    pub(crate) async fn renew(&self) {
        if self.revive() {
            return;
        }
        let forced = timeout(self.timeout, self.client.force_reconnection()).await;
        if let Ok(Err(error)) = forced {
            tracing::debug!(category = "connection", event = "redis_reconnect", %error);
        }
    }

    /// Says goodbye to the server.
    pub(crate) async fn quit(&self) {
        // The process ends either way.
        let _unheard = timeout(self.timeout, self.client.quit()).await;
    }
}
