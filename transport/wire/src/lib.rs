//! The DRBD wire protocol: packets, headers, negotiation, framing, the bitmap code, authentication.
//!
//! **Purpose.** Turns bytes of the two streams of a connection into typed packets and back, for the
//! protocol versions 86..=101 (DRBD 8.4) and 118..=124 (DRBD 9).
//!
//! **Owner thread.** None: everything here is a pure function or a plain value. The shard that owns a
//! connection calls it from its own thread.
//!
//! **Invariants.**
//! * No I/O, no clock, no randomness, no threads, no hash maps.
//! * Bytes of a peer never panic: each refusal is a named error that drops the connection.
//! * What was decoded encodes to the same bytes again (ids and numbers that are *opaque* to the
//!   receiver are kept bit exact; undefined padding is the one exception, see the structs).
//! * Bulk payload never enters: packets that carry data announce its length, the caller moves it.
//! * Encoding a packet that the negotiated version does not know is a bug of the caller and panics.
//!
//! **Reference.** `wire-protocol.md` (all), `handshake-and-states.md` sections 1, 2.1, 2.2, 6.1, 6.2.
//! Deviations that recordings of the kernel proved are in `docs/reference/protocol-corrections.md`.
#![deny(missing_docs)]

mod bytes;
#[macro_use]
mod macros;

pub mod auth;
pub mod bitmap;
pub mod digest;
pub mod features;
pub mod flags;
pub mod framer;
pub mod fuzz;
pub mod header;
pub mod ids;
pub mod packet;
pub mod state;
pub mod vli;

pub use features::{ConnectionFeatures, Features, NegotiateError, Negotiated, negotiate};
pub use framer::{Framer, Progress};
pub use header::{Header, HeaderError, HeaderFormat};
pub use ids::{BlockId, NodeId, NodeMask, VolumeNr};
pub use packet::{DecodeError, Packet, Scope, Stream};
