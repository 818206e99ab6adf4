//! `peer-tungstenite`: what a Rust user would write today. One current-thread runtime, a task per connection, fan-out
//! over a bounded queue per connection whose whole content leaves in one flush.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

const QUEUE_MESSAGES: usize = 256;
/// The library's default of 128 KiB for each connection would be its memory.
const READ_BUFFER_BYTES: usize = 4 << 10;
const BACKLOG: u32 = 4096;

/// Queues of the subscribers.
#[derive(Default)]
struct Hub {
    next: u64,
    queues: HashMap<u64, mpsc::Sender<Utf8Bytes>>,
}

type SharedHub = Rc<RefCell<Hub>>;

fn main() -> io::Result<()> {
    gateway_peers::limits::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve())
}

fn listen() -> io::Result<TcpListener> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(9000);
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    socket.listen(BACKLOG)
}

fn acceptor() -> io::Result<Option<TlsAcceptor>> {
    let (Ok(certificate), Ok(key)) = (std::env::var("CERT"), std::env::var("KEY")) else {
        return Ok(None);
    };
    let certificate = CertificateDer::from_pem_file(certificate).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(io::Error::other)?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

async fn serve() -> io::Result<()> {
    let (listener, acceptor) = (listen()?, acceptor()?);
    let hub = SharedHub::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (hub, acceptor) = (hub.clone(), acceptor.clone());
        tokio::task::spawn_local(async move {
            // A client that goes away ends its own task and nothing else.
            let _ = match acceptor {
                None => session(stream, &hub).await,
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => session(stream, &hub).await,
                    Err(_) => Ok(()),
                },
            };
        });
    }
}

#[allow(clippy::result_large_err, reason = "the form of the library's callback")]
async fn session<S>(stream: S, hub: &SharedHub) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut path = String::new();
    let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        request.uri().path().clone_into(&mut path);
        Ok(response)
    };
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let mut socket = accept_hdr_async_with_config(stream, look, Some(config)).await?;
    match path.as_str() {
        "/sub" => subscriber(&mut socket, hub).await,
        "/pub" => publisher(&mut socket, hub).await,
        _ => echo(&mut socket).await,
    }
}

async fn subscriber<S>(socket: &mut WebSocketStream<S>, hub: &SharedHub) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, mut queue) = mpsc::channel(QUEUE_MESSAGES);
    let id = {
        let mut hub = hub.borrow_mut();
        hub.next += 1;
        let id = hub.next;
        hub.queues.insert(id, sender);
        id
    };
    let outcome = async {
        socket.send(Message::text("ready")).await?;
        loop {
            tokio::select! {
                message = queue.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    socket.feed(Message::Text(message)).await?;
                    while let Ok(message) = queue.try_recv() {
                        socket.feed(Message::Text(message)).await?;
                    }
                    socket.flush().await?;
                }
                message = socket.next() => {
                    if message.transpose()?.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }
    .await;
    hub.borrow_mut().queues.remove(&id);
    outcome
}

async fn publisher<S>(socket: &mut WebSocketStream<S>, hub: &SharedHub) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message? {
            // A subscriber whose queue is full is too slow and goes: its queue closes and its task ends.
            hub.borrow_mut().queues.retain(|_, queue| queue.try_send(text.clone()).is_ok());
        }
    }
    Ok(())
}

async fn echo<S>(socket: &mut WebSocketStream<S>) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
