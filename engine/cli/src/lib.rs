//! The command line `zea`: turns arguments into requests to the node daemon and its answers into text.
//!
//! **Purpose.** What an administrator types and scripts parse. It keeps no state and touches no disk; all it does goes
//! through the control socket of `zead` (`docs/reference/zea.md`), but for `zea dissect` and
//! `zea replay`, which read recordings.
//!
//! **Owner thread.** One thread, blocking calls.
//!
//! **Invariants.**
//! * The exit code says what kind of end it was: [`exit`].
//! * Results go to standard output, everything else to standard error; colours and bars show on a terminal only.
//!
//! **Reference.** `status --json` and `events` follow `tooling-contract.md` sections 7 and 8.

#![deny(missing_docs)]

use std::process::ExitCode;

use clap::Parser;

pub mod args;
mod changes;
mod commands;
mod create;
mod dissect;
pub mod exit;
mod verify;
mod view;
mod wait;

pub mod instant;
mod replay;

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    // Ends the process itself on a usage error (2), `--help` and `--version` (0).
    let args = args::Args::parse();
    match commands::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.message.is_empty() {
                eprintln!("zea: {}", error.message);
            }
            ExitCode::from(error.code)
        }
    }
}
