//! Data generation UUIDs: what they are, how two nodes compare them, what follows, and how they change.
//!
//! Everything here is a pure function of what both nodes have sent each other, so both come to mirrored results:
//! * [`compare`]: the rule table (reference handshake-and-states.md section 5.3, agreed version 118 and above; section 5.2 below 110);
//! * [`decide`]: from the strategy to source, target, no resync or disconnect (section 5.4);
//! * [`AfterSplitBrain`]: the policies for a split brain (section 5.5);
//! * [`keep_bits`]: Zea's own last word, that no set bit of usable data is ever ignored between two Zea nodes;
//! * [`Uuids`]: the node's own UUIDs and their rotation (sections 4.1, 5.7) and bookkeeping (section 5.6).
//!
//! Where Zea is stricter than the kernel it says so; all of it only ever keeps bits, or refuses a connection that
//! the kernel would make. All comparisons ignore bit 0 of a UUID (set while the generating node is Primary).

mod after_sb;
mod bookkeeping;
mod compare;
mod decide;
mod keep_bits;
mod rotate;
mod rotate84;
mod table84;
mod view;

pub use after_sb::AfterSplitBrain;
pub use bookkeeping::{BitmapAction, Bookkeeping, BookkeepingContext, MissedEnd};
pub use compare::{Context, Rule, Strategy, compare};
pub use decide::{BitmapPrep, Decision, Outcome, Reason, Side, decide};
pub use keep_bits::keep_bits;
pub use rotate::{NewDatagen, NodeSlot, RotateContext, Uuids};
pub use view::UuidView;

/// Node ids 0..=31.
pub const NODES: usize = 32;
/// UUID of data that was never written.
pub const JUST_CREATED: u64 = 4;
/// Bitmap UUID of a node that the sender says nothing about.
pub const NO_INFORMATION: u64 = u64::MAX;

/// 8.4: a sync UUID is the source's bitmap UUID plus this.
const SYNC_UUID_OFFSET: u64 = 1 << 48;
/// The first protocol version of DRBD 9: several peers, a bitmap UUID for each.
const FIRST_OF_9: u32 = 110;

/// Bit 0: the generating node is Primary.
const PRIMARY: u64 = 1;

/// The same known generation? 0 and "no information" are none.
fn same(a: u64, b: u64) -> bool {
    is_generation(a) && is_generation(b) && (a ^ b) & !PRIMARY == 0
}

/// Names a generation at all?
fn is_generation(uuid: u64) -> bool {
    uuid & !PRIMARY != 0 && uuid != NO_INFORMATION
}

/// "In sync with that node": the sender needs no bits for it.
fn is_zero(uuid: u64) -> bool {
    uuid & !PRIMARY == 0
}

#[cfg(test)]
mod tests;
