//! The TCP connector: makes the two sockets of each connection and hands them over.
//!
//! **Purpose.** A connection between two nodes of a resource is a pair of TCP streams, data and control. Both
//! nodes listen and both connect; this crate sorts out which sockets form the pair, waits until the pair is
//! stable, and gives the two file descriptors away. It never reads or writes a byte behind the initial packet.
//!
//! **Owner thread.** One thread per daemon, started by [`Connector::spawn`], owns every socket until it is
//! handed over. The shard that owns the connection owns the sockets from then on. [`Connector`] itself may be
//! used from any thread; its methods never block on the network.
//!
//! **Invariants.**
//! * A pair is handed over at most once per [`Connector::connect`]; after that nothing happens for the key until
//!   `connect` is called again, and incoming sockets of the key are closed.
//! * Of the two nodes that share a pair exactly one has `resolve_conflicts`: the one that accepted the control
//!   socket.
//! * The decisions are in `establish`, which knows no socket, no clock and no randomness of its own.
//! * Bytes and addresses of strangers never panic; the number of peers, of sockets that have not introduced
//!   themselves and of queued commands is bounded (see [`limits`]).
//!
//! **Reference.** `wire-protocol.md` sections 2 and 3.
#![deny(missing_docs)]

mod address;
mod connector;
mod establish;
mod initial;
pub mod limits;
mod listener;
mod pending;
mod poller;
mod reactor;
mod socket;

pub use address::{PathConfig, PathError, PathOptions};
pub use connector::{AttemptError, Connector, ConnectorConfig, ConnectorError, Event, InitialError, PeerKey};
