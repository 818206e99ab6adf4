//! Starts the node. Only the entry point that the command line needs; the start itself is not part of this module yet.

use std::process::ExitCode;

use crate::config::Loaded;

/// Runs a node until it is told to stop.
pub fn serve(loaded: &Loaded) -> ExitCode {
    let listen = &loaded.config.listen.public;
    crate::cli::output::fail(&format!("this build has no data plane to listen on {listen:?}"));
    ExitCode::FAILURE
}
