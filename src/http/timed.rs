//! Deadlines against slow peers, below hyper.
//!
//! hyper's own header timeout runs from the end of the last answer, so it serves as the keep-alive timeout. Here the
//! head deadline starts with the first byte of a head, and a write that makes no progress ends the connection.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Whether a request is being handled on the connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Phase(Arc<AtomicUsize>);

impl Phase {
    /// Marks a request as being handled until the guard and all its clones are dropped.
    pub(super) fn enter_request(&self) -> Busy {
        self.0.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::new(BusyGuard(self.clone())))
    }

    fn is_busy(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// Guard of a request being handled; clonable because response extensions must be.
#[derive(Clone, Debug)]
pub(super) struct Busy(#[allow(dead_code, reason = "held for its drop")] Arc<BusyGuard>);

#[derive(Debug)]
struct BusyGuard(Phase);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        (self.0).0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A deadline that is armed and disarmed often and rarely runs out.
#[derive(Debug)]
struct Deadline {
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    fn new(timeout: Duration) -> Self {
        Self { timeout, sleep: None }
    }

    fn arm(&mut self) {
        if self.sleep.is_none() {
            self.sleep = Some(Box::pin(tokio::time::sleep_until(Instant::now() + self.timeout)));
        }
    }

    fn disarm(&mut self) {
        self.sleep = None;
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready())
    }
}

/// A stream that gives a slow peer up.
#[derive(Debug)]
pub(super) struct Timed<S> {
    stream: S,
    phase: Phase,
    head: Deadline,
    write: Deadline,
}

impl<S> Timed<S> {
    pub(super) fn new(
        stream: S,
        phase: Phase,
        head_timeout: Duration,
        write_timeout: Duration,
    ) -> Self {
        Self {
            stream,
            phase,
            head: Deadline::new(head_timeout),
            write: Deadline::new(write_timeout),
        }
    }

    fn watch_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.write.disarm();
            return progress;
        }
        self.write.arm();
        if self.write.is_over(cx) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer does not read",
            )));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        if this.phase.is_busy() {
            this.head.disarm();
            return result;
        }
        if buf.filled().len() > before {
            this.head.arm();
        }
        if result.is_pending() && this.head.is_over(cx) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no complete request head in time",
            )));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_write(cx, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch_write(cx, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch_write(cx, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch_write(cx, progress)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn a_head_that_trickles_is_given_up() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = Timed::new(near, Phase::default(), SHORT, SHORT);
        far.write_all(b"GET").await.unwrap();
        let mut buf = [0; 64];
        assert_eq!(stream.read(&mut buf).await.unwrap(), 3);
        assert_eq!(stream.read(&mut buf).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_request_under_way_has_no_head_deadline() {
        let (near, mut far) = tokio::io::duplex(64);
        let phase = Phase::default();
        let mut stream = Timed::new(near, phase.clone(), SHORT, SHORT);
        far.write_all(b"GET / HTTP/1.1").await.unwrap();
        let mut buf = [0; 64];
        assert_eq!(stream.read(&mut buf).await.unwrap(), 14);
        let busy = phase.enter_request();
        assert!(
            tokio::time::timeout(SHORT * 3, stream.read(&mut buf)).await.is_err(),
            "must wait on"
        );
        drop(busy);
        assert!(!phase.is_busy());
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (near, _far) = tokio::io::duplex(8);
        let mut stream = Timed::new(near, Phase::default(), SHORT, SHORT);
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
