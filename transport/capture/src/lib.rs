//! Recordings of the network: from a pcap file to the DRBD packets of each connection.
//!
//! **Purpose.** Reads pcap and pcapng files, puts the TCP streams in them together and follows the DRBD conversations
//! on these: which stream is which, what was agreed, which packets were sent when by whom, and what their fields say.
//! Used by `zea dissect` and by tests. Nothing that serves data depends on it.
//!
//! **Owner thread.** None: plain values and one reader.
//!
//! **Invariants.**
//! * What is in a file never panics: it is a named error, or a packet that cannot be decoded.
//! * Each byte of a stream ends in a packet or is counted as missing or left over: [`Summary`].
//! * What the reader holds is bounded by [`limits`] for each direction of a connection.
//!
//! **Reference.** `wire-protocol.md` sections 2 to 4 (streams, headers, negotiation).
#![deny(missing_docs)]

use std::path::Path;

mod conversation;
mod fields;
mod file;
mod frame;
pub mod limits;
mod stream;

pub use conversation::{Conversation, Event, Recorded, Summary, Undecodable};
pub use fields::{Field, Value, fields};
pub use file::{CaptureError, Frame, Frames, Link};
pub use stream::{Close, Place, Segment, Streams};

/// Calls `each` with everything that happens in a recording, packets in the order in which they became complete; a packet
/// that the end of its connection cut off comes last.
///
/// If the file cannot be read to its end, `each` and the summary have what is before.
pub fn read(path: &Path, mut each: impl FnMut(Place, Event<'_>)) -> (Summary, Result<(), CaptureError>) {
    let mut streams = Streams::default();
    let mut conversation = Conversation::default();
    let result = Frames::open(path).and_then(|mut frames| {
        frames.try_for_each(|frame| {
            if let Some(segment) = streams.take(&frame?) {
                conversation.take(segment, &mut each);
            }
            Ok(())
        })
    });
    let mut summary = conversation.finish(&mut each);
    summary.add_streams(&streams);
    (summary, result)
}
