//! The whole state of a resource as bytes, and back: where a recording begins (`docs/adr`: the flight recorder). Not a format of
//! DRBD's, and of no use to another version of this crate.

use rkyv::rancor::{Error, Fallible};
use rkyv::ser::{Positional, Writer};

use crate::resource::{ArchivedResource, Resource};

/// Why there is no snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state of the resource takes more than {limit_bytes} bytes")]
pub struct TooLarge {
    /// What was allowed.
    pub limit_bytes: usize,
}

/// These bytes are no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no snapshot of a resource: {0}")]
pub struct SnapshotError(String);

/// Appends to `out` up to `limit` bytes.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    limit: usize,
}

/// Costs nothing to make: the caller says [`TooLarge`].
#[derive(Debug)]
struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the limit is reached")
    }
}

impl std::error::Error for Full {}

impl Fallible for Bounded<'_> {
    type Error = Error;
}

impl Positional for Bounded<'_> {
    fn pos(&self) -> usize {
        self.out.len() - self.start
    }
}

impl Writer<Error> for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.pos() + bytes.len() > self.limit {
            return Err(rkyv::rancor::Source::new(Full));
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }
}

impl Resource {
    /// Appends the state to `out`. Equal states give equal bytes; the time and the work are those of copying up to `limit_bytes`.
    ///
    /// # Errors
    /// It takes more than that: `out` is as it was.
    pub fn snapshot(&self, limit_bytes: usize, out: &mut Vec<u8>) -> Result<(), TooLarge> {
        let start = out.len();
        let writer = Bounded { out, start, limit: limit_bytes };
        match rkyv::api::high::to_bytes_in::<_, Error>(self, writer) {
            Ok(_) => Ok(()),
            Err(_) => {
                out.truncate(start);
                Err(TooLarge { limit_bytes })
            }
        }
    }

    /// The resource that [`Resource::snapshot`] was taken of. What is not the work of `snapshot`, but looks like it, may make a
    /// resource whose handlers panic.
    ///
    /// # Errors
    /// These bytes are none.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Resource, SnapshotError> {
        let archived = rkyv::access::<ArchivedResource, Error>(bytes).map_err(|e| SnapshotError(e.to_string()))?;
        rkyv::deserialize::<Resource, Error>(archived).map_err(|e| SnapshotError(e.to_string()))
    }
}
