//! The only place that prints: the report on standard output, progress and faults on standard error.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a command-line tool is for")]

use std::io::{IsTerminal, Write};

use crate::schedule::{Nanos, SECOND};

/// Prints a finished report.
pub(crate) fn report(text: &str) {
    print!("{text}");
    // A closed pipe must not hide the exit code.
    let _ = std::io::stdout().flush();
}

/// Prints why something did not work.
pub(crate) fn fault(text: &str) {
    eprintln!("error: {text}");
}

/// A line on standard error each second; on a terminal it is written over the one before.
#[derive(Debug)]
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    next_at: Nanos,
}

impl Progress {
    /// `quiet` switches it off.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, terminal: std::io::stderr().is_terminal(), next_at: 0 }
    }

    /// Writes what `line` says when a second has passed.
    pub(crate) fn tell(&mut self, now: Nanos, line: impl FnOnce() -> String) {
        if self.quiet || now < self.next_at {
            return;
        }
        self.next_at = now + SECOND;
        let at = now / SECOND;
        if self.terminal {
            eprint!("\r\x1b[2K[{at:>4} s] {}", line());
        } else {
            eprintln!("[{at:>4} s] {}", line());
        }
    }

    /// Ends the line.
    pub(crate) fn finish(&self) {
        if !self.quiet && self.terminal {
            eprintln!();
        }
    }
}
