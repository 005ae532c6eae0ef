//! The runtime of the cores: a shard is one thread with one io_uring that drives the resources it was given, with their
//! disks, their links to peers, and their front ends.
//!
//! **Purpose.** Turns completions into inputs of a core, and a core's actions into operations of the ring. One turn: reap
//! completions, feed the cores, start what they ask for, one system call that submits and waits until the next
//! deadline. In the steady state a request costs no allocation, no lock and no change of thread.
//!
//! **Owner thread.** Everything but [`ShardHandle`], [`ExportDirectory`] and [`EventStream`] belongs to the shard's own
//! thread. Other threads send messages through a bounded mailbox and wait for answers.
//!
//! **Invariants.**
//! * A resource lives on one shard for good; its core sees one input at a time, and each input's actions are carried
//!   out, in order, before the next one.
//! * At most one send and one receive of a socket are in the ring; socket order is the order of the core's actions.
//! * Memory that the kernel was given stays where it is until the completion: the ring is dropped first and waits.
//! * A peer's new link is announced when nothing of the old one is left in the ring.
//! * Everything is bounded: see [`limits`]. Out of buffers, receiving stops and the peer feels it.
//!
//! **Reference.** `design.md` 2 and 3, `design-notes.md` B3 and B4, `performance.md` D3.

#![deny(missing_docs)]

pub mod disk;
pub mod limits;
pub mod pool;
pub mod ring;

mod clock;
mod events;
mod frontend;
mod handle;
mod link;
mod mailbox;
mod metrics;
mod shard;
mod stream;
mod token;

use std::sync::atomic::{AtomicU32, Ordering};

use zea_wire::ids::NodeId;

pub use disk::{BackingPaths, Disk, DiskFile, Fault, FaultKind, OpenError};
pub use events::{EventStream, ResourceEvent, ShardGone};
pub use frontend::{ExportDirectory, ExportError};
pub use handle::{AdminResult, Pending, ResourceStatus, ShardError, ShardHandle};
pub use link::LinkSockets;
pub use metrics::Metrics;
pub use shard::{Shard, ShardConfig, SpawnError};

/// A resource's number in this process; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(pub u32);

impl ResourceId {
    /// A number that no resource of this process had.
    pub fn next() -> ResourceId {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ResourceId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Makes links for the shards: the connector thread's side. Called on shard threads: must not block.
pub trait LinkMaker: Send + Sync {
    /// Bring up a link to this peer and hand its sockets to [`ShardHandle::new_link`]; keep trying until then, or until
    /// `disconnect`.
    fn connect(&self, resource: ResourceId, peer: NodeId);

    /// Stop trying. Sockets that were handed over are the shard's to close.
    fn disconnect(&self, resource: ResourceId, peer: NodeId);
}

/// The shard, of `shards`, that a resource belongs to: the same in every run of the same configuration.
///
/// # Panics
/// Where `shards` is 0.
pub fn shard_for(resource_name: &str, shards: usize) -> usize {
    assert!(shards > 0, "a node has shards");
    // FNV-1a.
    let hash = resource_name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash % shards as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_for_is_stable_and_spreads() {
        assert_eq!(shard_for("r0", 1), 0);
        let mut counts = [0; 4];
        (0..1000).for_each(|i| counts[shard_for(&format!("pvc-{i}"), 4)] += 1);
        assert!(counts.iter().all(|&n| n > 150), "{counts:?}");
        assert_eq!(shard_for("pvc-1", 4), shard_for("pvc-1", 4));
    }
}
