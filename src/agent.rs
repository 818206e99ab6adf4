//! The agent check: a line for HAProxy that says whether the node takes clients and how many it should get.
//!
//! A peer connects, gets its line and is closed; nothing it sends is looked at. Peers at one time and the time each may
//! take are bounded, and the answer waits for no shard, so a bad peer costs nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::load::Load;
use crate::plane::{Plane, SharedPlane};

/// Peers at one time; more are closed without an answer.
const PEERS_MAX: usize = 64;
/// From the accept to the end of the connection.
const PEER_TIMEOUT: Duration = Duration::from_secs(1);
/// What a peer may send before it is closed.
const INPUT_BYTES_MAX: u64 = 1024;
/// How long accepting rests after the process ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers until the future is dropped.
pub(crate) async fn run(plane: SharedPlane, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(PEERS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(category = "error", %error, "agent listener cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            plane.metrics.agent_checks.with_label_values(&["refused"]).inc();
            continue;
        };
        plane.metrics.agent_checks.with_label_values(&["answered"]).inc();
        let line = line(&plane);
        tokio::spawn(async move {
            // An error is the peer's, and nothing is owed to it then.
            let _outcome = tokio::time::timeout(PEER_TIMEOUT, answer(stream, &line)).await;
            drop(slot);
        });
    }
}

async fn answer(mut stream: TcpStream, line: &str) -> std::io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread input would reset the connection and could take the answer with it.
    let mut input = stream.take(INPUT_BYTES_MAX);
    tokio::io::copy(&mut input, &mut tokio::io::sink()).await?;
    Ok(())
}

/// What HAProxy is told. `drain` keeps the connections of the node and gives it no new ones; `up ready` takes that back.
fn line(plane: &Plane) -> String {
    if !plane.is_ready() {
        return "drain\n".to_owned();
    }
    format!("up ready {}%\n", Load::of(plane).weight_percent())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::health::LifePhase;
    use crate::plane::testing::plane;

    async fn ask(address: std::net::SocketAddr, input: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(input).await.unwrap();
        let mut line = String::new();
        stream.read_to_string(&mut line).await.unwrap();
        line
    }

    #[tokio::test]
    async fn the_line_follows_phase_and_load() {
        let (shards, plane) = plane();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(run(Arc::clone(&plane), listener));
        assert_eq!(ask(address, b"").await, "up ready 100%\n");
        *shards.load_permille.lock().unwrap() = 300;
        assert_eq!(ask(address, b"a question\n").await, "up ready 70%\n");
        // The limit of the small tier is 100.
        for (connections, expected) in [(50, "50"), (49, "1"), (1, "0")] {
            (0..connections).for_each(|_| plane.admission.add_session());
            assert_eq!(ask(address, b"").await, format!("up ready {expected}%\n"));
        }
        for phase in [LifePhase::Starting, LifePhase::Draining] {
            plane.health.enter(phase);
            assert_eq!(ask(address, b"").await, "drain\n", "{phase:?}");
        }
        plane.health.enter(LifePhase::Ready);
        *shards.heartbeat.lock().unwrap() = Duration::from_secs(60);
        assert_eq!(ask(address, b"").await, "drain\n", "a shard is stalled");
        server.abort();
    }

    #[tokio::test]
    async fn peers_that_stay_are_bounded_in_number_and_time() {
        let (_, plane) = plane();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(run(Arc::clone(&plane), listener));
        let mut staying = Vec::new();
        for _ in 0..PEERS_MAX {
            staying.push(TcpStream::connect(address).await.unwrap());
        }
        assert_eq!(ask(address, b"").await, "", "no room");
        // Each is closed in the end although it says nothing, and then there is room again.
        while ask(address, b"").await.is_empty() {
            tokio::task::yield_now().await;
        }
        server.abort();
    }
}
