//! Serves HTTP on connections that a shard handed over, and on the internal listener.
//!
//! A shard gives away a socket as soon as its first request is no WebSocket upgrade, together with the bytes already
//! read and the TLS state. From then on hyper drives it: keep-alive, pipelining and bounded heads are its work; the
//! deadlines of a slow peer are enforced in [`timed`]. The number of connections is bounded, for the public listeners
//! and the internal one apart, so that no client can keep probes and operators out. A connection above the bound gets
//! a plain 503 and is closed; an idle one gives its place up after the keep-alive timeout, not earlier. A WebSocket
//! upgrade on a kept connection cannot go back to a shard: it is answered with 421 and the connection closes, so that
//! the client opens a fresh one.

mod listener;
mod prefixed;
mod timed;
mod tls_stream;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use gateway_engine::HttpConnection;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::ServiceExt;

pub(crate) use listener::serve_listener;
use prefixed::Prefixed;
use timed::{Phase, Timed};
use tls_stream::TlsStream;

use crate::routes;

/// Bounds of the HTTP server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HttpLimits {
    /// Connections at one time, public and internal each.
    pub connections_max: usize,
    /// From the first byte of a request to its complete head.
    pub header_timeout: Duration,
    /// From the last answer to the next request, and the longest time a write may make no progress.
    pub keep_alive_timeout: Duration,
    /// Request line and headers together, in bytes; hyper needs at least 8 KiB.
    pub head_bytes_max: usize,
    /// Number of headers.
    pub headers_max: usize,
}

/// Address of the client, as a request extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientAddress(pub IpAddr);

/// The HTTP server; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct HttpServer {
    limits: HttpLimits,
    public: Arc<Semaphore>,
    internal: Arc<Semaphore>,
    refused: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
}

impl HttpServer {
    /// A server without connections.
    pub(crate) fn new(limits: HttpLimits) -> Self {
        Self {
            limits,
            public: Arc::new(Semaphore::new(limits.connections_max)),
            internal: Arc::new(Semaphore::new(limits.connections_max)),
            refused: Arc::default(),
            stop: watch::Sender::new(false),
        }
    }

    /// Open HTTP connections, public and internal.
    pub(crate) fn connections(&self) -> usize {
        let open = |slots: &Semaphore| self.limits.connections_max - slots.available_permits();
        open(&self.public) + open(&self.internal)
    }

    /// Connections refused because of the bound.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Finishes requests under way and closes kept connections; new ones are answered once and closed.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until no connection is left.
    pub(crate) async fn stopped(&self) {
        let all = u32::try_from(self.limits.connections_max).unwrap_or(u32::MAX);
        // An error would mean that the semaphore is closed, which nobody does.
        let _all_slots =
            tokio::join!(self.public.acquire_many(all), self.internal.acquire_many(all));
    }

    /// Takes over a connection of a shard. Must be called inside the runtime; never waits.
    pub(crate) fn serve_handed_over(&self, router: Router, connection: HttpConnection) {
        let HttpConnection { socket, peer, received, tls } = connection;
        let stream = std::net::TcpStream::from(socket);
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(category = "connection", %error, "handed-over socket is unusable");
                return;
            }
        };
        match tls {
            None => {
                self.spawn(&self.public, router, Prefixed::new(stream, received), peer.address);
            }
            Some(tls) => {
                let stream = Prefixed::new(TlsStream::new(stream, *tls), received);
                self.spawn(&self.public, router, stream, peer.address);
            }
        }
    }

    /// Serves a plain connection that was accepted on the control plane.
    fn serve_accepted(&self, router: Router, stream: TcpStream, peer: SocketAddr) {
        self.spawn(&self.internal, router, Prefixed::new(stream, Vec::new()), peer.ip());
    }

    fn spawn<S>(&self, slots: &Arc<Semaphore>, router: Router, stream: S, address: IpAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = self.clone();
        if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
            tokio::spawn(async move {
                if let Err(error) = server.drive(router, stream, address, slot).await {
                    tracing::debug!(category = "connection", %error, "HTTP connection ended early");
                }
            });
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(refuse(stream, self.limits.header_timeout));
        }
    }

    async fn drive<S>(
        self,
        router: Router,
        stream: S,
        address: IpAddr,
        _slot: OwnedSemaphorePermit,
    ) -> hyper::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let phase = Phase::default();
        let stream = Timed::new(
            stream,
            phase.clone(),
            self.limits.header_timeout,
            self.limits.keep_alive_timeout,
        );
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = phase.enter_request();
            let router = router.clone();
            async move {
                let mut response = answer(router, request, address).await;
                // Dropped by hyper once the response's head is encoded: from there on the peer's next head counts.
                response.extensions_mut().insert(busy);
                Ok::<_, Infallible>(response)
            }
        });
        let mut stop = self.stop.subscribe();
        let is_stopping = *stop.borrow_and_update();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.keep_alive_timeout.max(self.limits.header_timeout))
            .keep_alive(!is_stopping)
            .pipeline_flush(true)
            .max_buf_size(self.limits.head_bytes_max.max(8 * 1024))
            .max_headers(self.limits.headers_max)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        if is_stopping {
            // A graceful shutdown would close it before its request is read.
            return connection.await;
        }
        tokio::select! {
            result = connection.as_mut() => return result,
            // The sender lives in `self`, so the wait ends only when the server stops.
            _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

async fn answer(router: Router, request: Request<Incoming>, address: IpAddr) -> Response<Body> {
    if is_websocket_upgrade(&request) {
        return misdirected();
    }
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ClientAddress(address));
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn is_websocket_upgrade<B>(request: &Request<B>) -> bool {
    let upgrade = request.headers().get_all(header::UPGRADE);
    upgrade.iter().any(|value| {
        value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("websocket"))
    })
}

fn misdirected() -> Response<Body> {
    let message = "a WebSocket needs a connection of its own: open a new one for the upgrade";
    let mut response =
        routes::error_response(StatusCode::MISDIRECTED_REQUEST, "new_connection_needed", message);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Tells a peer above the bound to come back; gives up when it does not take the answer in time.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, timeout: Duration) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
        connection: close\r\ncontent-length: 70\r\n\r\n\
        {\"error\":{\"code\":\"unavailable\",\"message\":\"too many HTTP connections\"}}";
    let write = async {
        stream.write_all(ANSWER).await?;
        stream.shutdown().await
    };
    // Either way the socket is closed by the drop; nothing depends on the answer's arrival.
    let _outcome: Result<io::Result<()>, _> = tokio::time::timeout(timeout, write).await;
}

#[cfg(test)]
mod tests;
