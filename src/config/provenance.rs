//! Where a value came from, and what is wrong with it.
//!
//! Invariant: no error and no origin ever holds the content of a secret; [`ConfigError::value`] is filled through
//! [`shown`], which hides it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::secret::REDACTED;
use crate::config::sections::{Environment, Size};
use crate::config::value::Kind;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The documented defaults (`config/gateway.toml`), or a built-in namespace.
    Default,
    /// Default of the size tier.
    Size(Size),
    /// Default of the environment.
    Environment(Environment),
    /// Line of a file; 0 stands for the file as a whole.
    File(Arc<PathBuf>, usize),
    /// Environment variable.
    Variable(String),
    /// Command-line flag.
    Flag(String),
    /// The host itself.
    Host,
    /// The publicly known key of the development environment.
    DevelopmentKey,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Size(size) => write!(f, "default of size {}", size.as_str()),
            Self::Environment(environment) => write!(f, "default of {}", environment.as_str()),
            Self::File(path, 0) => write!(f, "{}", path.display()),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Host => f.write_str("host name"),
            Self::DevelopmentKey => f.write_str("built-in development key"),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Key, e.g. `limits.connections_max`; several of a combination are joined by ` + `.
    pub key: String,
    /// What was given; hidden if it may be secret.
    pub value: Option<String>,
    /// Where it was given.
    pub origin: Option<Origin>,
    /// What is wrong, as the rest of a sentence that begins with the key.
    pub problem: String,
    /// What is accepted.
    pub expected: Option<String>,
    /// What to do.
    pub mend: Option<String>,
}

impl ConfigError {
    /// An error that concerns no single value.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: None,
            origin: None,
            problem: problem.into(),
            expected: None,
            mend: None,
        }
    }

    /// Adds where it was given.
    #[must_use]
    pub fn at(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Adds what was given.
    #[must_use]
    pub fn value(mut self, value: String) -> Self {
        self.value = Some(value);
        self
    }

    /// Adds what is accepted.
    #[must_use]
    pub fn expected(mut self, expected: String) -> Self {
        self.expected = Some(expected);
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if let Some(origin) = &self.origin {
            write!(f, " ({origin})")?;
        }
        write!(f, " {}", self.problem)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(mend) = &self.mend {
            write!(f, "; {mend}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.0.len();
        write!(f, "the configuration has {errors} error{}:", if errors == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// `text` for an error message: hidden for a secret, cut when long.
pub fn shown(kind: &Kind, text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 120;
    if kind.is_secret() {
        return REDACTED.to_owned();
    }
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
