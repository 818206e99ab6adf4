//! Notices that a key file on disk was replaced.
//!
//! The time of the next look is kept between waits, so that a wait which is dropped again and again never puts the look
//! off. What a file looked like is taken down before it is read: a file replaced in between is read once more.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

/// What tells two versions of a file apart without reading them: time of change, size, inode.
type Stamp = Option<(SystemTime, u64, u64)>;

/// Files, what each looked like when it was last read, and when they are looked at next.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    files: Vec<(PathBuf, Stamp)>,
    interval: Duration,
    interval_min: Duration,
    looked: Instant,
    next: Instant,
}

impl WatchedFiles {
    /// Takes down what the files look like; call it before they are read. They are looked at every `interval`, and
    /// after a hint as soon as the last look is `interval_min` ago.
    pub(crate) fn new(paths: Vec<PathBuf>, interval: Duration, interval_min: Duration) -> Self {
        let files = paths.into_iter().map(|path| {
            let stamp = stamp(&path);
            (path, stamp)
        });
        let looked = Instant::now();
        Self { files: files.collect(), interval, interval_min, looked, next: looked + interval }
    }

    /// Whether a file is not the one that was read.
    pub(crate) fn differ(&self) -> bool {
        self.files.iter().any(|(path, known)| stamp(path) != *known)
    }

    /// Waits until a look finds a changed file.
    ///
    /// # Cancel safety
    /// The next look stays due when the future is dropped.
    pub(crate) async fn changed(&mut self) {
        loop {
            sleep_until(self.next).await;
            self.looked = Instant::now();
            self.next = self.looked + self.interval;
            if self.differ() {
                return;
            }
        }
    }

    /// A token named a key that no file had: the next look comes early.
    pub(crate) fn hint(&mut self) {
        self.next = self.next.min(self.looked + self.interval_min);
    }
}

fn stamp(path: &std::path::Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_millis(400);
    const SHORT: Duration = Duration::from_millis(50);
    const SLICE: Duration = Duration::from_millis(10);

    /// Waits in slices, each of which drops the wait before it; the number of the slice that found a change.
    async fn find(files: &mut WatchedFiles, slices: u32) -> Option<u32> {
        for slice in 0..slices {
            if timeout(SLICE, files.changed()).await.is_ok() {
                return Some(slice);
            }
        }
        None
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_often_finds_the_change_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "one").unwrap();
        let mut files = WatchedFiles::new(vec![path.clone()], LONG, SHORT);
        assert!(!files.differ());
        std::fs::write(&path, "another").unwrap();
        assert!(files.differ());
        assert!(find(&mut files, 1_000).await.is_some());
        // It stays changed, and is found again, until somebody reads it.
        assert!(find(&mut files, 1_000).await.is_some());
    }

    #[tokio::test]
    async fn a_hint_brings_the_look_forward() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let mut files = WatchedFiles::new(vec![path.clone()], Duration::from_secs(3600), SHORT);
        std::fs::write(&path, "new").unwrap();
        assert_eq!(find(&mut files, 20).await, None, "without a hint nobody looks");
        files.hint();
        assert!(find(&mut files, 1_000).await.is_some());
    }
}
