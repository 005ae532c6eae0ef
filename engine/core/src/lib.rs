//! `zea-core`: the DRBD state machine of one resource, without IO.
//!
//! **Purpose.** Everything that decides: the connect handshake and its two-phase commit, generation UUIDs, the write path with
//! epochs and barriers, the activity log, resync, role changes, crash recovery, split-brain detection. One event in, a bounded
//! list of actions out: [`Resource::handle`]. It speaks protocol 118 to 124, and with a single peer 100 and 101 (DRBD 8.4), also 86 to 99 where
//! it is told to.
//!
//! **Owner thread.** The shard that the resource belongs to; in tests the simulator. Nothing here locks, sleeps or reads a clock.
//!
//! **Invariants.**
//! * A write is acknowledged only after every part that its protocol promises, and after losing a replica only under a UUID
//!   which that replica does not have.
//! * A block that may differ from a peer's has its bit set, or lies in an active activity log extent.
//! * A handshake never clears, ignores or overwrites set bits of an UpToDate side without a resync of those blocks.
//! * Meta data is written in the order in which it must become true ([`meta_queue`]).
//!
//! **Implements** `reference/drbd/handshake-and-states.md` and `wire-protocol.md` 8 to 11; design.md section 2. What is different
//! below version 110 is in `dialect` and `uuid::table84`.

/// Whether this run is broken on purpose, see [`mutation`]; without the feature never.
#[cfg(feature = "mutations")]
macro_rules! broken {
    ($($mutation:ident)|+) => {
        ($($crate::mutation::is($crate::mutation::Mutation::$mutation))||+)
    };
}
#[cfg(not(feature = "mutations"))]
macro_rules! broken {
    ($($mutation:ident)|+) => {
        false
    };
}

pub mod activity_log;
mod admin;
mod al_encode;
mod attach;
pub mod bitmap;
mod compare_here;
pub mod config;
mod connect;
mod connection;
mod csums;
mod dialect;
mod dispatch;
mod epoch;
pub mod event;
mod flush;
mod full_sync;
mod generation;
mod handshake;
mod in_sync;
pub mod interval;
pub mod io;
mod late_bits;
mod later;
pub mod limits;
mod lost_writes;
mod meta_queue;
#[cfg(feature = "mutations")]
pub mod mutation;
mod pause;
mod peer_ack;
mod peer_epoch;
mod peer_read;
mod peer_request;
mod quorum;
mod read;
mod request;
mod resize;
mod resource;
mod resync;
mod resync_after;
mod resync_rate;
mod resync_source;
mod served;
mod settings;
mod skip_sync;
mod snapshot;
mod stable;
mod status;
mod table;
mod throttle;
mod twopc;
pub mod uuid;
mod verify;
mod volume;
mod waiters;

pub use resource::Resource;
pub use snapshot::{SnapshotError, TooLarge};
