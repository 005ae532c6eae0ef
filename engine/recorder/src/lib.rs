//! The flight recorder: what a resource's core was told, on disk, so that it can be told again.
//!
//! **Purpose.** The core is deterministic: its state follows from its inputs, their times and the random numbers that it drew.
//! A [`Recorder`] writes these down, a [`Writer`] brings them into a ring of files of bounded size, and [`replay`] gives them to
//! a core again. Each file (a segment) begins with a snapshot of the core, so that the oldest ones can go.
//!
//! **Owner threads.** A [`Recording`] belongs to the shard that feeds the core. Files are touched by the writer's own thread
//! only: the shard never waits for them, and drops what the writer does not take in time.
//!
//! **Invariants.**
//! * An input is written down before the core sees it, so that one which makes the core panic is in the recording.
//! * Payload is never written down, only its place in the pool.
//! * In the steady state an input costs no allocation, no system call and no lock.
//! * Whatever lies in a file is read without a panic: every entry has a checksum, and what is torn is cut off. A core that is
//!   replayed may panic as the recorded one did; that is caught and told.
//!
//! **Reference.** `docs/adr`: the flight recorder; `docs/reference/flight-recorder.md` has the format.

#![deny(missing_docs)]

mod bytes;
mod entry;
mod frame;
pub mod limits;
mod links;
mod read;
mod record;
mod replay;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

pub use read::{ReadError, Recorded};
pub use record::{Chunk, Recorder};
pub use replay::{Begin, Ending, Moment, Step, replay};
pub use segment::{Cause, Header};
pub use writer::{Outlet, Recording, RingOptions, Writer, WriterError};
