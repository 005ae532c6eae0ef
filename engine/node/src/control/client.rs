//! The client side of the control socket.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::line::{Line, read_line};
use crate::api::{Event, Failure, MAX_REPLY_BYTES, Reply, Request};

/// Longest wait for the answer to a command. A two-phase commit gives up after 30 s, and a graceful stop needs a few.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(150);

fn what_to_do(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "only root and the user that runs zead may use it",
        _ => "is zead running, and with this --socket?",
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens.
    #[error("no daemon answers on {}: {source}; {}", path.display(), what_to_do(source))]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The daemon said no.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The conversation broke off.
    #[error("the daemon went away or does not speak this version's language: {0}")]
    Broken(String),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(unreachable)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(unreachable)?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The daemon's refusal, or that there is no answer.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        self.send(request, Some(ANSWER_TIMEOUT))?;
        match self.reply()? {
            Reply::Ok(value) => serde_json::from_value(value).map_err(|error| ClientError::Broken(error.to_string())),
            Reply::Error(failure) => Err(failure.into()),
            Reply::Event(_) => Err(ClientError::Broken("an event instead of an answer".into())),
        }
    }

    /// Sends a request for events; [`Client::next_event`] gives them.
    ///
    /// # Errors
    /// The request cannot be sent.
    pub fn stream(&mut self, request: &Request) -> Result<(), ClientError> {
        self.send(request, None)
    }

    /// Waits for the next event of a stream.
    ///
    /// # Errors
    /// The daemon refused the stream or ended it.
    pub fn next_event(&mut self) -> Result<Event, ClientError> {
        match self.reply()? {
            Reply::Event(event) => Ok(event),
            Reply::Error(failure) => Err(failure.into()),
            Reply::Ok(_) => Err(ClientError::Broken("an answer instead of an event".into())),
        }
    }

    fn send(&mut self, request: &Request, timeout: Option<Duration>) -> Result<(), ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let stream = self.stream.get_mut();
        stream.set_read_timeout(timeout).map_err(|error| broken(&error))?;
        let mut text = serde_json::to_vec(request).map_err(|error| broken(&error))?;
        text.push(b'\n');
        stream.write_all(&text).map_err(|error| broken(&error))
    }

    fn reply(&mut self) -> Result<Reply, ClientError> {
        match read_line(&mut self.stream, MAX_REPLY_BYTES) {
            Ok(Line::Text(text)) => {
                serde_json::from_slice(&text).map_err(|error| ClientError::Broken(error.to_string()))
            }
            Ok(Line::End) => Err(ClientError::Broken("it closed the connection".into())),
            Ok(Line::TooLong) => Err(ClientError::Broken("its answer has no end".into())),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Err(ClientError::Failure(Failure::timeout(format!(
                    "no answer after {} s; the command may still be carried out",
                    ANSWER_TIMEOUT.as_secs()
                ))))
            }
            Err(error) => Err(ClientError::Broken(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn control_socket_of_another_user_is_told_from_one_without_a_daemon() {
        let text = |kind: ErrorKind| ClientError::Unreachable { path: "s".into(), source: kind.into() }.to_string();
        assert!(text(ErrorKind::NotFound).ends_with("is zead running, and with this --socket?"));
        assert!(text(ErrorKind::PermissionDenied).ends_with("only root and the user that runs zead may use it"));
    }
}
