//! Why bytes are refused.

use thiserror::Error;

use super::rules::Stream;
use crate::features::Features;
use crate::header::{HeaderError, HeaderFormat};
use crate::ids::NodeMask;
use crate::state::StateError;

/// Why a packet is refused. All of them are protocol errors that end the connection, except
/// `Truncated`: with it more bytes are needed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// Not a header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A header of another version on the data stream.
    #[error("{format:?} header at version {version}")]
    WrongHeaderFormat {
        /// The format.
        format: HeaderFormat,
        /// The agreed version.
        version: u32,
    },
    /// No such command.
    #[error("unknown command {command:#06x}")]
    UnknownCommand {
        /// The command.
        command: u16,
    },
    /// The command belongs to the other stream.
    #[error("{name} on the {stream:?} stream")]
    WrongStream {
        /// The packet.
        name: &'static str,
        /// Where it came.
        stream: Stream,
    },
    /// The command does not exist at the agreed version.
    #[error("{name} does not exist at version {version}")]
    WrongVersion {
        /// The packet.
        name: &'static str,
        /// The agreed version.
        version: u32,
    },
    /// The command needs a feature that was not agreed.
    #[error("{name} needs {needed}, agreed is {agreed}")]
    MissingFeature {
        /// The packet.
        name: &'static str,
        /// Needed features.
        needed: Features,
        /// Agreed features.
        agreed: Features,
    },
    /// The header announces a length that the packet cannot have.
    #[error("{name} of {length} bytes instead of {min}..={max}")]
    BadLength {
        /// The packet.
        name: &'static str,
        /// The header's length.
        length: u32,
        /// Least.
        min: usize,
        /// Most.
        max: usize,
    },
    /// The body is not complete.
    #[error("a body needs {need} bytes, {have} are there")]
    Truncated {
        /// Bytes wanted.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// A range is not whole sectors, is empty where it must not be, or is too long.
    #[error("a range of {size} bytes (most {max})")]
    BadSize {
        /// Bytes.
        size: u32,
        /// Most bytes.
        max: u32,
    },
    /// A range ends beyond any device.
    #[error("sector {sector} is beyond any device")]
    BadSector {
        /// The first sector.
        sector: u64,
    },
    /// Not a node id.
    #[error("{id} is not a node id")]
    BadNodeId {
        /// The number.
        id: i64,
    },
    /// A state word with an unknown number.
    #[error(transparent)]
    BadState(StateError),
    /// The name of an algorithm is not a terminated printable string of at most 63 characters.
    #[error("the name of an algorithm is malformed")]
    BadName,
    /// A digest is empty or too long.
    #[error("a digest of {len} bytes")]
    BadDigest {
        /// Bytes.
        len: usize,
    },
    /// The result of a verify is unknown.
    #[error("verify result {result}")]
    BadVerdict {
        /// The number.
        result: u32,
    },
    /// A plain bitmap part is not whole words.
    #[error("a bitmap part of {len} bytes")]
    BadBitmapLength {
        /// Bytes.
        len: usize,
    },
    /// P_UUIDS110 names unknown nodes or has too few UUIDs or broken ones.
    #[error("bitmap UUIDs of nodes {mask} in {len} bytes")]
    BadBitmapUuids {
        /// The mask.
        mask: NodeMask,
        /// Bytes behind the fixed part.
        len: usize,
    },
    /// A two-phase commit request of version 1 on a version 2 connection.
    #[error("two-phase commit flags {flags:#010x} do not say version 2")]
    BadTwopcFlags {
        /// The word.
        flags: u32,
    },
}
