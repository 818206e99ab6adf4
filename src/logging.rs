//! Logs: JSON lines on standard error (readable text in development), and warnings and errors in a file as well.
//!
//! Lines are written by threads of their own through bounded queues, so that a slow disk or terminal costs lines and
//! never time of a shard; lost lines are counted. Records carry a `category` (connection, message, performance,
//! error, security, system) and mostly an `event`. No record carries a payload, token or key.

mod json;
mod sampled;

use std::fmt;
use std::fs::OpenOptions;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry};

pub(crate) use sampled::LogSampler;

/// Lines that wait for their writer before further ones are dropped.
const LINES_MAX: usize = 65_536;

/// Logs cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// The filter is malformed.
    #[error("log.level `{filter}` is no log filter: {source}")]
    Filter {
        /// As configured.
        filter: String,
        /// What is wrong.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The error file cannot be opened.
    #[error("log.error_file {} cannot be opened for appending: {source}", path.display())]
    ErrorFile {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another subscriber is installed already.
    #[error("logging is set up already: {0}")]
    Twice(#[from] TryInitError),
    /// The subscriber is gone.
    #[error("the log filter cannot be replaced: {0}")]
    Gone(#[from] reload::Error),
}

/// Running logs; lines still queued are written when this is dropped.
pub(crate) struct Logging {
    filter: Handle<EnvFilter, Registry>,
    lost: Vec<ErrorCounter>,
    _writers: Vec<WorkerGuard>,
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").field("lost_lines", &self.lost_lines()).finish_non_exhaustive()
    }
}

impl Logging {
    /// Installs the process-wide subscriber.
    ///
    /// # Errors
    /// A malformed filter, an error file that cannot be opened, or a subscriber that is there already.
    pub(crate) fn start(
        filter: &str,
        json: bool,
        error_file: Option<&Path>,
    ) -> Result<Self, LoggingError> {
        let (filter, handle) = reload::Layer::new(parse(filter)?);
        let (output, writer) = queued(std::io::stderr());
        let mut lost = vec![output.error_counter()];
        let mut writers = vec![writer];
        let error_layer = match error_file {
            None => None,
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                let file = file
                    .map_err(|source| LoggingError::ErrorFile { path: path.to_owned(), source })?;
                let (output, writer) = queued(file);
                lost.push(output.error_counter());
                writers.push(writer);
                Some(json_layer(output).with_filter(LevelFilter::WARN))
            }
        };
        let lines = if json {
            json_layer(output).boxed()
        } else {
            let colours = std::io::stderr().is_terminal();
            tracing_subscriber::fmt::layer()
                .compact()
                .with_ansi(colours)
                .with_writer(output)
                .boxed()
        };
        tracing_subscriber::registry().with(filter).with(lines).with(error_layer).try_init()?;
        Ok(Self { filter: handle, lost, _writers: writers })
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// A malformed filter; the old one stays.
    pub(crate) fn set_filter(&self, filter: &str) -> Result<(), LoggingError> {
        Ok(self.filter.reload(parse(filter)?)?)
    }

    /// Lines dropped because a writer was too slow.
    pub(crate) fn lost_lines(&self) -> usize {
        self.lost.iter().map(ErrorCounter::dropped_lines).sum()
    }
}

/// Checks a filter without using it.
pub(crate) fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::try_new(filter)
        .map_err(|source| LoggingError::Filter { filter: filter.to_owned(), source })
}

fn queued(writer: impl std::io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    tracing_appender::non_blocking::NonBlockingBuilder::default()
        .buffered_lines_limit(LINES_MAX)
        .lossy(true)
        .thread_name("log-writer")
        .finish(writer)
}

fn json_layer<S, W>(writer: W) -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer()
        .event_format(json::JsonLines)
        .with_ansi(false)
        .with_writer(writer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn error_file_gets_warnings_as_json_and_the_filter_can_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("errors.log");
        let logging = Logging::start("error", true, Some(&path)).unwrap();
        tracing::warn!(category = "system", "below the filter");
        logging.set_filter("info").unwrap();
        assert!(matches!(logging.set_filter("a=b=c"), Err(LoggingError::Filter { .. })));
        tracing::warn!(category = "security", event = "test_event", count = 3, "shown");
        tracing::info!(category = "system", "not an error");
        assert_eq!(logging.lost_lines(), 0);
        drop(logging);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!(lines[0]["category"], "security");
        assert_eq!(lines[0]["event"], "test_event");
        assert_eq!(lines[0]["level"], "WARN");
    }

    #[test]
    fn a_directory_is_no_error_file() {
        let directory = tempfile::tempdir().unwrap();
        let error = Logging::start("info", true, Some(directory.path())).unwrap_err();
        assert!(error.to_string().contains("log.error_file"), "{error}");
    }
}
