//! Exit codes, and the error that carries one.

use std::fmt;

use zea_node::api::{Failure, FailureKind};
use zea_node::control::ClientError;

/// Something did not work.
pub const FAILED: u8 = 1;
/// The command line or a configuration file is wrong.
pub const USAGE: u8 = 2;
/// The state of the resource forbids it.
pub const REFUSED: u8 = 3;
/// No daemon answers.
pub const UNREACHABLE: u8 = 4;
/// It took too long.
pub const TIMEOUT: u8 = 5;

/// For `--help`.
pub const TABLE: &str = "Exit codes:
  0  done
  1  something did not work
  2  the command line or a configuration file is wrong
  3  refused by the state of the resource, for example: not Primary, in use, no UpToDate data
  4  the daemon cannot be reached
  5  it took too long";

/// Why the program does not end with 0.
#[derive(Debug, PartialEq, Eq)]
pub struct CliError {
    /// Exit code.
    pub code: u8,
    /// For standard error; empty if there is nothing to say.
    pub message: String,
}

impl CliError {
    /// An error with a code of this module.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        CliError { code, message: message.into() }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Unreachable { .. } | ClientError::Broken(_) => UNREACHABLE,
            ClientError::Failure(Failure { kind, .. }) => match kind {
                FailureKind::Failed => FAILED,
                FailureKind::Usage => USAGE,
                FailureKind::Refused => REFUSED,
                FailureKind::Timeout => TIMEOUT,
            },
        };
        CliError::new(code, error.to_string())
    }
}

impl From<std::io::Error> for CliError {
    /// Failures of standard output. A reader that has seen enough (`zea status | head -1`) is no failure.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => CliError::new(0, ""),
            _ => CliError::new(FAILED, format!("cannot write to standard output: {error}")),
        }
    }
}
