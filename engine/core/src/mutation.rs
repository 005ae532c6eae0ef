//! Deliberately broken variants of the core, so that the simulator can prove that it finds such bugs. Compiled only with the
//! feature `mutations`, which no shipped program has; at most one is active, on the thread that set it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! mutations {
    ($($(#[doc = $text:literal])* $variant:ident = $name:literal,)*) => {
        /// What is broken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[doc = $text])* $variant,)*
        }

        impl Mutation {
            /// All of them.
            pub const ALL: &'static [Mutation] = &[$(Mutation::$variant),*];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Mutation::$variant => $name,)*
                }
            }
        }
    };
}

mutations! {
    /// A write is completed before its peers have acknowledged it.
    AckEarly = "ack-early",
    /// What a lost peer misses is not marked.
    SkipBitmap = "skip-bitmap",
    /// Writes do not wait for the activity log.
    SkipActivityLog = "skip-activity-log",
    /// A barrier is acknowledged without a flush.
    BarrierAckBeforeFlush = "barrier-ack-before-flush",
    /// A flush of the front end leaves the local disk out.
    SkipLocalFlush = "skip-local-flush",
    /// Writes of a peer do not wait for its earlier epochs.
    SkipEpochWait = "skip-epoch-wait",
    /// No new generation begins when a replica is lost.
    KeepUuid = "keep-uuid",
    /// The older replica becomes the source.
    StaleSource = "stale-source",
    /// Replicas that need a resync are taken for equal, and their bits are cleared.
    SkipResync = "skip-resync",
    /// A handshake clears bits at equal UUIDs.
    ClearBitsOnHandshake = "clear-bits-on-handshake",
    /// What bits would mend is called a split brain.
    FalseSplitBrain = "false-split-brain",
    /// A Primary does not keep others from becoming Primary.
    TwoPrimaries = "two-primaries",
    /// The initiator of a transaction takes every vote for a yes.
    IgnoreVotes = "ignore-votes",
    /// An aborted transaction is applied.
    CommitAfterAbort = "commit-after-abort",
    /// Peers are not told what became of the local disk.
    SkipPeerStates = "skip-peer-states",
    /// A peer ack is taken to name every node.
    PeerAckNamesAll = "peer-ack-names-all",
    /// Reads are served from data that is not UpToDate.
    ReadStaleData = "read-stale-data",
    /// The buffers of peers' requests are not given back.
    LeakBuffers = "leak-buffers",
    /// References on activity log extents are not dropped.
    LeakActivityLog = "leak-activity-log",
    /// A verify compares blocks that are written to meanwhile.
    VerifyIgnoresWrites = "verify-ignores-writes",
    /// Changes of state are not announced.
    SkipEvents = "skip-events",
    /// A request is answered twice.
    CompleteTwice = "complete-twice",
    /// A barrier ack counts a write too many.
    WrongBarrierAck = "wrong-barrier-ack",
    /// A change of role is not answered when it is stable.
    ForgetReplies = "forget-replies",
    /// A disk that comes up does not say so.
    SkipAttaching = "skip-attaching",
    /// A node that agreed to a transaction waits for its outcome for good.
    StayPrepared = "stay-prepared",
    /// A Primary goes on without quorum, and others are promoted without.
    IgnoreQuorum = "ignore-quorum",
    /// The core has randomness of its own.
    OwnRandomness = "own-randomness",
}

thread_local! {
    static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Breaks the cores of this thread, or mends them.
pub fn set(mutation: Option<Mutation>) {
    ACTIVE.set(mutation);
}

pub(crate) fn is(mutation: Mutation) -> bool {
    ACTIVE.get() == Some(mutation)
}

/// A number that no seed decides.
pub(crate) fn noise() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(2, Ordering::Relaxed)
}
