//! The node daemon `zead`: control API, saved configuration, start and stop of resources.
//!
//! **Purpose.** One process per node. It keeps a resource file for every resource, creates meta data, brings resources
//! up on a shard, saves what the administrator wanted, and answers `zea` over a Unix socket.
//!
//! **Owner threads.** The control plane runs on plain threads: one that accepts, one per client (at most
//! [`control::server::MAX_CLIENTS`]). They meet the data path in [`engine_handle`] only, through bounded mailboxes.
//!
//! **Invariants.**
//! * A state directory belongs to one node id and to one running daemon (a file lock).
//! * A saved file is whole: it is written beside its place, synced, renamed, and the directory synced.
//! * Nothing that a client sends can end the daemon: every request is bounded and parsed into [`api::Request`], and the
//!   answer to what is wrong is an error line.
//! * The daemon never promotes by itself, but to go on with block devices that an earlier one left when it was killed.
//!
//! **Reference.** Status and events follow `tooling-contract.md` sections 7 and 8; the refusals carry the codes of
//! `handshake-and-states.md` section 2.3.

#![deny(missing_docs)]

pub mod api;
pub mod config;
pub mod control;
pub mod daemon;
pub mod engine_handle;
#[cfg(any(test, feature = "fake-engine"))]
pub mod fake;
pub mod hub;
pub mod meta_device;
pub mod node;
pub mod store;

pub use engine_handle::recorded_status;
