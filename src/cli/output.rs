//! What a command says to its user: results on standard output, errors on standard error. A running node logs
//! instead.

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

/// Writes a result. A reader that has gone (`| head`) is no failure.
pub fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Writes an error. When even standard error is closed there is nobody left to tell.
pub fn fail(text: &str) {
    let _ = writeln!(io::stderr().lock(), "archmesh: {text}");
}
