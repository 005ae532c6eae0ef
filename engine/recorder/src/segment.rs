//! A segment: one file that can be replayed by itself. A magic, a frame with the header, a frame with the snapshot of the core, and
//! frames with entries.

use rkyv::rancor::Error as RkyvError;
use rkyv::{Archive, Deserialize, Serialize};
use zea_core::io::{LinkId, Time};
use zea_wire::features::Negotiated;
use zea_wire::ids::NodeId;

use crate::bytes::Reader;
use crate::frame::{self, Cut};

/// What a segment begins with. The number changes with the format of headers and entries.
pub(crate) const MAGIC: [u8; 8] = *b"zeaflt01";

/// Why a segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Cause {
    /// The resource was added: to a daemon that started, or by a command.
    Start,
    /// The segment before had its size.
    Full,
    /// Inputs could not be recorded: the disk was too slow or full, or the state too large. Recording begins again here.
    Gap,
}

/// The header of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Header {
    /// Version of the program. The snapshot is read by the same version only.
    pub version: String,
    /// Name of the resource.
    pub resource: String,
    /// Names the run: the time of the resource between being added and taken away. Nanoseconds since 1970 when it began.
    pub run: u64,
    /// Number of the segment in the run, from 0. Numbers can be missing.
    pub segment: u64,
    /// Why it begins.
    pub cause: Cause,
    /// Inputs of the run before it.
    pub inputs: u64,
    /// The core's time when it begins.
    pub at: Time,
    /// The same as nanoseconds since 1970. The core's time is monotonic: a clock that was set in the run does not show.
    pub wall_ns: u64,
    /// How packets of each peer's link are encoded.
    pub links: Vec<(NodeId, LinkId, Negotiated)>,
}

impl Header {
    /// Nanoseconds since 1970 of an instant of the core.
    pub fn wall_ns(&self, at: Time) -> u64 {
        self.wall_ns.saturating_add(at.0.saturating_sub(self.at.0))
    }
}

/// Why a file is not a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadSegment {
    /// Something else.
    Foreign,
    /// Its header or its snapshot is not complete: its process died before.
    Cut(Cut),
    /// By another version.
    Version(String),
}

/// Appends header and snapshot.
pub(crate) fn put(out: &mut Vec<u8>, header: &Header, snapshot: &[u8]) {
    let header = rkyv::to_bytes::<RkyvError>(header).expect("a header fits memory");
    out.extend_from_slice(&MAGIC);
    frame::put(out, &header);
    frame::put(out, snapshot);
}

/// The header; the rest stays in `rest`.
pub(crate) fn get_header(rest: &mut Reader<'_>) -> Result<Header, BadSegment> {
    if rest.0.len() < MAGIC.len() && MAGIC.starts_with(rest.0) {
        return Err(BadSegment::Cut(Cut::Torn));
    }
    if !rest.0.starts_with(&MAGIC) {
        return Err(BadSegment::Foreign);
    }
    rest.0 = &rest.0[MAGIC.len()..];
    let body = whole(rest)?;
    let header = rkyv::from_bytes::<Header, RkyvError>(body).map_err(|_| BadSegment::Foreign)?;
    if header.version != env!("CARGO_PKG_VERSION") {
        return Err(BadSegment::Version(header.version));
    }
    Ok(header)
}

/// A frame that has to be there.
pub(crate) fn whole<'a>(rest: &mut Reader<'a>) -> Result<&'a [u8], BadSegment> {
    frame::next(rest).unwrap_or(Err(Cut::Torn)).map_err(BadSegment::Cut)
}
