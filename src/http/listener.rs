//! The internal listener: the same server on a socket of the control plane.

use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;

use super::HttpServer;

/// How long accepting rests after the process ran out of descriptors or memory, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the future is dropped.
pub(crate) async fn serve_listener(server: HttpServer, listener: TcpListener, router: Router) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small; without this each could wait for the peer's delayed acknowledgement.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(category = "connection", %error, "TCP_NODELAY refused");
                }
                server.serve_accepted(router.clone(), stream, peer);
            }
            Err(error) => {
                tracing::warn!(category = "error", %error, "internal listener cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
