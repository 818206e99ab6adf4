//! Hazard: a server that keeps its sockets and answers nothing is found late, or what somebody gives up halfway decides
//! whether it is back.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::config::{Config as Settings, Sources};

/// Answers PING, and says yes to whatever else a client asks for at its start, until it hangs.
#[derive(Clone, Default)]
struct Server {
    hangs: Arc<AtomicBool>,
    pongs: Arc<AtomicU64>,
    /// It hangs after so many answers to PING.
    pongs_max: Option<u64>,
    hung_at: Arc<Mutex<Option<Instant>>>,
}

impl Server {
    /// Answers its URL.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        url
    }

    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Some(head) = lines.next_line().await.ok()? {
            let count: usize = head.strip_prefix('*')?.parse().ok()?;
            let mut command = String::new();
            for argument in 0..count {
                lines.next_line().await.ok()?;
                let text = lines.next_line().await.ok()??;
                if argument == 0 {
                    command = text;
                }
            }
            if self.hangs.load(Ordering::SeqCst) {
                continue;
            }
            let answer = match command.as_str() {
                "PING" => "+PONG\r\n",
                "CLIENT" => ":1\r\n",
                _ => "+OK\r\n",
            };
            write.write_all(answer.as_bytes()).await.ok()?;
            if command == "PING" {
                let pongs = self.pongs.fetch_add(1, Ordering::SeqCst) + 1;
                if Some(pongs) == self.pongs_max {
                    self.hangs.store(true, Ordering::SeqCst);
                    *self.hung_at.lock().unwrap() = Some(Instant::now());
                }
            }
        }
        Some(())
    }
}

fn redis(url: &str) -> Arc<Redis> {
    let section = Settings::load(&Sources::default()).unwrap().config.redis;
    Arc::new(Redis::connect("redis.url", url, &section).unwrap())
}

fn watch(redis: &Arc<Redis>) -> JoinHandle<()> {
    let redis = Arc::clone(redis);
    tokio::spawn(async move { redis.watch().await })
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(Duration::from_secs(30), wait).await.is_ok(), "{what}");
}

/// The worst moment is right after an answer, and nobody but the watchdog asks.
#[tokio::test]
async fn the_watchdog_alone_finds_a_hang_within_three_seconds() {
    let server = Server { pongs_max: Some(3), ..Server::default() };
    let redis = redis(&server.start().await);
    let _watching = watch(&redis);
    until("it hangs", || server.hangs.load(Ordering::SeqCst)).await;
    until("that is found", || redis.breaker_state() == BreakerState::Open).await;
    let took = server.hung_at.lock().unwrap().unwrap().elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    server.hangs.store(false, Ordering::SeqCst);
    let back_at = Instant::now();
    until("it is used again", || redis.is_up()).await;
    assert!(back_at.elapsed() < Duration::from_secs(3), "{:?}", back_at.elapsed());
}

#[tokio::test]
async fn while_the_breaker_is_open_only_the_watchdog_is_let_through() {
    let server = Server::default();
    let redis = redis(&server.start().await);
    let get = async || redis.call(async |client| client.ping::<()>(None).await).await;
    assert!(get().await.is_ok());
    server.hangs.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(matches!(get().await, Err(RedisError::Timeout)));
    }
    server.hangs.store(false, Ordering::SeqCst);
    let opened = Instant::now();
    until("the time of the breaker is over", || opened.elapsed() > redis.section.breaker_open)
        .await;
    let pongs = server.pongs.load(Ordering::SeqCst);
    assert!(matches!(get().await, Err(RedisError::Open)), "no trial for others");
    assert_eq!(server.pongs.load(Ordering::SeqCst), pongs);
    let _watching = watch(&redis);
    until("the watchdog has tried it", || redis.breaker_state() == BreakerState::Closed).await;
    assert!(get().await.is_ok());
}
