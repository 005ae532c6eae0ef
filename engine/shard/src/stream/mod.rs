//! Byte streams on the ring: what peers' links and front-end connections have in common.
//!
//! At most one send and one receive of a socket are in the ring at a time, so that the order on the wire is the order of
//! queueing (design.md 3).

mod recv;
mod send;
#[cfg(test)]
mod tests;

pub(crate) use recv::{Receiver, Target};
pub(crate) use send::SendQueue;

/// Something that happened to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// This many bytes.
    Bytes(usize),
    /// The other side closed it.
    Closed,
    /// The system reported an error (errno).
    Failed(i32),
}

impl Moved {
    /// Reads a completion. `None`: nothing happened, try again.
    fn from_result(result: i32) -> Option<Moved> {
        match result {
            0 => Some(Moved::Closed),
            n if n > 0 => Some(Moved::Bytes(n as usize)),
            n if matches!(-n, libc::EINTR | libc::EAGAIN) => None,
            n => Some(Moved::Failed(-n)),
        }
    }
}
